"""Does INT8 run as it was meant to: residual adds inside convolutions, and as fast as the peers' files.

    python benchmarks/int8_speed.py fusion --output benchmarks/results/int8-fusion.json
    python benchmarks/int8_speed.py speed --photographs ../shared/data/imagenet-samples

`fusion` quantizes ResNet-18 to -152 for OpenVINO and asks its executed graph which kernel each residual addition is in.
`speed` makes INT8 files of one ResNet-50 (random weights, 224x224) with resdeploy, NNCF and ONNX Runtime's
quantize_static in each of its useful forms, from the same images, every layer quantized by all, and times them in one
interleaved run, those for OpenVINO there and those for ONNX Runtime there. A ratio is the median time of ours
over that of a peer's file, with its 95 % interval: 1 is equal, below 1 we are faster.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.calibration import PACKAGES, inputs, photographs
from benchmarks.networks import with_biases
from benchmarks.peer_static import quantize_static
from resdeploy import store
from resdeploy.backends.lane import Lane
from resdeploy.deploy import calibration, export, lower
from resdeploy.deploy.build import suffix_of
from resdeploy.deploy.model_string import PreprocessingOverride, Request
from resdeploy.graph import files, residual
from resdeploy.graph.canonical import form
from resdeploy.measure import environment, interleaved, summary
from resdeploy.records import Artifact, BackendName, Execution, Measurement, Target

NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
FUSION_SIZE = 64  # which kernels are chosen does not depend on the image's size
CALIBRATION_IMAGES = 32
Silent: Callable[..., None] = lambda *_: None  # noqa: E731


def fusion(network: str, folder: Path) -> dict[str, Any]:
    """Counts of convolutions and residual additions, and how OpenVINO runs them."""
    request = Request(model=network, override=PreprocessingOverride(img_size=FUSION_SIZE))
    source = export.to_onnx(request, folder / f"{network}.onnx", progress=Silent)
    plan = calibration.CalibrationPlan(data="synthetic:2")
    int8 = lower.lower(source, "int8", "openvino", plan, folder / f"{network}.int8.onnx", progress=Silent)
    graph = form.canonicalise(files.load_model(Path(source.path)))
    adds = {block.add for block in residual.find_blocks(graph)}
    execution = Execution(input_shape=(3, FUSION_SIZE, FUSION_SIZE))
    with Lane("openvino") as lane:
        lane.open(lane.build(int8, execution, folder / "built.xml"), execution, trace=True)
        lane.block(1)
        layers = lane.layers()
    convolutions = [layer for layer in layers if layer.kind.startswith("Convolution")]
    integer = [layer for layer in convolutions if layer.precision == "int8"]
    inside = {name for layer in integer for name in layer.sources}
    return {
        "network": network,
        "convolutions": sum(node.op_type == "Conv" for node in graph.graph.node),
        "executed_convolutions": len(convolutions),
        "integer_convolutions": len(integer),
        "residual_adds": len(adds),
        "fused_adds": len(adds & inside),
        "unfused_adds": sorted(adds - inside),
    }


def static(kind: str) -> Callable[[Path, Path, Path], None]:
    def build(fp32: Path, images: Path, out: Path) -> None:
        activations, weights = TYPES[kind]
        quantize_static(
            fp32, inputs(images, CALIBRATION_IMAGES, 8), out, activations=activations, weights=weights,
            reduce_range=kind == "U8S8 reduced range", symmetric=kind == "S8S8",
        )  # fmt: skip

    return build


TYPES = {
    "U8S8": ("QUInt8", "QInt8"),
    "U8S8 reduced range": ("QUInt8", "QInt8"),
    "U8U8": ("QUInt8", "QUInt8"),
    "S8S8": ("QInt8", "QInt8"),
}


def nncf_default(fp32: Path, images: Path, out: Path) -> None:
    import nncf

    data = nncf.Dataset(inputs(images, CALIBRATION_IMAGES, 1))
    onnx.save(nncf.quantize(onnx.load(fp32), data, subset_size=CALIBRATION_IMAGES), out)


def ours(target: Target) -> Callable[[Path, Path, Path], None]:
    def build(fp32: Path, images: Path, out: Path) -> None:
        source = export.to_onnx(Request(model=str(fp32)), progress=Silent)
        plan = calibration.CalibrationPlan(data=str(images), samples=CALIBRATION_IMAGES)
        lower.lower(source, "int8", target, plan, out, progress=Silent)

    return build


FILES: dict[str, Callable[[Path, Path, Path], None]] = {
    "resdeploy openvino": ours("openvino"),
    "resdeploy onnxruntime": ours("onnxruntime"),
    "nncf": nncf_default,
    **{f"quantize_static {kind}": static(kind) for kind in TYPES},
}
ROWS: dict[BackendName, tuple[str, ...]] = {
    "openvino": ("resdeploy openvino", "nncf", "quantize_static U8S8"),
    "onnxruntime": ("resdeploy onnxruntime", *(f"quantize_static {kind}" for kind in TYPES)),
}


def speed(samples: Path, folder: Path, duration_s: float) -> dict[str, Any]:
    fp32 = folder / "resnet50.onnx"
    export.to_onnx(with_biases("resnet50", folder), fp32, progress=Silent)
    (folder / "images").mkdir()
    photographs(samples, folder / "images", CALIBRATION_IMAGES)
    made: dict[str, Artifact] = {}
    for name, build in FILES.items():
        out = folder / f"{name.replace(' ', '-')}.onnx"
        build(fp32, folder / "images", out)
        made[name] = Artifact(path=str(out), format="onnx", precision="int8", sha256=store.digest(out))
        print(name, file=sys.stderr, flush=True)
    candidates: list[interleaved.Candidate] = []
    for backend, names in ROWS.items():
        for name in names:
            execution = Execution(input_shape=(3, 224, 224))
            out = folder / f"built-{len(candidates)}{suffix_of(backend)}"
            with Lane(backend) as lane:
                built = lane.build(made[name], execution, out)
            candidates.append(
                interleaved.Candidate(label=f"{backend}: {name}", backend=backend, artifact=built, execution=execution)
            )
    outcomes = interleaved.run(candidates, interleaved.Schedule(duration_s=duration_s))
    found = {outcome.label: outcome for outcome in outcomes if isinstance(outcome, Measurement)}
    ratios = []
    for backend, (mine, *peers) in ROWS.items():
        for peer in peers:
            left, right = found.get(f"{backend}: {mine}"), found.get(f"{backend}: {peer}")
            if left is None or right is None:
                continue
            # Ours as the baseline of the comparison: its "speed-up" is our time over the peer's.
            comparison = summary.compare(left, right)
            ratios.append(
                {
                    "backend": backend,
                    "ours": mine,
                    "peer": peer,
                    "time_ratio": comparison.speedup,
                    "time_ratio_ci95": comparison.speedup_ci95,
                    "valid": comparison.valid,
                }
            )
    rows = [summary.summarise(outcome) for outcome in found.values()]
    return {
        "rows": [
            {
                "label": row.measurement.label,
                "p50_ms": 1e3 * (row.latency_s["p50"] or 0.0),
                "p50_ci95_ms": row.p50_ci95_s and [1e3 * bound for bound in row.p50_ci95_s],
                "valid": row.valid,
                "warnings": row.warnings,
            }
            for row in rows
        ],
        "failed": [outcome.label for outcome in outcomes if not isinstance(outcome, Measurement)],
        "ratios": ratios,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("fusion", "speed"))
    parser.add_argument("--photographs", type=Path, help="folder of a few photographs, for speed")
    parser.add_argument("--duration", type=float, default=6.0, help="seconds of timed queries per file (default: 6)")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": f"int8_speed {arguments.part}",
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "environment": environment.capture(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.part == "fusion":
            result["image_size"] = FUSION_SIZE
            result["rows"] = [fusion(network, Path(scratch)) for network in NETWORKS]
        elif arguments.photographs is None:
            parser.error("speed needs --photographs")
        else:
            result |= speed(arguments.photographs, Path(scratch), arguments.duration)
    if arguments.output is not None:
        store.write_json(arguments.output, result)
    json.dump(result, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
