"""What a target cannot do: the compiler says what `graph.rtx_targets` says before it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest

from resdeploy.backends import tensorrt_rtx
from resdeploy.errors import BackendCrash
from resdeploy.graph.rtx_targets import TARGETS
from resdeploy.records import Artifact, EngineOptions, Execution
from tests.backends.conftest import artifact_of
from tests.graph.rtx_graphs import REFUSED, of


def build(kind: str, targets: tuple[str, ...], folder: Path) -> Artifact:
    """As it is, without `prepare`, which would refuse it."""
    path = folder / "one.onnx"
    onnx.save(of(kind), path)
    source = dataclasses.replace(artifact_of(path), model=None)  # the graph's own sizes
    return tensorrt_rtx.build(source, Execution(engine=EngineOptions(targets=targets)), folder / "one.engine")


@pytest.mark.parametrize(("kind", "target"), [(kind, target) for kind, unable in REFUSED.items() for target in unable])
def test_the_compiler_refuses_what_we_refuse(kind: str, target: str, tmp_path: Path) -> None:
    if kind != "conv int8":
        with pytest.raises(BackendCrash, match=r"(?i)SM75|target\(s\) sm"):
            build(kind, (target, "sm120"), tmp_path)
        return
    for targets, precision in (((target, "sm120"), "fp16"), (("sm120",), "int8")):
        layers = build(kind, targets, tmp_path).layers
        assert [layer.inputs[0].precision for layer in layers if layer.kind == "correlation"] == [precision]


@pytest.mark.parametrize("kind", REFUSED)
def test_the_compiler_builds_what_we_let_through(kind: str, tmp_path: Path) -> None:
    """For all other targets together, and without any."""
    for targets in (tuple(name for name in TARGETS if name not in REFUSED[kind]), ()):
        assert build(kind, targets, tmp_path).layers
