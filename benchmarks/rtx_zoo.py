"""Every network of the zoo through TensorRT-RTX, NVIDIA's compiler for GeForce RTX: parsed, built, and what was fused.

    pip install '.[cpu,data,rtx]'                    # NVIDIA's licence: installing accepts it
    python benchmarks/rtx_zoo.py --output benchmarks/results/rtx-zoo.json --resume --minutes 30 --models /tmp/zoo
    python benchmarks/rtx_zoo.py resnet18 preresnet110 --variants fp16,int8

No GPU is needed and none is used: kernels and bytes are counts of what the compiler lists (batch 1, SM89), not times.
Variants: the precisions; `int8 high` with --effort high, for networks below 150 million MACs; each INT8 once for every
target that TensorRT reads; `uint8 input` and `pruned` (its first removable block) in FP16; `qat` of ResNet-20 after an
epoch on the digits. Networks are untrained (seed 0), calibrated on two images of noise: counts do not depend on these.
So that a row costs little more than the compiler's own work, files are made without the comparisons that the commands
make (with torch, with the file before): `benchmarks/zoo.py` makes those.

A row is written when it is known. FP32, FP16 and INT8 for this compiler come first of every network, small networks
first (or as named); then the rest. With --resume only what the file lacks, or failed, is done.
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
from typing import Any, Literal, get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quantization import in_process
from resdeploy import store
from resdeploy.backends import installed_version, machine, tensorrt_rtx
from resdeploy.deploy import networks
from resdeploy.deploy.model_string import Request
from resdeploy.errors import ResdeployError
from resdeploy.graph import cast, drop, files, from_torch, pixels, residual
from resdeploy.graph.canonical import form
from resdeploy.measure import environment
from resdeploy.models import weights, zoo
from resdeploy.quantize import ptq
from resdeploy.records import Artifact, Calibration, Effort, EngineOptions, Execution, Layer, Target

SIZES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "uint8": 1, "fp8": 1, "int32": 4, "int64": 8, "bool": 1}
ON_STREAMS = ("signal", "wait", "shape_call")  # what orders kernels, and is none
CONVOLVES = ("correlation", "runtime_fusion", "gemm")
GPU = "sm89"
# Whose rules TensorRT-RTX's parser reads: INT8 with zero point 0.
TARGETS = tuple(target for target in get_args(Target) if target.startswith("tensorrt"))
CHEAP_MACS = 150e6
TRAINED = "resnet20"
FIRST = ("fp32", "fp16", "int8 tensorrt-rtx")
IMAGES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    by_size = sorted(zoo.ENTRIES, key=lambda name: zoo.find(name).params)
    parser.add_argument("names", nargs="*", default=by_size)
    parser.add_argument("--variants", help="Some of them, with commas between.")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--resume", action="store_true", help="Keep what --output has, and do what it lacks.")
    parser.add_argument(
        "--models", type=Path, help="Keep exported networks here (12 GB in all): each is exported once."
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="Begin nothing after these.")
    options = parser.parse_args()
    start = time.monotonic()
    rows = saved(options.output) if options.resume and options.output and options.output.is_file() else {}
    only = options.variants.split(",") if options.variants else None
    wanted = [
        (name, [v for v in variants_of(name) if (v in FIRST) == first and (only is None or v in only)])
        for first in (True, False)
        for name in options.names
    ]

    def keep(row: dict[str, Any]) -> None:
        rows[row["model"], row["variant"]] = row
        print(json.dumps(row), flush=True)
        if options.output:  # after each, so that nothing is lost
            write(options.output, rows)

    def in_time() -> bool:
        return time.monotonic() - start < 60 * options.minutes

    for name, variants in wanted:
        lacking = [variant for variant in variants if not rows.get((name, variant), {}).get("built")]
        if lacking and in_time():
            measure(name, lacking, keep, in_time, models=options.models)
    left = [(name, v) for name, variants in wanted for v in variants if (name, v) not in rows]
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


def measure(
    name: str,
    variants: Sequence[str],
    keep: Callable[[dict[str, Any]], None],
    in_time: Callable[[], bool],
    *,
    models: Path | None,
) -> None:
    """The rows of one network, each given away when it is known, as long as there is time."""
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        source = exported(name, (models or folder) / f"{name}.onnx")
        for variant in variants:
            if not in_time():
                return
            version = installed_version(tensorrt_rtx.VENDOR, *tensorrt_rtx.DISTRIBUTIONS)
            row: dict[str, Any] = {"model": name, "variant": variant, "target": GPU, "tensorrt_rtx": version}
            row["cpu"] = machine.cpu().model
            try:
                made = made_of(source, variant, folder / "variant.onnx")
                keep(row | built_row(made, folder / "made.engine"))
            except ResdeployError as e:
                keep(row | {"built": False, "refusal": str(e)})


def exported(name: str, out: Path) -> Artifact:
    """The network's ONNX file in FP32, made unless it is there."""
    if out.is_file() and (known := store.load(out)):
        return known
    network = networks.resolve(Request(model=name))
    module = weights.create(network.spec, None)
    return store.publish(out, lambda path: from_torch.export(module, network.spec, path, weights=network.weights))


def made_of(source: Artifact, variant: str, out: Path) -> Artifact:
    """The ONNX file of a variant."""
    kind, *how = variant.split()
    if kind == "fp32":
        return source
    if kind == "qat":
        return trained(source, how[-1], out)
    if kind == "int8":
        target: Any = how[-1]
        return quantized(source, target, "high" if "high" in how else "normal", out)
    model = files.load_model(Path(source.path))  # canonical as it is exported
    if kind == "uint8":
        assert source.model is not None
        assert source.model.preprocessing is not None
        model = pixels.to_pixels(model, source.model.preprocessing)
    if kind == "pruned":
        model = drop.remove(model, drop.removable_blocks(model)[:1])
    precision: Literal["fp16", "bf16"] = "bf16" if kind == "bf16" else "fp16"
    files.save_model(cast.to_half(form.canonicalise(model), precision), out)
    return store.derive(source, out, precision=precision)


def quantized(source: Artifact, target: Target, effort: Effort, out: Path) -> Artifact:
    assert source.model is not None
    noise = np.random.default_rng(0).standard_normal((IMAGES, *source.model.input_shape)).astype(np.float32)
    plan = Calibration(data="noise", count=IMAGES, seed=0, method="percentile", effort=effort)
    options = ptq.FileOptions(force=True)
    return ptq.quantize(source, [noise], options, calibration=plan, target=target, out=out, run=in_process)


def trained(source: Artifact, target: str, out: Path) -> Artifact:
    """The INT8 file after an epoch of quantization-aware training, from a network with an epoch of training."""
    from resdeploy.verbs import train

    assert source.model is not None
    checkpoint = out.with_suffix(".safetensors")
    once: Any = {"data": "digits", "epochs": 1}
    train.train(
        Request(model=source.model.name), train.TrainOptions(**once), checkpoint, progress=progress, watch=print
    )
    how = train.TrainOptions(**once | {"qat": True, "target": target})
    return train.train(Request(model=str(checkpoint)), how, out, progress=progress, watch=print)


def built_row(source: Artifact, out: Path) -> dict[str, Any]:
    """What the compiler makes of a file."""
    assert source.model is not None
    execution = Execution(input_shape=source.model.input_shape, engine=EngineOptions(targets=(GPU,)))
    with tensorrt_rtx.prepare(source, execution) as (prepared, settings):
        engine = tensorrt_rtx.build(prepared, settings, out)
    facts = {"built": True, "sha256": engine.sha256}
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
