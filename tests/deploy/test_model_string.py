"""deploy/model_string.py: what a MODEL names, told by its spelling alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from resdeploy.cli import options
from resdeploy.deploy.model_string import (
    CheckpointFile,
    CompiledFile,
    ForeignName,
    Model,
    OnnxFile,
    PreprocessingOverride,
    Request,
    ZooName,
    classify,
    stem,
)
from resdeploy.errors import MalformedInput, MissingInput, UnknownName, UsageError
from resdeploy.records import Format, ModelSpec

NAMED: dict[str, tuple[Model, str, set[Format]]] = {
    "resnet50": (ZooName("resnet50"), "resnet50", {"checkpoint", "onnx"}),
    "timm:resnet50d.ra2_in1k": (
        ForeignName("timm:resnet50d.ra2_in1k"),
        "timm-resnet50d.ra2_in1k",
        {"checkpoint", "onnx"},
    ),
    "timm:odd.pt": (ForeignName("timm:odd.pt"), "timm-odd.pt", {"checkpoint", "onnx"}),
    "my.nets:make": (ForeignName("my.nets:make"), "my.nets-make", {"checkpoint", "onnx"}),
    "a/b.safetensors": (CheckpointFile(Path("a/b.safetensors")), "b", {"checkpoint", "onnx"}),
    "r20.th": (CheckpointFile(Path("r20.th")), "r20", {"checkpoint", "onnx"}),
    "A.ONNX": (OnnxFile(Path("A.ONNX")), "A", {"onnx"}),
    "C:/nets/a.onnx": (OnnxFile(Path("C:/nets/a.onnx")), "a", {"onnx"}),
    "m.int8.xml": (CompiledFile(Path("m.int8.xml"), "openvino", "openvino"), "m.int8", {"openvino"}),
    "m.plan": (CompiledFile(Path("m.plan"), "engine", "tensorrt"), "m", {"engine"}),
    "https://host/m.onnx": (ForeignName("https://host/m.onnx"), "https---host-m.onnx", {"checkpoint", "onnx"}),
}


@pytest.mark.parametrize("text", NAMED)
def test_a_model_is_what_its_spelling_says(text: str) -> None:
    """Names of other packages may end like files, files may have a colon in their path, and case is no matter."""
    named, short, formats = NAMED[text]
    assert classify(text) == named
    assert stem(text) == short
    request = Request(model=text)
    every: tuple[Format, ...] = ("checkpoint", "onnx", "openvino", "engine")
    assert {wanted for wanted in every if request.can_give(wanted)} == formats


@pytest.mark.parametrize(
    ("model", "override", "says"),
    [
        ("resnet20", {}, "the zoo"),
        ("timm:resnet18", {"img_size": 32, "resize": 0}, "timm's configuration with --img-size, --resize"),
        ("package.module:factory", {}, "the default"),
        ("r50.int8.onnx", {"mean": (0.5,) * 3}, "the file's record with --mean"),
    ],
)
def test_who_says_how_images_are_seen_is_known_from_the_name(model: str, override: Any, says: str) -> None:
    """A package, the zoo or the file, and the options that were typed."""
    assert Request(model=model, override=PreprocessingOverride(**override)).seen_by == says


SPEC = ModelSpec(name="m", family="foreign", classes=2, input_shape=(3, 0, 0), preprocessing=None)
ON: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def test_what_a_person_says_of_a_file_from_elsewhere() -> None:
    """Height and width, the order of channels and the classes' names; none of it asks for the other."""
    said = PreprocessingOverride(img_size=(192, 256), channels="BGR", labels=("cat", "dog"), **ON).apply_to(SPEC)
    assert said.preprocessing is not None
    assert (said.input_shape, said.preprocessing.size, said.preprocessing.channels) == (
        (3, 192, 256),
        (192, 256),
        "BGR",
    )
    assert said.labels == ("cat", "dog")
    assert PreprocessingOverride(img_size=64).apply_to(SPEC).input_shape == (3, 64, 64)
    labelled = PreprocessingOverride(labels=("cat", "dog")).apply_to(SPEC)
    assert (labelled.labels, labelled.preprocessing) == (("cat", "dog"), None)
    again = PreprocessingOverride(img_size=(96, 128), resize=None).apply_to(said)
    assert again.preprocessing is not None
    assert again.preprocessing.channels == "BGR"


def test_what_cannot_be_said_is_refused() -> None:
    grey = dataclasses.replace(SPEC, input_shape=(1, 8, 8))
    with pytest.raises(UsageError, match="--channels is the order of three colours"):
        PreprocessingOverride(channels="BGR", mean=(0.5,), std=(0.5,)).apply_to(grey)
    with pytest.raises(UsageError, match="--labels names 3 classes, and m tells 2 apart"):
        PreprocessingOverride(labels=("a", "b", "c")).apply_to(SPEC)


def test_options_become_sizes_and_names(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ngrosser Hund\n\n")
    assert options.names_in(tmp_path / "labels.txt") == ("cat", "grosser Hund")
    assert (options.size("224"), options.size("192,256"), options.size(None)) == (224, (192, 256), None)
    for wrong in ("1,2,3", "0", "a"):
        with pytest.raises(UsageError, match="--img-size takes"):
            options.size(wrong)
    with pytest.raises(MissingInput, match="one class name a line"):
        options.names_in(tmp_path / "none.txt")
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(MalformedInput, match="UTF-8"):
        options.names_in(tmp_path / "labels.txt")
    with pytest.raises(UnknownName, match="not 'ort'"):
        options.targets("openvino,ort")
    assert options.targets("openvino, onnxruntime") == ("openvino", "onnxruntime")
