"""What post-training quantization of ResNet-50 costs: resdeploy against ONNX Runtime's quantize_static and NNCF.

    python benchmarks/calibration.py time --photographs ../shared/data/imagenet-samples
    python benchmarks/calibration.py methods --photographs ...   # every --calib-method against minmax
    python benchmarks/calibration.py memory --photographs ...    # peak memory by number of images

With `--output benchmarks/results/calibration-time.json` the result is kept. From JPEG files and an FP32 ONNX file to
the INT8 file on disk, 224x224. Every run is a process of its own, the order of candidates drawn anew in every round.
Time starts when the candidate's packages are imported and ends when its file is written; processes that it starts
(resdeploy's lanes) are inside. All decode the same files with the same decoder in the same threads
(`resdeploy.data.datasets.batches`), which spares the peers the data reader that their users write; each peer gets
images in the batches that it is fastest with here (8 for quantize_static, one for NNCF).

CPU time is counted beside it: it hardly changes with what else the machine does.

Peak memory is that of the whole process tree, its processes' resident sets added up every 10 ms (what they share is
counted twice). The photographs are few, so more are made of them: turned by up to 10 degrees, mirrored and encoded
again at their own size, all seeded.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peer_static import quantize_static
from resdeploy import stats, store
from resdeploy.data import datasets
from resdeploy.deploy import calibration, export, lower
from resdeploy.deploy.model_string import Request
from resdeploy.measure import environment
from resdeploy.records import Preprocessing

SIGHT = Preprocessing(size=(224, 224), resize=256)
METHODS = ("minmax", "percentile", "entropy", "mse", "auto")
FASTEST_BATCH = {"quantize_static": 8, "nncf": 1}
PACKAGES = ("onnxruntime", "openvino", "nncf", "onnx", "numpy", "pillow")
POLL_S = 0.01


def photographs(samples: Path, folder: Path, count: int) -> None:
    """`count` JPEG files made of the photographs in `samples`; those that are there stay."""
    sources = sorted(path for path in samples.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for number in range(count):
        out = folder / f"{number:05d}.jpg"
        if out.exists():
            continue
        rng = np.random.default_rng(number)
        image = Image.open(sources[number % len(sources)]).convert("RGB")
        image = image.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image.save(out, quality=92)


def ours(method: str) -> Callable[[Path, Path, int, Path], None]:
    def build(fp32: Path, folder: Path, count: int, out: Path) -> None:
        plan = calibration.CalibrationPlan(data=str(folder), samples=count, method=method)
        source = export.to_onnx(Request(model=str(fp32)), progress=lambda *_: None)
        lower.lower(source, "int8", "openvino", plan, out, progress=lambda *_: None)

    return build


def inputs(folder: Path, count: int, batch: int) -> Any:
    """What every peer reads: {"input": (batch, 3, 224, 224)}."""
    chosen = datasets.choose(datasets.open_dataset(str(folder), need_labels=False), count, seed=0)
    return ({"input": found.inputs} for found in datasets.batches(chosen, SIGHT, batch))


def static(method: str) -> Callable[[Path, Path, int, Path], None]:
    def build(fp32: Path, folder: Path, count: int, out: Path) -> None:
        quantize_static(fp32, inputs(folder, count, FASTEST_BATCH["quantize_static"]), out, method=method)

    return build


def nncf_default(fp32: Path, folder: Path, count: int, out: Path) -> None:
    import nncf
    import onnx

    batch = FASTEST_BATCH["nncf"]
    data = nncf.Dataset(inputs(folder, count, batch))
    onnx.save(nncf.quantize(onnx.load(fp32), data, subset_size=count // batch), out)


CANDIDATES: dict[str, Callable[[Path, Path, int, Path], None]] = {
    **{f"resdeploy {method}": ours(method) for method in METHODS},
    "quantize_static minmax": static("MinMax"),
    "quantize_static entropy": static("Entropy"),
    "nncf": nncf_default,
}
IMPORTS = {"quantize_static": ("onnxruntime.quantization.shape_inference",), "nncf": ("nncf", "onnx")}


def child(candidate: str, fp32: Path, folder: Path, count: int) -> None:
    """One run, in this process; prints its seconds and its CPU seconds, lanes included, as the last line."""
    import importlib

    for module in IMPORTS.get(candidate.split()[0], ("resdeploy.quantize.ptq", "resdeploy.backends.lane")):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as scratch:
        started_s, cpu_s = time.perf_counter(), sum(os.times()[:4])
        CANDIDATES[candidate](fp32, folder, count, Path(scratch) / "int8.onnx")
        print(f"\n{time.perf_counter() - started_s} {sum(os.times()[:4]) - cpu_s}", flush=True)


def tree_rss_bytes(root: int) -> int:
    """Resident memory of a process and all that it started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue  # gone meanwhile
            children.setdefault(parent, []).append(int(entry.name))
    total, pending = 0, [root]
    while pending:
        process = pending.pop()
        pending += children.get(process, [])
        try:
            total += int(Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()[1])
        except (OSError, IndexError):
            continue
    return total * os.sysconf("SC_PAGE_SIZE")


def run(candidate: str, fp32: Path, folder: Path, count: int, *, watch_memory: bool) -> dict[str, Any]:
    """A fresh process; polling its memory costs some CPU, so timed runs go without."""
    command = [sys.executable, __file__, "child", candidate, str(fp32), str(folder), str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak, done = 0, threading.Event()

    def poll() -> None:
        nonlocal peak
        while not done.wait(POLL_S):
            peak = max(peak, tree_rss_bytes(process.pid))

    watcher = threading.Thread(target=poll)
    if watch_memory:
        watcher.start()
    output, _ = process.communicate()
    done.set()
    if watch_memory:
        watcher.join()
    found: dict[str, Any] = {"candidate": candidate, "images": count, "failed": process.returncode != 0}
    if process.returncode == 0:
        found["made_s"], found["cpu_s"] = map(float, output.strip().splitlines()[-1].split())
    if watch_memory:
        found["peak_rss_mib"] = peak / 2**20
    print(found, file=sys.stderr, flush=True)
    return found


def against(rows: list[dict[str, Any]], candidate: str, baseline: str) -> dict[str, Any]:
    """Ratios of the median times and CPU times with their 95 % intervals, the runs resampled."""
    result: dict[str, Any] = {"candidate": candidate, "baseline": baseline}
    for key, name in (("made_s", "ratio"), ("cpu_s", "cpu_ratio")):
        times = [
            [[row[key]] for row in rows if row["candidate"] == side and not row["failed"]]
            for side in (candidate, baseline)
        ]
        found = stats.ratio_of_medians(*times) if min(map(len, times)) > 1 else None
        result |= {name: found and found.value, f"{name}_ci95": found and [found.low, found.high]}
    return result


PARTS: dict[str, list[tuple[str, int]]] = {
    "time": [(name, 128) for name in ("resdeploy percentile", "quantize_static minmax", "nncf")],
    "methods": [(f"resdeploy {method}", 128) for method in METHODS],
    "memory": [
        *(("resdeploy percentile", count) for count in (64, 128, 1024)),
        ("quantize_static minmax", 64),
        ("nncf", 64),
        *(("quantize_static entropy", count) for count in (32, 64)),
    ],
}


def main() -> int:
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of a few photographs")
    parser.add_argument("--rounds", type=int, help="default: 5, for memory 1")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    runs, memory = PARTS[arguments.part], arguments.part == "memory"
    rounds = arguments.rounds or (1 if memory else 5)
    order = random.Random(arguments.seed)
    names = list(dict.fromkeys(name for name, _ in runs))
    pairs = [(other, names[0]) if arguments.part == "methods" else (names[0], other) for other in names[1:]]
    rows: list[dict[str, Any]] = []
    result = {
        "benchmark": f"calibration {arguments.part}",
        "model": "resnet50, random weights (seed 0), 224x224",
        "rounds": rounds,
        "fastest_batch": FASTEST_BATCH,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "environment": environment.capture(),
        "rows": rows,
    }
    with tempfile.TemporaryDirectory() as scratch:
        fp32, most = Path(scratch) / "resnet50.onnx", max(count for _, count in runs)
        export.to_onnx(Request(model="resnet50"), fp32, progress=lambda *_: None)
        (Path(scratch) / "images").mkdir()
        photographs(arguments.photographs, Path(scratch) / "images", most)
        for number in range(rounds):
            for candidate, count in order.sample(runs, len(runs)):
                found = run(candidate, fp32, Path(scratch) / "images", count, watch_memory=memory)
                rows.append({"round": number, **found})
                result["ratios"] = [] if memory else [against(rows, *pair) for pair in pairs]
                if arguments.output is not None:  # after each run, so that what is done is not lost
                    store.write_json(arguments.output, result)
    json.dump(result["ratios"] or rows, sys.stdout, indent=2)
    print()
    return 1 if any(row["failed"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
