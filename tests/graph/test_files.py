"""Reading ONNX files from strangers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy import store
from resdeploy.errors import MalformedInput, MissingInput, NotWritable, UnsafeInput
from resdeploy.graph import dtypes, files, metadata
from tests.opens import watched
from tests.test_external import EVERYWHERE, VALUES, Make, in_initializer, outside


def tiny(weight: np.ndarray | None = None, domain: str = "", op: str = "Conv") -> onnx.ModelProto:
    weight = np.ones((2, 3, 1, 1), np.float32) if weight is None else weight
    graph = helper.make_graph(
        [
            helper.make_node(op, ["x", "w"], ["c"], name="c1", domain=domain),
            helper.make_node("GlobalAveragePool", ["c"], ["p"], name="p1"),
            helper.make_node("Flatten", ["p"], ["y"], name="f1"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 4, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 2))],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_a_good_file_comes_back(tmp_path: Path) -> None:
    """What is saved is what is loaded."""
    files.save_model(tiny(), tmp_path / "m.onnx")
    assert files.load_model(tmp_path / "m.onnx") == tiny()


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x00" * 64])
def test_what_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty file, text and zeros are no models."""
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(MalformedInput):
        files.load_model(tmp_path / "m.onnx")


def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path) -> None:
    """No prefix of a model passes for a model."""
    data = tiny().SerializeToString()
    for length in range(0, len(data), 7):
        (tmp_path / "m.onnx").write_bytes(data[:length])
        with pytest.raises(MalformedInput):
            files.load_model(tmp_path / "m.onnx")


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    """Absence is another error than damage."""
    with pytest.raises(MissingInput):
        files.load_model(tmp_path / "none.onnx")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_weights_are_refused_by_name(tmp_path: Path, value: float) -> None:
    """The tensor is named."""
    weight = np.ones((2, 3, 1, 1), np.float32)
    weight[1, 2] = value
    with pytest.raises(MalformedInput, match="'w'"):
        files.load_model(write(tmp_path / "m.onnx", tiny(weight)))


def test_a_tensor_with_two_values_is_refused_by_name(tmp_path: Path) -> None:
    """Which of both would run depends on the reader."""
    model = tiny()
    model.graph.initializer[0].float_data.extend([2.0] * 6)
    with pytest.raises(MalformedInput, match=r"'w'.*float_data and raw_data"):
        files.load_model(write(tmp_path / "m.onnx", model))


@pytest.mark.parametrize("size", [1, 200])
def test_two_tensors_of_one_name_are_refused(tmp_path: Path, size: int) -> None:
    """A viewer may show the one and a runtime take the other; large ones do not reach ONNX's checker."""
    model = tiny(np.ones((2, 3, size, 1), np.float32))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((2, 3, size, 1), np.float32), "w"))
    with pytest.raises(MalformedInput, match="two tensors named 'w'"):
        files.load_model(write(tmp_path / "m.onnx", model))


def test_a_weight_declared_as_an_input_of_another_type_is_refused(tmp_path: Path) -> None:
    """Files of format version 3 list their weights among the inputs, with a shape of their own."""
    for shape, kind in (((2, 3, 1, 7), TensorProto.FLOAT), ((2, 3, 9, 9), TensorProto.DOUBLE)):
        model = tiny(np.ones((2, 3, 9, 9), np.float32))
        model.graph.input.append(helper.make_tensor_value_info("w", kind, shape))
        with pytest.raises(MalformedInput, match="different types or shapes"):
            files.load_model(write(tmp_path / "m.onnx", model))


def test_unknown_domains_and_compiled_code_are_refused_by_node(tmp_path: Path) -> None:
    """EPContext hides a native blob; a custom domain needs somebody's library."""
    with pytest.raises(MalformedInput, match=r"'c1'.*com\.evil"):
        files.load_model(write(tmp_path / "a.onnx", tiny(domain="com.evil")))
    with pytest.raises(MalformedInput, match=r"'c1'.*EPContext"):
        files.load_model(write(tmp_path / "b.onnx", tiny(domain="com.microsoft", op="EPContext")))


@pytest.mark.parametrize("make", EVERYWHERE)
def test_external_data_beside_the_model_is_read(tmp_path: Path, make: Make) -> None:
    """Into the model, wherever the tensor is; the watch that the next test relies on sees it."""
    (tmp_path / "w.bin").write_bytes(b"head" + VALUES.tobytes() + b"tail")
    path = write(tmp_path / "m.onnx", make(outside(offset=4, length=24)))
    with watched(tmp_path / "w.bin") as opened:
        model = files.load_model(path)
    assert opened
    inside = make(numpy_helper.from_array(VALUES, "w"))
    dtypes.fill_sparse(inside, path)
    assert model.SerializeToString() == inside.SerializeToString()


@pytest.mark.parametrize("make", EVERYWHERE)
@pytest.mark.parametrize(
    "case", ["parent", "hidden parent", "absolute", "symlink", "folder symlink", "hardlink", "fifo"]
)
def test_external_data_elsewhere_is_refused(tmp_path: Path, case: str, make: Make) -> None:
    """Nothing outside the model's own folder is opened, however it is spelled and wherever the tensor is."""
    secret, folder = tmp_path / "secret.bin", tmp_path / "models"
    folder.mkdir()
    secret.write_bytes(VALUES.tobytes())
    location = {"parent": "../secret.bin", "hidden parent": "a/../../secret.bin", "absolute": str(secret)}.get(
        case, "w.bin"
    )
    forbidden = [secret]
    if case == "symlink":
        (folder / "w.bin").symlink_to(secret)
    elif case == "folder symlink":
        (folder / "sub").symlink_to(tmp_path)
        location = "sub/secret.bin"
    elif case == "hardlink":
        os.link(secret, folder / "w.bin")
    elif case == "fifo":
        os.mkfifo(folder / "w.bin")
        forbidden.append(folder / "w.bin")
    path = write(folder / "m.onnx", make(outside(location)))
    with watched(*forbidden) as opened:
        for read in (files.load_model, store.digest, store.companions):
            with pytest.raises(UnsafeInput) as caught:
                read(path)
            assert caught.value.code == "E-EXTDATA"
    assert opened == []


def test_more_than_one_file_can_hold_is_refused_unread(tmp_path: Path) -> None:
    """Two tensors of 1.5 GB in one file, which is empty but for its length."""
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(1_500_000_000)
    model = in_initializer(outside())
    model.graph.initializer.append(model.graph.initializer[0])
    model.graph.initializer[1].name = "v"
    with watched(tmp_path / "w.bin") as opened, pytest.raises(MalformedInput, match=r"3\.0 GB with its external data"):
        files.load_model(write(tmp_path / "m.onnx", model))
    assert opened == []


@pytest.mark.parametrize("entries", [{"offset": 4, "length": 24}, {"offset": 25}, {"offset": -4}, {"length": "2_4"}])
def test_values_beyond_the_external_file_are_refused(tmp_path: Path, entries: dict[str, Any]) -> None:
    """The tensor is named."""
    (tmp_path / "w.bin").write_bytes(VALUES.tobytes())
    with pytest.raises(UnsafeInput, match="tensor 'w' is not within its 24 bytes"):
        files.load_model(write(tmp_path / "m.onnx", in_initializer(outside(**entries))))


def test_external_data_beside_values_or_another_place_are_refused(tmp_path: Path) -> None:
    """Which of both would run depends on the reader."""
    (tmp_path / "w.bin").write_bytes(VALUES.tobytes())
    both, twice = outside(), outside()
    both.raw_data = VALUES.tobytes()
    twice.external_data.add(key="location", value="v.bin")
    for tensor in (both, twice):
        with pytest.raises(MalformedInput, match=r"'w'.*twice"):
            files.load_model(write(tmp_path / "m.onnx", in_initializer(tensor)))


@pytest.mark.parametrize("make", EVERYWHERE)
def test_non_finite_values_are_refused_wherever_they_are(tmp_path: Path, make: Make) -> None:
    """In a function's constant too."""
    bad = numpy_helper.from_array(VALUES * np.float32(np.nan), "bad")
    with pytest.raises(MalformedInput, match=r"'bad' .* NaN"):
        files.load_model(write(tmp_path / "m.onnx", make(bad)))


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """The destination is a folder: refused, and no temporary file stays."""
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(NotWritable):
        files.save_model(tiny(), tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_foreign_file_tells_its_shape_and_classes(tmp_path: Path) -> None:
    """And says nothing about preprocessing."""
    spec = metadata.spec_of(tiny(), tmp_path / "mine.onnx")
    assert (spec.name, spec.family, spec.classes, spec.input_shape) == ("mine", "foreign", 2, (3, 4, 4))
    assert spec.preprocessing is None


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    """Channels last, and logits that are not (N, classes)."""
    model = tiny()
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[1].dim_value, dims[3].dim_value = 4, 3
    dims[1].dim_value = 224
    with pytest.raises(MalformedInput, match="no image"):
        metadata.spec_of(model, tmp_path / "m.onnx")
    model = tiny()
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 7
    with pytest.raises(MalformedInput, match="not a classifier"):
        metadata.spec_of(model, tmp_path / "m.onnx")
