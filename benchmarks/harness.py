"""What the harness itself does to a time: known sleeps, its own cost, two runs of one model, one block more.

    python benchmarks/harness.py sleep      # the null backend that sleeps 10 ms, and one that does nothing
    python benchmarks/harness.py repeat     # two saved runs compared, and a model with one block more

`sleep` runs the null backend, told to take 10 ms, through the real lane; a bare loop around `time.sleep` beside it
shows what the kernel adds to a plain sleep, which the null backend waits out in a loop instead. The cost of measuring
is the time of a block less what the clocks saw inside its queries, of a backend that computes nothing.

`repeat` saves two runs of one ResNet as `bench --format json` does and compares them with `compare`. The true ratio of
the model with one block more is that of one interleaved run ten times as long. Results are results/harness-*.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy import store
from resdeploy.backends.lane import Lane
from resdeploy.deploy import build, candidates, export
from resdeploy.deploy.model_string import Request
from resdeploy.graph import drop, files
from resdeploy.measure import environment, interleaved, one_run, summary
from resdeploy.records import Artifact, Block, Execution, Measurement, ModelSpec, Progress
from resdeploy.report import documents
from resdeploy.verbs import compare

RESULTS = Path(__file__).parent / "results"
SLEEP_S, QUERIES = 0.01, 300
Silent: Progress = lambda *_: None  # noqa: E731


def sleep(_: argparse.Namespace) -> dict[str, Any]:
    """The median of queries of a known length, and what a query of nothing costs."""
    bare = []
    for _number in range(QUERIES):
        start = time.perf_counter()
        time.sleep(SLEEP_S)
        bare.append(time.perf_counter() - start)
    slept = _null_block(SLEEP_S, QUERIES)
    nothing = _null_block(0.0, 20_000)
    inside = np.array([nothing.put_s, nothing.run_s, nothing.get_s]).sum(axis=0)
    return {
        "asked_ms": 1e3 * SLEEP_S,
        "measured_p50_ms": 1e3 * float(np.median(slept.run_s)),
        "bare_loop_p50_ms": 1e3 * float(np.median(bare)),
        "off_by": float(np.median(slept.run_s)) / SLEEP_S - 1,
        "cost_us_per_query": 1e6 * (nothing.wall_s - float(inside.sum())) / len(inside),
        "empty_query_p50_us": 1e6 * float(np.median(inside)),
    }


def _null_block(sleep_s: float, queries: int) -> Block:
    os.environ["RESDEPLOY_NULL_SLEEP_S"] = str(sleep_s)
    with tempfile.TemporaryDirectory() as folder, Lane("null") as lane:
        file = Path(folder) / "m.onnx"
        file.write_bytes(b"x")
        spec = ModelSpec(name="m", family="f", classes=10, input_shape=(3, 8, 8))
        lane.open(Artifact(path=str(file), format="onnx", precision="fp32", sha256="0" * 64, model=spec), Execution())
        return lane.block(queries, warmup=10)


def repeat(arguments: argparse.Namespace) -> dict[str, Any]:
    """Two runs of one model, one of a model with one block more, and the true ratio."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = export.to_onnx(Request(model=arguments.model), folder / "whole.onnx", progress=Silent)
        graph = files.load_model(Path(whole.path))
        removed = drop.removable_blocks(graph)[0]
        files.save_model(drop.remove(graph, (removed,)), folder / "less.onnx")
        less = export.to_onnx(Request(model=str(folder / "less.onnx")), progress=Silent)
        first = saved(folder / "first.json", less, arguments, 1)
        again = saved(folder / "again.json", less, arguments, 2)
        more = saved(folder / "more.json", whole, arguments, 3)
        pair = [_row(artifact, arguments) for artifact in (less, whole)]
        outcomes = one_run.time_rows(
            pair,
            interleaved.Schedule(duration_s=10 * arguments.duration, seed=4),
            interleaved.Listener(progress=Silent),
        )
        shorter, longer = (o for o in outcomes if isinstance(o, Measurement))
        truth = 1 / summary.compare(shorter, longer).speedup
        same, slower = (compare.compare(first, other).changes[0] for other in (again, more))
    low, high = slower.interval or (0.0, 0.0)
    return {
        "model": arguments.model,
        "backend": arguments.backend,
        "removed_block": removed,
        "same_model": dataclasses.asdict(same),
        "one_block_more": dataclasses.asdict(slower),
        "true_change_pct": 100 * (truth - 1),
        "interval_holds_truth": low <= 100 * (truth - 1) <= high,
    }


def _row(artifact: Artifact, arguments: argparse.Namespace) -> one_run.Row:
    from resdeploy.measure.interleaved import Candidate

    execution = candidates.execution_for(artifact, batch_size=1, threads=arguments.threads)
    built = build.build(artifact, arguments.backend, execution)
    label = f"{Path(artifact.path).stem} {arguments.backend}"
    candidate = Candidate(label=label, backend=arguments.backend, artifact=built, execution=execution)
    return one_run.Row(source=artifact, candidate=candidate, baselines=())


def saved(out: Path, artifact: Artifact, arguments: argparse.Namespace, seed: int) -> Path:
    """One run by itself, as `bench --format json -o` saves it."""
    row = [_row(artifact, arguments)]
    found = one_run.compare_rows(
        row,
        one_run.time_rows(
            row, interleaved.Schedule(duration_s=arguments.duration, seed=seed), interleaved.Listener(progress=Silent)
        ),
    )
    store.write_json(out, documents.bench(one_run.summaries(found.outcomes), found.comparisons, environment.capture()))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("sleep", "repeat"))
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--backend", default="onnxruntime", choices=("openvino", "onnxruntime"))
    parser.add_argument("--duration", type=float, default=6.0)
    parser.add_argument("--threads", type=int, help="default: the usable cores")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = {"sleep": sleep, "repeat": repeat}[arguments.part](arguments)
    document = {
        "command": f"python benchmarks/harness.py {' '.join(sys.argv[1:])}",
        "environment": environment.capture(),
        "results": found,
    }
    store.write_json(arguments.output or RESULTS / f"harness-{arguments.part}.json", document)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
