"""CPU seconds and peak memory of the first `resdeploy cost MODEL`, of another tree and of this one in turns.

    python benchmarks/cost_time.py OLD_TREE vgg19 resnet50 --rounds 3 --output benchmarks/results/cost-time.json

Every run has an empty cache. The counts of both must be equal, per layer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy import store
from resdeploy.measure import environment

HERE = Path(__file__).parents[1]


def first_cost(tree: Path, model: str) -> tuple[float, float, Any]:
    """CPU seconds, children's included, peak MB of the largest process, and the document's results."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "cost.json"
        variables = {**os.environ, "RESDEPLOY_CACHE": str(Path(folder) / "cache"), "PYTHONPATH": str(tree)}
        command = [sys.executable, "-m", "resdeploy", "cost", model, "--per-layer", "--quiet", "--output", str(out)]
        process = subprocess.Popen([*command, "--format", "json"], env=variables, cwd=tree)  # `-m` looks there first
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{model} failed in {tree.name}")
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, json.loads(out.read_text())["results"]


def compare(old: Path, model: str, rounds: int) -> dict[str, Any]:
    """The ratio of CPU seconds, new to old: geometric mean over the rounds, with its bootstrap interval."""
    before, after = [], []
    for _ in range(rounds):
        before.append(first_cost(old, model))
        after.append(first_cost(HERE, model))
    logs = np.log([new[0] / was[0] for was, new in zip(before, after, strict=True)])
    means = np.random.default_rng(0).choice(logs, (2000, rounds)).mean(axis=1)
    return {
        "model": model,
        "ratio": float(np.exp(logs.mean())),
        "ratio_ci95": [float(x) for x in np.exp(np.percentile(means, [2.5, 97.5]))],
        "equal": all(was[2] == new[2] for was, new in zip(before, after, strict=True)),
        **{f"{name}_cpu_s": [run[0] for run in runs] for name, runs in (("old", before), ("new", after))},
        **{f"{name}_peak_mb": max(run[1] for run in runs) for name, runs in (("old", before), ("new", after))},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="the tree to compare with")
    parser.add_argument("model", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for model in options.model:
        rows.append(compare(options.old.resolve(), model, options.rounds))
        print(json.dumps(rows[-1]), flush=True)
    if options.output:
        document = {"command": "benchmarks/cost_time.py", "environment": environment.capture()}
        store.write_json(options.output, {**document, "rounds": options.rounds, "results": rows})
    sys.exit(not all(row["equal"] for row in rows))


if __name__ == "__main__":
    main()
