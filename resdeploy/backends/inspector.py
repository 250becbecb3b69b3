"""What TensorRT's engine inspector and profiler print, as layers: one reader for 8.x, 10.x and 11.x.

    up to 10   `Bindings`: names; a layer's tensors have one `Format/Datatype`
    from 10    layers have `Metadata`: `[ONNX Layer: name]` entries
    11         `I/O Tensors`: records; a layer's tensors have `Format` and `Datatype` (also spelled `DataType`)

Keys are matched without case. Without DETAILED verbosity layers are bare strings: names are then all that is known,
and everything else is "unknown". Which graph nodes a layer computes comes from its metadata, else from its name, whose
parts are joined by ` + ` and may be wrapped in `PWN(...)`. A range (`{ForeignNode[a...b]}`) says what it covers only at
its ends: those two are its sources, and nothing is claimed of what lies between.

Sources: TensorRT's trt-engine-explorer (NVIDIA/TensorRT v10.16, tools/experimental) and NVIDIA's migration guide of
IEngineInspector from 10.x to 11.x.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from resdeploy import store
from resdeploy.errors import MalformedInput
from resdeploy.records import Layer, Port

# The words that name a type in `Format/Datatype`, `Datatype` and `Weights.Type`, lower case.
TYPES = {
    "fp32": "fp32", "float": "fp32", "float32": "fp32", "tf32": "fp32", "fp16": "fp16", "half": "fp16",
    "float16": "fp16", "bf16": "bf16", "bfloat16": "bf16", "int8": "int8", "uint8": "uint8", "fp8": "fp8",
    "e4m3": "fp8", "int4": "int4", "fp4": "fp4", "int32": "int32", "int64": "int64", "bool": "bool",
}  # fmt: skip
# Types in a kernel's name, most telling first: `i8f16_i8i32` multiplies int8, whatever it then writes.
TACTICS = (
    (re.compile(r"(?:^|_)i8(?:i8|f16|f32|i32|u8)|imma|i8816|i16832", re.IGNORECASE), "int8"),
    (re.compile(r"(?:^|_)e4m3", re.IGNORECASE), "fp8"),
    (re.compile(r"(?:^|_)bf16", re.IGNORECASE), "bf16"),
    (re.compile(r"(?:^|_)f16f16|hmma|h884|h16816|s16816|(?:^|_)fp16", re.IGNORECASE), "fp16"),
    (re.compile(r"(?:^|_)f32f32|sgemm|scudnn|tf32", re.IGNORECASE), "fp32"),
)
METADATA = re.compile(r"\[ONNX Layer: ((?:(?!\[ONNX Layer: )[^\x1e\x1f])+)\]")  # a name may hold brackets
# Nothing is computed: signals between streams, and arithmetic on shapes.
FREE = ("noop", "constant", "signal", "wait", "shape_call")
UNKNOWN = "unknown"
LONGEST_NAME = 65_536  # characters; TensorRT joins hundreds of nodes in a name, not thousands


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """An engine as its inspector describes it."""

    layers: tuple[Layer, ...]
    bindings: tuple[str, ...]  # names of the engine's inputs and outputs


def parse(text: str | bytes, origin: str) -> Inspection:
    """The layers of an inspector's JSON, in order of execution.

    Args:
        text: what `IEngineInspector.get_engine_information(JSON)` or `trtexec --exportLayerInfo` wrote.
        origin: the file's name, for errors.

    Raises:
        MalformedInput: not JSON, or not an inspector's.
    """
    document = _json(text, origin)
    layers = _get(document, "Layers") if isinstance(document, Mapping) else None
    if not isinstance(layers, list) or not all(isinstance(layer, (str, Mapping)) for layer in layers):
        raise MalformedInput(
            f"{origin} is not what TensorRT's engine inspector prints: it has no list of Layers",
            fix="Save it with trtexec --exportLayerInfo=F --profilingVerbosity=detailed",
        )
    try:
        bindings = _list(document, "Bindings", "I/O Tensors")
        names = (_get(binding, "Name") if isinstance(binding, Mapping) else binding for binding in bindings)
        return Inspection(
            layers=tuple(_layer(layer) for layer in layers),
            bindings=tuple(name for name in names if isinstance(name, str)),
        )
    except ValueError as e:
        raise MalformedInput(
            f"{origin} is not what TensorRT's engine inspector prints: {e}",
            fix="Save it with trtexec --exportLayerInfo=F --profilingVerbosity=detailed",
        ) from e


def add_times(layers: Sequence[Layer], text: str | bytes, origin: str) -> tuple[Layer, ...]:
    """The layers with their mean times from a profile (`trtexec --exportProfile`), matched by name and order.

    A profiled layer that the inspector does not list is added at the end: the times always sum to the profile's.

    Raises:
        MalformedInput: not such a profile, or one of another engine: no name in common.
    """
    document = _json(text, origin)
    rows = [row for row in document if isinstance(row, Mapping)] if isinstance(document, list) else []
    times_s: dict[str, deque[float]] = defaultdict(deque)
    for row in rows:
        name, time_ms = _get(row, "name"), _get(row, "averageMs")
        if isinstance(name, str) and isinstance(time_ms, (int, float)):
            times_s[name].append(time_ms / 1e3)
    if not any(layer.name in times_s for layer in layers):
        raise MalformedInput(
            f"{origin} is no profile of this engine: it names none of its layers",
            fix="Save both in one run: trtexec --exportLayerInfo=F --exportProfile=G --profilingVerbosity=detailed",
        )
    timed = [
        dataclasses.replace(layer, time_s=times_s[layer.name].popleft()) if times_s.get(layer.name) else layer
        for layer in layers
    ]
    rest = [Layer(name=n, kind="", precision=UNKNOWN, time_s=time) for n, others in times_s.items() for time in others]
    return (*timed, *rest)


def _json(text: str | bytes, origin: str) -> Any:
    return store.parse_json(text, origin, fix="Save the inspector's output again")


def _layer(document: str | Mapping[str, Any]) -> Layer:
    if isinstance(document, str):
        _check_name(document)
        return Layer(name=document, kind="", precision=UNKNOWN, sources=_parts(document), role=_role("", "", document))
    name, kind = _text(document, "Name"), _text(document, "LayerType")
    _check_name(name)
    inputs, outputs = (_ports(_list(document, side)) for side in ("Inputs", "Outputs"))
    metadata = METADATA.findall(_text(document, "Metadata"))
    tactic = _text(document, "TacticName")
    activation = _text(document, "Activation").upper() not in ("NONE", "NULL", "")
    role = _role(kind, _text(document, "Origin"), name)
    return Layer(
        name=name,
        kind=kind,
        precision=_arithmetic(_get(document, "Weights"), inputs, outputs, tactic),
        # A reformat's name or metadata says beside what it runs, not what it computes.
        sources=() if role in ("reformat", "free") else tuple(dict.fromkeys(metadata or _parts(name))),
        role=role,
        activation=activation or bool(_get(document, "HasReLU")),
        inputs=inputs,
        outputs=outputs,
        others=_weights(_get(document, "Weights")) or _ports(_list(document, "Constants")),
        tactic=tactic,
    )


def _weights(weights: Any) -> tuple[Port, ...]:
    """The weights as one row: of their shape the inspector tells the number of values alone."""
    count = _get(weights, "Count") if isinstance(weights, Mapping) else None
    if not isinstance(count, int) or count <= 0:
        return ()
    return (Port(name="", precision=_type(_text(weights, "Type")), shape=(count,)),)


def _role(kind: str, origin: str, name: str) -> Literal["compute", "qdq", "reformat", "free"]:
    if kind.lower() in FREE:
        return "free"
    if origin.upper() == "QDQ":
        return "qdq"
    if kind.lower() == "reformat" or name.startswith("Reformatting CopyNode"):
        return "reformat"
    return "compute"


def _arithmetic(weights: Any, inputs: Sequence[Port], outputs: Sequence[Port], tactic: str) -> str:
    """In which precision a layer multiplies: its weights' type, its first input's, or what the kernel's name says.

    Int8 weights with a float activation are stored so, not computed so: the activation decides.
    """
    stored = _type(_text(weights, "Type")) if isinstance(weights, Mapping) else UNKNOWN
    read = inputs[0].precision if inputs else UNKNOWN
    if stored != UNKNOWN and read in (stored, UNKNOWN):
        return stored
    if read != UNKNOWN:
        return read
    by_tactic = next((precision for pattern, precision in TACTICS if tactic and pattern.search(tactic)), UNKNOWN)
    return by_tactic if by_tactic != UNKNOWN or not outputs else outputs[0].precision


def _ports(tensors: Sequence[Any]) -> tuple[Port, ...]:
    return tuple(_port(tensor) for tensor in tensors if isinstance(tensor, Mapping))


def _port(tensor: Mapping[str, Any]) -> Port:
    text = " ".join(_text(tensor, key) for key in ("Datatype", "Format/Datatype", "Format"))
    shape = tuple(dim for dim in _list(tensor, "Dimensions") if isinstance(dim, int))
    return Port(name=_text(tensor, "Name"), precision=_type(text), shape=shape)


def _type(text: str) -> str:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return next((TYPES[word] for word in words if word in TYPES), UNKNOWN)


def _parts(name: str) -> tuple[str, ...]:
    """The node names that a layer's name is joined of."""
    if name.startswith("Reformatting CopyNode"):
        return ()
    first, _, rest = name.partition("ForeignNode[")[2].partition("...")
    last, closed, _ = rest.partition("]")
    if first and last and closed:
        return (first, last)
    parts = []
    for part in name.split(" + "):
        wrapped = "PWN(" in part
        for piece in part.replace("PWN(", "").split(", ") if wrapped else [part]:
            inner = piece.strip()
            if wrapped and (excess := inner.count(")") - inner.count("(")) > 0:
                inner = "".join(inner.rsplit(")", excess))
            parts.append(re.sub(r"\[profile \d+\]$", "", inner).rstrip())
    return tuple(part for part in parts if part)


def _check_name(name: str) -> None:
    if not name or len(name) > LONGEST_NAME:
        raise ValueError(f"a layer's name has {len(name)} characters")


def _text(document: Any, key: str) -> str:
    """A text, "" where it is missing.

    Raises:
        ValueError: it is a list or a record.
    """
    value = _get(document, key)
    if isinstance(value, (list, Mapping)):
        raise ValueError(f"{key} is no text")
    return str(value or "")


def _list(document: Any, *keys: str) -> Sequence[Any]:
    """A list, empty where it is missing.

    Raises:
        ValueError: it is something else.
    """
    value = _get(document, *keys)
    if not isinstance(value, (list, type(None))):
        raise ValueError(f"{keys[0]} is no list")
    return value or ()


def _get(document: Any, *keys: str) -> Any:
    """The value of the first of these keys that is there, whatever its case."""
    if not isinstance(document, Mapping):
        return None
    lower = {str(key).lower(): value for key, value in document.items()}
    return next((lower[key.lower()] for key in keys if key.lower() in lower), None)
