"""deploy/model_string.py: what a MODEL names, told by its spelling alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
from resdeploy.records import Format

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
    assert Request(model=model, sight=PreprocessingOverride(**override)).seen_by == says
