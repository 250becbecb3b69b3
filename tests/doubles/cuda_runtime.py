"""A CUDA runtime on the CPU with the names of `cuda.bindings.runtime` we use: malloc's memory, streams that do at once.

While a stream captures, work is noted instead of done; launching the graph does it. Kernels of the TensorRT double come
in through `submit`.
"""

from __future__ import annotations

import ctypes
import enum
import time
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None)
libc.calloc.restype = ctypes.c_void_p
cudaStreamNonBlocking = 1


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = cudaError_t.cudaSuccess
LIMIT = 1 << 34  # bytes of one allocation: more is a GPU out of memory


class Handle:
    def __init__(self, number: int) -> None:
        self.number = number
        self.captured: list[Callable[[], Any]] | None = None
        self.time_s = 0.0

    def __int__(self) -> int:
        return self.number


handles: dict[int, Handle] = {}
live: dict[int, str] = {}  # what has not been freed


def _handle(kind: str) -> Handle:
    made = Handle(len(handles) + 1)
    handles[made.number] = made
    live[id(made)] = kind
    return made


def submit(stream: int, work: Callable[[], Any]) -> None:
    """Does work on a stream, or notes it while the stream captures."""
    captured = handles[int(stream)].captured
    work() if captured is None else captured.append(work)


def _allocate(size: int, kind: str) -> tuple[Any, ...]:
    if size > LIMIT:
        return cudaError_t.cudaErrorMemoryAllocation, None
    address = libc.calloc(1, ctypes.c_size_t(size))
    live[address] = kind
    return OK, address


def _release(address: int) -> tuple[Any]:
    live.pop(address)
    libc.free(ctypes.c_void_p(address))
    return (OK,)


def _forget(handle: Handle) -> tuple[Any]:
    live.pop(id(handle), None)
    return (OK,)


def cudaMalloc(size: int) -> tuple[Any, ...]:
    return _allocate(size, "device")


def cudaMallocHost(size: int) -> tuple[Any, ...]:
    return _allocate(size, "pinned")


cudaFree = cudaFreeHost = _release
cudaStreamDestroy = cudaEventDestroy = cudaGraphDestroy = cudaGraphExecDestroy = _forget


def cudaStreamCreateWithFlags(flags: int) -> tuple[Any, ...]:
    return OK, _handle("stream")


def cudaEventCreate() -> tuple[Any, ...]:
    return OK, _handle("event")


def cudaMemcpyAsync(to: int, source: int, size: int, kind: cudaMemcpyKind, stream: Handle) -> tuple[Any]:
    submit(int(stream), lambda: ctypes.memmove(to, source, size))
    return (OK,)


def cudaStreamSynchronize(stream: Handle) -> tuple[Any]:
    return (OK,)


def cudaEventRecord(event: Handle, stream: Handle) -> tuple[Any]:
    event.time_s = time.perf_counter()
    return (OK,)


def cudaEventElapsedTime(before: Handle, after: Handle) -> tuple[Any, ...]:
    return OK, (after.time_s - before.time_s) * 1e3


def cudaStreamBeginCapture(stream: Handle, mode: cudaStreamCaptureMode) -> tuple[Any]:
    stream.captured = []
    return (OK,)


def cudaStreamEndCapture(stream: Handle) -> tuple[Any, ...]:
    graph = _handle("graph")
    graph.captured, stream.captured = stream.captured, None
    return OK, graph


def cudaGraphInstantiate(graph: Handle, flags: int) -> tuple[Any, ...]:
    made = _handle("executable")
    made.captured = graph.captured
    return OK, made


def cudaGraphLaunch(executable: Handle, stream: Handle) -> tuple[Any]:
    for work in executable.captured or ():
        work()
    return (OK,)
