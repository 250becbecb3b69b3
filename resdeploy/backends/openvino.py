"""OpenVINO on the CPU, as a backend.

`build` reads the ONNX file, fixes the batch size and saves OpenVINO's own format: `.xml` and its weights in `.bin`
beside it. `open` compiles that. The arithmetic is always pinned: left alone, OpenVINO runs FP32 graphs in BF16 on CPUs
that have it, and FP32 baselines would be none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from resdeploy import packages, store
from resdeploy.backends import Tensor, input_shape, installed_version, machine, no_preparation
from resdeploy.errors import BackendMissing, MalformedInput, UsageError
from resdeploy.records import Artifact, Availability, Execution, Format, Layer, Port, Precision, Target

if TYPE_CHECKING:
    from resdeploy.backends import Arrays

VENDOR = "openvino"
PACKAGES: tuple[str, ...] = ("openvino",)
SOURCE: Format = "onnx"
FORMAT: Format = "openvino"
SUFFIXES: tuple[str, ...] = (".xml",)
TAG = b""
PROGRAM = FOREIGN = False
ACCEPTS: frozenset[Precision] = frozenset({"fp32", "fp16", "bf16", "int8"})
TARGET: Target | None = "openvino"
HEEDS: frozenset[str] = frozenset()
prepare = no_preparation

HINTS = {"fp32": "f32", "int8": "f32", "fp16": "f16", "bf16": "bf16"}
PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}
DEPTH = 100  # of elements: a dimension is the sixth, and the body of a loop adds four
# How kernels' names end: with the type of the first tensor that they read, where u8 is spelled "I8" (OpenVINO's
# src/plugins/intel_cpu/src/node.cpp, getPrimitiveDescriptorType; capitals in versions before 2023.3).
IN_NAMES = {**PRECISIONS, "fp32": "fp32", "fp16": "fp16"}
RECORDED = ("INFERENCE_PRECISION_HINT", "PERFORMANCE_HINT", "NUM_STREAMS", "INFERENCE_NUM_THREADS")


def available() -> Availability:
    """Whether the package is installed."""
    version = installed_version(VENDOR)
    if version is None:
        return Availability(ok=False, reason="the package openvino is not installed", install=packages.install(VENDOR))
    return Availability(ok=True, version=version, devices=("CPU",))


def check(path: Path) -> None:
    """Looks at an `.xml` file before OpenVINO does, whose parser recurses over elements within elements.

    Raises:
        MalformedInput: not XML, not a network, or nested deeper than any network is.
    """
    from xml.parsers import expat

    depth, parser = 0, expat.ParserCreate()

    def refuse(why: str) -> None:
        raise MalformedInput(f"{path} is not a network in OpenVINO's format: {why}", fix="Build or copy it again")

    def enter(name: str, _attributes: object) -> None:
        nonlocal depth
        if not depth and name != "net":
            refuse(f"it begins with <{name[:40]}>")
        depth += 1
        if depth > DEPTH:
            refuse("its elements are nested too deeply")

    def leave(_name: str) -> None:
        nonlocal depth
        depth -= 1

    parser.StartElementHandler, parser.EndElementHandler = enter, leave
    parser.StartDoctypeDeclHandler = lambda *_: refuse("it defines words of its own")
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as e:
        refuse(str(e))


def build(source: Artifact, execution: Execution, out: Path) -> Artifact:
    """Converts to `.xml` and `.bin`, weights in the precision of the graph.

    Raises:
        UsageError: `out` does not end in `.xml`, or the file is fixed to another batch or image size.
        MalformedInput: OpenVINO refuses the file.
    """
    import openvino as ov

    if out.suffix != ".xml":
        raise UsageError(f"OpenVINO writes .xml files, not {out.name}", fix=f"Use -o {out.with_suffix('.xml').name}")
    try:
        model = ov.Core().read_model(source.path)
    except Exception as e:
        raise _refusal(source.path, e) from e
    model.reshape({i: input_shape(_dims(i.partial_shape), source, execution) for i in model.inputs})
    # Compression would round FP32 weights to FP16: precision is the graph's business.
    ov.save_model(model, str(out), compress_to_fp16=False)
    tools = {**source.tools, "openvino": installed_version(VENDOR) or ""}
    return store.derive(source, out, format="openvino", tools=tools)


@contextlib.contextmanager
def open(built: Artifact, execution: Execution, *, trace: bool = False) -> Iterator[_Loaded]:  # noqa: A001
    """Compiles for this CPU.

    Raises:
        BackendMissing: BF16 is asked for and this CPU does not have it (OpenVINO would emulate it, slowly).
        MalformedInput: OpenVINO refuses the file.
        UsageError: the file was built for another batch or image size.
    """
    import openvino as ov

    if execution.precision == "bf16" and not machine.cpu().bf16:
        raise BackendMissing(f"{machine.cpu().model} has no BF16 arithmetic", fix="Use --precision fp32 or int8")
    core = ov.Core()
    try:
        model = core.read_model(built.path)
    except Exception as e:
        raise _refusal(built.path, e) from e
    shapes = {i: input_shape(_dims(i.partial_shape), built, execution) for i in model.inputs}
    if model.is_dynamic():  # not from build(): somebody's own file
        model.reshape(shapes)
    config = {
        "PERFORMANCE_HINT": execution.hint.upper(),
        "INFERENCE_PRECISION_HINT": HINTS[execution.precision],
        "NUM_STREAMS": execution.streams,
        "INFERENCE_NUM_THREADS": execution.threads or machine.usable_cores(),
        "PERF_COUNT": trace,
    }
    yield _Loaded(core.compile_model(model, "CPU", config))


class _Loaded:
    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.inputs = {port.any_name: _tensor(port) for port in compiled.inputs}
        self.outputs = {port.any_name: _tensor(port) for port in compiled.outputs}
        # A type prints as <Type: 'float32'>; its own name is what the option is set with.
        self.settings: Mapping[str, str] = {key: _text(compiled.get_property(key)) for key in RECORDED}

    def session(self) -> _Session:
        return _Session(self.compiled.create_infer_request(), self.inputs, self.outputs)

    def layers(self) -> Sequence[Layer]:
        """Executed kernels in order, with the graph nodes each computes; times are means over all runs so far."""
        nodes = [(node, _info(node)) for node in self.compiled.get_runtime_model().get_ordered_ops()]
        return [_layer(node, info) for node, info in nodes if _was_executed(info)]


class _Session:
    """Inputs and outputs are tensors over buffers of ours: a query then makes no array."""

    def __init__(self, request: Any, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        import openvino as ov

        self.request = request
        self.inputs = {name: np.zeros(t.shape, t.dtype) for name, t in inputs.items()}
        self.outputs = {name: np.zeros(t.shape, t.dtype) for name, t in outputs.items()}
        for number, buffer in enumerate(self.inputs.values()):
            request.set_input_tensor(number, ov.Tensor(buffer, shared_memory=True))
        for number, buffer in enumerate(self.outputs.values()):
            request.set_output_tensor(number, ov.Tensor(buffer, shared_memory=True))

    def put(self, inputs: Arrays) -> None:
        for name, value in inputs.items():
            np.copyto(self.inputs[name], value)

    def run(self) -> None:
        self.request.infer({}, share_outputs=True)

    def get(self) -> Arrays:
        return self.outputs

    def device_time_s(self) -> float | None:
        return None


def _refusal(path: str, error: Exception) -> Exception:
    if isinstance(error, MemoryError):
        return error
    words = " ".join(str(error).split())[:400]
    return MalformedInput(f"OpenVINO refuses {path}", cause=words, fix="Export it again")


def _sources(names: str) -> tuple[str, ...]:
    """Graph nodes; a biased convolution appears twice, since reading the file split it."""
    return tuple(dict.fromkeys(name.removesuffix("/WithoutBiases") for name in names.split(",") if name))


def _info(node: Any) -> dict[str, str]:
    return {key: value.value for key, value in node.get_rt_info().items()}


def _was_executed(info: Mapping[str, str]) -> bool:
    return info["execTimeMcs"] != "not_executed" and info["layerType"] not in ("Const", "Input", "Output")


def _layer(node: Any, info: Mapping[str, str]) -> Layer:
    sources = _sources(info["originalLayersNames"])
    role: Literal["compute", "qdq", "reformat"] = "compute"
    if info["layerType"] in ("Reorder", "Convert"):
        role = "reformat"
    elif sources and all(name.endswith(("QuantizeLinear", "DequantizeLinear")) for name in sources):
        role = "qdq"
    precision, doubt = _arithmetic(info["primitiveType"], info["runtimePrecision"])
    makers = [value.get_node() for value in node.input_values()]
    return Layer(
        name=node.get_friendly_name(),
        kind=f"{info['layerType']}:{info['primitiveType']}",
        precision=precision,
        sources=sources,
        time_s=float(info["execTimeMcs"]) / 1e6,
        role=role,
        inputs=tuple(_port(maker) for maker in makers if _is_computed(maker)),
        outputs=(_port(node),),
        others=tuple(_port(maker) for maker in makers if not _is_computed(maker)),
        doubt=doubt,
    )


def _arithmetic(kernel: str, reported: str) -> tuple[str, str]:
    """In which precision a kernel computes, and in words what OpenVINO reports where that is another.

    `runtimePrecision` is the narrowest type among the tensors read, weights included: on a CPU with AMX it says i8 of
    FP32 convolutions whose weights alone are int8. The kernel's name tells what it reads, and so what it multiplies.
    """
    claimed = _precision(reported)
    named = IN_NAMES.get(kernel.rpartition("_")[2].lower(), claimed)
    doubt = f"{reported} by runtimePrecision, but its kernel {kernel} is {named.upper()}"
    return named, doubt if named != claimed else ""


def _is_computed(node: Any) -> bool:
    info = _info(node)
    return _was_executed(info) or info["layerType"] == "Input"


def _port(node: Any) -> Port:
    """What a kernel writes, under its name. Most write one tensor; of others the first is given."""
    precision = _precision(_info(node)["outputPrecisions"].split(",")[0])
    shape = node.get_output_partial_shape(0)
    return Port(
        name=node.get_friendly_name(), precision=precision, shape=tuple(shape.to_shape()) if shape.is_static else ()
    )


def _precision(name: str) -> str:
    return PRECISIONS.get(name, name)


def _tensor(port: Any) -> Tensor:
    return Tensor(shape=tuple(port.shape), dtype=str(np.dtype(port.element_type.to_dtype())))


def _text(value: Any) -> str:
    return str(value.get_type_name()) if hasattr(value, "get_type_name") else str(value)


def _dims(shape: Any) -> list[int | None]:
    return [None if d.is_dynamic else d.get_length() for d in shape]
