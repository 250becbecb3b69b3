"""The little of CUDA that running an engine needs, through cuda-python (`cuda.bindings`), and what the driver says.

The driver is asked by ctypes first: cuda-python need not be installed for that, and TensorRT must not be touched where
there is no driver (`tensorrt.Runtime` segfaults there, `tensorrt.Builder` raises a TypeError that says nothing).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy.errors import BackendCrash, OutOfMemory

if TYPE_CHECKING:
    from numpy.typing import NDArray

ERRORS = {100: "no CUDA device", 34: "a stub driver library", 803: "driver and library versions that differ"}
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU."""

    name: str
    capability: tuple[int, int]

    @property
    def architecture(self) -> str:
        return f"sm_{self.capability[0]}{self.capability[1]}"

    def __str__(self) -> str:
        return f"{self.name} ({self.architecture})"


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What the CUDA driver says of itself; `problem` is why it cannot be used, "" if it can."""

    problem: str
    cuda: int = 0  # the newest CUDA it runs: 12040 is 12.4
    devices: tuple[Device, ...] = ()

    @property
    def cuda_text(self) -> str:
        return f"{self.cuda // 1000}.{self.cuda % 1000 // 10}"


def driver() -> Driver:
    """Asks the driver, without any package."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Driver(problem="this machine has no CUDA driver (libcuda.so.1)")
    if status := library.cuInit(0):
        meaning = ERRORS.get(status, "see CUresult in CUDA's documentation")
        return Driver(problem=f"the CUDA driver does not start: error {status}, {meaning}")
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    library.cuDeviceGetCount(ctypes.byref(count))
    devices = tuple(_device(library, number) for number in range(count.value))
    return Driver(problem="" if devices else "the CUDA driver sees no device", cuda=version.value, devices=devices)


def _device(library: Any, number: int) -> Device:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), number)
    library.cuDeviceGetName(name, 256, device)
    capability = []
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        value = ctypes.c_int()
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Device(name=name.value.decode(errors="replace"), capability=(capability[0], capability[1]))


class Stream:
    """A stream with its buffers and events; what is made here is freed by `close`.

    Raises (every call):
        OutOfMemory: the GPU's memory, or pinned memory, does not suffice.
        BackendCrash: any other CUDA error.
    """

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self.runtime: Any = runtime
        self.undo: list[Callable[[], Any]] = []
        # Not the legacy default stream: that one cannot be captured and waits for all others.
        self.handle = self._make(
            runtime.cudaStreamDestroy, runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking
        )
        self.before, self.after = (self._make(runtime.cudaEventDestroy, runtime.cudaEventCreate) for _ in range(2))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The results of a runtime call, its status checked."""
        status, *values = function(*arguments)
        if int(status):
            what = f"{function.__name__} failed: CUDA error {int(status)} {getattr(status, 'name', '')}".strip()
            if int(status) == OUT_OF_MEMORY:
                raise OutOfMemory(f"the GPU's memory does not suffice ({what})", fix="Use a smaller batch size")
            raise BackendCrash(what, fix="Run `resdeploy doctor`; another process may have upset the GPU")
        return values[0] if len(values) == 1 else values

    def _make(self, free: Callable[..., Any], make: Callable[..., Any], *arguments: Any) -> Any:
        """What `make` returns; `close` hands it to `free`."""
        resource = self.call(make, *arguments)
        self.undo.append(lambda: free(resource))
        return resource

    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[np.generic]:
        """A zeroed array in page-locked host memory, which the GPU copies from without a detour."""
        size = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
        address = int(self._make(self.runtime.cudaFreeHost, self.runtime.cudaMallocHost, size))
        buffer = (ctypes.c_byte * size).from_address(address)
        array: NDArray[np.generic] = np.ndarray(shape, np.dtype(dtype), buffer=memoryview(buffer))
        array[...] = np.zeros((), array.dtype)
        return array

    def device(self, size: int) -> int:
        """The address of `size` bytes on the GPU."""
        return int(self._make(self.runtime.cudaFree, self.runtime.cudaMalloc, max(size, 1)))

    def to_device(self, address: int, array: NDArray[np.generic]) -> None:
        """Starts a copy to the GPU."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call(self.runtime.cudaMemcpyAsync, address, array.ctypes.data, array.nbytes, kind, self.handle)

    def to_host(self, array: NDArray[np.generic], address: int) -> None:
        """Starts a copy from the GPU."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call(self.runtime.cudaMemcpyAsync, array.ctypes.data, address, array.nbytes, kind, self.handle)

    def wait(self) -> None:
        """Until all that was started on this stream is done."""
        self.call(self.runtime.cudaStreamSynchronize, self.handle)

    def mark(self, event: Any) -> None:
        """Has the GPU note the time when it comes here."""
        self.call(self.runtime.cudaEventRecord, event, self.handle)

    def elapsed_s(self) -> float:
        """Seconds between the two marks of the last, finished run."""
        return float(self.call(self.runtime.cudaEventElapsedTime, self.before, self.after)) / 1e3

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Records what `enqueue` starts on this stream as a CUDA graph; the returned function starts it all at once."""
        runtime = self.runtime
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call(runtime.cudaStreamBeginCapture, self.handle, mode)
        try:
            enqueue()
        finally:
            graph = self.call(runtime.cudaStreamEndCapture, self.handle)
        self.undo.append(lambda: runtime.cudaGraphDestroy(graph))
        executable = self._make(runtime.cudaGraphExecDestroy, runtime.cudaGraphInstantiate, graph, 0)
        return lambda: self.call(runtime.cudaGraphLaunch, executable, self.handle)

    def close(self) -> None:
        """Frees everything, the last made first."""
        while self.undo:
            self.undo.pop()()
