"""Reading ONNX files from strangers, and writing ours.

A parser is no security boundary (facts: onnx's external data was fixed four times), so what a reader can
check before any runtime sees the file is checked here: sizes, the containment of external data, the traps that
show one model to a viewer and another to a runtime, and ONNX's own checker.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from resdeploy import external, store
from resdeploy.errors import EnvironmentFailure, MalformedInput
from resdeploy.external import MAX_BYTES
from resdeploy.graph import dtypes
from resdeploy.graph.index import Index, opset_version
from resdeploy.records import Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_FUNCTIONS = 256  # onnx's C++ passes recurse over function calls: thousands of nested ones overflow the stack
SMALL = 64  # elements: initialisers that stay, since shapes may depend on their values
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "pkg.onnxscript.torch_lib", "pkg.torch"})
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_VALUE_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "raw_data", "double_data", "uint64_data")


def load_model(path: Path) -> onnx.ModelProto:
    """The model in `path`, with its external data, checked.

    Raises:
        MissingInput: no such file.
        UnsafeInput: `E-EXTDATA` where external data is not a plain file in the model's own folder.
        MalformedInput: not ONNX, truncated, over 2 GB, not valid, or built to mislead (see the head of this file).
        EnvironmentFailure: of a format or an opset that the installed onnx does not know yet.
    """
    model = _parse(path)
    _refuse_newer(model, path)
    _check_structure(model, path)
    _load_external_data(model, path)
    for tensor in external.tensors(model):
        _check_values(tensor, path)
    dtypes.fill_sparse(model, path)  # the checker's inference of shapes knows no sparse operand
    try:
        onnx.checker.check_model(weightless(model), full_check=True)  # the rest is looked at above
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as e:
        reason = str(e).strip().splitlines()[0]
        raise MalformedInput(f"{path} is not valid ONNX: {reason}", fix="Export it again") from e
    return model


def weightless(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for ONNX's checker and shape inference, which pass all bytes on: large initialisers are inputs of it."""
    graph = model.graph
    large = {t.name: t for t in graph.initializer if math.prod(t.dims) > SMALL}
    inputs = [v for v in graph.input if v.name not in large]  # files of format version 3 list the weights there too
    inputs += [onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in large.values()]
    return onnx.ModelProto(
        graph=onnx.GraphProto(
            name=graph.name,
            node=graph.node,
            input=inputs,
            output=graph.output,
            value_info=graph.value_info,
            initializer=[t for t in graph.initializer if t.name not in large],
            sparse_initializer=graph.sparse_initializer,
        ),
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        functions=model.functions,
        metadata_props=model.metadata_props,
    )


def is_sound(array: NDArray[Any]) -> bool:
    """Whether numbers may be in a model: all finite, or a single infinity, the value of a Pad or no bound of a Clip."""
    return bool(np.isfinite(array).all()) or (array.size == 1 and bool(np.isinf(array).all()))


def save_model(model: onnx.ModelProto, out: Path) -> None:
    """Writes the model as one file, into the folder of a publication (`store.publish`) or a temporary one.

    Raises:
        MalformedInput: over 2 GB.
        NotWritable, DiskFull: what the operating system said.
    """
    if (size := model.ByteSize()) > MAX_BYTES:
        raise MalformedInput(
            f"the model takes {size / 1e9:.1f} GB; an ONNX file holds 2 GB at most", fix="Use a smaller model"
        )
    with store.disk_errors(out):
        out.write_bytes(model.SerializeToString(deterministic=True))


def precision_of(model: onnx.ModelProto) -> Precision:
    """The precision that the graph itself states: by its quantizers, else by the type that its weights are used in.

    Weights that are stored in half precision and cast before they are multiplied with are FP32's.
    """
    operators = {node.op_type for node in model.graph.node}
    if "QuantizeLinear" in operators or "QLinearConv" in operators:
        return "int8"
    index = Index(model)
    weights = (node.input[1] for node in index.nodes if node.op_type in _WEIGHTED)
    types = {index.type_of_constant(name) for name in weights if name in index.constants}
    if onnx.TensorProto.FLOAT16 in types:
        return "fp16"
    return "bf16" if onnx.TensorProto.BFLOAT16 in types else "fp32"


def other_tensors(model: onnx.ModelProto, reference: onnx.ModelProto) -> list[str]:
    """Names of initialisers, of either model, whose type, shape or values are not those in the other one."""
    ours, theirs = (
        {t.name: (t.data_type, tuple(t.dims), numpy_helper.to_array(t).tobytes()) for t in each.graph.initializer}
        for each in (model, reference)
    )
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def _parse(path: Path) -> onnx.ModelProto:
    model = external.parse(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    parts = {"nodes": model.graph.node, "outputs": model.graph.output}
    parts["inputs"] = [value for value in model.graph.input if value.name not in weights]
    if missing := [name for name, items in parts.items() if not items]:
        raise MalformedInput(
            f"{path} is not a model: it has no {' and no '.join(missing)}", fix="Export or copy it again"
        )
    return model


def _refuse_newer(model: onnx.ModelProto, path: Path) -> None:
    """Refuses what was written by a newer onnx than the one here."""
    versions = {
        "format version": (model.ir_version, onnx.IR_VERSION),
        "opset": (opset_version(model, 0), onnx.defs.onnx_opset_version()),
    }
    for what, (written, known) in versions.items():
        if written > known:
            raise EnvironmentFailure(
                f"{path} has {what} {written}, and onnx {onnx.__version__} reads {what} {known} at most",
                fix="Install a newer onnx (pip install -U onnx), or export the model in an older opset",
            )


def _check_structure(model: onnx.ModelProto, path: Path) -> None:
    _check_constants(model, path)
    if len(model.functions) > MAX_FUNCTIONS:
        raise MalformedInput(
            f"{path} defines {len(model.functions)} functions, more than the {MAX_FUNCTIONS} allowed",
            fix="Export it again with its functions inlined (`onnx.inliner`)",
        )
    domains = DOMAINS | {f.domain for f in model.functions}
    for node in _nodes(model):
        name = node.name or node.op_type
        if node.op_type == "EPContext":
            raise MalformedInput(
                f"node {name!r} of {path} is an EPContext: compiled code for one device hidden in an ONNX file",
                fix="Use the ONNX file that it was compiled from",
            )
        if node.domain == "com.microsoft.nchwc":
            raise MalformedInput(
                f"node {name!r} of {path} is {node.op_type} of {node.domain}: ONNX Runtime has optimised this file for "
                "one kind of CPU",
                cause="SessionOptions.optimized_model_filepath writes such files, and no other program reads them",
                fix="Use the ONNX file that it was made from: every command here optimises what it runs",
            )
        if node.domain not in domains:
            raise MalformedInput(
                f"node {name!r} of {path} is {node.op_type} of the unknown domain {node.domain!r}",
                fix="Export the model with standard ONNX operators",
            )


def _check_constants(model: onnx.ModelProto, path: Path) -> None:
    """What ONNX's checker knows of large constants, and does not see in `weightless`."""
    graph = model.graph
    stored = {t.name: t for t in graph.initializer}
    if len(stored) < len(graph.initializer):
        twice = next(name for name, n in Counter(t.name for t in graph.initializer).items() if n > 1)
        raise MalformedInput(
            f"{path} holds two tensors named {twice!r}",
            cause="Which of them runs depends on the program that reads it",
            fix="Do not use this file",
        )
    for value in graph.input:
        tensor, declared = stored.get(value.name), value.type.tensor_type
        if tensor is None:
            continue
        dims = [d.dim_value for d in declared.shape.dim if d.HasField("dim_value")]
        if declared.elem_type != tensor.data_type or (len(dims) == len(declared.shape.dim) and dims != [*tensor.dims]):
            raise MalformedInput(
                f"input {value.name!r} of {path} and the tensor of that name have different types or shapes",
                cause="Which of them counts depends on the program that reads it",
                fix="Export it again",
            )


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs and functions too."""
    pending = [model.graph.node, *(f.node for f in model.functions)]
    while pending:
        for node in pending.pop():
            yield node
            for attribute in node.attribute:
                pending.extend(g.node for g in (attribute.g, *attribute.graphs))


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Moves the values of external tensors into the model, once it is clear that one file can hold them all."""
    outside: dict[str, list[tuple[onnx.TensorProto, int, int]]] = {}
    total = path.stat().st_size
    for tensor in external.tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            name, offset, length = _place(tensor, path)
            outside.setdefault(name, []).append((tensor, offset, length))
            total += length
    if total > MAX_BYTES:
        raise MalformedInput(
            f"{path} takes {total / 1e9:.1f} GB with its external data; an ONNX file holds 2 GB at most",
            cause="What resdeploy makes of a model, and hands to a runtime, is one file",
            fix="Save it in FP16, or use a smaller model",
        )
    for name, places in outside.items():
        with external.open_file(path, name) as file:
            for tensor, offset, length in places:
                file.seek(offset)
                tensor.raw_data = file.read(length)
                tensor.ClearField("data_location")
                tensor.ClearField("external_data")


def _place(tensor: onnx.TensorProto, path: Path) -> tuple[str, int, int]:
    """File, offset and length of an external tensor's values, in bytes."""
    pairs = [(entry.key, entry.value) for entry in tensor.external_data]
    entries, name = dict(pairs), "".join(external.locations(tensor, path)[-1:])
    if len(entries) < len(pairs) or any(len(getattr(tensor, field)) for field in _VALUE_FIELDS):
        raise MalformedInput(
            f"tensor {tensor.name!r} of {path} says twice where its values are",
            cause="Which of them runs depends on the program that reads it",
            fix="Do not use this file",
        )
    size = external.check(path, name).stat().st_size
    offset = _number(entries.get("offset", "0"))
    length = _number(entries.get("length", str(size - (offset or 0))))
    if offset is None or length is None or offset + length > size:
        raise external.refusal(path, name, f"tensor {tensor.name!r} is not within its {size:,} bytes")
    return name, offset, length


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _check_values(tensor: onnx.TensorProto, path: Path) -> None:
    filled = [field for field in _VALUE_FIELDS if len(getattr(tensor, field))]
    if len(filled) > 1:
        raise MalformedInput(
            f"tensor {tensor.name!r} of {path} has values in both {filled[0]} and {filled[1]}",
            cause="Which of them runs depends on the program that reads it",
            fix="Do not use this file",
        )
    if math.prod(tensor.dims) > MAX_BYTES or any(d < 0 for d in tensor.dims):
        raise MalformedInput(
            f"tensor {tensor.name!r} of {path} claims the shape {tuple(tensor.dims)}", fix="Do not use this file"
        )
    try:
        array = numpy_helper.to_array(tensor) if filled or 0 in tensor.dims else None
    except (ValueError, TypeError, KeyError) as e:
        raise MalformedInput(
            f"tensor {tensor.name!r} of {path} does not hold what its shape says: {e}", fix="Export or copy it again"
        ) from e
    if array is None:
        raise MalformedInput(f"tensor {tensor.name!r} of {path} has no values", fix="Export or copy it again")
    if array.dtype.kind in "fc" and not is_sound(array):
        raise MalformedInput(
            f"tensor {tensor.name!r} of {path} holds NaN or infinity",
            cause="The training diverged, or the file is damaged",
            fix="Use another checkpoint",
        )
