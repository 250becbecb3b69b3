"""What a model sees on single images, against numpy in float64."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from resdeploy import store
from resdeploy.errors import BackendCrash, MalformedInput, UsageError
from resdeploy.graph import metadata
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import Artifact, Execution, ModelSpec, Preprocessing
from resdeploy.verbs import predict

CLASSES = ("bird", "cat", "dog", "elk")
SPEC = Preprocessing(size=(6, 6), mean=(0.5, 0.25, 0.125), std=(0.5, 2.0, 1.0))
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(108, 4)).astype(np.float32)
PIXELS = RNG.integers(0, 256, (5, 6, 6, 3), np.uint8)


def linear(path: Path, *, softmax: bool = False, scale: float = 1.0, **fields: object) -> Candidate:
    """A linear classifier of 6x6 pixels, with or without a softmax behind it."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax" if softmax else "Identity", ["logits"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 6, 6])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(WEIGHTS * np.float32(scale), "weights")],
    )
    model = ModelSpec(
        **{"name": "linear", "family": "f", "classes": 4, "input_shape": (3, 6, 6), "labels": CLASSES}
        | {"preprocessing": SPEC}
        | fields  # type: ignore[arg-type]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    metadata.attach(proto, model)
    onnx.save(proto, path)
    artifact = Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path), model=model)
    return Candidate(label="linear", backend="onnxruntime", artifact=artifact, execution=Execution())


def expected(pixels: np.ndarray) -> np.ndarray:
    """Logits in float64."""
    seen = (pixels / 255.0 - np.array(SPEC.mean)) / np.array(SPEC.std)
    return seen.transpose(0, 3, 1, 2).reshape(len(pixels), -1) @ WEIGHTS.astype(np.float64)


def test_answers_are_names_and_probabilities_in_the_order_of_the_images(tmp_path: Path) -> None:
    """Of files, bytes, Pillow's images and arrays, one or several: the softmax of the logits, likeliest first."""
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for path, pixels in zip(files, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    logits = expected(PIXELS)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    with predict.Predictor(linear(tmp_path / "m.onnx")) as predictor:
        for given in (files, [path.read_bytes() for path in files], list(map(Image.open, files)), PIXELS):
            answers = predictor.predict(given, top=3)
            assert len(answers) == 5
            for answer, share in zip(answers, shares, strict=True):
                best = np.argsort(-share)[:3]
                assert answer.classes == tuple(best)
                assert answer.names == tuple(CLASSES[k] for k in best)
                assert answer.name == CLASSES[best[0]]
                np.testing.assert_allclose(answer.probabilities, share[best], rtol=1e-4)
        assert [answer.image for answer in predictor.predict(files[:2])] == [str(path) for path in files[:2]]
        (one,) = predictor.predict(str(files[3]))
        assert (one.classes, len(one.probabilities)) == (tuple(np.argsort(-shares[3])), 4)
        np.testing.assert_allclose(predictor.logits(PIXELS[0]), logits[:1], rtol=1e-4, atol=1e-4)
        assert (predictor.classes, predictor.backend, predictor.precision) == (CLASSES, "onnxruntime", "fp32")
        answered = predictor.answer(files)
        assert min(answered.prepare_s, answered.answer_s) > 0


def test_grey_pixels_are_as_grey_files(tmp_path: Path) -> None:
    """An array without channels, its picture and its file answer alike."""
    grey = PIXELS[0, :, :, 0]
    picture = Image.fromarray(grey)
    file = io.BytesIO()
    picture.save(file, "PNG")
    with predict.Predictor(linear(tmp_path / "m.onnx")) as predictor:
        found = predictor.logits([grey, picture, file.getvalue()])
    np.testing.assert_allclose(found, np.repeat(expected(np.stack([grey] * 3, -1)[None]), 3, 0), rtol=1e-4, atol=1e-4)


def test_a_network_that_ends_in_probabilities_keeps_them(tmp_path: Path) -> None:
    """A softmax of a softmax would make every class nearly as likely as the others."""
    logits = expected(PIXELS)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    with predict.Predictor(linear(tmp_path / "m.onnx", softmax=True)) as predictor:
        for answer, share in zip(predictor.predict(PIXELS), shares, strict=True):
            np.testing.assert_allclose(answer.probabilities, np.sort(share)[::-1], rtol=1e-4, atol=1e-7)


def test_large_logits_do_not_overflow() -> None:
    """exp(1000) is infinite, the probability is 1."""
    assert predict.to_probabilities(np.array([[1000.0, 0.0, -1000.0]], np.float32)).tolist() == [[1.0, 0.0, 0.0]]


def test_classes_without_names_are_numbers(tmp_path: Path) -> None:
    """A foreign file rarely knows names."""
    with predict.Predictor(linear(tmp_path / "m.onnx", labels=())) as predictor:
        assert predictor.classes == ("0", "1", "2", "3")
        (answer,) = predictor.predict(PIXELS[0], top=1)
        assert answer.names == (str(expected(PIXELS[:1]).argmax()),)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "no images"),
        (PIXELS[0].astype(np.float32), "image 1 is float32"),
        ([PIXELS[0, :, :, :2]], "image 1 is uint8"),
        ([PIXELS[0], 3], "image 2 is int64"),
        (np.zeros((9, 9, 3), np.uint8), "9x9 pixels"),
    ],
    ids=["none", "normalised", "two channels", "a number", "another size"],
)
def test_what_is_no_image_is_said(tmp_path: Path, given: object, words: str) -> None:
    """Each with the number that it has among the others, and the predictor answers on."""
    with predict.Predictor(linear(tmp_path / "m.onnx")) as predictor:
        with pytest.raises(UsageError, match=words):
            predictor.predict(given)
        assert len(predictor.predict(PIXELS[:2])) == 2


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """Among others and alone, by path; nothing is answered."""
    bad, gone, good = tmp_path / "bad.png", tmp_path / "gone.png", tmp_path / "good.png"
    bad.write_bytes(b"no picture")
    Image.fromarray(PIXELS[0]).save(good)
    with predict.Predictor(linear(tmp_path / "m.onnx")) as predictor:
        for given, words in (([good, bad], "bad.png"), ([good, gone], "gone.png"), ([bad], "bad.png")):
            with pytest.raises(MalformedInput) as raised:
                predictor.predict(given)
            assert words in str(raised.value)


def test_a_model_that_does_not_say_how_it_sees_is_refused_and_nothing_stays_open(tmp_path: Path) -> None:
    """Before a process is started; logits that are not finite are refused too."""
    bare = linear(tmp_path / "m.onnx", preprocessing=None)
    with pytest.raises(UsageError, match="does not say how it sees images"):
        predict.Predictor(bare)
    endless = linear(tmp_path / "n.onnx", scale=float("inf"))
    with predict.Predictor(endless) as predictor, pytest.raises(BackendCrash, match="NaN or infinite"):
        predictor.predict(PIXELS)


def test_a_file_that_cannot_be_opened_leaves_no_process(tmp_path: Path) -> None:
    """The runtime's words, and its process has ended."""
    candidate = linear(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"no model")
    broken = dataclasses.replace(candidate.artifact, sha256=store.digest(tmp_path / "m.onnx"))
    with pytest.raises(Exception, match=r"m\.onnx|parse|Protobuf"):
        predict.Predictor(dataclasses.replace(candidate, artifact=broken))


def test_folders_stand_for_the_images_in_them(tmp_path: Path) -> None:
    """Sorted by name, other files left out; a folder without images, and what is not there, are refused."""
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert [path.name for path in predict.paths_of([tmp_path / "b.png", tmp_path])] == ["b.png", "a.JPG", "b.png"]
    for given, words in ((tmp_path / "empty", "no image in"), (tmp_path / "gone.png", "there is no image")):
        with pytest.raises(UsageError, match=words):
            predict.paths_of([given])
