"""Graphs of zoo networks, each traced once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import onnx
import pytest


@pytest.fixture(scope="session")
def torchscript() -> Callable[..., onnx.ModelProto]:
    """(module, shape of one input) -> the file of torch's older exporter: quick, and batch norms folded by itself."""
    pytest.importorskip("torch")
    from tests import quick

    return quick.torchscript


@pytest.fixture(scope="session")
def ours() -> Callable[[str], onnx.ModelProto]:
    """The canonical file of a zoo network, batch norms folded by us."""

    @functools.cache
    def made(name: str) -> onnx.ModelProto:
        torch = pytest.importorskip("torch")
        from resdeploy.graph.canonical import form
        from resdeploy.models import zoo
        from tests import quick

        spec = zoo.spec(name)
        net = zoo.create(spec)
        for module in list(net.modules()):
            for child, found in list(module.named_children()):
                if isinstance(found, torch.nn.LocalResponseNorm):  # control flow, in this exporter
                    setattr(module, child, torch.nn.Identity())
        return form.canonicalise(quick.torchscript(net, spec.input_shape, folded=False), whole=True)

    return made
