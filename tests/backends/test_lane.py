"""Lanes: child processes that run a backend."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from resdeploy import scratch, store
from resdeploy.backends import worker
from resdeploy.backends.lane import Lane
from resdeploy.errors import (
    BackendCrash,
    DiskFull,
    EnvironmentFailure,
    IntegrityError,
    NotWritable,
    OutOfMemory,
    UsageError,
)
from resdeploy.records import Artifact, Execution

HANGS_S = 300  # only what hangs takes as long, on whatever machine


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lanes put their folders under tmp_path, where the test sees them; none may stay."""
    base = tmp_path / "lanes"
    base.mkdir()
    monkeypatch.setattr(scratch, "MEMORY", base)
    monkeypatch.setattr(scratch, "MEMORY_FREE_BYTES", 0)
    yield
    assert list(base.iterdir()) == []
    assert list(tmp_path.glob(".*")) == []


def test_null_backend_builds_opens_times_and_predicts(tiny: Artifact, tmp_path: Path, images: np.ndarray) -> None:
    """Every operation works, a block has one positive entry per query, and classes follow the images' content."""
    with Lane("null") as lane:
        built = lane.build(tiny, Execution(), tmp_path / "built.onnx")
        assert (built.path, built.parent, built.sha256) == (str(tmp_path / "built.onnx"), tiny.sha256, tiny.sha256)
        opened = lane.open(built, Execution(batch_size=2))
        assert opened.inputs["input"].shape == (2, 3, 32, 32)
        block = lane.block(37, warmup=5)
        assert len(block.put_s) == len(block.run_s) == len(block.get_s) == 37
        assert min(*block.put_s, *block.run_s, *block.get_s) > 0
        assert block.wall_s >= sum(block.put_s) + sum(block.run_s) + sum(block.get_s)
        assert block.device_s == ()
        logits = lane.predict(images)
        assert logits.shape == (5, 10)
        assert np.array_equal(lane.predict(images[::-1]), logits[::-1])
        assert lane.peak_rss_bytes() > 10 << 20
        assert [layer.name for layer in lane.layers()] == ["null"]


def test_a_vendor_is_handed_one_file(tiny: Artifact, tmp_path: Path) -> None:
    """The null backend's copy holds what lay in two files, the record names the source, and nothing else stays."""
    whole, path = onnx.load(tiny.path), tmp_path / "apart.onnx"
    onnx.save(whole, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    source = dataclasses.replace(tiny, path=str(path), sha256=store.digest(path))
    with Lane("null") as lane:
        built = lane.build(source, Execution(), tmp_path / "built.onnx")
    assert (built.parent, built.sha256) == (source.sha256, store.digest(tmp_path / "built.onnx"))
    assert onnx.load(built.path, load_external_data=False).graph.initializer == onnx.load(tiny.path).graph.initializer
    assert {p.name for p in tmp_path.iterdir()} == {"tiny.onnx", "apart.onnx", "w.bin", "built.onnx", "lanes"}


def test_data_that_changed_since_the_record_are_not_built(tiny: Artifact, tmp_path: Path) -> None:
    """Nothing is put into a cache under another model's name; no child is started."""
    path = tmp_path / "apart.onnx"
    onnx.save(onnx.load(tiny.path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    source = dataclasses.replace(tiny, path=str(path), sha256=store.digest(path))
    data = bytearray((tmp_path / "w.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "w.bin").write_bytes(data)
    with Lane("null") as lane, pytest.raises(IntegrityError, match="changed while it was being read"):
        lane.build(source, Execution(), tmp_path / "built.onnx")
    assert not (tmp_path / "built.onnx").exists()


def test_run_takes_the_known_time(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """The null backend's sleep is found in run_s and nowhere else; `seconds` is a lower bound of the block."""
    monkeypatch.setenv("RESDEPLOY_NULL_SLEEP_S", "0.01")
    with Lane("null") as lane:
        lane.open(tiny, Execution())
        block = lane.block(seconds=0.2)
    assert min(block.run_s) >= 0.01
    assert np.median(block.put_s) < 0.01
    assert block.wall_s >= 0.2


def test_streams_share_the_queries(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """With four streams queries overlap: the block ends before the sum of its runs does."""
    monkeypatch.setenv("RESDEPLOY_NULL_SLEEP_S", "0.02")
    with Lane("null") as lane:
        lane.open(tiny, Execution(streams=4))
        block = lane.block(40, warmup=2)
    assert len(block.run_s) == 40
    assert block.wall_s < sum(block.run_s)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("crash", "SIGSEGV"),
        ("abort", "SIGABRT"),
        ("kill", "SIGKILL"),
        ("raise", "RESDEPLOY_NULL_FAULT"),
        ("build:crash", "in build"),
    ],
)
def test_death_of_the_child_is_a_crash_that_names_its_input(
    fault: str, words: str, tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has exit status 7, the signal, the backend and the input's hash, and no file is left."""
    monkeypatch.setenv("RESDEPLOY_NULL_FAULT", fault)
    with Lane("null") as lane:
        act: Callable[..., Any] = (
            lane.open if ":" not in fault else lambda what, how: lane.build(what, how, tmp_path / "built.onnx")
        )
        with pytest.raises(BackendCrash) as caught:
            act(tiny, Execution())
    assert caught.value.exit_status == 7
    for part in (words, "null", tiny.sha256):
        assert part in str(caught.value)
    assert not (tmp_path / "built.onnx").exists()


def test_lane_can_be_opened_again_after_a_crash(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash ends the child, not the lane."""
    with Lane("null") as lane:
        monkeypatch.setenv("RESDEPLOY_NULL_FAULT", "crash")
        with pytest.raises(BackendCrash):
            lane.open(tiny, Execution())
        monkeypatch.delenv("RESDEPLOY_NULL_FAULT")
        lane.open(tiny, Execution())
        assert len(lane.block(3).run_s) == 3


def test_hang_is_killed_after_the_timeout(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that does not answer is killed and reported as a crash."""
    monkeypatch.setenv("RESDEPLOY_NULL_FAULT", "hang")
    with Lane("null", timeout_s=2) as lane, pytest.raises(BackendCrash, match="did not answer within 2 s"):
        lane.open(tiny, Execution())


def test_failed_allocation_is_out_of_memory(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 6, with the peak."""
    monkeypatch.setenv("RESDEPLOY_NULL_FAULT", "oom")
    with Lane("null") as lane, pytest.raises(OutOfMemory, match="peak") as caught:
        lane.open(tiny, Execution())
    assert caught.value.exit_status == 6


def test_a_lane_that_was_given_a_limit_of_its_address_space_names_it(tiny: Artifact) -> None:
    """A batch that does not fit under `memory_limit_bytes`, which no command sets, is out of memory."""
    with Lane("null", memory_limit_bytes=1 << 30) as lane, pytest.raises(OutOfMemory, match="limit 1024 MiB"):
        lane.open(tiny, Execution(batch_size=200_000))


@pytest.mark.parametrize("name", ["inputs.npy", "output0.npy"])
def test_a_full_disk_on_the_way_to_the_child_or_back_is_no_crash(name: str, tiny: Artifact, images: np.ndarray) -> None:
    """Exit status 6 with what helps there; the file that fills up is /dev/full. The lane goes on."""
    with Lane("null") as lane:
        lane.open(tiny, Execution(batch_size=2))
        assert lane._child
        full = lane._child.folder / name
        full.symlink_to("/dev/full")
        with pytest.raises(DiskFull, match="MB are free") as caught:
            lane.predict(images)
        assert caught.value.exit_status == 6
        assert "TMPDIR" in caught.value.fix or "--shm-size" in caught.value.fix
        full.unlink(missing_ok=True)
        assert lane.predict(images).shape == (5, 10)


def test_a_vendor_that_finds_no_space_left_is_no_crash() -> None:
    """Whatever class it raises: exit status 6, its words, and where it may write instead."""
    for error in (
        OSError(28, "No space left on device", "/x/engine"),
        RuntimeError("write: No space left on device"),
        RuntimeError("basic_ios::clear: iostream error"),  # OpenVINO's save_model, seen on a full file system
    ):
        told = worker.failure(error, "build in null")
        assert told["class"] == "DiskFull"
        assert str(error.args[-1] if isinstance(error, RuntimeError) else error.strerror) in told["cause"]
        assert "-o" in told["fix"]
        assert "TMPDIR" in told["fix"]


def test_kill_with_evidence_of_the_kernel_is_out_of_memory(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL counts as out of memory only where the kernel's counter rose meanwhile."""
    monkeypatch.setenv("RESDEPLOY_NULL_FAULT", "kill")
    counts = iter([4, 5])
    monkeypatch.setattr("resdeploy.backends.machine.oom_kills", lambda: next(counts))
    with Lane("null") as lane, pytest.raises(OutOfMemory, match="killed by the kernel"):
        lane.open(tiny, Execution())


def test_child_killed_between_operations_is_reported(tiny: Artifact) -> None:
    """Somebody's kill of an idle child surfaces with the next operation, as a crash."""
    with Lane("null") as lane:
        lane.open(tiny, Execution())
        assert lane._child
        os.kill(lane._child.process.pid, signal.SIGKILL)
        with pytest.raises(BackendCrash, match="SIGKILL"):
            lane.block(1)


def test_a_started_child_is_the_one_that_opens(tiny: Artifact) -> None:
    """For the file and the settings that it was started for; for others a new one is, and a dead one is told of."""
    with Lane("null") as lane:
        for execution, same in ((Execution(), True), (Execution(batch_size=2), False)):
            lane.start(tiny, Execution())
            assert lane._child
            started = lane._child.process.pid
            assert lane.open(tiny, execution).inputs["input"].shape[0] == execution.batch_size
            assert (lane._child.process.pid == started) is same
        lane.start(tiny, Execution())
        assert lane._child
        os.kill(lane._child.process.pid, signal.SIGKILL)
        with pytest.raises(BackendCrash, match="SIGKILL"):
            lane.open(tiny, Execution())


def test_inputs_of_another_size_are_refused_and_the_lane_lives(tiny: Artifact, images: np.ndarray) -> None:
    """A UsageError from the child arrives as itself; the child goes on."""
    with Lane("null") as lane:
        lane.open(tiny, Execution(batch_size=2))
        with pytest.raises(UsageError, match=r"\[3, 32, 32\]"):
            lane.predict(images[:, :, :16, :16])
        with pytest.raises(UsageError):
            lane.predict(images[:0])
        assert lane.predict(images).shape == (5, 10)


def test_unwritable_place_is_named_and_nothing_runs(tiny: Artifact, tmp_path: Path) -> None:
    """A path below a file cannot be written: exit status 6."""
    with Lane("null") as lane, pytest.raises(NotWritable):
        lane.build(tiny, Execution(), Path(tiny.path) / "built.onnx")


def test_missing_interpreter_is_an_environment_failure(tiny: Artifact, tmp_path: Path) -> None:
    """A wrong path is told with what the system says of it."""
    with Lane("null", python=tmp_path / "nopython") as lane, pytest.raises(EnvironmentFailure, match="No such file"):
        lane.open(tiny, Execution())


def test_worker_under_another_interpreter_sees_our_package_alone(tiny: Artifact, tmp_path: Path) -> None:
    """A bare interpreter with numpy runs a lane, though our package is not installed there."""
    wrapper = tmp_path / "python"
    site = Path(np.__file__).parents[1]
    numpy_only = tmp_path / "site"
    numpy_only.mkdir()
    for part in site.glob("numpy*"):
        (numpy_only / part.name).symlink_to(part)
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{numpy_only}" exec {sys.executable} -S "$@"\n')
    wrapper.chmod(0o755)
    with Lane("null", python=wrapper) as lane:
        lane.open(tiny, Execution())
        assert len(lane.block(2).run_s) == 2
    with Lane("onnxruntime", python=wrapper) as lane:
        lane.start(tiny, Execution())  # waits for nothing, so it fails for nothing that the child finds
        with pytest.raises(EnvironmentFailure, match="not installed"):
            lane.open(tiny, Execution())


SCRIPT = """
import sys
from resdeploy.backends.lane import Lane
from resdeploy import scratch
from resdeploy.records import Artifact, Execution, ModelSpec
from pathlib import Path
scratch.MEMORY, scratch.MEMORY_FREE_BYTES = Path(sys.argv[1]), 0
spec = ModelSpec(name="n", family="n", classes=10, input_shape=(3, 32, 32))
artifact = Artifact(path=sys.argv[2], format="onnx", precision="fp32", sha256="0", model=spec)
with Lane("null") as opened:
    opened.open(artifact, Execution())
    print(opened._child.process.pid, flush=True)
    opened.block(seconds=SECONDS)
""".replace("SECONDS", str(4 * HANGS_S))  # longer than anybody waits for its end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signal_to_the_parent_ends_the_child(number: signal.Signals, tiny: Artifact, tmp_path: Path) -> None:
    """No child survives its parent; after SIGINT its folder is gone too, after SIGKILL the next lane sweeps it."""
    base = tmp_path / "lanes"
    command = [sys.executable, "-c", SCRIPT, str(base), tiny.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        os.kill(parent.pid, number)
        parent.wait(HANGS_S)
    deadline = time.monotonic() + HANGS_S
    while _runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGINT:
        assert list(base.iterdir()) == []
    else:
        (left,) = base.iterdir()
        with Lane("null") as lane:
            lane.open(tiny, Execution())
            assert not left.exists()


def test_signal_that_interrupts_no_system_call_is_heard(tiny: Artifact, tmp_path: Path) -> None:
    """One that comes just before the wait for the child ends it too: `interrupt_main` leaves system calls alone."""
    lost = "import _thread, threading; threading.Timer(0.5, _thread.interrupt_main).start()"
    script = SCRIPT.replace("    opened.block(", f"    {lost}\n    opened.block(")
    command = [sys.executable, "-c", script, str(tmp_path / "lanes"), tiny.path]
    ended = subprocess.run(command, capture_output=True, timeout=HANGS_S, text=True, check=False)
    assert ended.stderr.endswith("KeyboardInterrupt\n")
    assert not _runs(int(ended.stdout))


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_module_in_the_current_folder_is_not_the_childs(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a stranger's numpy.py, json.py or resdeploy lie, the child runs its own."""
    for name in ("numpy", "json", "resdeploy"):
        (tmp_path / f"{name}.py").write_text("import pathlib\npathlib.Path('canary').touch()\n")
    monkeypatch.chdir(tmp_path)
    with Lane("null") as lane:
        assert lane.open(tiny, Execution()).outputs
    assert not (tmp_path / "canary").exists()


def test_worker_imports_no_vendor() -> None:
    """The worker module brings numpy and nothing heavy."""
    code = (
        "import sys, resdeploy.backends.worker;"
        "print([m for m in sys.modules if m.split('.')[0] in"
        " {'torch','onnx','onnxruntime','openvino','tensorrt','pydantic','scipy','typer','rich'}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_peak_memory_is_the_childs_own(tiny: Artifact) -> None:
    """A child that holds 49 MB three times reports at least two of them more."""
    peaks = []
    for batch in (1, 4_000):  # 4,000 images of 12 KiB: 49 MB, held by the session and twice by the feeds
        with Lane("null") as lane:
            lane.open(tiny, Execution(batch_size=batch))
            peaks.append(lane.peak_rss_bytes())
    assert peaks[1] - peaks[0] > 2 * 49e6
