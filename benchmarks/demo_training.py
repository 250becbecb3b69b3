"""The quickstart's training with several seeds: seconds and accuracy on held-out digits.

python benchmarks/demo_training.py --output benchmarks/results/demo-training.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from resdeploy import store
from resdeploy.deploy.model_string import PreprocessingOverride, Request
from resdeploy.measure import environment
from resdeploy.train.loop import Plan
from resdeploy.verbs import train

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    profile = store.read_profile(ROOT / "profiles/quickstart.toml")
    assert profile.data is not None
    results = []
    for seed in range(arguments.seeds):
        request = Request(model=profile.model, seed=seed, override=PreprocessingOverride(img_size=profile.img_size))
        plan = Plan(epochs=profile.epochs, lr=profile.lr, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            started, used = time.perf_counter(), time.process_time()
            artifact = train.train_float(
                request, profile.data, plan, Path(folder) / "r.safetensors", progress=lambda *_: None
            )
        row = {
            "seed": seed, "test_top1": artifact.checks["test_top1"], "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - used,
        }  # fmt: skip
        results.append(row)
        print(row)
    if arguments.output:
        store.write_json(arguments.output, {"results": results, "environment": environment.capture()})


if __name__ == "__main__":
    main()
