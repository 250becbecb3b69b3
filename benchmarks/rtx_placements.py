"""Placements of Q/DQ for TensorRT-RTX: what its compiler makes of each, and what each does to a network's answers.

    python benchmarks/rtx_placements.py --output RESULT.json                   # kernels and bytes (extra `rtx`)
    python benchmarks/rtx_placements.py --data ../shared/data --output RESULT.json      # and answers

Counts are of NVIDIA's compiler for RTX GPUs, which needs no GPU: the layer list that a DETAILED build logs, batch 1,
SM89. Bytes are those of all tensors that its kernels read and write, weights left out. Nothing is timed. Answers are
those of ONNX Runtime, the file's roundings spelled out in FP32 (`quantize.simulated`): nothing here runs RTX. CIFAR-10
ResNet-20 and -56, 300 calibration images, all 5,000 test images; the share whose class differs from FP32's, and the RMS
difference of the logits.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import quantization
from resdeploy import store
from resdeploy.data import datasets
from resdeploy.deploy import export
from resdeploy.deploy.model_string import Request
from resdeploy.graph import for_tensorrt, qdq_placement
from resdeploy.graph.canonical import form
from resdeploy.measure import environment
from resdeploy.quantize import balance, ptq, simulated
from resdeploy.records import Artifact, Calibration, Effort, Target

MAJOR = 11  # TensorRT's version whose form RTX 1.7 reads
COUNTED = ("resnet50",)
BYTES = {"Float": 4, "Half": 2, "BFloat16": 2, "Int8": 1, "FP8": 1, "Int32": 4, "Int64": 8}
EVENTS = ("signal", "wait", "shape_call")
TENSOR = re.compile(r"Dimensions: \[([\d,-]*)\].*?Datatype: (\w+)")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a file is made."""

    target: Target
    effort: Effort = "normal"
    method: str = "percentile"
    one_scale: bool | None = None  # of each weight; None: as the target has it
    balanced: bool = True
    ends: bool = True  # first and last layer in INT8


PLACEMENTS: dict[str, Placement] = {
    "scale per channel, skip quantized, S8 (--target tensorrt)": Placement(target="tensorrt"),
    "one scale, skip quantized, S8": Placement(target="tensorrt", one_scale=True),
    "scale per channel, skip float": Placement(target="tensorrt-rtx", one_scale=False),
    "one scale, skip float, channels as they are": Placement(target="tensorrt-rtx", balanced=False),
    "one scale, skip float, balanced (--target tensorrt-rtx)": Placement(target="tensorrt-rtx"),
    "the same, first and last layer in FP16": Placement(target="tensorrt-rtx", ends=False),
    "--target tensorrt-rtx --effort high --calib-method mse": Placement(
        target="tensorrt-rtx", effort="high", method="mse"
    ),
}


@contextlib.contextmanager
def patched(how: Placement) -> Iterator[None]:
    """With the rules of this placement in force."""
    with contextlib.ExitStack() as stack:
        if how.one_scale is not None:
            stack.enter_context(mock.patch.object(qdq_placement.Placement, "one_scale", how.one_scale))
        if not how.balanced:
            stack.enter_context(mock.patch.object(balance, "balance", lambda model, *_, **__: model))
        yield


def make(how: Placement, source: Artifact, images: np.ndarray, seed: int, out: Path) -> onnx.ModelProto:
    """The INT8 file."""
    keep: list[str] = []
    if not how.ends:
        sites = qdq_placement.plan(form.canonicalise(onnx.load(source.path)), how.target).weights
        keep = [sites[0].node, sites[-1].node]
    calibration = Calibration(data="cifar10", count=len(images), seed=seed, method=how.method, effort=how.effort)
    batches = (images[i : i + quantization.BATCH] for i in range(0, len(images), quantization.BATCH))
    with patched(how):
        ptq.quantize(
            source, batches, ptq.FileOptions(keep_float=keep, force=True), calibration=calibration, target=how.target,
            out=out, run=quantization.in_process,
        )  # fmt: skip
    return onnx.load(out)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What the compiler makes of a file."""

    network: str
    placement: str
    kernels: int
    activations_mb: float
    sums: int  # residual additions
    sums_in_convolutions: int


def count(model: onnx.ModelProto) -> tuple[int, float, int]:
    """Kernels, megabytes of activations, additions inside convolutions."""
    kernels = layer_list(for_tensorrt.lower(model, MAJOR))
    moved = sum(
        math.prod(int(x) for x in dims.split(",") if x) * BYTES[kind]
        for line in kernels
        for part in (line.split(", Inputs: ", 1)[1].split(", Constants: ", 1)[0], line.split(", Outputs: ", 1)[1])
        for dims, kind in TENSOR.findall(part.split(", TacticName: ", 1)[0])
    )
    adds = {node.name for node in model.graph.node if node.op_type == "Add" and "/int8" not in node.name}
    inside = {
        name
        for line in kernels
        if "LayerType: correlation" in line or "LayerType: runtime_fusion" in line
        for name in re.findall(r"\[ONNX Layer: ([^\]]*)\]", line)
    }
    return len(kernels), moved / 1e6, len(adds & inside)


def layer_list(model: onnx.ModelProto) -> list[str]:
    """One line per kernel, as the compiler logs it for SM89 and batch 1."""
    trt: Any = importlib.import_module("tensorrt_rtx_bindings")
    lines: list[str] = []

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            lines.extend(message.split("\n"))

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    image = network.get_input(0)
    shape = (1, *tuple(image.shape)[1:])
    profile.set_shape(image.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
    kinds = (re.search(r"LayerType: (\w+)", line) for line in lines)
    named = [(line, kind[1]) for line, kind in zip(lines, kinds, strict=True) if line.startswith("Name: ") and kind]
    return [line for line, kind in named if kind not in EVENTS]


def counted(folder: Path, names: Sequence[str]) -> Iterator[Counts]:
    """Of networks with random weights, which are all that the compiler cares for; FP16 first."""
    from resdeploy.graph import cast

    for name in COUNTED:
        source = export.to_onnx(Request(model=name), folder / f"{name}.onnx", progress=lambda *_: None)
        images = np.random.default_rng(0).standard_normal((4, 3, 224, 224)).astype(np.float32)
        plain = form.canonicalise(onnx.load(source.path))
        sums = len(qdq_placement.plan(plain, "tensorrt-rtx").blocks)
        makers = {"FP16": functools.partial(cast.to_half, plain, "fp16")}
        for placement in names:
            how = PLACEMENTS[placement]
            if how.effort == "normal":  # the other has the same graph, or the input's own operators more
                makers[placement] = functools.partial(make, how, source, images, 0, folder / "int8.onnx")
        for placement, maker in makers.items():
            kernels, moved, inside = count(maker())
            yield Counts(
                network=name, placement=placement, kernels=kernels, activations_mb=round(moved, 1), sums=sums,
                sums_in_convolutions=inside,
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One placement, one calibration set."""

    network: str
    placement: str
    seed: int
    images: int
    changed_pct: float
    rms_logit_error: float


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    opened = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = opened.get_inputs()[0].name
    return np.concatenate([opened.run(None, {name: images[i : i + 50]})[0] for i in range(0, len(images), 50)])


def answered(
    data: Path, folder: Path, networks: Sequence[str], names: Sequence[str], seeds: int, every: int
) -> Iterator[Answers]:
    """Every placement on every network and calibration set, on each `every`-th test image."""
    for network in networks:
        request = Request(model=network, weights=str(data / "weights" / quantization.NETWORKS[network]))
        source = export.to_onnx(request, folder / f"{network}.onnx", progress=lambda *_: None)
        assert source.model is not None
        spec = source.model.preprocessing
        assert spec is not None
        splits = {part: datasets.open_dataset(str(data / "cifar10"), split=part) for part in ("test", "train")}
        images = quantization.sample(splits["test"], spec).inputs[::every]
        exact = run(onnx.load(source.path), images)
        for placement in names:
            for seed in range(seeds):
                chosen = datasets.choose(splits["train"], quantization.CALIBRATION_IMAGES, seed)
                inputs = quantization.sample(chosen, spec).inputs
                model = make(PLACEMENTS[placement], source, inputs, seed, folder / "int8.onnx")
                share, rms = quantization.changed(exact, run(simulated.in_float(model), images))
                yield Answers(
                    network=network, placement=placement, seed=seed, images=len(images), changed_pct=share,
                    rms_logit_error=rms,
                )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the JSON; rows are added to what it holds")
    parser.add_argument("--data", type=Path, help="folder with weights/ and cifar10/{train,test}/: answers, not counts")
    parser.add_argument("--network", choices=quantization.NETWORKS, action="append", help="default: both")
    parser.add_argument("--placement", choices=PLACEMENTS, action="append", help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="calibration sets (default: 3)")
    parser.add_argument("--every", type=int, default=1, help="each so many-th test image (default: all)")
    arguments = parser.parse_args()
    names = arguments.placement or list(PLACEMENTS)
    result: dict[str, Any] = {"benchmark": "rtx-placements", "counts": [], "answers": []}
    if arguments.output.exists():
        result |= json.loads(arguments.output.read_text())
    result["environment"] = environment.capture()
    with tempfile.TemporaryDirectory() as folder:
        rows: Iterator[Counts | Answers] = counted(Path(folder), names)
        if arguments.data is not None:
            networks = arguments.network or list(quantization.NETWORKS)
            rows = answered(arguments.data, Path(folder), networks, names, arguments.seeds, arguments.every)
        for row in rows:
            print(row, flush=True)
            result["answers" if isinstance(row, Answers) else "counts"].append(asdict(row))
            store.write_json(arguments.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
