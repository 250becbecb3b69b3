"""Every network of the zoo, exported as `resdeploy export` does and run: seconds, and how far from torch in float64.

    python benchmarks/zoo.py --output benchmarks/results/zoo.json
    python benchmarks/zoo.py resnet18 preresnet110       # some of them
    python benchmarks/zoo.py --quantize                  # also: INT8 for each target, and how many additions it fuses
    python benchmarks/zoo.py --output F --resume --minutes 5   # only what F lacks, beginning nothing after 5 minutes

What F lacks are rows, `int8` in them with --quantize, and rows that are ok: those that failed are tried again, after
the networks that have no row. Each row names the processor that it was measured on.

Networks are untrained (seed 0), so that none is missing, and see one synthetic image with natural statistics. An error
is the largest difference of a logit from torch in float64, over the largest logit; what it may be is `export`'s own
rule. An export, with its check against torch, may take 240 s. Fails where a network is over a limit or raises, and
where one that was asked for has not been run although no --minutes were set.
"""

from __future__ import annotations

import argparse
import json
import math
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
from resdeploy.backends import machine
from resdeploy.backends.lane import Lane
from resdeploy.data import datasets
from resdeploy.deploy import export
from resdeploy.deploy.model_string import Request
from resdeploy.errors import ResdeployError
from resdeploy.graph import files, from_torch, qdq_placement
from resdeploy.measure import environment
from resdeploy.models import zoo
from resdeploy.records import Artifact, BackendName, Execution, ModelSpec, Target

RUNTIMES: tuple[BackendName, ...] = ("onnxruntime", "openvino")
TARGETS: tuple[Target, ...] = ("tensorrt", "openvino", "onnxruntime")
MAX_EXPORT_S = 240.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--quantize", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--resume", action="store_true", help="Keep what --output has, and measure what it lacks.")
    parser.add_argument("--minutes", type=float, default=math.inf)
    options = parser.parse_args()
    if options.resume and not options.output:
        parser.error("--resume goes on with a file: name it with --output")
    start = time.monotonic()
    rows = saved(options.output) if options.resume and options.output.is_file() else {}
    wanted = {name: zoo.find(name) for name in options.names}
    lacking = [name for name in wanted if not complete(rows.get(name), quantize=options.quantize)]
    ahead = sorted(lacking, key=lambda name: (name in rows, wanted[name].params))
    while ahead and time.monotonic() - start < 60 * options.minutes:
        name = ahead.pop(0)
        print(f"{name} ({time.monotonic() - start:.0f} s, {len(ahead)} ahead)", file=sys.stderr)
        try:
            row = measure(name, quantize=options.quantize)
        except ResdeployError as e:
            row = {"model": name, "ok": False, "failure": str(e)}
        rows[name] = row | {"cpu": machine.cpu().model}
        print(json.dumps(rows[name]), flush=True)
        if options.output:  # after each, so that nothing is lost
            missing = sorted(zoo.ENTRIES.keys() - rows.keys())
            document = {"environment": environment.capture(), "not_yet_run": missing, "results": list(rows.values())}
            store.write_json(options.output, document)
    failed = [name for name, row in rows.items() if not row["ok"]]
    print(f"{len(rows)} networks, {len(failed)} failed: {', '.join(failed) or 'none'}; not yet run: {len(ahead)}")
    sys.exit(bool(failed or (ahead and math.isinf(options.minutes))))


def saved(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of a result, by their networks; those from before rows named a processor were measured on the result's."""
    document = json.loads(path.read_bytes())
    return {row["model"]: {"cpu": document["environment"]["cpu"]["model"]} | row for row in document["results"]}


def complete(row: dict[str, Any] | None, *, quantize: bool) -> bool:
    """Whether a row went well and has all that is asked for."""
    return row is not None and row["ok"] and ("int8" in row or not quantize)


def measure(name: str, *, quantize: bool) -> dict[str, Any]:
    """One row of the result."""
    spec = zoo.spec(name)
    image = image_for(spec)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        artifact = export.to_onnx(Request(model=name), Path(folder) / "model.onnx", progress=progress)
        export_s = time.perf_counter() - start
        net = zoo.create(spec, seed=0).double()
        with torch.no_grad():
            exact = net(torch.from_numpy(image).double()).numpy()
        del net
        errors = {backend: error(run(artifact, backend, image, Path(folder)), exact) for backend in RUNTIMES}
        placed = placements(Path(artifact.path)) if quantize else None
    limit = from_torch.max_rel_error(artifact.checks["torch_fp32_rel_error"])
    row = {
        "model": name,
        "params": spec.params,
        "macs": zoo.find(name).macs,
        "export_s": round(export_s, 2),
        "checks": dict(artifact.checks),
        "rel_error": errors,
        "limit": limit,
        "limit_export_s": MAX_EXPORT_S,
        "ok": export_s <= MAX_EXPORT_S and all(value <= limit for value in errors.values()),
    }
    return row | ({"int8": placed} if placed else {})


def progress(what: str, done: int, total: int) -> None:
    print(f"   {what} {done}/{total}", file=sys.stderr)


def image_for(spec: ModelSpec) -> NDArray[np.float32]:
    assert spec.preprocessing is not None
    images = datasets.open_dataset("synthetic:1", need_labels=False)
    return next(iter(datasets.batches(images, spec.preprocessing, 1))).inputs


def run(artifact: Artifact, backend: BackendName, image: NDArray[np.float32], folder: Path) -> NDArray[np.float32]:
    execution = Execution(batch_size=1)
    with Lane(backend) as lane:
        out = folder / ("model.xml" if backend == "openvino" else "built.onnx")
        lane.open(lane.build(artifact, execution, out), execution)
        logits: NDArray[Any] = lane.predict(image)
        return logits


def error(found: NDArray[np.floating], exact: NDArray[np.floating]) -> float:
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def placements(path: Path) -> dict[str, Any]:
    """For each target: operators quantized, additions that an INT8 kernel can take in, and why others cannot."""
    model = files.load_model(path)
    found: dict[str, Any] = {}
    for target in TARGETS:
        plan = qdq_placement.plan(model, target)
        found[target] = {
            "operators": len(plan.weights),
            "additions": len(plan.blocks),
            "fusable": len(plan.blocks) - len(plan.unfusable),
            "obstacles": sorted({re.sub(r"\S*layer\S*", "X", why) for why in plan.unfusable.values()}),
        }
    return found


if __name__ == "__main__":
    main()
