"""Files from files: what cannot be vouched for is not left, and not taken."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest

from resdeploy import places, store
from resdeploy.deploy import build, export
from resdeploy.deploy.model_string import PreprocessingOverride, Request
from resdeploy.errors import MalformedInput
from resdeploy.records import Artifact, Execution, ModelSpec

RESNET = Request(model="resnet20", override=PreprocessingOverride(img_size=8))


def silent(_what: str, _done: int, _total: int) -> None:
    pass


def test_an_export_that_torch_contradicts_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the file without a record, and not the record of the one before."""
    pytest.importorskip("torch")
    out = tmp_path / "r20.onnx"
    good = export.to_onnx(RESNET, out, progress=silent)
    monkeypatch.setattr(export, "run_fp32", lambda _path, inputs: np.zeros((len(inputs), 10), dtype=np.float32))
    for before in ([out.name, f"{out.name}.json"], []):
        with pytest.raises(MalformedInput, match="is off from torch") as refused:
            export.to_onnx(dataclasses.replace(RESNET, seed=1), out, progress=silent)
        assert refused.value.what.startswith(f"{out} is off")
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        assert not before or store.load(out) == good
        for path in tmp_path.iterdir():
            path.unlink()


def test_a_model_that_was_planted_in_the_cache_is_not_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a record that fits it, as whoever plants a file can write one."""
    source = tmp_path / "m.onnx"
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ports = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 1, 2, 2]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", ports[:1], ports[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), source)
    spec = ModelSpec(name="m", family="foreign", classes=4, input_shape=(1, 2, 2))
    artifact = Artifact(path=str(source), format="onnx", precision="fp32", sha256=store.digest(source), model=spec)
    built = build.build(artifact, "null", Execution())
    path = Path(built.path)
    good = path.read_bytes()
    assert path.is_relative_to(places.cache_dir())
    node.op_type = "Neg"
    graph = onnx.helper.make_graph([node], "g", ports[:1], ports[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    document = json.loads(store.sidecar(path).read_text())
    document.pop("seal")
    store.sidecar(path).write_text(json.dumps(document | {"sha256": store.digest(path)}))
    with caplog.at_level(logging.WARNING):
        assert build.build(artifact, "null", Execution()) == built
    assert path.read_bytes() == good
    assert "is not signed by you: it is made again" in caplog.text
