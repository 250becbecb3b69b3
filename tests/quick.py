"""ONNX files of torch networks by torch's older exporter, which takes a fraction of the time of `graph.from_torch`."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

from resdeploy import store
from resdeploy.graph import files, metadata
from resdeploy.graph.canonical import form
from resdeploy.records import Artifact, ModelSpec, Weights


def torchscript(module: torch.nn.Module, shape: tuple[int, ...], *, folded: bool = True) -> onnx.ModelProto:
    """The exporter's own graph for images of a shape (C, H, W), with a free batch size.

    Args:
        module: the network.
        shape: of one input.
        folded: batch norms are folded by the exporter.
    """
    buffer: Any = io.BytesIO()  # the signature names paths alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(1, *shape),),
            buffer,
            dynamo=False,
            opset_version=17,
            dynamic_axes={"x": {0: "n"}},
            input_names=["x"],
            training=torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE,
        )
    return onnx.load_from_string(buffer.getvalue())


def export(net: torch.nn.Module, spec: ModelSpec, out: Path, *, weights: Weights | None = None) -> Artifact:
    """What `graph.from_torch.export` writes: canonical, batch norms folded by us, the description inside."""
    model = form.canonicalise(torchscript(net.eval(), spec.input_shape, folded=False), whole=True)
    metadata.attach(model, spec)
    files.save_model(model, out)
    return Artifact(
        path=str(out), format="onnx", precision="fp32", sha256=store.digest(out), model=spec,
        weights=weights or Weights(source="random", seed=0),
    )  # fmt: skip
