"""Running an engine: by tensor addresses, on streams of our own, as CUDA graphs.

A session has a stream, a context, pinned host buffers and device buffers. `put` copies in; `run` launches the graph
that was captured when the session was made, between two events; `get` copies out. Each waits for the stream, so that
the clock and the events time the same work. Where capturing fails, or layers are to be timed, kernels are enqueued one
by one.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy.backends import Tensor, inspector
from resdeploy.backends.cuda import Stream
from resdeploy.errors import BackendCrash, ResdeployError, UsageError
from resdeploy.records import Execution, Layer

if TYPE_CHECKING:
    from resdeploy.backends import Arrays

DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "UINT8": "uint8", "INT32": "int32", "INT64": "int64",
    "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A deserialised engine and its runtime, which has to live as long."""

    runtime: Any
    engine: Any
    path: str  # its file, for errors


def deserialize(trt: Any, log: Any, plan: bytes, path: str, *, host_code: bool = False) -> Engine:
    """The engine in `plan`, which lies at `path`."""
    runtime = trt.Runtime(log)
    if host_code:  # a version-compatible engine brings its own runtime, which is refused unless allowed
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendCrash(
            f"TensorRT {trt.__version__} cannot load {path}",
            cause=" | ".join(log.errors[-3:]) or "An engine of another TensorRT version or GPU, or a damaged file",
            fix="Build it again here: resdeploy build F.onnx --backend tensorrt",
        )
    return Engine(runtime=runtime, engine=engine, path=path)


class Loaded:
    """A deserialized engine, opened for one batch and image size."""

    def __init__(self, trt: Any, engine: Engine, execution: Execution, *, trace: bool) -> None:
        self.trt, self.execution = trt, execution
        self.runtime, self.engine, self.path = engine.runtime, engine.engine, engine.path
        self.times_s: dict[str, list[float]] | None = defaultdict(list) if trace else None
        self.context: Any = None
        self.streams: list[Stream] = []
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        reads = {name: self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = {name: self._input(name) for name in names if reads[name]}
        self.outputs: dict[str, Tensor] = {}
        self._outputs = [name for name in names if not reads[name]]
        self.first: Session | None = self._session()
        self.settings: Mapping[str, str] = {
            "tensorrt": str(trt.__version__),
            "cuda_graph": self.first.how,
            "optimization_profiles": str(self.engine.num_optimization_profiles),
            "device_memory_mib": f"{self._memory() / 2**20:.1f}",
        }

    def _input(self, name: str) -> Tensor:
        declared = tuple(self.engine.get_tensor_shape(name))
        shape = (self.execution.batch_size, *(self.execution.input_shape or declared[1:]))
        if len(declared) != len(shape) or any(
            size not in (-1, want) for size, want in zip(declared, shape, strict=True)
        ):
            raise UsageError(
                f"{self.path} takes {' x '.join(map(str, declared))}, not {' x '.join(map(str, shape))}",
                fix="Ask for its size with -b and --img-size, or build it for this one",
            )
        if -1 in declared:
            low, _, high = (tuple(shape) for shape in self.engine.get_tensor_profile_shape(name, 0))
            if any(not least <= want <= most for least, want, most in zip(low, shape, high, strict=True)):
                raise UsageError(
                    f"{self.path} was built for batches of {low[0]} to {high[0]}, not {shape[0]}",
                    fix="Build it with --min-batch and --max-batch around this size",
                )
        return Tensor(shape=shape, dtype=self._dtype(name))

    def _dtype(self, name: str) -> str:
        kind = self.engine.get_tensor_dtype(name).name
        if kind not in DTYPES:
            raise UsageError(f"the engine's tensor {name} is {kind}, for which numpy has no type")
        return DTYPES[kind]

    def _memory(self) -> int:
        """Bytes of activations that a context takes on the GPU; the first version's name ended with 10."""
        if hasattr(self.engine, "device_memory_size_v2"):
            return int(self.engine.device_memory_size_v2)
        return int(self.engine.device_memory_size)

    def _session(self) -> Session:
        context = self.engine.create_execution_context()
        if context is None:
            raise BackendCrash("TensorRT could not make an execution context", fix="Use a smaller batch size")
        if self.times_s is not None and self.context is None:
            context.profiler = _profiler(self.trt, self.times_s)
        self.context = self.context or context
        for name, tensor in self.inputs.items():
            if not context.set_input_shape(name, tensor.shape):
                raise UsageError(f"the engine refuses {tensor.shape} for {name}", fix="Build it for this size")
        self.outputs = {
            name: Tensor(shape=tuple(context.get_tensor_shape(name)), dtype=self._dtype(name)) for name in self._outputs
        }
        stream = Stream()
        self.streams.append(stream)
        session = Session(context, stream, self.inputs, self.outputs, capture=self.times_s is None)
        if self.times_s is not None:
            self.times_s.clear()  # of the first run, in which kernels are loaded
        return session

    def session(self) -> Session:
        """A stream of its own; the first one was made on opening."""
        session, self.first = self.first or self._session(), None
        return session

    def layers(self) -> Sequence[Layer]:
        """As the inspector lists them; with `trace`, mean times of the first session's runs but the first."""
        viewer = self.engine.create_engine_inspector()
        viewer.execution_context = self.context
        text = viewer.get_engine_information(self.trt.LayerInformationFormat.JSON)
        layers = inspector.parse(text, "the engine").layers
        times = {name: float(np.mean(values)) for name, values in (self.times_s or {}).items()}
        return tuple(dataclasses.replace(layer, time_s=times.get(layer.name)) for layer in layers)

    def close(self) -> None:
        """Frees what the streams hold."""
        for stream in self.streams:
            stream.close()


class Session:
    """One stream of queries."""

    def __init__(
        self,
        context: Any,
        stream: Stream,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        *,
        capture: bool,
    ) -> None:
        self.context, self.stream = context, stream
        self.host = {name: stream.pinned(t.shape, t.dtype) for name, t in (*inputs.items(), *outputs.items())}
        self.device = {name: stream.device(array.nbytes) for name, array in self.host.items()}
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.answers = {name: self.host[name] for name in outputs}
        for name, address in self.device.items():
            context.set_tensor_address(name, address)
        self._enqueue()  # TensorRT finishes its set-up in the first run, which cannot be captured
        stream.wait()
        self.how = "no: layers are timed"
        self.start: Callable[[], None] = self._enqueue
        if capture:
            try:
                self.start, self.how = stream.capture(self._enqueue), "yes"
            except ResdeployError as e:
                self.how = f"no: {e.what}"

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(int(self.stream.handle)):
            raise BackendCrash("TensorRT could not start the engine", fix="Run `resdeploy doctor`")

    def put(self, inputs: Arrays) -> None:
        for name, value in inputs.items():
            np.copyto(self.host[name], value)
            self.stream.to_device(self.device[name], self.host[name])
        self.stream.wait()

    def run(self) -> None:
        self.stream.mark(self.stream.before)
        self.start()
        self.stream.mark(self.stream.after)
        self.stream.wait()

    def get(self) -> Arrays:
        for name in self.outputs:
            self.stream.to_host(self.host[name], self.device[name])
        self.stream.wait()
        return self.answers

    def device_time_s(self) -> float | None:
        return self.stream.elapsed_s()


def _profiler(trt: Any, times_s: dict[str, list[float]]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        """Gathers the times of layers; a name that occurs twice in a run counts as two runs."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times_s[layer_name].append(ms / 1e3)

    return Profiler()
