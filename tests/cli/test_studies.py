"""`prune`, `study` and `train --qat` as a user runs them: they write what they say, and test images only judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from PIL import Image

from resdeploy.data import preprocess
from resdeploy.data.datasets import Dataset, choose, content_hash, open_dataset
from resdeploy.data.folder import Split
from resdeploy.records import Preprocessing
from resdeploy.verbs.block_search import halves
from tests.cli.conftest import Run

TRAINING, TEST = 100, 40


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Some of `digits` as a folder of files with a training and a test split."""
    wanted: tuple[tuple[Split, int, str], ...] = (("train", TRAINING, "train"), ("test", TEST, "val"))
    for split, count, folder in wanted:
        images = choose(open_dataset("digits", split=split), count, 0)
        for i, label in enumerate(images.labels.tolist()):
            path = tmp_path / "pictures" / folder / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(images.read(i))).save(path)
    return tmp_path / "pictures"


def invert(pictures: Path, ids: tuple[str, ...]) -> None:
    """Makes negatives of these images."""
    for name in ids:
        pixels = 255 - np.asarray(Image.open(pictures / name))
        Image.fromarray(pixels).save(pictures / name)


def written(folder: Path) -> set[str]:
    """All files in a folder but those of the data set."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name for name in files if not name.startswith("pictures/")}


def constants(path: Path) -> dict[str, bytes]:
    return {t.name: numpy_helper.to_array(t).tobytes() for t in onnx.load(path).graph.initializer}


def answers(path: Path, images: Dataset) -> np.ndarray:
    """Classes by ONNX Runtime alone, of `digits` enlarged to the input's size."""
    spec = json.loads(path.with_name(path.name + ".json").read_text())["model"]["preprocessing"]
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
    seen = Preprocessing(**fields)
    inputs = [preprocess.apply(Image.fromarray(np.asarray(images.read(i))), seen) for i in range(len(images))]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.stack(inputs)})[0].argmax(1)


def adds(path: Path) -> int:
    return sum(node.op_type == "Add" for node in onnx.load(path).graph.node)


@pytest.mark.acceptance
def test_prune_writes_a_smaller_network_that_the_judging_images_have_not_formed(
    resdeploy: Run, tmp_path: Path, pictures: Path, digits_checkpoint: Path, digits_onnx: Path
) -> None:
    """A block goes; with other images to judge on, the file is bit for bit the same and the baseline does worse."""
    (tmp_path / "tmp").mkdir()
    found = []
    for out in ("first", "second"):
        options = ["--blocks", 1, "--epochs", 1, "--backend", "onnxruntime", "--duration", 0.2, "--format", "json"]
        files = ["--predictions", f"{out}.answers", "-o", f"{out}.onnx"]
        done = resdeploy(
            "prune", digits_checkpoint, "--data", "pictures", *options, *files, TMPDIR=str(tmp_path / "tmp")
        )
        document = json.loads(done.stdout)
        assert done.returncode == {"pass": 0, "fail": 1, "inconclusive": 3}[document["verdict"]], done.stderr
        found.append(document)
        _, judging = halves(open_dataset(str(pictures), split="test"), 0)
        invert(pictures, judging.ids)
    before, after = found[0]["results"]
    assert (before["blocks"], after["blocks"]) == (7, 6)
    assert after["macs"] < before["macs"]
    assert adds(tmp_path / "first.onnx") == adds(digits_onnx) - 1
    digits = open_dataset("digits", split="test")
    assert (answers(tmp_path / "first.onnx", digits) == digits.labels).mean() > 0.2
    assert constants(tmp_path / "first.onnx") == constants(tmp_path / "second.onnx")
    assert found[1]["removed"] == found[0]["removed"]
    assert found[1]["results"][0]["top1"] != before["top1"]
    names = ("{}.onnx", "{}.onnx.json", "{}.answers/baseline.npz", "{}.answers/pruned.npz")
    assert written(tmp_path) == {name.format(out) for out in ("first", "second") for name in names}


@pytest.mark.acceptance
def test_degradation_trains_on_training_images_alone(resdeploy: Run, tmp_path: Path, pictures: Path) -> None:
    """Two depths, two seeds: the losses are those of the curves, and other test images do not change them."""
    command = ["study", "degradation", "--data", "pictures", "--depths", "20,32", "--seeds", 2, "--epochs", 1]
    options = ["--batch-size", 50, "--threads", 1, "--folder", "study", "--format", "json"]
    documents = []
    for _ in range(2):
        done = resdeploy(*command, *options)
        assert done.returncode == 0, done.stderr
        documents.append(json.loads(done.stdout))
        invert(pictures, open_dataset(str(pictures), split="test").ids)
    networks = [f"{kind}{depth}" for depth in (20, 32) for kind in ("plain", "resnet")]
    assert sorted(row["model"] for row in documents[0]["results"]) == sorted(networks)
    for row in documents[1]["results"]:
        curves = [(tmp_path / f"study/{row['model']}.{seed}.history.csv").read_text().split() for seed in (0, 1)]
        column = curves[0][0].split(",").index("train_loss")
        assert row["train_loss"] == pytest.approx(np.mean([float(lines[1].split(",")[column]) for lines in curves]))
    first, second = ([row["train_loss"] for row in one["results"]] for one in documents)
    assert first == second
    kinds = ("safetensors", "safetensors.json", "history.csv", "history.svg", "settings.json")
    files = {f"study/{name}.{seed}.{kind}" for name in networks for seed in (0, 1) for kind in kinds}
    assert written(tmp_path) == files | {"study/degradation.json", "study/degradation.svg"}


def test_lesion_starts_from_the_error_of_the_whole_network(
    resdeploy: Run, tmp_path: Path, digits_checkpoint: Path, digits_onnx: Path
) -> None:
    """Which ONNX Runtime finds on the same images; every block is deleted once, and the charts are drawn."""
    done = resdeploy(
        "study", "lesion", digits_checkpoint, "--data", "digits", "--images", 60, "--repeats", 1,
        "-o", "lesion.json", "--format", "json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "lesion.json").read_text())
    assert document["results"] == json.loads(done.stdout)["results"]
    images = choose(open_dataset("digits", split="test"), 60, 0)
    wrong = 100 * float((answers(digits_onnx, images) != images.labels).mean())
    assert [one["error"] for one in document["whole"]] == pytest.approx([wrong])
    assert [row["block"] for row in document["results"]] == [f"layer{k}.{i}" for k in (1, 2, 3) for i in (0, 1, 2)]
    assert all(row["rise_pp"] == pytest.approx(row["error"] - wrong) for row in document["results"])
    charts = {f"lesion.{kind}.svg" for kind in ("single", "several", "shuffled")}
    assert written(tmp_path) == charts | {"lesion.json"}


@pytest.mark.acceptance
def test_quantization_aware_training_needs_no_test_image(
    resdeploy: Run, tmp_path: Path, pictures: Path, digits_checkpoint: Path, digits_onnx: Path
) -> None:
    """They are no images at all here. The INT8 file runs in ONNX Runtime and answers mostly as the FP32 one does."""
    for path in (pictures / "val").rglob("*.png"):
        path.write_bytes(b"no image")
    out = tmp_path / "int8.onnx"
    options = ["--qat", "--epochs", 1, "--target", "onnxruntime", "--portable", "--threads", 1]
    done = resdeploy("train", digits_checkpoint, "--data", "pictures", *options, "-o", out)
    assert done.returncode == 0, done.stderr
    artifact = json.loads((tmp_path / "int8.onnx.json").read_text())
    assert artifact["precision"] == "int8"
    assert not [note for note in artifact["notes"] if "unreadable" in note]
    assert any(f"on {TRAINING} images of pictures" in note for note in artifact["notes"])
    training = {content_hash(path.read_bytes()) for path in (pictures / "train").rglob("*.png")}
    assert set(artifact["calibration"]["images"]) <= training
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(out).graph.node}
    digits = open_dataset("digits", split="test")
    assert (answers(out, digits) == answers(digits_onnx, digits)).mean() > 0.8
    assert written(tmp_path) == {"int8.onnx", "int8.onnx.json"}


def test_a_file_from_elsewhere_is_pruned_where_it_is_said_how_it_sees_images(
    resdeploy: Run, tmp_path: Path, digits_onnx: Path
) -> None:
    """Without the preprocessing that files of ours carry: the options that the error names are there."""
    model = onnx.load(digits_onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "m.onnx")
    command = ["prune", "m.onnx", "--data", "digits", "--blocks", 1, "--max-drop", 99, "--backend", "onnxruntime"]
    command += ["--duration", 0.1, "-o", "p.onnx"]
    refused = resdeploy(*command)
    assert refused.returncode == 2
    assert "Add --mean and --std" in refused.stderr
    override = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--resize", 16]
    done = resdeploy(*command, *override)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.onnx").is_file()


def test_prune_says_before_any_work_that_training_images_are_missing(
    resdeploy: Run, tmp_path: Path, pictures: Path, digits_checkpoint: Path
) -> None:
    """A flat class folder: exit 2, --train-data is named, nothing is written."""
    shutil.move(pictures / "val", tmp_path / "flat")
    done = resdeploy("prune", digits_checkpoint, "--data", "flat", "--epochs", 1, "-o", "pruned.onnx")
    assert done.returncode == 2
    assert "--train-data" in done.stderr
    assert not list(tmp_path.glob("pruned*"))
