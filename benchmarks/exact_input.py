"""What an exact input costs: INT8 latency with a normalised float input, the same at high effort, and with uint8.

    python benchmarks/exact_input.py --output benchmarks/results/exact-input.json
    python benchmarks/exact_input.py --model resnet20 --duration 5

Weights are random (latency does not depend on them), ranges come from two synthetic images. The three files of each
network and backend are timed in one interleaved run, a query per image; a speed-up below 1 means slower than float at
normal effort. `compute` is the network alone; `end to end` also copies the input, which for uint8 is a quarter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from resdeploy import backends, store
from resdeploy.backends import machine
from resdeploy.deploy import build, calibration, export
from resdeploy.deploy.model_string import Request
from resdeploy.deploy.pixel_input import uint8_input
from resdeploy.measure import environment, interleaved, summary
from resdeploy.quantize import ptq
from resdeploy.records import Artifact, BackendName, Calibration, Effort, Execution, Measurement

BACKENDS: tuple[BackendName, ...] = ("openvino", "onnxruntime")
FLOAT = "float"
VARIANTS: dict[str, tuple[bool, Effort]] = {
    FLOAT: (False, "normal"),
    "float --effort high": (False, "high"),
    "uint8": (True, "normal"),
}


@contextlib.contextmanager
def in_process(
    model: onnx.ModelProto, image_shape: tuple[int, int, int]
) -> Iterator[Callable[[NDArray[Any]], NDArray[np.float32]]]:
    opened = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (image,) = opened.get_inputs()
    size = image.shape[0] if isinstance(image.shape[0], int) else 1

    def predict(images: NDArray[Any]) -> NDArray[np.float32]:
        parts = [opened.run(None, {image.name: images[i : i + size]})[0] for i in range(0, len(images), size)]
        return np.concatenate(parts)

    yield predict


def quantized(source: Artifact, backend: BackendName, effort: Effort, out: Path) -> Artifact:
    plan = calibration.CalibrationPlan(samples=2)
    (images,) = calibration.calibration_inputs(source, plan)
    target = backends.load(backend).TARGET
    assert target is not None
    return ptq.quantize(
        source,
        [images],
        ptq.FileOptions(portable=plan.portable_here()),
        calibration=Calibration(data="synthetic", count=len(images), seed=0, method="minmax", effort=effort),
        target=target,
        out=out,
        run=in_process,
    )


def measure(model: str, backend: BackendName, duration_s: float, folder: Path) -> list[dict[str, Any]]:
    """Latencies and ratios of the variants, float at normal effort first."""
    source = export.to_onnx(Request(model=model), folder / f"{model}.onnx", progress=lambda *_: None)
    inside = uint8_input(source, folder / f"{model}-uint8.onnx")
    execution = Execution(threads=machine.usable_cores(), precision="int8")
    candidates = []
    for i, (label, (pixels, effort)) in enumerate(VARIANTS.items()):
        made = quantized(inside if pixels else source, backend, effort, folder / f"{backend}-{i}.onnx")
        built = build.build(made, backend, execution, folder / f"{backend}-{i}b{build.suffix_of(backend)}")
        candidates.append(interleaved.Candidate(label=label, backend=backend, artifact=built, execution=execution))
    outcomes = [
        m
        for m in interleaved.run(candidates, interleaved.Schedule(duration_s=duration_s, seed=0))
        if isinstance(m, Measurement)
    ]
    base = summary.summarise(outcomes[0])
    rows = []
    for outcome in outcomes:
        found, against = summary.summarise(outcome), summary.compare(outcomes[0], outcome)
        rows.append(
            {
                "model": model,
                "backend": backend,
                "input": outcome.label,
                "p50_ms": 1000 * (found.latency_s["p50"] or float("nan")),
                "end_to_end_p50_ms": 1000 * found.end_to_end_p50_s,
                "speedup": against.speedup,
                "speedup_ci95": against.speedup_ci95,
                "end_to_end_speedup": base.end_to_end_p50_s / found.end_to_end_p50_s,
                "valid": found.valid,
                "warnings": list(found.warnings),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="default: resnet50, resnet56 and resnet20")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds for each file (default: 10)")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "exact-input", "environment": environment.capture(), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.model or ("resnet50", "resnet56", "resnet20"):
            for backend in BACKENDS:
                result["rows"] += measure(model, backend, arguments.duration, Path(folder))
                if arguments.output is not None:
                    store.write_json(arguments.output, result)
    json.dump(result, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
