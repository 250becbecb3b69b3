"""Graphs of zoo networks, each traced once."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable

import onnx
import pytest


@pytest.fixture(scope="session")
def torchscript() -> Callable[..., onnx.ModelProto]:
    """(module, shape of one input) -> the file of torch's older exporter: quick, and batch norms folded by itself."""
    return _torchscript


def _torchscript(module, shape: tuple[int, ...], *, folded: bool = True) -> onnx.ModelProto:
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
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


@pytest.fixture(scope="session")
def ours() -> Callable[[str], onnx.ModelProto]:
    """The canonical file of a zoo network, batch norms folded by us."""

    @functools.cache
    def made(name: str) -> onnx.ModelProto:
        torch = pytest.importorskip("torch")
        from resdeploy.graph.canonical import form
        from resdeploy.models import zoo

        spec = zoo.spec(name)
        net = zoo.create(spec)
        for module in list(net.modules()):
            for child, found in list(module.named_children()):
                if isinstance(found, torch.nn.LocalResponseNorm):  # control flow, in this exporter
                    setattr(module, child, torch.nn.Identity())
        return form.canonicalise(_torchscript(net, spec.input_shape, folded=False), whole=True)

    return made
