"""A graph's index and its edits; ONNX's checker, helper and reference evaluator are the oracles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from resdeploy.graph.index import (
    Index,
    add_constant,
    attribute,
    by_name,
    copy,
    drop_attributes,
    drop_unused,
    has_subgraph,
    image_input,
    input_name,
    insert_nodes,
    integers,
    node_name,
    opset_version,
    overwrite,
    prune,
    set_nodes,
    set_output,
)

IMAGE = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)


def numbers(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32), name)


def network() -> onnx.ModelProto:
    """relu(conv(x) + x), a branch that nobody reads, and constants read and unread, of both kinds."""
    nodes = [
        helper.make_node("Constant", [], ["half"], value=helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])),
        helper.make_node("Constant", [], ["unread"], value=helper.make_tensor("unread", TensorProto.FLOAT, [], [2])),
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1], auto_pad="NOTSET"),
        helper.make_node("Mul", ["c", "half"], ["dead"], name="mul"),
        helper.make_node("Sigmoid", ["dead"], ["deader"]),
        helper.make_node("Add", ["c", "x"], ["sum"], name="add"),
        helper.make_node("Clip", ["sum", "", "most"], ["y"], name="clip"),
    ]
    shape = [1, 2, 4, 4]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numbers("w", 2, 2, 3, 3), numbers("alone", 3), numbers("most")],
        value_info=[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("c", "dead", "sum")],
    )
    return checked(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def branching() -> onnx.ModelProto:
    """An If whose branches read tensors of the graph around it."""
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2])
    body = helper.make_graph([helper.make_node("Sum", ["x", "inner", "constant"], ["z"])], "body", [], [out])
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1])
    nodes = [
        helper.make_node("Constant", [], ["constant"], value=one),
        helper.make_node("If", ["cond"], ["y"], then_branch=body, else_branch=body),
        helper.make_node("Relu", ["x"], ["dead"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    held = [numpy_helper.from_array(np.array(True), "cond"), numbers("inner", 1, 2), numbers("unread", 3)]
    graph = helper.make_graph(nodes, "branching", values[:1], values[1:], held)
    return checked(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto) -> np.ndarray:
    found = cast("list[np.ndarray]", ReferenceEvaluator(checked(model)).run(None, {"x": IMAGE}))
    return found[0]


def names(items: Iterable[Any]) -> list[str]:
    return [item.name for item in items]


def test_the_index_knows_makers_readers_and_what_is_constant() -> None:
    """Each question about each tensor, against the graph as it was written down."""
    model = network()
    index = Index(model)
    _, _, conv, _, _, add, clip = index.nodes
    assert index.maker("c") == conv
    assert index.maker("x") is index.maker("w") is index.maker("") is None
    assert [index.nodes[i].op_type for i in index.readers["c"]] == ["Mul", "Add"]
    assert index.only_reader("c") is index.only_reader("y") is None
    assert index.only_reader("sum") == clip
    assert index.constants == {"w", "alone", "most", "half", "unread"}
    assert index.operands(add) == ["c", "x"]
    assert index.operands(clip) == ["sum"]
    assert index.value("half") == helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])
    assert index.value("c") is index.value("") is None
    np.testing.assert_array_equal(index.array("w"), numpy_helper.to_array(model.graph.initializer[0]))


def test_what_a_subgraph_makes_is_not_constant() -> None:
    """Its condition is, but its branches may read anything."""
    model = branching()
    assert [has_subgraph(node) for node in model.graph.node] == [False, True, False]
    assert "y" not in Index(model).constants


def test_attributes_are_those_that_onnx_wrote_or_the_default() -> None:
    """Numbers, texts and lists."""
    conv, clip = network().graph.node[2], network().graph.node[6]
    assert attribute(helper.make_node("Gemm", [], [], alpha=0.25), "alpha", 1.0) == 0.25
    assert attribute(helper.make_node("Conv", [], [], group=4), "group", 1) == 4
    assert attribute(conv, "auto_pad", b"") == b"NOTSET"
    assert (attribute(clip, "group", 1), attribute(clip, "mode", b"constant")) == (1, b"constant")
    assert integers(conv, "pads", ()) == (1, 1, 1, 1)
    assert integers(conv, "strides", (1, 1)) == (1, 1)


def test_nodes_go_by_their_name_or_that_of_their_output() -> None:
    """Exporters may leave names out."""
    nodes = by_name(network().graph.node)
    assert list(nodes) == ["half", "unread", "conv", "mul", "deader", "add", "clip"]
    assert all(node_name(node) == name for name, node in nodes.items())


def test_an_input_that_is_left_out_is_the_empty_name() -> None:
    """In the middle and at the end alike."""
    clip = network().graph.node[6]
    assert [input_name(clip, k) for k in range(4)] == ["sum", "", "most", ""]


def test_the_image_is_the_input_that_is_no_weight() -> None:
    """As in files of format version 3, which list both."""
    model = network()
    model.graph.input.insert(0, helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2, 3, 3]))
    assert image_input(checked(model).graph).name == "x"


def test_the_opset_is_that_of_onnx_under_both_of_its_names() -> None:
    """Other domains count for nothing."""
    model = network()
    for domains, version in ((["other"], 9), (["other", ""], 17), (["ai.onnx", "other"], 17)):
        del model.opset_import[:]
        model.opset_import.extend(helper.make_opsetid(d, 3 if d == "other" else 17) for d in domains)
        assert opset_version(model, 9) == version


@pytest.mark.parametrize("pick", [lambda m: m, lambda m: m.graph.node[2], lambda m: m.graph.value_info[0]])
def test_a_copy_is_equal_and_shares_nothing(pick) -> None:
    """Of a model, a node, and what is known of a value."""
    original = pick(network())
    twin = copy(original)
    assert twin == original
    twin.doc_string = "changed"
    assert original.doc_string == ""


def test_a_stored_constant_is_read_back_and_can_be_overwritten_in_its_place() -> None:
    """Type and shape are those of the numbers; the order of initializers stays."""
    model = network()
    values = np.arange(6, dtype=np.int8).reshape(2, 3)
    assert add_constant(model.graph, "new", values) == "new"
    found = Index(model).array("new")
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, values)
    overwrite(model.graph.initializer[1], np.ones(5, np.float32))
    assert names(model.graph.initializer) == ["w", "alone", "most", "new"]
    np.testing.assert_array_equal(Index(checked(model)).array("alone"), np.ones(5))


def test_without_an_attribute_the_default_holds() -> None:
    """The padding of a convolution is 0 then, by ONNX's shape inference."""
    model = network()
    conv = model.graph.node[2]
    drop_attributes(conv, "pads", "auto_pad", "absent")
    assert names(conv.attribute) == []
    del model.graph.value_info[:]
    prune_to(model, "c")
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0]
    assert [d.dim_value for d in inferred.type.tensor_type.shape.dim] == [1, 2, 2, 2]


def prune_to(model: onnx.ModelProto, tensor: str) -> None:
    set_output(model.graph, tensor, None)
    prune(model.graph)


def test_inserted_nodes_stand_before_a_node_behind_a_tensor_and_at_the_inputs() -> None:
    """The checker, which wants topological order, passes, and each value is what it was."""
    model = network()
    expected = run(model)
    new = {
        name: [helper.make_node("Identity", [tensor], [name], name=name)]
        for name, tensor in (("of the input", "x"), ("behind", "c"), ("before", "sum"))
    }
    insert_nodes(model.graph, before={"clip": new["before"]}, after={"x": new["of the input"], "c": new["behind"]})
    clip = model.graph.node[-1]
    clip.input[0] = "before"
    assert [node_name(node) for node in model.graph.node] == [
        *("of the input", "half", "unread", "conv", "behind", "mul", "deader", "add", "before", "clip")
    ]
    np.testing.assert_array_equal(run(model), expected)


def test_nodes_can_be_set_to_some_of_the_graph_s_own_in_another_order() -> None:
    """Though the field that holds them is emptied first."""
    model = network()
    kept = [node for node in model.graph.node if node.op_type in ("Conv", "Add", "Clip")]
    set_nodes(model.graph, reversed(kept))
    assert names(model.graph.node) == ["clip", "add", "conv"]
    set_nodes(model.graph, reversed(list(model.graph.node)))
    np.testing.assert_array_equal(run(model), run(network()))


def test_the_output_that_is_set_is_the_only_one() -> None:
    """Its sizes known, symbolic or unknown, or nothing known of them, as ONNX's helper writes them."""
    shapes: list[list[int | str | None] | None] = [[1, 2, 4, 4], ["batch", 2, None, None], None]
    for shape in shapes:
        graph = network().graph
        set_output(graph, "sum", shape)
        assert list(graph.output) == [helper.make_tensor_value_info("sum", TensorProto.FLOAT, shape)]


def test_unused_constants_go_and_all_else_stays() -> None:
    """Branches that nobody reads stay, with their constants; so do recorded shapes."""
    model = network()
    before = run(model)
    drop_unused(model.graph)
    assert names(model.graph.initializer) == ["w", "most"]
    assert [node.output[0] for node in model.graph.node] == ["half", "c", "dead", "deader", "sum", "y"]
    assert names(model.graph.value_info) == ["c", "dead", "sum"]
    np.testing.assert_array_equal(run(model), before)


def test_a_constant_that_is_an_output_is_not_unused() -> None:
    """Of both kinds."""
    model = network()
    for name, shape in (("alone", [3]), ("unread", [])):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    drop_unused(model.graph)
    assert names(model.graph.initializer) == ["w", "alone", "most"]
    assert model.graph.node[1].output[0] == "unread"
    checked(model)


def test_pruning_takes_whole_branches_with_their_constants_and_shapes() -> None:
    """What is left computes the same."""
    model = network()
    before = run(model)
    prune(model.graph)
    assert names(model.graph.node) == ["conv", "add", "clip"]
    assert names(model.graph.initializer) == ["w", "most"]
    assert names(model.graph.value_info) == ["c", "sum"]
    np.testing.assert_array_equal(run(model), before)


@pytest.mark.parametrize("remove", [drop_unused, prune])
def test_what_a_subgraph_alone_reads_is_read(remove) -> None:
    """Stored in either way; what nobody reads goes all the same."""
    model = branching()
    remove(model.graph)
    checked(model)
    assert names(model.graph.initializer) == ["cond", "inner"]
    assert [node.op_type for node in model.graph.node if node.output[0] != "dead"] == ["Constant", "If"]
    ReferenceEvaluator(model).run(None, {"x": np.ones((1, 2), np.float32)})
