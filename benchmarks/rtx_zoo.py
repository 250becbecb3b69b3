"""Every network of the zoo through TensorRT-RTX, NVIDIA's compiler for GeForce RTX: parsed, built, and what was fused.

    pip install '.[cpu,data,rtx]'                    # NVIDIA's licence: installing accepts it
    python benchmarks/rtx_zoo.py --output benchmarks/results/rtx-zoo.json --resume --minutes 30
    python benchmarks/rtx_zoo.py resnet18 preresnet110 --variants fp16,int8

No GPU is needed and none is used: kernels and bytes are counts of what the compiler lists (batch 1, SM89), not times.
Variants: the precisions; `int8 high` with --effort high, for networks below 150 million MACs; each INT8 once for every
target that TensorRT reads; `uint8 input` and `pruned` (its first removable block) in FP16; `qat` of ResNet-20 after an
epoch on the digits. Networks are untrained (seed 0), calibrated on 16 synthetic images: counts do not depend on these.

A row is written when it is known. With --resume only what the file lacks, or failed, is done, small networks first.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from resdeploy import store
from resdeploy.backends import installed_version, machine, tensorrt_rtx
from resdeploy.deploy import build, export, lower, pixel_input
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import Request
from resdeploy.errors import ResdeployError
from resdeploy.graph import drop, files, residual
from resdeploy.measure import environment
from resdeploy.models import zoo
from resdeploy.records import Artifact, EngineOptions, Execution, Layer, Target

SIZES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "uint8": 1, "fp8": 1, "int32": 4, "int64": 8, "bool": 1}
ON_STREAMS = ("signal", "wait", "shape_call")  # what orders kernels, and is none
CONVOLVES = ("correlation", "runtime_fusion", "gemm")
GPU = "sm89"
# Whose rules TensorRT-RTX's parser reads: INT8 with zero point 0.
TARGETS = tuple(target for target in get_args(Target) if target.startswith("tensorrt"))
CHEAP_MACS = 150e6
TRAINED = "resnet20"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--variants", help="Some of them, with commas between.")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--resume", action="store_true", help="Keep what --output has, and do what it lacks.")
    parser.add_argument("--minutes", type=float, default=math.inf, help="Begin nothing after these.")
    options = parser.parse_args()
    start = time.monotonic()
    rows = saved(options.output) if options.resume and options.output and options.output.is_file() else {}
    only = options.variants.split(",") if options.variants else None
    wanted = {
        name: [variant for variant in variants_of(name) if only is None or variant in only]
        for name in sorted(options.names, key=lambda name: zoo.find(name).params)
    }

    def keep(row: dict[str, Any]) -> None:
        rows[row["model"], row["variant"]] = row
        print(json.dumps(row), flush=True)
        if options.output:  # after each, so that nothing is lost
            write(options.output, rows)

    for name, variants in wanted.items():
        lacking = [variant for variant in variants if not rows.get((name, variant), {}).get("built")]
        if lacking and time.monotonic() - start < 60 * options.minutes:
            measure(name, lacking, keep)
    left = [(name, v) for name, variants in wanted.items() for v in variants if (name, v) not in rows]
    failed = [" ".join(key) for key, row in rows.items() if not row["built"]]
    print(f"{len(rows)} rows, not built: {', '.join(failed) or 'none'}; not yet tried: {len(left)}")
    sys.exit(bool(failed or (left and math.isinf(options.minutes))))


def saved(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["model"], row["variant"]): row for row in json.loads(path.read_bytes())["results"]}


def write(path: Path, rows: Mapping[tuple[str, str], dict[str, Any]]) -> None:
    missing = [f"{name} {v}" for name in zoo.ENTRIES for v in variants_of(name) if (name, v) not in rows]
    document = {"environment": environment.capture(), "not_yet_run": missing, "results": list(rows.values())}
    store.write_json(path, document)


def variants_of(name: str) -> list[str]:
    """What is tried of a network."""
    entry = zoo.find(name)
    efforts = ("int8", "int8 high") if entry.macs < CHEAP_MACS else ("int8",)
    quantized = [f"{effort} {target}" for effort in efforts for target in TARGETS]
    pruned = ["pruned"] if "res" in name or name.startswith("basic") else []
    trained = [f"qat {target}" for target in TARGETS] if name == TRAINED else []
    return ["fp32", "fp16", "bf16", *quantized, "uint8 input", *pruned, *trained]


def measure(name: str, variants: Sequence[str], keep: Callable[[dict[str, Any]], None]) -> None:
    """The rows of one network, each given away when it is known."""
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        source = export.to_onnx(Request(model=name), folder / "model.onnx", progress=progress)
        for variant in variants:
            version = installed_version(tensorrt_rtx.VENDOR, *tensorrt_rtx.DISTRIBUTIONS)
            row: dict[str, Any] = {"model": name, "variant": variant, "target": GPU, "tensorrt_rtx": version}
            row["cpu"] = machine.cpu().model
            try:
                made = made_of(source, variant, folder / f"{variant.replace(' ', '-')}.onnx")
                keep(row | built_row(made, folder / "made.engine"))
            except ResdeployError as e:
                keep(row | {"built": False, "refusal": str(e)})


def made_of(source: Artifact, variant: str, out: Path) -> Artifact:
    """The ONNX file of a variant."""
    kind, *how = variant.split()
    if kind == "qat":
        return trained(source, how[-1], out)
    if kind == "int8":
        plan = CalibrationPlan(effort="high" if "high" in how else "normal")
        target: Any = how[-1]
        return lower.lower(source, "int8", target, plan, out, progress=progress)
    if kind == "uint8":
        source = pixel_input.uint8_input(source, out.with_suffix(".fp32.onnx"))
    if kind == "pruned":
        source = without_a_block(source, out.with_suffix(".fp32.onnx"))
    precision: Any = kind if kind in ("fp32", "bf16") else "fp16"
    return lower.lower(source, precision, None, CalibrationPlan(), out, progress=progress)


def without_a_block(source: Artifact, out: Path) -> Artifact:
    model = files.load_model(Path(source.path))
    files.save_model(drop.remove(model, drop.removable_blocks(model)[:1]), out)
    return store.derive(source, out)


def trained(source: Artifact, target: str, out: Path) -> Artifact:
    """The INT8 file after an epoch of quantization-aware training, from a network with an epoch of training."""
    from resdeploy.verbs import train

    assert source.model is not None
    weights = out.with_suffix(".safetensors")
    once: Any = {"data": "digits", "epochs": 1}
    train.train(Request(model=source.model.name), train.TrainOptions(**once), weights, progress=progress, watch=print)
    how = train.TrainOptions(**once | {"qat": True, "target": target})
    return train.train(Request(model=str(weights)), how, out, progress=progress, watch=print)


def built_row(source: Artifact, out: Path) -> dict[str, Any]:
    """What the compiler makes of a file."""
    assert source.model is not None
    execution = Execution(input_shape=source.model.input_shape, engine=EngineOptions(targets=(GPU,)))
    engine = build.build_in_lane(source, "tensorrt-rtx", execution, out)
    facts = {"built": True, "build_s": round(engine.checks["build_s"], 2), "sha256": engine.sha256}
    return facts | {"engine_mb": round(out.stat().st_size / 1e6, 2)} | counts(engine.layers, Path(source.path))


def counts(layers: Sequence[Layer], graph: Path) -> dict[str, Any]:
    """Kernels, the bytes that they read and write of activations, and what the residual sums run in.

    Counted from the layers' own types and shapes and the graph's blocks, and not by `audit`, which may be held to it.
    """
    kernels = [layer for layer in layers if layer.kind not in ON_STREAMS]
    moved = sum(SIZES[port.precision] * math.prod(port.shape) for k in kernels for port in (*k.inputs, *k.outputs))
    model = files.load_model(graph)
    sums = [block.add for block in residual.find_blocks(model)]
    convolved = {node.name for node in model.graph.node if node.op_type == "Conv"}
    convolutions = Counter(
        f"{kernel.inputs[0].precision}->{kernel.outputs[0].precision}"
        for kernel in kernels
        if kernel.kind in CONVOLVES and convolved & set(kernel.sources)
    )
    return {
        "kernels": len(kernels),
        "activation_mb": round(moved / 1e6, 2),
        "convolutions": dict(convolutions),
        "sums": len(sums),
        "sums_fused": sum(any(add in k.sources and k.kind in CONVOLVES for k in kernels) for add in sums),
    }


def progress(what: str, done: int, total: int) -> None:
    print(f"   {what} {done}/{total}", file=sys.stderr)


if __name__ == "__main__":
    main()
