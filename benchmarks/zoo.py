"""Every network of the zoo, exported and run: seconds of export, and how far each runtime is from torch in float64.

    python benchmarks/zoo.py --output benchmarks/results/zoo.json
    python benchmarks/zoo.py resnet18 preresnet110       # some of them
    python benchmarks/zoo.py --quantize                  # also: INT8 for each target, and how many additions it fuses
    python benchmarks/zoo.py --output F --resume --minutes 5   # only what F lacks, beginning nothing after 5 minutes

Networks are untrained (seed 0), so that none is missing, and see one synthetic image with natural statistics. An error
is the largest difference of a logit from torch in float64, over the largest logit. To depth 152 it may be 1e-4; beyond,
four times what torch itself has in FP32, whose rounding grows with depth in the same way. Networks over the size that
this machine's memory allows in float64 are named as left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resdeploy import store
from resdeploy.backends.lane import Lane
from resdeploy.data import datasets
from resdeploy.graph import export, files, qdq
from resdeploy.measure import environment
from resdeploy.models import zoo
from resdeploy.records import Artifact, BackendName, Execution, ModelSpec, Target, Weights

RUNTIMES: tuple[BackendName, ...] = ("onnxruntime", "openvino")
TARGETS: tuple[Target, ...] = ("tensorrt", "openvino", "onnxruntime")
MAX_REL_ERROR = 1e-4
MAX_TIMES_TORCH = 4.0
SHALLOW = 152
MAX_PARAMS = 300_000_000  # 2.4 GB in float64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--quantize", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--resume", action="store_true", help="Keep the rows that the output has.")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args()
    start = time.monotonic()
    resumed = options.resume and options.output.is_file()
    rows: list[dict[str, Any]] = json.loads(options.output.read_bytes())["results"] if resumed else []
    left_out = [name for name in zoo.ENTRIES if zoo.find(name).params > MAX_PARAMS]
    done = {row["model"] for row in rows}
    for name in sorted(set(options.names) - set(left_out) - done, key=lambda n: zoo.find(n).params):
        if time.monotonic() - start > 60 * options.minutes:
            break
        rows.append(measure(name, quantize=options.quantize))
        print(json.dumps(rows[-1]), flush=True)
        if options.output:  # after each, so that nothing is lost
            missing = sorted(zoo.ENTRIES.keys() - set(left_out) - {row["model"] for row in rows})
            parts = {"left_out": left_out, "not_yet_run": missing, "results": rows}
            store.write_json(options.output, {"environment": environment.capture(), **parts})
    failed = [row["model"] for row in rows if not row["ok"]]
    print(f"{len(rows)} networks, {len(failed)} over the limit: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


def measure(name: str, *, quantize: bool) -> dict[str, Any]:
    """One row of the result."""
    spec = zoo.spec(name)
    net = zoo.create(spec, seed=0)
    image = image_for(spec)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        artifact = export.export(net, spec, Path(folder) / "model.onnx", weights=Weights(source="random(0)"))
        export_s = time.perf_counter() - start
        with torch.no_grad():
            single = net(torch.from_numpy(image)).numpy()
            exact = net.double()(torch.from_numpy(image).double()).numpy()
        del net
        errors = {backend: error(run(artifact, backend, image, Path(folder)), exact) for backend in RUNTIMES}
        placed = placements(Path(artifact.path)) if quantize else None
    torch_error = error(single, exact)
    found = re.match(r"(?:pre)?resnet(\d+)", name)
    deep = found is not None and int(found[1]) > SHALLOW
    limit = MAX_TIMES_TORCH * torch_error if deep else MAX_REL_ERROR
    row = {
        "model": name,
        "params": spec.params,
        "macs": zoo.find(name).macs,
        "export_s": round(export_s, 2),
        "torch_fp32_rel_error": torch_error,
        "rel_error": errors,
        "limit": limit,
        "ok": all(value <= limit for value in errors.values()),
    }
    return row | ({"int8": placed} if placed else {})


def image_for(spec: ModelSpec) -> NDArray[np.float32]:
    assert spec.preprocessing is not None
    images = datasets.open_dataset("synthetic:1", need_labels=False)
    return next(iter(datasets.batches(images, spec.preprocessing, 1))).inputs


def run(artifact: Artifact, backend: BackendName, image: NDArray[np.float32], folder: Path) -> NDArray[np.float32]:
    execution = Execution(batch_size=1)
    with Lane(backend) as lane:
        out = folder / ("model.xml" if backend == "openvino" else "built.onnx")
        lane.open(lane.build(artifact, execution, out), execution)
        return lane.predict(image)


def error(found: NDArray[np.floating], exact: NDArray[np.floating]) -> float:
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def placements(path: Path) -> dict[str, Any]:
    """For each target: operators quantized, additions that an INT8 kernel can take in, and why others cannot."""
    model = files.load_model(path)
    found = {}
    for target in TARGETS:
        plan = qdq.plan(model, target)
        found[target] = {
            "operators": len(plan.weights),
            "additions": len(plan.blocks),
            "fusable": len(plan.blocks) - len(plan.unfusable),
            "obstacles": sorted({re.sub(r"\S*layer\S*", "X", why) for why in plan.unfusable.values()}),
        }
    return found


if __name__ == "__main__":
    main()
