"""ONNX Runtime on the CPU or through its CUDA and TensorRT execution providers, as a backend.

`build` checks the file and copies it; the optimising (ORT_ENABLE_ALL) happens in `open`. Saving the optimised graph
instead would tie the file to one instruction set, to save some 0.2 s of ResNet-50's load time. Neither that
nor a batch size fixed in the file changed the time of a query beyond the noise (4 % in 12 interleaved runs).

Streams get a session each, the threads shared out: in one session they would wait for its one thread pool.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from resdeploy import packages, store
from resdeploy.backends import Tensor, input_shape, installed_version, machine, no_check, no_preparation
from resdeploy.errors import BackendMissing, EnvironmentFailure, MalformedInput, ResdeployError
from resdeploy.records import Artifact, Availability, Execution, Format, Layer, Port, Precision, Target

if TYPE_CHECKING:
    from resdeploy.backends import Arrays

VENDOR = "onnxruntime"
PACKAGES: tuple[str, ...] = ("onnxruntime", "onnxruntime-gpu")
SOURCE: Format = "onnx"
FORMAT: Format = "onnx"
SUFFIXES: tuple[str, ...] = (".onnx",)
TAG = b""
PROGRAM = FOREIGN = False
# No BF16: its CPU kernels have no bfloat16 convolution.
ACCEPTS: frozenset[Precision] = frozenset({"fp32", "fp16", "int8"})
TARGET: Target | None = "onnxruntime"
HEEDS = frozenset({"provider", "memory_pattern"})
check, prepare = no_check, no_preparation

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int64)": "int64",
}
# Which inputs of a kernel are data, not weights or scales: the fourth of a convolution is a sum taken in.
DATA = {"Conv": (0, 3), "FusedConv": (0, 3), "QLinearAdd": (0, 3), "Add": (0, 1)}
PRECISIONS = {"float": "fp32", "float16": "fp16", "uint8": "int8", "int8": "int8"}


def available() -> Availability:
    """Whether the package is installed."""
    version = installed_version(VENDOR, *PACKAGES)
    if version is None:
        return Availability(
            ok=False, reason="the package onnxruntime is not installed", install=packages.install(VENDOR)
        )
    return Availability(ok=True, version=version, devices=("CPU",))


def build(source: Artifact, execution: Execution, out: Path) -> Artifact:
    """Copies the file once ONNX Runtime has loaded it; for TensorRT behind it, as its parser reads it right.

    Raises:
        MalformedInput: it refuses the file, or TensorRT behind it would misread it.
        UsageError: the file is fixed to another batch or image size.
    """
    readable = source
    if execution.provider == "tensorrt":  # NVIDIA's parser takes some nodes for others
        from resdeploy.graph import files, parser_gaps
        from resdeploy.graph.symmetric import to_symmetric

        model = files.load_model(Path(source.path))
        if (rewritten := parser_gaps.close(to_symmetric(model))) is not model:
            files.save_model(rewritten, out)
            readable = dataclasses.replace(source, path=str(out))
    with open(readable, execution):
        if readable is source:
            store.write_bytes(out, Path(source.path).read_bytes())
    tools = {**source.tools, "onnxruntime": installed_version(VENDOR, *PACKAGES) or ""}
    return store.derive(source, out, tools=tools)


@contextlib.contextmanager
def open(built: Artifact, execution: Execution, *, trace: bool = False) -> Iterator[_Loaded]:  # noqa: A001
    """Loads and optimises the graph.

    Raises:
        MalformedInput, UsageError: as in `build`.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield _Loaded(built, execution, Path(folder) / "profile" if trace else None)


def _providers(execution: Execution, precision: str) -> list[Any]:
    """The execution providers to try in turn, with their options."""
    cpu: list[Any] = ["CPUExecutionProvider"]
    if execution.provider == "cpu":
        return cpu
    on_gpu = ["CUDAExecutionProvider", *cpu]
    if execution.provider == "cuda":
        return on_gpu
    # Flags where its TensorRT still has them; the graph holds the precision in any case.
    flags = {"trt_fp16_enable": str(precision != "fp32"), "trt_int8_enable": str(precision == "int8")}
    return [("TensorrtExecutionProvider", flags), *on_gpu]


class _Loaded:
    def __init__(self, built: Artifact, execution: Execution, profile: Path | None) -> None:
        self.path, self.profile, self.provider = built.path, profile, execution.provider
        self.providers = _providers(execution, built.precision)
        self.memory_pattern = execution.memory_pattern
        self.threads = max(1, (execution.threads or machine.usable_cores()) // execution.streams)
        self.first: Any = self._create()
        self.unused = True
        self.executed: tuple[Layer, ...] | None = None
        self.inputs = {
            i.name: Tensor(shape=input_shape(i.shape, built, execution), dtype=_dtype(i, self.path))
            for i in self.first.get_inputs()
        }
        self.outputs = self._outputs()
        options = self.first.get_session_options()
        self.settings: Mapping[str, str] = {
            "intra_op_num_threads": str(options.intra_op_num_threads),
            "graph_optimization_level": options.graph_optimization_level.name,
            "enable_mem_pattern": str(options.enable_mem_pattern),
            "providers": ",".join(self.first.get_providers()),
        }

    def _outputs(self) -> Mapping[str, Tensor]:
        """The outputs' shapes, by the names of the sizes they share with the inputs."""
        declared = {o.name: (o.shape, _dtype(o, self.path)) for o in self.first.get_outputs()}
        sizes: dict[Any, int] = {}
        for value in self.first.get_inputs():
            sizes |= zip(value.shape, self.inputs[value.name].shape, strict=True)
        if all(
            shape and None not in shape and sizes.keys() >= {d for d in shape if isinstance(d, str)}
            for shape, _ in declared.values()
        ):
            return {
                name: Tensor(shape=tuple(sizes[d] if isinstance(d, str) else d for d in shape), dtype=dtype)
                for name, (shape, dtype) in declared.items()
            }
        # The file does not say: ask a run, at the price of a first query that is none.
        values = self.first.run(list(declared), {name: np.zeros(t.shape, t.dtype) for name, t in self.inputs.items()})
        return {
            name: Tensor(shape=value.shape, dtype=str(value.dtype))
            for name, value in zip(declared, values, strict=True)
        }

    def _create(self) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = self.memory_pattern
        options.log_severity_level = 3
        if self.profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(self.profile)
        try:
            session = ort.InferenceSession(self.path, options, providers=self.providers)
        except Exception as e:
            if isinstance(e, MemoryError):
                raise
            raise _refusal(self.path, " ".join(str(e).split())) from e
        # It falls back to the next provider without a word.
        preferred = self.providers[0] if isinstance(self.providers[0], str) else self.providers[0][0]
        if session.get_providers()[0] != preferred:
            raise BackendMissing(
                f"ONNX Runtime here has no {preferred}, only {', '.join(session.get_providers())}",
                fix=f"With NVIDIA's driver, run `{packages.install('onnxruntime-gpu')}` in place of onnxruntime",
            )
        return session

    def session(self) -> _Session | _DeviceSession:
        session, self.first, self.unused = (self.first if self.unused else self._create()), self.first, False
        if self.provider != "cpu":
            return _DeviceSession(session, self.inputs, self.outputs)
        return _Session(session, self.inputs, self.outputs)

    def layers(self) -> Sequence[Layer]:
        """From the profile of all runs so far, the first session's; times are means. Profiling ends here."""
        if self.executed is None:
            with Path(self.first.end_profiling()).open(encoding="utf-8") as file:
                self.executed = _layers(json.load(file))
        return self.executed


class _Session:
    """Inputs and outputs are bound to buffers of ours once: a query then makes no array."""

    def __init__(self, session: Any, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        self.session, self.binding = session, session.io_binding()
        self.inputs = {name: np.zeros(t.shape, t.dtype) for name, t in inputs.items()}
        self.outputs = {name: np.zeros(t.shape, t.dtype) for name, t in outputs.items()}
        for name, buffer in self.inputs.items():
            self.binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        for name, buffer in self.outputs.items():
            self.binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)

    def put(self, inputs: Arrays) -> None:
        for name, value in inputs.items():
            np.copyto(self.inputs[name], value)

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)

    def get(self) -> Arrays:
        return self.outputs

    def device_time_s(self) -> float | None:
        return None


class _DeviceSession:
    """Inputs and outputs live on the device, so that `run` computes and the copies are `put` and `get`."""

    def __init__(
        self, session: Any, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], device: str = "cuda"
    ) -> None:
        import onnxruntime as ort

        self.session, self.binding = session, session.io_binding()

        def on_device(tensor: Tensor) -> Any:
            return ort.OrtValue.ortvalue_from_numpy(np.zeros(tensor.shape, tensor.dtype), device, 0)

        self.inputs = {name: on_device(tensor) for name, tensor in inputs.items()}
        self.outputs = {name: on_device(tensor) for name, tensor in outputs.items()}
        for name, value in self.inputs.items():
            self.binding.bind_ortvalue_input(name, value)
        for name, value in self.outputs.items():
            self.binding.bind_ortvalue_output(name, value)

    def put(self, inputs: Arrays) -> None:
        for name, value in inputs.items():
            self.inputs[name].update_inplace(np.ascontiguousarray(value))
        self.binding.synchronize_inputs()

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()

    def get(self) -> Arrays:
        return {name: value.numpy() for name, value in self.outputs.items()}

    def device_time_s(self) -> float | None:
        return None


# What it says of a file that is newer than it, and up to where it reads.
_NEWER = (
    ("format version", re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")),
    ("opset", re.compile(r"Opset (\d+) is under development.* is till opset (\d+)")),
)


def _refusal(path: str, words: str) -> ResdeployError:
    for what, pattern in _NEWER:
        if found := pattern.search(words):
            return EnvironmentFailure(
                f"{path} has {what} {found[1]}, and onnxruntime {installed_version(VENDOR, *PACKAGES)} reads "
                f"{what} {found[2]} at most",
                cause="For Python 3.10 there is none newer than 1.23" if sys.version_info < (3, 11) else "",
                fix="Install a newer onnxruntime, or write the file in opset 17: resdeploy export F.onnx -o F17.onnx",
            )
    # Of FP64 and BF16 it has few operators.
    unwritten = "NOT_IMPLEMENTED" in words
    fix = "Write it in FP32: resdeploy export F.onnx -o F32.onnx" if unwritten else "Export it again"
    return MalformedInput(f"ONNX Runtime refuses {path}", cause=words[:400], fix=fix)


def _dtype(value: Any, path: str) -> str:
    if value.type not in DTYPES:
        raise MalformedInput(f"{path} has the input {value.name!r} of type {value.type}", fix="Give it image tensors")
    return DTYPES[value.type]


def _layers(events: Sequence[Mapping[str, Any]]) -> tuple[Layer, ...]:
    """Kernels in order of execution. A name is the optimiser's, after the value that the kernel computes."""
    times_s: dict[str, list[float]] = {}
    kernels: dict[str, Mapping[str, Any]] = {}
    for event in events:
        name = event["name"]
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            name = name.removesuffix("_kernel_time")
            times_s.setdefault(name, []).append(event["dur"] / 1e6)
            kernels[name] = event["args"]
    return tuple(_layer(name, args, float(np.mean(times_s[name]))) for name, args in kernels.items())


def _layer(name: str, args: Mapping[str, Any], time_s: float) -> Layer:
    kind = args["op_name"]
    read, written = (_ports(args.get(f"{side}_type_shape", ())) for side in ("input", "output"))
    data = DATA.get(kind, (0,))
    inputs = tuple(read[i] for i in data if i < len(read))
    role: Literal["compute", "qdq", "reformat"] = "compute"
    if kind in ("QuantizeLinear", "DequantizeLinear"):
        role = "qdq"
    elif kind in ("Transpose", "Cast", "ReorderInput", "ReorderOutput"):
        role = "reformat"
    # Named after the node, or after what its last node makes; fusions and layouts leave their marks.
    source = re.sub(r"(_nchwc|_token_\d+)$", "", name.removeprefix("fused "))
    # For a convolution the first input is the activation.
    return Layer(
        name=name,
        kind=kind,
        precision=inputs[0].precision if inputs else "",
        sources=(source,),
        time_s=time_s,
        role=role,
        inputs=inputs,
        outputs=written[:1],
        others=tuple(port for i, port in enumerate(read) if i not in data),
    )


def _ports(tensors: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Port, ...]:
    """Profiles give types and shapes, in the order of the kernel's inputs, but no names."""
    return tuple(
        Port(name="", precision=PRECISIONS.get(kind, kind), shape=tuple(shape))
        for tensor in tensors
        for kind, shape in tensor.items()
    )
