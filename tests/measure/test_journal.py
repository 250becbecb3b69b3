"""What a killed run leaves behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from resdeploy.errors import MalformedInput, MissingInput
from resdeploy.measure import journal
from resdeploy.records import Block, Execution, Failure, Measurement

ROW = Measurement(
    label="a", model="a", backend="null", precision="fp32", batch_size=1, scenario="single-stream", sha256="0",
    execution=Execution(), blocks=(),
)  # fmt: skip
BLOCKS = [Block(put_s=(0.1,), run_s=(0.2 + n,), get_s=(0.3,), started_s=n, wall_s=0.6, cpu_s=0.5) for n in range(3)]
FAILURE = Failure(
    label="b", model="b", backend="null", precision="fp32", batch_size=1,
    error_code="E-BACKEND-CRASH", exit_status=7, message="it died",
)  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path))
    return tmp_path


def cut(path, *outcomes):
    """Keeps these, and ends as Ctrl-C does."""
    with contextlib.suppress(KeyboardInterrupt), journal.open_journal(path) as keep:
        assert keep
        for outcome in outcomes:
            keep(outcome, 0, 0)
        raise KeyboardInterrupt


def grown(count):
    return dataclasses.replace(ROW, blocks=tuple(BLOCKS[:count]))


def test_a_cut_run_is_read_back_as_it_was(tmp_path):
    """Every block and the failure, exactly; the end of a run that went well removes the journal."""
    path = tmp_path / "j"
    cut(path, *map(grown, range(4)), FAILURE)
    outcomes, where = journal.load(path)
    assert outcomes == (FAILURE, grown(3))
    assert where["cpu"]["model"]
    with journal.open_journal(tmp_path / "well") as keep:
        assert keep
        keep(grown(0), 0, 0)
    assert not (tmp_path / "well").exists()


def test_a_torn_last_line_is_passed_over_and_a_torn_middle_is_not(tmp_path):
    """A kill can only leave the last line unfinished; anything else is no journal."""
    path = tmp_path / "j"
    cut(path, *map(grown, range(3)))
    whole = path.read_text()
    path.write_text(whole + '{"block": {"label": "a", "pu')
    assert journal.load(path)[0] == (grown(2),)
    path.write_text(whole.replace('{"block"', "{block", 1))
    with pytest.raises(MalformedInput):
        journal.load(path)
    path.write_text(whole.splitlines()[0] + "\n")
    with pytest.raises(MissingInput, match="before its first block"):
        journal.load(path)


def test_two_runs_at_once_leave_each_other_alone(cache):
    """Each has its own journal: one begins, is cut, or ends well, and the other's blocks stay."""
    with journal.open_journal(journal.of_this_run()) as keep:
        assert keep
        keep(grown(0), 0, 0)
        keep(grown(1), 0, 0)
        (first,) = cache.iterdir()
        with journal.open_journal(journal.of_this_run()) as other:
            assert other
            other(FAILURE, 0, 0)
        assert list(cache.iterdir()) == [first]
        assert journal.latest() == first
        assert journal.goes_on(first)
        cut(journal.of_this_run(), FAILURE)
        keep(grown(2), 0, 0)
        assert journal.load(journal.latest())[0] == (FAILURE,)  # cut short, although the other was written later
        assert not journal.goes_on(journal.latest())
        assert journal.load(first)[0] == (grown(2),)
    assert first not in cache.iterdir()


def test_what_still_goes_on_is_said_to(cache):
    """Not that it was cut short; and what ends well meanwhile is gone."""
    with journal.open_journal(journal.of_this_run()) as keep:
        assert keep
        for outcome in map(grown, range(3)):
            keep(outcome, 0, 0)
        path = journal.latest()
        assert journal.note_unfinished(journal.load(path)[0], going_on=journal.goes_on(path)).startswith(
            "the run still goes on"
        )
    with pytest.raises(MissingInput, match="no journal"):
        journal.latest()


def test_old_journals_do_not_pile_up(cache):
    """The newest few are kept, and every one that a living run holds, however old."""
    with journal.open_journal(journal.of_this_run()):
        (held,) = cache.iterdir()
        os.utime(held, (0, 0))
        paths = [journal.of_this_run() for _ in range(journal.KEPT + 3)]
        for age, path in enumerate(reversed(paths)):
            cut(path, FAILURE)
            os.utime(path, (1e9 - age, 1e9 - age))
        with journal.open_journal(journal.of_this_run()):
            assert set(paths[-journal.KEPT :]) | {held} < set(cache.iterdir())
            assert len(list(cache.iterdir())) == journal.KEPT + 2


@pytest.mark.acceptance
@pytest.mark.slow
def test_blocks_timed_before_kill_9_are_shown_by_a_later_command(tmp_path):
    """Of two runs at once one is killed without warning: `show` has its blocks as raw times, the other goes on."""
    onnx = pytest.importorskip("onnx")
    mean = onnx.helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    ends = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("x", (1, 3, 8, 8)), ("y", (1, 3)))]
    graph = onnx.helper.make_graph([mean], "g", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "m.onnx")
    environment = {**os.environ, "RESDEPLOY_CACHE": str(tmp_path / "cache"), "RESDEPLOY_NULL_SLEEP_S": "0.01"}
    base = [sys.executable, "-m", "resdeploy"]

    def begin(running):
        """A bench that has timed two blocks and stands still from then on, and its journal."""
        command = [*base, "bench", "m.onnx", "--backend", "null", "--duration", "30", "--img-size", "8"]
        run = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        running.callback(run.wait)
        running.callback(run.kill)
        deadline = time.monotonic() + 600
        while True:
            for path in (tmp_path / "cache").glob(f"bench-{run.pid}-*.journal"):
                if path.read_text().count('"block"') >= 2:
                    run.send_signal(signal.SIGSTOP)
                    return run, path
            assert run.stderr
            assert run.poll() is None, run.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def show(*file):
        shown = subprocess.run([*base, "show", *file, "--format", "json"], env=environment, capture_output=True)
        return json.loads(shown.stdout)

    with contextlib.ExitStack() as running:
        first, path = begin(running)
        assert "still goes on, with" in show()["notes"][0]
        _, other = begin(running)
        first.send_signal(signal.SIGKILL)
        first.wait()
        document = show()
        assert document == show(path)
        assert document["cut_short"]
        assert "cut short, with" in document["notes"][0]
        (row,) = document["results"]
        assert len(row["block_sizes"]) >= 2
        assert min(row["samples_ms"]) >= 10
        assert not row["valid"]
        assert "still goes on, with" in show(other)["notes"][0]


def test_what_is_no_journal_is_refused(tmp_path):
    """Other JSON, an empty object, a folder."""
    for text in ('{"a": 1}', "{}"):
        (tmp_path / "j").write_text(text)
        with pytest.raises(MalformedInput):
            journal.load(tmp_path / "j")
    with pytest.raises(MissingInput, match="is a folder"):
        journal.load(tmp_path)


def test_a_run_that_had_measured_goes_before_a_newer_one_that_had_not(cache):
    """One that was ended while it loaded hides nothing; alone it is named all the same, and says why it is empty."""
    cut(empty := cache / "bench-2.journal", grown(0))
    assert journal.latest() == empty
    cut(telling := cache / "bench-1.journal", *map(grown, range(2)))
    os.utime(empty, ns=(2**62, 2**62))
    assert journal.latest() == telling
    os.utime(cache / "bench-1.journal", ns=(1, 1))
    cut(cache / "bench-3.journal", FAILURE)
    assert journal.latest() == cache / "bench-3.journal"  # it tells of a row that could not be built
