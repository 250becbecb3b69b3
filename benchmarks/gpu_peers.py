"""One peer on one network and batch, FP16, as its own documents tell to run it; prints one line of JSON.

    python gpu_peers.py KIND NETWORK BATCH SIZE SECONDS [ONNX]

KIND is torch-eager, torch-compile, torch-tensorrt, onnxruntime-gpu or trtexec.

Compute only, inputs on the GPU already, CUDA events around each query, the same as resdeploy's `device_p50_ms`.
With PEER_DEVICE=cpu torch's peers run on the CPU in FP32, by the clock: a rehearsal, which its row says, and no result.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WARM_S = 0.5
DEVICE = os.environ.get("PEER_DEVICE", "cuda")


def clocked(run: Callable[[], None]) -> float:
    """Milliseconds of a call that returns when its work is done."""
    before = time.perf_counter()
    run()
    return (time.perf_counter() - before) * 1e3


def sample(run: Callable[[], None], seconds: float, torch: Any) -> list[float]:
    """Milliseconds of queries, by CUDA events; by the clock on a CPU."""
    if DEVICE == "cpu":
        return [clocked(run) for _ in range(5)]
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times: list[float] = []
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < WARM_S + seconds:
        begin.record()
        run()
        end.record()
        end.synchronize()
        if spent > WARM_S:
            times.append(begin.elapsed_time(end))
    return times


def torch_peer(kind: str, network: str, batch: int, size: int, seconds: float) -> dict[str, Any]:
    import torch

    from resdeploy.models import resnet

    torch.backends.cudnn.benchmark = True
    dtype = torch.half if DEVICE == "cuda" else torch.float
    how: dict[str, Any] = {"device": DEVICE, "dtype": dtype, "memory_format": torch.channels_last}
    module: Any = resnet.ResNet(resnet.VARIANTS[network]).eval().to(**how)
    images = torch.randn(batch, 3, size, size).to(**how)
    started = time.perf_counter()
    if kind == "torch-compile":
        module = torch.compile(module, mode="max-autotune")
    if kind == "torch-tensorrt":
        import torch_tensorrt

        module = torch_tensorrt.compile(module, inputs=[images], enabled_precisions={torch.half})
    with torch.inference_mode():
        for _ in range(3):
            module(images)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        ready_s = time.perf_counter() - started
        times = sample(lambda: module(images), seconds, torch)
    rehearsal = {} if DEVICE == "cuda" else {"error": "a rehearsal on the CPU"}
    return {"version": torch.__version__, **rehearsal, "ready_s": ready_s, **figures(times, batch)}


def onnxruntime_peer(batch: int, size: int, seconds: float, path: str) -> dict[str, Any]:
    import numpy as np
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise SystemExit("onnxruntime here has no CUDA")
    session = ort.InferenceSession(path, providers=[("CUDAExecutionProvider", {"enable_cuda_graph": "1"})])
    given, made = session.get_inputs()[0].name, session.get_outputs()[0].name
    images = np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input(given, ort.OrtValue.ortvalue_from_numpy(images, "cuda", 0))
    binding.bind_output(made, "cuda")
    times: list[float] = []
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < WARM_S + seconds:
        before = time.perf_counter()
        session.run_with_iobinding(binding)  # returns when the GPU is done
        if spent > WARM_S:
            times.append((time.perf_counter() - before) * 1e3)
    return {"version": ort.__version__, **figures(times, batch)}


def trtexec_peer(batch: int, size: int, seconds: float, path: str) -> dict[str, Any]:
    shape = f"input:{batch}x3x{size}x{size}"
    options = [
        f"--shapes={shape}",
        "--fp16",
        "--useCudaGraph",
        "--noDataTransfers",
        f"--duration={max(int(seconds), 1)}",
    ]
    done = subprocess.run(["trtexec", f"--onnx={path}", *options], capture_output=True, text=True, check=False)
    found = re.search(r"GPU Compute Time: .*?median = ([\d.]+) ms", done.stdout)
    if found is None:
        raise SystemExit(done.stderr[-400:] or "trtexec gave no GPU compute time")
    return {"device_p50_ms": float(found[1]), "images_per_s": batch / float(found[1]) * 1e3}


def figures(times: list[float], batch: int) -> dict[str, Any]:
    middle = statistics.median(times)
    return {"device_p50_ms": middle, "images_per_s": batch / middle * 1e3, "queries": len(times)}


def main() -> None:
    kind, network, batch, size, seconds, *path = sys.argv[1:]
    if kind == "onnxruntime-gpu":
        found = onnxruntime_peer(int(batch), int(size), float(seconds), path[0])
    elif kind == "trtexec":
        found = trtexec_peer(int(batch), int(size), float(seconds), path[0])
    else:
        found = torch_peer(kind, network, int(batch), int(size), float(seconds))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
