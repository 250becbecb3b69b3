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


def cut(path, *outcomes):
    """Keeps these, and ends as Ctrl-C does."""
    with contextlib.suppress(KeyboardInterrupt), journal.keeping(path) as keep:
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
    with journal.keeping(path) as keep:
        keep(grown(0), 0, 0)
    assert not path.exists()


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


def test_blocks_timed_before_kill_9_are_shown_by_a_later_command(tmp_path):
    """`resdeploy bench` killed without warning; `resdeploy show` has its blocks, as raw times, in every form."""
    onnx = pytest.importorskip("onnx")
    mean = onnx.helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    ends = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("x", (1, 3, 8, 8)), ("y", (1, 3)))]
    graph = onnx.helper.make_graph([mean], "g", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "m.onnx")
    environment = {**os.environ, "RESDEPLOY_CACHE": str(tmp_path / "cache"), "RESDEPLOY_NULL_SLEEP_S": "0.01"}
    base = [sys.executable, "-m", "resdeploy"]
    command = [*base, "bench", "m.onnx", "--backend", "null", "--duration", "60", "--img-size", "8"]
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    path = tmp_path / "cache/bench.journal"
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text().count('"block"') >= 2):
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    shown = subprocess.run([*base, "show", "--format", "json"], env=environment, capture_output=True, check=True)
    document = json.loads(shown.stdout)
    assert document["cut_short"]
    assert "cut short, with" in document["notes"][0]
    (row,) = document["results"]
    assert len(row["block_sizes"]) >= 2
    assert min(row["samples_ms"]) >= 10
    assert not row["valid"]


def test_what_is_no_journal_is_refused(tmp_path):
    """Other JSON, an empty object, a folder."""
    for text in ('{"a": 1}', "{}"):
        (tmp_path / "j").write_text(text)
        with pytest.raises(MalformedInput):
            journal.load(tmp_path / "j")
    with pytest.raises(MissingInput, match="is a folder"):
        journal.load(tmp_path)
