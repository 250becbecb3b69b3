"""What is made of a file from elsewhere starts from the same function, or is not made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from resdeploy import store
from resdeploy.deploy import rewriting
from resdeploy.errors import OutputLost
from resdeploy.graph.canonical import form
from resdeploy.records import Artifact, ModelSpec
from tests.backends.conftest import tiny_network


def test_a_file_that_is_rewritten_to_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a batch fixed at one, too; the culprit here is a pass that loses a bias of the first convolution."""
    onnx.save(tiny_network(batch=1), path := tmp_path / "theirs.onnx")
    spec = ModelSpec(name="t", family="foreign", classes=10, input_shape=(3, 32, 32))
    source = Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path), model=spec)
    images = list(np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32))
    assert rewriting.refuse_other_function(source, images) == ()
    right = form.canonicalise

    def lose_a_bias(model: onnx.ModelProto) -> onnx.ModelProto:
        result = right(model)
        bias = next(t for t in result.graph.initializer if len(t.dims) == 1)
        bias.CopyFrom(numpy_helper.from_array(np.full(tuple(bias.dims), 2, np.float32), bias.name))
        return result

    monkeypatch.setattr(form, "canonicalise", lose_a_bias)
    with pytest.raises(OutputLost, match=r"computes something else once it is rewritten: off by") as refused:
        rewriting.refuse_other_function(source, images)
    assert refused.value.exit_status == 1
