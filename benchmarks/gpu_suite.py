"""ResNets on a GPU: engines built, audited, compared with ONNX Runtime in FP32, timed against torch and others.

    python benchmarks/gpu_pack.py --out gpu-suite                                  # anywhere: the graphs and images
    python benchmarks/gpu_suite.py gpu-suite --budget 480 -o gpu.json              # on the GPU
    ... --torch-python /usr/bin/python3                                            # torch in another interpreter
    python benchmarks/gpu_table.py gpu.json                                        # the table of docs/results.md

In order of worth, the JSON rewritten after each result, so that what the budget cuts off is only the end: ResNet-50 in
INT8 and FP16 at batch 1 and 128 with audit and agreement; the CIFAR nets' agreement on real images; torch, ResNet-50;
other batches, networks and FP32; then ResNet-50 built again, three times in all, since kernels are chosen by timing and
the choice differs from build to build.

Engines of one network and batch are timed interleaved in one run (`measure.interleaved`): compute by CUDA events and by
the clock under a CUDA graph, and end to end with the copies.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpu_pack
from resdeploy import store
from resdeploy.backends import nvml, tensorrt
from resdeploy.backends.lane import Lane
from resdeploy.deploy import build
from resdeploy.graph import intent
from resdeploy.judge import fusion
from resdeploy.measure import environment, interleaved, summary
from resdeploy.records import Artifact, Execution, Failure, ModelSpec

BUILDS = 3
FIRST, OTHERS = (1, 128), (8, 32, 256)
PEERS = Path(__file__).with_name("gpu_peers.py")


class Suite:
    """The graphs, the budget and what has been found."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, args.suite
        self.deadline = time.monotonic() + args.budget
        self.work = args.suite / ".work"
        self.work.mkdir(exist_ok=True)
        packed = json.loads((self.folder / "suite.json").read_text())
        self.graphs = {(row["network"], row["precision"]): row for row in packed["rows"]}
        self.img_size = packed["img_size"]
        self.built: dict[tuple[str, str, int, int], Artifact] = {}
        self.document: dict[str, Any] = {
            "command": "gpu_suite",
            "environment": environment.capture(),
            "tensorrt": dataclasses.asdict(tensorrt.available()),
            "capabilities": tensorrt.capabilities(),
            "budget_s": args.budget,
            "results": [],
        }

    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def keep(self, row: dict[str, Any]) -> None:
        """Adds a result and writes everything: what is cut off loses nothing that was found."""
        self.document["results"].append({"at_s": round(self.args.budget - self.left_s(), 1), **row})
        store.write_json(self.args.output, self.document)
        print(json.dumps({key: value for key, value in row.items() if key not in ("layers", "runs")})[:400], flush=True)

    def size_of(self, network: str) -> int:
        return 32 if network in gpu_pack.CIFAR else int(self.img_size)

    def source(self, network: str, precision: str) -> Artifact:
        """The graph with its weights, written here once."""
        path = self.work / f"{network}.{precision}.onnx"
        row = self.graphs[network, precision]
        if not path.exists():
            model = onnx.load(self.folder / path.name)
            onnx.save(gpu_pack.fill(model) if row["seeded"] else model, path)
        size = self.size_of(network)
        spec = ModelSpec(name=network, family="suite", classes=row["classes"], input_shape=(3, size, size))
        return Artifact(path=str(path), format="onnx", precision=precision, sha256=store.digest(path), model=spec)  # type: ignore[arg-type]

    def engine(self, network: str, precision: str, batch: int, number: int) -> Artifact:
        """The engine, built once for each number. The first fills the timing cache; the others do without it."""
        key = (network, precision, batch, number)
        if key not in self.built:
            options = dataclasses.replace(
                self.execution(network, batch).engine, timing_cache=None if number == 0 else ""
            )
            how = dataclasses.replace(self.execution(network, batch), engine=options)
            out = self.work / f"{network}.{precision}.b{batch}.{number}.engine"
            self.built[key] = build.build_in_lane(self.source(network, precision), "tensorrt", how, out)
        return self.built[key]

    def execution(self, network: str, batch: int) -> Execution:
        size = self.size_of(network)
        return Execution(batch_size=batch, input_shape=(3, size, size))

    def images(self, network: str, count: int) -> np.ndarray | None:
        """Real images as the network sees them, (n, 3, H, W) float32."""
        path = self.folder / ("cifar10.npz" if network in gpu_pack.CIFAR else "imagenet.npz")
        if not path.is_file():
            return None
        held = np.load(path)
        values = (held["pixels"][:count].astype(np.float32) / 255 - held["mean"]) / held["std"]
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


def build_and_audit(suite: Suite, network: str, precision: str, batch: int, number: int) -> None:
    """One engine: what building took, what it executes, layer by layer."""
    engine = suite.engine(network, precision, batch, number)
    with Lane("tensorrt") as lane:
        lane.open(engine, suite.execution(network, batch), trace=True)
        lane.block(10)
        layers = lane.layers()
    asked = intent.of(onnx.load(suite.source(network, precision).path))
    found = fusion.judge(f"{network} {precision} b{batch}", layers, intent=asked, asked=precision)  # type: ignore[arg-type]
    suite.keep(
        {
            "what": "audit",
            **named(network, precision, batch, number),
            "verdict": found.verdict.state,
            "checks": [dataclasses.asdict(check) for check in found.verdict.checks],
            "fused": sum(block.fused is True for block in found.blocks),
            "blocks": len(found.blocks),
            "adds_in": sorted({block.precision for block in found.blocks}),
            "kernels_ms": None if found.time_s is None else found.time_s * 1e3,
            "engine_mib": Path(engine.path).stat().st_size / 2**20,
            **engine.checks,
            "layers": [[x.name, x.kind, x.precision, x.role, x.time_s, x.tactic] for x in layers],
        }
    )


def agree(suite: Suite, network: str, precision: str) -> None:
    """The engine's logits beside ONNX Runtime's in FP32 on the CPU, on real images."""
    images = suite.images(network, 1000 if network in gpu_pack.CIFAR else 32)
    if images is None:
        return
    batch = 128 if network in gpu_pack.CIFAR else 1
    reference = Execution(batch_size=32, input_shape=suite.execution(network, 1).input_shape)
    with Lane("onnxruntime") as lane:
        lane.open(suite.source(network, "fp32"), reference)
        expected: np.ndarray = lane.predict(images)
    with Lane("tensorrt") as lane:
        lane.open(suite.engine(network, precision, batch, 0), suite.execution(network, batch))
        got: np.ndarray = lane.predict(images)
    error = np.abs(got - expected).max(axis=1) / np.abs(expected).max(axis=1)
    cosine = (got * expected).sum(1) / (np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1))
    same = got.argmax(1) == expected.argmax(1)
    suite.keep(
        {
            "what": "agreement",
            **named(network, precision, batch, 0),
            "images": len(images),
            "top1_agreement_percent": 100 * float(same.mean()),
            "relative_error_median": float(np.median(error)),
            "relative_error_max": float(error.max()),
            "cosine_min": float(cosine.min()),
            "finite": bool(np.isfinite(got).all()),
        }
    )


def timed(suite: Suite, network: str, precisions: tuple[str, ...], batch: int, number: int) -> None:
    """All precisions of one network and batch, interleaved in one run."""
    candidates = [
        interleaved.Candidate(
            label=precision,
            backend="tensorrt",
            artifact=suite.engine(network, precision, batch, number),
            execution=suite.execution(network, batch),
        )
        for precision in precisions
    ]
    before = nvml.snapshot()
    outcomes = interleaved.run(candidates, interleaved.Schedule(duration_s=suite.args.seconds, blocks=8, processes=1))
    after = nvml.snapshot()
    for precision, outcome in zip(precisions, outcomes, strict=True):
        row = {"what": "time", **named(network, precision, batch, number), "peer": "resdeploy", "gpu": [before, after]}
        if isinstance(outcome, Failure):
            suite.keep(row | {"error": outcome.message})
            continue
        found = summary.summarise(outcome)
        device_s = [s for block in outcome.blocks for s in block.device_s]
        suite.keep(
            row
            | {
                "compute_p50_ms": ms(found.latency_s["p50"]),
                "compute_p99_ms": ms(found.latency_s["p99"]),
                "compute_p50_ci95_ms": [ms(bound) for bound in found.p50_ci95_s] if found.p50_ci95_s else None,
                "device_p50_ms": ms(float(np.median(device_s))) if device_s else None,
                "end_to_end_p50_ms": ms(found.end_to_end_p50_s),
                "images_per_s": found.throughput_ips,
                "valid": found.valid,
                "warnings": list(found.warnings),
                "settings": dict(outcome.settings),
            }
        )


def peer(suite: Suite, kind: str, network: str, batch: int, python: str) -> None:
    """Another tool on the same network and batch, in a process of its own: one JSON line from gpu_peers.py."""
    row = {"what": "time", **named(network, "fp16", batch, 0), "peer": kind}
    command = [python, str(PEERS), kind, network, str(batch), str(suite.size_of(network)), str(suite.args.seconds)]
    extra = [suite.source(network, "fp16").path] if kind in ("onnxruntime-gpu", "trtexec") else []
    try:
        limit = max(suite.left_s(), 1.0)
        done = subprocess.run([*command, *extra], capture_output=True, text=True, timeout=limit, check=False)
        said = done.stdout.strip().splitlines()
        suite.keep(row | (json.loads(said[-1]) if done.returncode == 0 and said else {"error": done.stderr[-400:]}))
    except subprocess.TimeoutExpired:
        suite.keep(row | {"error": "the budget ended"})


def named(network: str, precision: str, batch: int, number: int) -> dict[str, Any]:
    return {"network": network, "precision": precision, "batch": batch, "build": number}


def ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 5)


Step = tuple[str, Any]


def steps(suite: Suite) -> Iterator[Step]:
    """What to do, the most telling first."""
    args = suite.args
    networks = list(dict.fromkeys(network for network, _ in suite.graphs))
    large = [n for n in networks if n not in gpu_pack.CIFAR]
    head = "resnet50" if "resnet50" in large else (large or networks)[0]
    low = ("int8", "fp16")
    first = [b for b in FIRST if b <= args.max_batch]
    for batch, precision in itertools.product(first, low):
        yield f"audit {head} {precision} b{batch}", lambda b=batch, p=precision: build_and_audit(suite, head, p, b, 0)
    for precision in low:
        yield f"agreement {head} {precision}", lambda p=precision: agree(suite, head, p)
    for batch in first:
        yield f"time {head} b{batch}", lambda b=batch: timed(suite, head, low, b, 0)
    for network, precision in itertools.product([n for n in networks if n in gpu_pack.CIFAR and n != head], low):
        yield f"agreement {network} {precision}", lambda n=network, p=precision: agree(suite, n, p)
    if args.torch_python and head in large:
        for kind, batch in itertools.product(("torch-eager", "torch-compile"), first):
            yield f"{kind} {head} b{batch}", lambda k=kind, b=batch: peer(suite, k, head, b, args.torch_python)
    for batch in (b for b in OTHERS if b <= args.max_batch):
        yield f"time {head} b{batch}", lambda b=batch: timed(suite, head, low, b, 0)
    for network in (n for n in large if n != head):
        for precision in low:
            yield (
                f"audit {network} {precision}",
                lambda n=network, p=precision: build_and_audit(suite, n, p, first[-1], 0),
            )
        for batch in first:
            yield f"time {network} b{batch}", lambda n=network, b=batch: timed(suite, n, low, b, 0)
    for batch in first:
        yield f"fp32 {head} b{batch}", lambda b=batch: timed(suite, head, ("fp32", *low), b, 0)
    for kind in ("onnxruntime-gpu", "trtexec", "torch-tensorrt"):
        if kind != "trtexec" or shutil.which("trtexec"):
            python = args.torch_python if kind == "torch-tensorrt" else sys.executable
            for batch in first if python else ():
                yield f"{kind} {head} b{batch}", lambda k=kind, b=batch, p=python: peer(suite, k, head, b, p)
    for number, batch in itertools.product(range(1, args.builds), first):
        for precision in low:
            yield f"audit {head} again", lambda n=number, b=batch, p=precision: build_and_audit(suite, head, p, b, n)
        yield f"time {head} again", lambda n=number, b=batch: timed(suite, head, low, b, n)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path, help="the folder that gpu_pack.py made")
    parser.add_argument(
        "--budget", type=float, default=480.0, help="seconds; what does not fit is left out, from the end"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu-suite.json"))
    parser.add_argument("--seconds", type=float, default=1.0, help="of timed queries per row")
    parser.add_argument("--torch-python", help="an interpreter with torch for CUDA; none: torch is left out")
    parser.add_argument("--max-batch", type=int, default=256)
    parser.add_argument("--builds", type=int, default=BUILDS, help="of each engine of the first network")
    args = parser.parse_args()
    found = tensorrt.available()
    if not found.ok:
        print(f"no TensorRT here: {found.reason}. {found.install}", file=sys.stderr)
        return 6
    suite = Suite(args)
    failed = 0
    for name, step in steps(suite):
        if suite.left_s() <= 0:
            suite.keep({"what": "left out", "step": name})
            continue
        try:
            step()
        except Exception as e:  # whatever one engine or file meets is a row, not the end of the machine's time
            failed += 1
            suite.keep({"what": "failed", "step": name, "error": f"{type(e).__name__}: {e}"[:600]})
    suite.document["environment_after"] = environment.capture()
    store.write_json(args.output, suite.document)
    shutil.rmtree(suite.work, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
