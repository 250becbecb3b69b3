"""Predictions through real lanes, against numpy in float64."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from resdeploy import store
from resdeploy.data import datasets, loading, preprocess
from resdeploy.errors import BackendCrash, UsageError
from resdeploy.measure import interleaved, prediction_files, run_images
from resdeploy.records import Artifact, Execution, ModelSpec, Preprocessing

CLASSES = ("bird", "cat", "dog")
SPEC = Preprocessing(size=(6, 6))


@pytest.fixture
def folder(tmp_path):
    """Three classes of seven random images, in ImageFolder layout."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "data" / name).mkdir(parents=True)
        for n in range(7):
            Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).save(tmp_path / "data" / name / f"{n}.png")
    return tmp_path / "data"


@pytest.fixture
def linear(tmp_path):
    """A linear classifier as an ONNX file, its candidate, and its weights."""

    def make(labels=CLASSES, outputs=3, scale=1.0, **spec):
        weights = np.random.default_rng(1).normal(size=(108, outputs)).astype(np.float32) * np.float32(scale)
        nodes = [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ]
        graph = helper.make_graph(
            nodes,
            "linear",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 6, 6])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", outputs])],
            [numpy_helper.from_array(weights, "weights")],
        )
        path = tmp_path / "linear.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        model = ModelSpec(name="linear", family="f", classes=outputs, input_shape=(3, 6, 6), labels=labels, **spec)
        artifact = Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path), model=model)
        execution = Execution(batch_size=4)
        return interleaved.Candidate(
            label="row", backend="onnxruntime", artifact=artifact, execution=execution
        ), weights

    return make


def expected(dataset, weights):
    images = [preprocess.apply(loading.decode(dataset.read(i)), SPEC) for i in range(len(dataset))]
    return np.stack(images).reshape(len(dataset), -1).astype(np.float64) @ weights.astype(np.float64)


def test_predictions_are_those_of_numpy_image_by_image(folder, linear):
    """Batches of 5 through a model of batch 4, 21 images: logits, order and labels are right."""
    candidate, weights = linear()
    dataset = datasets.open_dataset(str(folder))
    found = run_images.predict(candidate, dataset, SPEC, batch_size=5)
    assert found.logits is not None
    np.testing.assert_allclose(found.logits, expected(dataset, weights), rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(found.top[:, 0], expected(dataset, weights).argmax(axis=1))
    assert found.ids == dataset.ids
    np.testing.assert_array_equal(found.labels, np.repeat([0, 1, 2], 7))
    assert found.images == tuple(loading.content_hash(dataset.read(i)) for i in range(21))
    assert found.preprocessing_fingerprint == preprocess.fingerprint(SPEC)
    assert found.sha256 == candidate.artifact.sha256


def test_classes_are_matched_by_name_where_orders_differ(folder, linear):
    """A model that counts dog first is right about a dog when it says 0."""
    candidate, _ = linear(labels=("dog", "bird", "cat"))
    found = run_images.predict(candidate, datasets.open_dataset(str(folder)), SPEC)
    np.testing.assert_array_equal(found.labels, np.repeat([1, 2, 0], 7))


def test_another_number_of_classes_is_refused(folder, linear):
    """Exit 2, saying both numbers, whether the model knows names or not."""
    dataset = datasets.open_dataset(str(folder))
    for outputs in (2, 5):
        candidate, _ = linear(labels=(), outputs=outputs)
        with pytest.raises(UsageError, match=f"tells {outputs} classes apart, .* has 3"):
            run_images.predict(candidate, dataset, SPEC)


def test_unknown_preprocessing_names_the_options(folder, linear):
    """A foreign file cannot say how it sees images, so the user must."""
    candidate, _ = linear()
    with pytest.raises(UsageError) as caught:
        run_images.predict(candidate, datasets.open_dataset(str(folder)), None)
    assert all(option in str(caught.value) for option in ("--img-size", "--mean", "--std", "--resize"))


def test_unreadable_images_are_named_and_the_rest_keep_their_labels(folder, linear):
    """Of 21 images two are damaged: 19 predictions, two names, nothing shifted."""
    (folder / "bird" / "0.png").write_bytes(b"not an image")
    (folder / "cat" / "3.png").write_bytes((folder / "cat" / "3.png").read_bytes()[:40])
    candidate, _ = linear()
    dataset = datasets.open_dataset(str(folder))
    found = run_images.predict(candidate, dataset, SPEC, batch_size=4)
    assert len(found.ids) == len(found.images) == len(found.top) == 19
    assert sorted(name.split(":")[0] for name in found.unreadable) == ["bird/0.png", "cat/3.png"]
    np.testing.assert_array_equal(found.labels, [0] * 6 + [1] * 6 + [2] * 7)


def test_every_image_counts_once_whatever_its_names(folder, linear):
    """A copy, a hard link, a link to a file and to a folder: answers, score and fingerprint of the set without them."""
    candidate, _ = linear()
    clean = run_images.predict(candidate, datasets.open_dataset(str(folder)), SPEC)
    (folder / "cat" / "copy.png").write_bytes((folder / "cat" / "5.png").read_bytes())
    os.link(folder / "dog" / "0.png", folder / "dog" / "hard.png")
    (folder / "bird" / "soft.png").symlink_to("3.png")
    (folder / "dog" / "again").symlink_to(".")
    found = run_images.predict(candidate, datasets.open_dataset(str(folder)), SPEC, batch_size=4)
    assert found.ids == clean.ids
    assert found.images == clean.images
    assert found.data_fingerprint == clean.data_fingerprint
    np.testing.assert_array_equal(found.labels, clean.labels)
    assert found.logits is not None
    assert clean.logits is not None
    np.testing.assert_allclose(found.logits, clean.logits, rtol=1e-5)
    score, expected_score = prediction_files.score(found), prediction_files.score(clean)
    assert (score.total, score.top1_ci95) == (21, expected_score.top1_ci95)
    assert score.repeats.again == (
        "dog/again is dog",
        "bird/soft.png is bird/3.png",
        "cat/copy.png is cat/5.png",
        "dog/hard.png is dog/0.png",
    )


def test_an_image_of_two_classes_counts_for_neither(folder, linear):
    """Nobody knows which answer would be right."""
    (folder / "dog" / "other.png").write_bytes((folder / "cat" / "5.png").read_bytes())
    found = run_images.predict(linear()[0], datasets.open_dataset(str(folder)), SPEC)
    assert found.logits is not None
    assert len(found.ids) == len(found.top) == len(found.logits) == 20
    assert not {"dog/other.png", "cat/5.png"} & set(found.ids)
    assert found.repeats.contradicted == ("cat/5.png is dog/other.png",)


def test_logits_that_overflow_are_an_error_and_no_prediction(folder, linear):
    """argmax of infinities would be class 0, silently."""
    candidate, _ = linear(scale=1e38)
    with pytest.raises(BackendCrash, match="NaN or infinite") as caught:
        run_images.predict(candidate, datasets.open_dataset(str(folder)), SPEC)
    assert caught.value.code == "E-NOT-FINITE"


def test_equal_images_have_equal_data_fingerprints_in_every_model(folder, linear):
    """What pairs two models' predictions is the images, their labels and names, and nothing of the model."""
    dataset = datasets.open_dataset(str(folder))
    one, two = (run_images.predict(linear(scale=s)[0], dataset, SPEC) for s in (1.0, -1.0))
    assert one.data_fingerprint == two.data_fingerprint
    assert not np.array_equal(one.top, two.top)
    fewer = run_images.predict(linear()[0], dataset.subset(range(20)), SPEC)
    assert fewer.data_fingerprint != one.data_fingerprint


def test_a_model_without_a_description_is_evaluated_too(folder, linear):
    """A foreign file with preprocessing by option: labels in the order of the folders."""
    candidate, weights = linear()
    bare = dataclasses.replace(candidate.artifact, model=None)
    execution = Execution(batch_size=4, input_shape=(3, 6, 6))
    foreign = dataclasses.replace(candidate, artifact=bare, execution=execution)
    dataset = datasets.open_dataset(str(folder))
    found = run_images.predict(foreign, dataset, SPEC)
    np.testing.assert_array_equal(found.top[:, 0], expected(dataset, weights).argmax(axis=1))
    assert found.model == "linear"


MANY = """
import json, os, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import numpy as np
from resdeploy import store
from resdeploy.backends import child
from resdeploy.backends.lane import Lane
from resdeploy.data import datasets
from resdeploy.graph import files
from resdeploy.measure import interleaved, run_images
from resdeploy.quantize import calibrate
from resdeploy.records import Artifact, Execution, ModelSpec, Preprocessing

IMAGES, FEWER, PATH = 2000, 400, Path(sys.argv[1])
spec = Preprocessing(size=(6, 6))
model = ModelSpec(name="linear", family="f", classes=3, input_shape=(3, 6, 6))
artifact = Artifact(path=str(PATH), format="onnx", precision="fp32", sha256=store.digest(PATH), model=model)
row = interleaved.Candidate(label="row", backend="null", artifact=artifact, execution=Execution())
pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 6, 6, 3), np.uint8)
images = datasets.Dataset(name="noise", split="test", ids=tuple(map(str, range(IMAGES))), classes=(),
                          labels=np.arange(IMAGES) % 3, items=pixels)
seen = []


def look(_what, done, total):
    if done in (100, total):
        (lane,) = child._running
        worker = f"/proc/{lane.process.pid}"
        counts = [len(os.listdir(place)) for place in ("/proc/self/fd", lane.folder, worker + "/fd")]
        seen.append(counts + [len(Path(who, "maps").read_text().splitlines()) for who in ("/proc/self", worker)])


found = run_images.predict(row, images, spec, batch_size=1, keep_logits=False, progress=look)
assert found.logits is None and len(found.top) == IMAGES
batches = (pixels[k : k + 1].transpose(0, 3, 1, 2).astype(np.float32) for k in range(FEWER))
graph = files.load_model(PATH)
_, count = calibrate.observe(graph, {"input": np.ones(3)}, batches, total=FEWER, progress=look)
assert count == FEWER
with Lane("null") as lane:
    lane.open(artifact, Execution())
    for done in range(1, FEWER + 1):
        lane.block(1)
        look("", done, FEWER)
print(json.dumps(seen))
"""


@pytest.mark.acceptance
@pytest.mark.slow
def test_descriptors_files_and_mappings_stay_flat_over_thousands_of_batches(linear, tmp_path):
    """With 64 descriptors: evaluation, calibration and timing, in this process and in the worker."""
    candidate, _ = linear()
    done = subprocess.run(
        [sys.executable, "-c", MANY, candidate.artifact.path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert len(seen) == 6
    for early, late in zip(seen[::2], seen[1::2], strict=True):
        assert late[:3] == early[:3]
        assert max(np.subtract(late[3:], early[3:])) < 50  # the allocators' own; it was one a batch
