"""Does `bench` find the times that the runtimes' own tools find? In turns on the same files, ResNet-50 FP32, batch 1.

    python benchmarks/agreement.py      # writes benchmarks/results/agreement.json; six minutes

OpenVINO: `benchmark_app -hint latency` on the same .xml, its median. ONNX Runtime: what onnxruntime_perf_test does,
`session.run` in a loop in a process of its own, defaults but the threads. Every round times each of them in a fresh
process, ours and theirs one after the other in random order. A machine's speed wanders from minute to minute by more
than the two can differ, so the ratio is taken within each round: the median of those, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resdeploy import stats, store
from resdeploy.backends import machine
from resdeploy.backends.lane import Lane
from resdeploy.deploy import build, export
from resdeploy.deploy.model_string import Request
from resdeploy.measure import entrant, environment
from resdeploy.records import Artifact, BackendName, Execution

RESULT = Path(__file__).parent / "results" / "agreement.json"
LIMIT = 0.03
LOOP = """
import statistics, sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
image = np.random.default_rng(0).standard_normal((1, *map(int, sys.argv[4].split("x"))), np.float32)
feed = {session.get_inputs()[0].name: image}
times, end = [], None
while end is None or time.perf_counter() < end:
    start = time.perf_counter()
    session.run(None, feed)
    times.append(time.perf_counter() - start)
    if end is None and len(times) == 5:  # warm
        times, end = [], time.perf_counter() + float(sys.argv[3])
print(statistics.median(times))
"""


def ours(backend: BackendName, built: Artifact, seconds: float) -> float:
    with Lane(backend) as lane:
        lane.open(built, Execution())
        entrant.warm_up(lane)
        return statistics.median(lane.block(1, seconds=seconds).run_s)


def benchmark_app(built: Artifact, seconds: float) -> float:
    tool = Path(sys.executable).with_name("benchmark_app")
    with tempfile.TemporaryDirectory() as folder:
        report = ["-json_stats", "-report_type", "no_counters", "-report_folder", folder]
        settings = ["-hint", "latency", "-infer_precision", "f32", "-t", str(max(1, round(seconds)))]
        subprocess.run([tool, "-m", built.path, *settings, *report], check=True, capture_output=True)
        found = json.loads((Path(folder) / "benchmark_report.json").read_text())
    return float(found["execution_results"]["latency (ms)"]) / 1e3


def perf_test(built: Artifact, seconds: float) -> float:
    assert built.model is not None
    shape = "x".join(map(str, built.model.input_shape))
    given = [built.path, str(machine.usable_cores()), str(seconds), shape]
    done = subprocess.run([sys.executable, "-c", LOOP, *given], check=True, capture_output=True, text=True)
    return float(done.stdout)


def agreement(model: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    source = export.to_onnx(Request(model=model), progress=lambda *_: None)
    theirs: dict[BackendName, tuple[str, Callable[[Artifact, float], float]]] = {
        "openvino": ("benchmark_app -hint latency", benchmark_app),
        "onnxruntime": ("session.run in a loop", perf_test),
    }
    built = {backend: build.build(source, backend, Execution()) for backend in theirs}
    times: dict[tuple[BackendName, bool], list[float]] = {(b, mine): [] for b in theirs for mine in (True, False)}
    order = random.Random(0)
    for _ in range(rounds):
        for backend in order.sample(list(theirs), len(theirs)):
            for mine in order.sample((True, False), 2):
                measure = functools.partial(ours, backend) if mine else theirs[backend][1]
                times[backend, mine].append(measure(built[backend], seconds))
    found = []
    for backend, (peer, _) in theirs.items():
        mine_s, peer_s = times[backend, True], times[backend, False]
        ratio = stats.percentile([[one / other] for one, other in zip(mine_s, peer_s, strict=True)], 0.5)
        found.append(
            {
                "backend": backend,
                "peer": peer,
                "ours_ms": [1e3 * t for t in mine_s],
                "peer_ms": [1e3 * t for t in peer_s],
                "time_ratio": ratio.value,
                "time_ratio_ci95": [ratio.low, ratio.high],
                "agrees": abs(ratio.value - 1) <= LIMIT,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=2.0, help="timed, of each in every round")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    before = environment.snapshot()
    rows = agreement(arguments.model, arguments.rounds, arguments.seconds)
    document = {
        "command": "python benchmarks/agreement.py",
        "model": arguments.model,
        "environment": environment.capture(),
        "disturbances": environment.disturbances(before, environment.snapshot()),
        "limit": LIMIT,
        "results": rows,
    }
    store.write_json(arguments.output, document)
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
