"""How long a gate takes on stored predictions: the whole command, a process of its own each time.

    python benchmarks/gate_speed.py          # prints, and writes results/gate-speed.json
    python benchmarks/gate_speed.py --runs 3

10,000 images with ids, as class ids in NumPy, CSV and JSON files, as logits of 10 and of 1,000 classes; beside it
the time that the interpreter takes to start and to import numpy, which nothing written in Python can go below.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy import store
from resdeploy.measure import environment

RESULTS = Path(__file__).resolve().parent / "results" / "gate-speed.json"
IMAGES = 10_000


def write(folder: Path, classes: int) -> dict[str, tuple[Path, Path]]:
    """A good model and one a little worse, in every form."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, IMAGES)
    ids = np.array([f"val/n{k:08d}.JPEG" for k in range(IMAGES)])
    logits = rng.normal(size=(IMAGES, classes)).astype(np.float32)
    logits[np.arange(IMAGES), labels] += 3 + np.log(classes)
    noisy = logits + rng.normal(scale=0.05, size=logits.shape).astype(np.float32)
    made: dict[str, tuple[Path, Path]] = {}
    for form in ("logits.npz", "npz", "csv", "json"):
        pair = []
        for side, scores in (("a", logits), ("b", noisy)):
            path = folder / f"{side}{classes}.{form}"
            answers = scores.argmax(1)
            if form == "logits.npz":
                np.savez(path, logits=scores, labels=labels, ids=ids)
            elif form == "npz":
                np.savez(path, predictions=answers, labels=labels, ids=ids)
            elif form == "json":
                document = {"predictions": answers.tolist(), "labels": labels.tolist(), "ids": ids.tolist()}
                path.write_text(json.dumps(document))
            else:
                rows = (f"{i},{p},{y}" for i, p, y in zip(ids, answers, labels, strict=True))
                path.write_text("\n".join(["ids,predictions,labels", *rows]) + "\n")
            pair.append(path)
        made[f"{form}, {classes} classes"] = (pair[0], pair[1])
    return made


def cpu_of_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        pairs = write(Path(name), 10) | write(Path(name), 1000)
        commands: dict[str, list[Any]] = {
            form: [sys.executable, "-m", "resdeploy", "gate", "--baseline", a, "--candidate", b, "--max-drop", "1"]
            for form, (a, b) in pairs.items()
        }
        commands["import numpy alone"] = [sys.executable, "-c", "import numpy"]
        times: dict[str, list[float]] = {form: [] for form in commands}
        cpu: dict[str, list[float]] = {form: [] for form in commands}  # hardly moved by what else the machine does
        for _ in range(runs):  # interleaved, so that the machine's moods fall on all of them
            for form, command in commands.items():
                before, started = cpu_of_children_s(), time.perf_counter()
                done = subprocess.run(command, capture_output=True, env={**os.environ, "NO_COLOR": "1"}, check=False)
                times[form].append(time.perf_counter() - started)
                cpu[form].append(cpu_of_children_s() - before)
                assert done.returncode == 0, done.stderr
    rows = [
        {"form": form, "median_s": statistics.median(t), "median_cpu_s": statistics.median(cpu[form]), "times_s": t}
        for form, t in times.items()
    ]
    for row in rows:
        print(f"{row['median_s']:.2f} s, {row['median_cpu_s']:.2f} s of CPU time  {row['form']}")
    document = {"images": IMAGES, "runs": runs, "environment": environment.capture(), "results": rows}
    store.write_json(RESULTS, document)


if __name__ == "__main__":
    main()
