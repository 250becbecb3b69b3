"""`resdeploy gate` as a user and a CI job run it: exit statuses, bad files, and the quickstart's model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.cli.conftest import Run

IMAGES = 200
LABELS = np.arange(IMAGES) % 10


def arrays(**change: Any) -> dict[str, Any]:
    """A perfect model's predictions; a change of None leaves an array out."""
    known = {"predictions": LABELS, "labels": LABELS, "ids": np.array([f"{k}.jpg" for k in range(IMAGES)]), **change}
    return {name: values for name, values in known.items() if values is not None}


def save(folder: Path, name: str, **change: Any) -> None:
    np.savez(folder / name, **arrays(**change))


NAN = np.where(np.eye(10)[LABELS] > 0, 1.0, 0.0)
NAN[3, 3] = np.nan
TWICE = np.array(["same.jpg", "same.jpg", *(f"{k}.jpg" for k in range(2, IMAGES))])
ELSEWHERE = np.array([f"other/{k}.jpg" for k in range(IMAGES)])


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"labels": None}, 2, "has no labels"),
        ({"predictions": None}, 2, "has no predictions or logits"),
        ({"labels": LABELS[:-1]}, 4, "lengths differ"),
        ({"ids": TWICE}, 4, "ids twice: same.jpg"),
        ({"predictions": None, "logits": NAN}, 4, "not finite for 1 of 200 images (3)"),
        ({"predictions": None, "logits": np.eye(10)[LABELS]}, 2, "one side has logits and the other only class ids"),
        ({"predictions": np.eye(10)[LABELS]}, 4, "under the name logits"),
        ({"predictions": None, "logits": LABELS.astype(float)}, 4, "logits must be images x classes"),
        ({"predictions": None, "logits": np.eye(10)[LABELS].astype(str)}, 4, "logits must be images x classes"),
        ({"predictions": None, "logits": np.eye(10)[LABELS] * 1e300}, 4, "not finite for 200 of 200"),
        ({"predictions": LABELS.astype(str)}, 4, "no whole numbers"),
        ({"predictions": LABELS + 0.5}, 4, "no whole numbers"),
        ({"labels": np.eye(10)[LABELS]}, 4, "labels must be one class id"),
        ({"resdeploy": "{}", "top": LABELS}, 4, "top must be images x best classes"),
        ({"resdeploy": "{}", "top": LABELS[::-1, None]}, 4, "not the first column of top"),
        ({"resdeploy": "{}", "top": LABELS[:, None] + 0.5}, 4, "no whole numbers"),
        ({"ids": ELSEWHERE}, 2, "share 0 images"),
        ({"ids": np.array("x" * IMAGES)}, 4, "ids must be one text per image"),
        ({"ids": None}, 2, "the baseline has ids and the other side has none"),
        ({"labels": LABELS - 1}, 4, "class ids below 0"),
        ({"labels": (LABELS + 1) % 10}, 2, "the labels of 200 of 200 images differ"),
        ({}, 3, ""),
    ],
)
def test_each_bad_file_has_its_status_and_one_paragraph(
    resdeploy: Run, tmp_path: Path, change: dict[str, Any], status: int, says: str
) -> None:
    """Not there: 2. There and cannot be right: 4. Two hundred equal answers prove nothing about half a point: 3."""
    save(tmp_path, "base.npz")
    save(tmp_path, "other.npz", **change)
    done = resdeploy("gate", "--baseline", "base.npz", "--candidate", "other.npz", "--max-drop", 0.5)
    assert done.returncode == status, done.stderr
    if status == 3:
        assert "would decide" in done.stdout
        assert not done.stderr
        return
    assert done.stderr.startswith("error[E-")
    assert len(done.stderr.strip().splitlines()) == 1
    assert says in done.stderr
    assert not done.stdout


def test_every_output_of_a_failing_gate(resdeploy: Run, tmp_path: Path) -> None:
    """Exit 1; stdout is one JSON document that names models, hashes and images; annotations go to stderr."""
    save(tmp_path, "base.npz")
    save(tmp_path, "bad.npz", predictions=np.where(LABELS == 3, 4, LABELS))
    files = ["--junit", "g.xml", "--comment", "g.md", "--metrics", "g.txt"]
    args = ["--baseline", "base.npz", "--candidate", "bad.npz", "--max-drop", 1, *files, "--format", "json"]
    done = resdeploy("gate", *args, GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(tmp_path / "summary"))
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["verdict"] == "fail"
    assert document["baseline"]["model"] == "base.npz"
    assert document["candidates"][0]["images"] == IMAGES
    assert document["flips"][0]["right_to_wrong"] == len(document["flipped"]) == IMAGES // 10
    assert document["flipped"][0]["image"] == "3.jpg"
    assert document["classes"][0] | {"p_adjusted": 0} == {
        "candidate": "bad", "label": 3, "name": "", "images": 20, "lost": 20, "gained": 0, "p_adjusted": 0,
        "drop_pp": 100.0,
    }  # fmt: skip
    assert done.stderr.startswith("::error title=resdeploy gate%2C bad%2C top1::On new images")
    assert (tmp_path / "summary").read_text() == (tmp_path / "g.md").read_text()
    assert 'failures="1"' in (tmp_path / "g.xml").read_text()
    assert 'resdeploy_gate_top1_drop_points{candidate="bad"} 10.0' in (tmp_path / "g.txt").read_text()


def test_a_job_can_go_on_where_nothing_was_decided(resdeploy: Run, tmp_path: Path) -> None:
    """`--on-inconclusive warn`: exit 0, a `::warning`, and the word inconclusive in the result; a fail stays exit 1."""
    save(tmp_path, "base.npz")
    save(tmp_path, "same.npz")
    save(tmp_path, "bad.npz", predictions=np.where(LABELS == 3, 4, LABELS))
    told = ["--on-inconclusive", "warn", "--format", "json"]
    judge = ["gate", "--baseline", "base.npz", "--max-drop", 0.5, *told]
    done = resdeploy(*judge, "--candidate", "same.npz", GITHUB_ACTIONS="true")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["verdict"], document["on_inconclusive"]) == ("inconclusive", "warn")
    first, second = done.stderr.splitlines()
    assert first.startswith("::warning title=resdeploy gate%2C same%2C top1::")
    assert second == "warning: the verdict is inconclusive; exit 0, since --on-inconclusive is warn"
    assert resdeploy(*judge, "--candidate", "bad.npz").returncode == 1
    plain = resdeploy(*judge[:-3], "fail", "--candidate", "same.npz")
    assert plain.returncode == 3, plain.stderr


def test_a_gate_without_a_verdict_tells_ci_why(resdeploy, tmp_path: Path) -> None:
    """An annotation and a JUnit error; a file's name in the error gives the runner no command of its own."""
    name = "x\n::add-mask::\x1b[31mpass.npz"
    args = ["--baseline", "base.npz", "--candidate", name, "--max-drop", 1, "--junit", "g.xml"]
    done = resdeploy("gate", *args, GITHUB_ACTIONS="true")
    assert done.returncode == 2
    assert done.stderr.startswith("::error title=resdeploy gate::")
    assert [line for line in done.stderr.splitlines() if line.startswith("::")] == done.stderr.splitlines()[:1]
    assert "\x1b" not in done.stderr
    assert 'errors="1"' in (tmp_path / "g.xml").read_text()


@pytest.fixture(scope="module")
def digits(digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the quickstart's network as trained (fp32.onnx), in INT8, and with its input stated wrongly."""
    from resdeploy import store
    from resdeploy.graph import files

    folder = tmp_path_factory.mktemp("digits")
    for suffix in ("", ".json"):
        shutil.copy(f"{digits_onnx}{suffix}", folder / f"fp32.onnx{suffix}")
    artifact = store.load(folder / "fp32.onnx")
    assert artifact is not None
    assert artifact.model is not None
    seen = artifact.model.preprocessing
    assert seen is not None
    model = files.load_model(folder / "fp32.onnx")
    normalise_inside(model, seen.mean, seen.std)
    files.save_model(model, folder / "unit.onnx")
    from dataclasses import replace

    path = folder / "unit.onnx"
    store.copy_to(replace(artifact, path=str(path)), path, sha256=store.digest(path))
    return folder


def normalise_inside(model: onnx.ModelProto, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """The network normalises its input itself, and so wants pixels from 0 to 1."""
    image = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["normalised" if name == image else name for name in node.input]
    for name, values in (("mean", mean), ("std", std)):
        channels = np.array(values, np.float32)[None, :, None, None]
        model.graph.initializer.append(numpy_helper.from_array(channels, name))
    for k, (kind, left, right, made) in enumerate(
        (("Sub", image, "mean", "centred"), ("Div", "centred", "std", "normalised"))
    ):
        model.graph.node.insert(k, onnx.helper.make_node(kind, [left, right], [made], name=made))


@pytest.mark.usefixtures("all_cores")
def test_the_quickstarts_model_passes_its_own_gate_in_int8(resdeploy: Run, digits: Path) -> None:
    """This project's CI, on all cores: FP32 becomes the stored baseline; INT8 is judged on all limits at once."""
    quantize = ["quantize", "fp32.onnx", "--calib-data", "digits", "--calib-samples", 100, "-o", "int8.onnx"]
    assert resdeploy(*quantize, cwd=digits).returncode == 0
    judge = ["gate", "--baseline", "base.npz", "--data", "digits", "--backend", "onnxruntime", "--max-drop", 3]
    first = resdeploy(*judge, "--candidate", "fp32.onnx", "--update-baseline", cwd=digits)
    assert first.returncode == 0, first.stderr
    limits = ["--max-size", 2, "--max-memory", 2000, "--duration", 0.2, "--format", "json"]
    done = resdeploy(*judge, "--candidate", "int8.onnx", *limits, cwd=digits)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    states = {check["name"]: check["state"] for check in document["checks"] if check["limit"] is not None}
    assert states == {"top1": "pass", "memory": "pass", "size": "pass"}
    (candidate,) = document["candidates"]
    assert (candidate["precision"], candidate["backend"], candidate["images"]) == ("int8", "onnxruntime", 360)
    assert candidate["data_fingerprint"] == document["baseline"]["data_fingerprint"] != ""
    assert len(candidate["sha256"]) == 64


def test_an_input_that_is_stated_wrongly_is_found_out(resdeploy: Run, digits: Path) -> None:
    """A network trained on pixels from 0 to 1 whose file says mean and std fails, and the note names the cause."""
    args = ["--baseline", "fp32.onnx", "--candidate", "unit.onnx", "--data", "digits", "--backend", "onnxruntime"]
    done = resdeploy("gate", *args, "--max-drop", 3, "--format", "json", cwd=digits)
    assert done.returncode == 1, done.stdout + done.stderr
    note = json.loads(done.stdout)["checks"][0]["note"]
    assert "pixels from 0 to 1 without normalisation" in note
    assert "states its preprocessing wrongly" in note


@pytest.mark.acceptance
@pytest.mark.usefixtures("all_cores")
def test_a_limit_of_speed_needs_pairs_of_processes(resdeploy: Run, digits: Path) -> None:
    """Two models and a limit of speed alone: no images are needed. One pair of processes is no verdict."""
    args = ["--baseline", "fp32.onnx", "--candidate", "fp32.onnx", "--backend", "onnxruntime"]
    limits = ["--max-slowdown", 400, "--max-cpu-slowdown", 300]
    done = resdeploy("gate", *args, *limits, "--duration", 0.3, "--format", "json", cwd=digits)
    assert done.returncode == 3, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert any("execute the same kernels" in note for note in document["notes"])
    checks = document["checks"]
    found = [(check["name"], check["limit"], check["state"]) for check in checks]
    assert found == [("slowdown", 400, "inconclusive"), ("cpu-slowdown", 300, "inconclusive")]
    assert all("1 pairs of processes were timed, 8 are needed" in check["note"] for check in checks)


@pytest.mark.usefixtures("all_cores")
def test_fusion_can_be_required(resdeploy: Run, digits: Path) -> None:
    """OpenVINO runs every block of the network inside its convolutions; the audit's checks are the gate's."""
    args = ["--baseline", "fp32.onnx", "--candidate", "fp32.onnx", "--backend", "openvino", "--require-fused"]
    done = resdeploy("gate", *args, "--format", "json", cwd=digits)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    fused = checks["fused: residual blocks fused"]
    assert (fused["state"], fused["observed"], fused["limit"]) == ("pass", 9, 9)
    assert "top1" not in checks


@pytest.mark.parametrize("outputs", [("-o", "base.npz"), ("--junit", "other.npz"), ("--junit", "x", "--comment", "x")])
def test_no_output_overwrites_an_input_or_another_output(
    resdeploy: Run, tmp_path: Path, outputs: tuple[str, ...]
) -> None:
    """A slip in a CI job must not cost the baseline."""
    for name in ("base.npz", "other.npz"):
        save(tmp_path, name)
    before = (tmp_path / "base.npz").read_bytes(), (tmp_path / "other.npz").read_bytes()
    done = resdeploy("gate", "--baseline", "base.npz", "--candidate", "other.npz", "--max-drop", 5, *outputs)
    assert done.returncode == 2
    assert "output" in done.stderr
    assert ((tmp_path / "base.npz").read_bytes(), (tmp_path / "other.npz").read_bytes()) == before


@pytest.mark.parametrize(("lost", "stdout"), [("summary", os.devnull), ("stdout", "/dev/full")])
def test_an_output_that_cannot_be_written_costs_no_other(tmp_path: Path, lost: str, stdout: str) -> None:
    """Every other output is there, the exit status is that of the lost one, and GitHub is not told of a pass."""
    save(tmp_path, "base.npz")
    files = ["--junit", "g.xml", "--comment", "g.md", "--metrics", "g.txt"]
    summary = tmp_path if lost == "summary" else tmp_path / "summary.md"
    args = ["gate", "--baseline", "base.npz", "--candidate", "base.npz", "--max-drop", "5", "--github", *files]
    with Path(stdout).open("w") as sink:
        done = subprocess.run(
            [sys.executable, "-m", "resdeploy", *args],
            cwd=tmp_path,
            env={**os.environ, "GITHUB_STEP_SUMMARY": str(summary)},
            stdout=sink,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 6, done.stderr
    assert all((tmp_path / name).stat().st_size for name in files[1::2])
    assert summary.is_dir() or "PASS" in summary.read_text()
    assert "1 of 5 outputs could not be written" in done.stderr
    assert "The verdict, pass, stands" in done.stderr
    assert "::notice" not in done.stderr
