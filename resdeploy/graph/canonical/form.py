"""The canonical portable form: one spelling of a CNN that TensorRT 8.6 to 11, OpenVINO and ONNX Runtime all read.

Opset 17 and format version 8; GlobalAveragePool and Flatten; batch norms folded into convolutions; nothing
constant left to compute; one input `input` and one output `logits` with the symbolic batch dimension
`batch`; readable names (`names.py`); no stack traces or other traces of the machine that exported it. The
bytes depend on the model alone, and the form is a fixed point: its own canonical form is itself.

What is rewritten, and what is refused and why, is listed in docs/graphs.md. Passes work on onnx-ir, whose values
know their users; the doors of this room take and give `onnx.ModelProto`.
"""

from __future__ import annotations

import json

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

import resdeploy
from resdeploy.errors import MalformedInput
from resdeploy.graph import dtypes, files, metadata
from resdeploy.graph.canonical import affine, blanks, fold, names, opset, padding, products, rewrite, transposes
from resdeploy.graph.index import Index, copy, opset_version

BATCH = "batch"


def canonicalise(model: onnx.ModelProto, *, whole: bool = False) -> onnx.ModelProto:
    """The same function in the canonical portable form; `model` is left alone.

    Metadata of ours (`resdeploy.*`) is kept. A batch dimension fixed at export becomes symbolic where no node
    depends on it. What is folded here is recorded (`metadata.Removed`), unless something may have been folded before:
    then the record would not be true.

    Args:
        model: of any exporter.
        whole: nothing was folded before, since torch has just traced it.

    Raises:
        MalformedInput: several inputs or outputs, control flow, or an operator that opset 17 cannot express.
    """
    model = opset.expand(dtypes.to_single(model))
    _refuse_optimised(model)
    version = opset_version(model, opset.OPSET)
    if version < opset.OPSET:
        model, version = opset.upgrade(model), opset.OPSET
    ours = {p.key: p.value for p in model.metadata_props if p.key.startswith("resdeploy.")}
    # A copy, since onnx-ir's values share the proto's tensors and rename them.
    work = _read(model)
    graph = work.graph
    _check_interface(graph)
    stored = rewrite.stored_names(graph)
    _fold_constants(work, version)
    rewrite.drop_made_up_biases(graph, stored)
    passes.RemoveUnusedNodesPass()(work)
    opset.downgrade(graph)
    _simplify(graph)
    passes.RemoveUnusedNodesPass()(work)
    opset.spell_attributes(graph)
    graph.sort()
    names.rename(graph)
    before = metadata.read_removed(model)
    removed = _list_removed(graph, before or metadata.Removed())
    _strip(work)
    result = _finish(work)
    if whole or before is not None or not metadata.may_hide_norms(Index(result), removed["norms"]):
        ours[metadata.REMOVED_KEY] = json.dumps(removed)
    onnx.helper.set_model_props(result, ours)
    return result


def _read(model: onnx.ModelProto) -> ir.Model:
    """A copy as onnx-ir's model, which cannot hold all that ONNX can: sparse constants, say."""
    try:
        work = ir.serde.deserialize_model(copy(model))
    except ir.serde.SerdeError as e:
        innermost: BaseException = e
        while innermost.__cause__ is not None:
            innermost = innermost.__cause__
        raise MalformedInput(
            f"this model holds what cannot be rewritten: {innermost}",
            cause="Sparse tensors and a few rare types are ONNX, and no graph here is made of them",
            fix="Export it again with dense constants",
        ) from e
    for value in work.graph.initializers.values():
        stored = value.const_value
        if isinstance(stored, ir.serde.TensorProtoTensor) and blanks.holds_none(stored.raw):
            value.const_value = blanks.BlankTensor(stored.raw)
    return work


def _refuse_optimised(model: onnx.ModelProto) -> None:
    """Operators of ONNX Runtime alone, whose definitions onnx does not have."""
    foreign = [node for node in model.graph.node if node.domain == "com.microsoft"]
    if foreign:
        raise MalformedInput(
            f"node {foreign[0].name!r} is {foreign[0].op_type} of com.microsoft: ONNX Runtime has optimised this file",
            cause="Its fused operators are known to ONNX Runtime alone",
            fix="Use the ONNX file that it was made from; cost, and bench, eval and audit with --backend onnxruntime, "
            "read this one",
        )


def _check_interface(graph: ir.Graph) -> None:
    inputs = [v for v in graph.inputs if v.name not in graph.initializers]
    if len(inputs) != 1 or len(graph.outputs) != 1:
        raise MalformedInput(
            f"this model has {len(inputs)} inputs and {len(graph.outputs)} outputs, not one of each",
            cause="Only image classifiers (N, C, H, W) -> (N, classes) are handled",
            fix="Export the classifier alone, without auxiliary heads",
        )
    # Files of format version 3 list the weights among the inputs.
    graph.inputs[:] = inputs
    for node in graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise MalformedInput(
                f"node {node.name!r} ({node.op_type}) is control flow, which a classifier does not need",
                fix="Export the model again in evaluation mode, without data-dependent branches",
            )


def _fold_constants(work: ir.Model, version: int) -> None:
    """Constants are computed and shapes inferred in turn, until neither tells more of the other."""
    infer_shapes = passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)
    infer_shapes(work)
    while fold.fold_constants(work.graph, version):
        infer_shapes(work)


def fold_constants(model: onnx.ModelProto, image: tuple[int, int, int, int]) -> onnx.ModelProto:
    """The same graph for one input shape, with what that makes constant computed: shapes written as arithmetic.

    Args:
        model: one image input, of any opset; it is left alone.
        image: N, C, H, W.
    """
    version = opset_version(model, opset.OPSET)
    work = _read(model)
    next(v for v in work.graph.inputs if v.name not in work.graph.initializers).shape = ir.Shape(image)
    stored = rewrite.stored_names(work.graph)
    _fold_constants(work, version)
    rewrite.drop_made_up_biases(work.graph, stored)
    return ir.serde.serialize_model(work)


def _simplify(graph: ir.Graph) -> None:
    rewrite.drop_no_ops(graph)
    rewrite.add_in_pairs(graph)
    rewrite.split_plainly(graph)
    rewrite.merge_slices(graph)
    products.join(graph)
    transposes.cancel(graph)
    rewrite.clip_plainly(graph)
    padding.make_explicit(graph)
    padding.round_down(graph)
    padding.take_in(graph)
    rewrite.pool_globally(graph)
    rewrite.drop_no_ops(graph)  # means over a map of one element
    rewrite.flatten(graph)
    rewrite.flatten_logits(graph)
    affine.absorb(graph)


def _list_removed(graph: ir.Graph, before: metadata.Removed) -> dict[str, list[str]]:
    """The fields of `metadata.Removed`: what the passes marked as they removed it, and an earlier canonical form's."""

    def names_of_marked(key: str, earlier: tuple[str, ...]) -> list[str]:
        marked = {str(node.name) for node in graph if key in node.metadata_props}
        return [str(node.name) for node in graph if node.name in marked.union(earlier)]

    return {
        "norms": names_of_marked(affine.NORM, before.norms),
        "biased": names_of_marked(affine.BIASED, before.biased),
        "pools": names_of_marked(rewrite.POOL, before.pools),
    }


def _strip(work: ir.Model) -> None:
    """Removes docstrings and exporters' metadata: they hold paths of the exporting machine."""
    graph = work.graph
    work.doc_string = graph.doc_string = None
    work.metadata_props.clear()
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)):
        value.metadata_props.clear()
        value.doc_string = None
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in graph.initializers.values():
        stored = value.const_value
        if isinstance(stored, blanks.BlankTensor):
            continue
        if isinstance(stored, ir.serde.TensorProtoTensor) and not stored.raw.HasField("raw_data"):
            value.const_value = ir.Tensor(stored.numpy(), name=value.name)  # one of ONNX's two spellings of numbers
    graph.name = "classifier"
    work.producer_name, work.producer_version = "resdeploy", resdeploy.__version__
    work.domain, work.model_version = None, None
    work.ir_version = opset.IR_VERSION
    for domain in set(graph.opset_imports) - {n.domain for n in graph} - {""}:
        del graph.opset_imports[domain]


def _finish(work: ir.Model) -> onnx.ModelProto:
    """The final proto: symbolic batch where that holds to the end, fresh shapes, checked."""
    image, logits = work.graph.inputs[0], work.graph.outputs[0]
    image_shape, logits_shape = image.shape, logits.shape
    logits.shape = None
    if image_shape is not None and len(image_shape) > 0:
        image.shape = ir.Shape((BATCH, *image_shape[1:]))
    model = _serialise(work)
    # A file that says its batch is symbolic is taken at its word.
    fixed = image_shape is None or len(image_shape) == 0 or isinstance(image_shape[0], int)
    if fixed and not _carries_batch(model.graph):
        image.shape, logits.shape = image_shape, logits_shape
        model = _serialise(work)
    try:
        onnx.checker.check_model(files.weightless(model))  # weights are onnx-ir's own, which knows their shapes
    except onnx.checker.ValidationError as e:
        raise MalformedInput(
            f"the model in opset {opset.OPSET} is not valid ONNX: {e}",
            cause="An operator of the file has no such form there, or the rewriting of it is wrong",
            fix=f"Export the model again with opset {opset.OPSET}; if that fails too, report it",
        ) from e
    return model


def _carries_batch(graph: onnx.GraphProto) -> bool:
    """Whether every computed value begins with the batch dimension.

    The logits alone would not tell: a Reshape to (1, ...) broadcasts away against a value that has the batch.
    """
    first = {}
    for info in (*graph.value_info, *graph.output):
        dims = info.type.tensor_type.shape.dim
        first[info.name] = dims[0].dim_param if dims else ""
    return all(first.get(name) == BATCH for node in graph.node for name in node.output if name)


def _serialise(work: ir.Model) -> onnx.ModelProto:
    proto = ir.serde.serialize_model(work)
    del proto.graph.value_info[:]
    light = files.weightless(proto)
    try:
        light = onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        light = onnx.shape_inference.infer_shapes(light)
    proto.graph.value_info.extend(light.graph.value_info)
    del proto.graph.output[:]
    proto.graph.output.extend(light.graph.output)
    return proto
