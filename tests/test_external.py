"""External data belong to the model: in its digest, read from its own folder only."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy import external, store
from resdeploy.errors import IntegrityError, MalformedInput, MissingInput, UnsafeInput
from resdeploy.records import Artifact
from tests.opens import watched

VALUES = np.arange(1, 7, dtype=np.float32)


def outside(name: str = "w.bin", values: np.ndarray = VALUES, **entries: int) -> onnx.TensorProto:
    """A tensor whose values are in the file `name`."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=values.shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=name)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def constant(tensor: onnx.TensorProto) -> onnx.NodeProto:
    node = helper.make_node("Constant", [], ["k"])
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    return node


def model_of(*nodes: onnx.NodeProto, **parts: Any) -> onnx.ModelProto:
    """x (n, 6) -> y = x + k, where `nodes` make k."""
    graph = helper.make_graph(
        [*nodes, helper.make_node("Add", ["x", "k"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 6))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 6))],
        **parts,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("pkg.torch", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def in_initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model_of(helper.make_node("Identity", ["w"], ["k"]), initializer=[tensor])


def in_attribute(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model_of(constant(tensor))


def in_sparse(tensor: onnx.TensorProto) -> onnx.ModelProto:
    sparse = onnx.SparseTensorProto(dims=[6])
    sparse.values.CopyFrom(tensor)
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(6), "at"))
    node = helper.make_node("Constant", [], ["k"])
    node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(sparse)
    return model_of(node)


def in_subgraph(tensor: onnx.TensorProto) -> onnx.ModelProto:
    out = helper.make_tensor_value_info("k", TensorProto.FLOAT, (6,))
    branch = helper.make_graph([constant(tensor)], "b", [], [out])
    yes = numpy_helper.from_array(np.array(True), "yes")
    node = helper.make_node("If", ["yes"], ["k"], then_branch=branch, else_branch=branch)
    return model_of(node, initializer=[yes])


def in_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = model_of(helper.make_node("Weights", [], ["k"], domain="pkg.torch"))
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("pkg.torch", "Weights", [], ["k"], [constant(tensor)], opsets))
    return model


def in_training(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = in_initializer(numpy_helper.from_array(VALUES, "w"))
    model.training_info.add().initialization.initializer.append(tensor)
    return model


EVERYWHERE = [in_initializer, in_attribute, in_sparse, in_subgraph, in_function, in_training]
Make = Callable[[onnx.TensorProto], onnx.ModelProto]


def write(folder: Path, model: onnx.ModelProto) -> Path:
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.parametrize("make", EVERYWHERE)
def test_one_weight_changed_is_another_model(tmp_path: Path, make: Make) -> None:
    """Wherever the format lets a tensor be: its file belongs to the model, and its record no longer fits."""
    data = tmp_path / "w.bin"
    data.write_bytes(VALUES.tobytes())
    path = write(tmp_path, make(outside()))
    before = store.digest(path)
    assert store.companions(path) == (data,)
    store.copy_to(Artifact(path=str(path), format="onnx", precision="fp32", sha256=before), path)
    assert store.load(path) is not None
    data.write_bytes((VALUES + np.eye(6, dtype=np.float32)[3]).tobytes())
    assert store.digest(path) != before
    with pytest.raises(IntegrityError):
        store.load(path)


def test_a_file_that_holds_all_its_tensors_is_read_once_for_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it names others is seen in passing, also where the word lies across two pieces of it."""
    path = write(tmp_path, in_initializer(numpy_helper.from_array(VALUES, "w")))
    opened, real = [], Path.open

    def note(self: Path, *args: Any) -> Any:
        opened.append(self)
        return real(self, *args)

    said = hashlib.sha256(path.read_bytes()).hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", note)
        assert store.digest(path) == said
    assert opened == [path]
    (tmp_path / "w.bin").write_bytes(VALUES.tobytes())
    write(tmp_path, in_initializer(outside()))
    whole = store.digest(path)
    for size in range(7, 40):
        monkeypatch.setattr("resdeploy.store.atomic.CHUNK_BYTES", size)
        assert store.digest(path) == whole


def test_the_digest_is_what_sha256sum_makes_of_the_files(tmp_path: Path) -> None:
    """Two tensors share a file, two spell another alike; that of a file that holds all its tensors is as before."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "w.bin").write_bytes(np.tile(VALUES, 2).tobytes())
    (tmp_path / "deep" / "v.bin").write_bytes(VALUES.tobytes())
    tensors = [outside(length=24), outside(offset=24), outside("deep/v.bin"), outside("./deep//v.bin")]
    for number, tensor in enumerate(tensors):
        tensor.name = f"w{number}"
    graph = model_of(helper.make_node("Sum", [t.name for t in tensors], ["k"]), initializer=tensors)
    path = write(tmp_path, graph)
    said = subprocess.run(
        "(sha256sum < m.onnx; sha256sum deep/v.bin; sha256sum w.bin) | sha256sum",
        shell=True,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert store.digest(path) == said.stdout.split()[0]
    assert [p.name for p in store.companions(path)] == ["v.bin", "w.bin"]
    alone = write(tmp_path, in_initializer(numpy_helper.from_array(VALUES, "w")))
    assert store.digest(alone) == hashlib.sha256(alone.read_bytes()).hexdigest()


def test_no_byte_moves_from_one_file_to_the_next(tmp_path: Path) -> None:
    """The same bytes in the same order, cut elsewhere, are another model; the same model elsewhere is not."""
    model = model_of(
        helper.make_node("Sum", ["a", "b"], ["k"]), initializer=[outside("a.bin"), outside("b.bin", VALUES)]
    )
    model.graph.initializer[0].name, model.graph.initializer[1].name = "a", "b"
    path = write(tmp_path, model)
    found = set()
    for cut in (20, 24, 28):
        (tmp_path / "a.bin").write_bytes(np.tile(VALUES, 2).tobytes()[:cut])
        (tmp_path / "b.bin").write_bytes(np.tile(VALUES, 2).tobytes()[cut:])
        found.add(store.digest(path))
    assert len(found) == 3
    (tmp_path / "moved").mkdir()
    for name in ("m.onnx", "a.bin", "b.bin"):
        shutil.move(tmp_path / name, tmp_path / "moved")
    (tmp_path / "moved/m.onnx").rename(tmp_path / "moved/n.onnx")
    assert store.digest(tmp_path / "moved/n.onnx") in found


def test_missing_data_are_named(tmp_path: Path) -> None:
    """An .onnx copied without its weights is no model."""
    path = write(tmp_path, in_initializer(outside("deep/w.bin")))
    with pytest.raises(MissingInput, match=r"'deep/w\.bin', which is not beside it"):
        store.digest(path)


@pytest.mark.parametrize("name", ["", ".", "deep", "a\0b", "x" * 300, "*/_ORT_MEM_ADDR_/*"])
def test_names_of_no_file_are_refused(tmp_path: Path, name: str) -> None:
    """A folder, no name, and what a runtime would take for an address in its memory."""
    (tmp_path / "deep").mkdir()
    with pytest.raises((UnsafeInput, MissingInput)):
        store.digest(write(tmp_path, in_initializer(outside(name))))


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are not UTF-8, where the format asks for text."""
    path = write(tmp_path, in_initializer(outside("w.bin")))
    path.write_bytes(path.read_bytes().replace(b"w.bin", b"w.\xff\xfen"))
    with pytest.raises(MalformedInput):
        store.digest(path)


def test_a_file_cut_off_is_refused(tmp_path: Path) -> None:
    """What it names can no longer be told, so it has no digest."""
    path = write(tmp_path, in_initializer(outside()))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(MalformedInput, match="cut off"):
        store.digest(path)


def test_the_word_alone_names_nothing(tmp_path: Path) -> None:
    """A value called `location` in a file that holds its tensors."""
    model = in_initializer(numpy_helper.from_array(VALUES, "w"))
    model.graph.initializer[0].name = model.graph.node[0].input[0] = "location"
    assert external.names(write(tmp_path, model)) == ()


@pytest.mark.parametrize("swap", ["a link", "a pipe", "another file"])
def test_a_file_exchanged_after_it_was_looked_at_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    """Neither followed nor waited for: the file that is read is the one that was looked at."""
    data, secret = tmp_path / "w.bin", tmp_path / "secret.bin"
    for path in (data, secret):
        path.write_bytes(VALUES.tobytes())
    path, look = write(tmp_path, in_initializer(outside())), external._place

    def exchanging(path: Path, name: str) -> tuple[Path, os.stat_result]:
        found = look(path, name)
        data.rename(tmp_path / "old.bin")
        if swap == "a link":
            data.symlink_to(secret)
        elif swap == "a pipe":
            os.mkfifo(data)
        else:
            secret.rename(data)
        return found

    monkeypatch.setattr(external, "_place", exchanging)
    with watched(secret) as opened, pytest.raises(UnsafeInput) as caught:
        external.open_file(path, "w.bin")
    assert caught.value.code == "E-EXTDATA"
    assert opened == ([secret] if swap == "another file" else [])
