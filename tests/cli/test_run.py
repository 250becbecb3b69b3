"""`resdeploy run`: resumable, interruptible, and nothing done twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Commands, Run, Started, left_by

PROFILE = """
name = "tiny"
model = "resnet20"
data = "digits"
epochs = 1
img_size = 16
precisions = ["fp32", "int8"]
backends = ["onnxruntime"]
calib_samples = 20
duration_s = 0.2
max_drop_pp = 50.0
max_size_mb = 5.0
max_memory_mb = 4000.0
audit = false  # a step like the others (tests/run)
"""


def unfinished(folder: Path) -> list[Path]:
    """Temporary files and folders in it."""
    return [path for path in folder.rglob("*") if ".tmp" in path.name or "-tmp-" in path.name]


@pytest.fixture(scope="module")
def interrupted(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which the profile has run after a SIGINT in each step in turn, and these steps.

    Each time: exit 130, no process and no temporary file stays.
    """
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(PROFILE)
    steps: list[str] = []
    while True:
        process = commands.start(["run", "tiny.toml"], folder, dict(os.environ))
        for line in process.stderr:
            step = re.match(r"making +(\S+)", line)
            if step and step[1] not in steps:
                steps.append(step[1])
                process.send_signal(signal.SIGINT)
                break
        else:
            assert process.wait() == 0
            return folder, steps
        rest = process.stderr.read()
        assert process.wait() == 130, rest
        assert "Traceback" not in rest
        assert left_by(process.pid) == []
        assert unfinished(folder) == []


@pytest.fixture
def finished(interrupted: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """The test's folder, in which the profile has run."""
    return Path(shutil.copytree(interrupted[0], tmp_path, dirs_exist_ok=True))


@pytest.mark.acceptance
def test_sigint_in_every_step_leaves_only_finished_files_and_the_run_goes_on(
    interrupted: tuple[Path, list[str]], finished: Path, resdeploy: Run
) -> None:
    """Interrupted in each step in turn, as the fixture looks at; then the run completes, and has nothing to do."""
    steps = interrupted[1]
    assert steps[0] == "model.safetensors"
    assert steps[-1] == "measurements.json"
    assert len(steps) == 8

    again = resdeploy("run", "tiny.toml", "--format", "json")
    assert again.returncode == 0, again.stderr
    assert "making" not in again.stderr
    document = json.loads(again.stdout)
    assert [row["precision"] for row in document["results"]] == ["fp32", "int8"]


def test_a_changed_profile_redoes_only_what_depends_on_the_change(finished: Path, resdeploy: Run) -> None:
    """Other calibration: the training, the export and the FP32 model stay. The page has the verdict."""
    changed = PROFILE.replace("calib_samples = 20", 'calib_samples = 30\ncalib_precision = "fp32"')
    (finished / "tiny.toml").write_text(changed)
    done = resdeploy("run", "tiny.toml", "--report", "page.html")
    assert done.returncode == 0, done.stderr
    assert '<p class="verdict good">Verdict: PASS</p>' in (finished / "page.html").read_text()
    made = set(re.findall(r"making +(\S+)", done.stderr))
    assert made == {
        "model.int8.onnxruntime.onnx",
        "onnxruntime.int8.onnx",
        "onnxruntime.int8.predictions.npz",
        "measurements.json",
    }
    (sidecar,) = finished.rglob("model.int8.onnxruntime.onnx.json")
    calibration = json.loads(sidecar.read_text())["calibration"]
    assert calibration["arithmetic"] == "fp32"
    assert calibration["count"] == 30


@pytest.mark.acceptance
def test_a_profile_prunes_then_quantizes_then_judges_against_the_whole_network(finished: Path, resdeploy: Run) -> None:
    """Five points on training images; the whole INT8 model is gone from the table, and training is not repeated."""
    (finished / "tiny.toml").write_text(PROFILE + "prune_drop_pp = 5.0\n")
    done = resdeploy("run", "tiny.toml", "--format", "json")
    assert done.returncode in (0, 1, 3), done.stderr
    made = re.findall(r"making +(\S+)", done.stderr)
    assert made[0] == "model.pruned.fp32.onnx"
    assert "model.pruned.int8.onnxruntime.onnx" in made
    rows = {row["label"]: row for row in json.loads(done.stdout)["results"]}
    whole, fp32, int8 = rows.values()
    assert list(rows) == [
        f"resnet20{p} onnxruntime {q}" for p, q in (("", "fp32"), (" pruned", "fp32"), (" pruned", "int8"))
    ]
    assert [row["name"] for row in rows.values()] == ["resnet20", "resnet20 pruned", "resnet20 pruned"]
    artifact = json.loads((finished / "runs/tiny/model.pruned.fp32.onnx.json").read_text())
    assert artifact["model"]["removed"]
    assert "of digits" in artifact["notes"][-1]
    assert whole["verdict"] is None
    assert fp32["verdict"]
    assert int8["verdict"]
    assert (
        json.loads((finished / "runs/tiny/model.pruned.int8.onnxruntime.onnx.json").read_text())["parent"]
        == artifact["sha256"]
    )


def test_a_damaged_file_is_made_again(finished: Path, resdeploy: Run) -> None:
    """A file that is no longer what was written is not used."""
    model = finished / "runs/tiny/model.fp32.onnx"
    model.write_bytes(model.read_bytes()[:-10])
    done = resdeploy("run", "tiny.toml")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"making +(\S+)", done.stderr) == ["model.fp32.onnx"]


def test_sigterm_exits_143_and_leaves_nothing(tmp_path: Path, started: Callable[..., Started]) -> None:
    """As a CI system cancels, while a network is in training: no process, no file that is not whole."""
    (tmp_path / "tiny.toml").write_text(PROFILE)
    process = started("run", "tiny.toml")
    process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.stderr.read()
    assert process.wait() == 143
    assert left_by(process.pid) == []
    assert unfinished(tmp_path) == []
    assert not list(tmp_path.rglob("*.onnx"))
