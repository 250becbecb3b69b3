"""How much INT8 changes a network's answers: resdeploy against quantize_static, NNCF and Model Optimizer.

    python benchmarks/quantization.py --data ../shared/data --network resnet20 --output resnet20.json
    python benchmarks/quantization.py --data ../shared/data --seeds 1        # quick: one calibration set
    python benchmarks/quantization.py --data ../shared/data --side ours --scheme U8S8    # some candidates only
    python benchmarks/quantization_page.py resnet20.json resnet56.json       # docs/quantization.md from results

CIFAR-10 ResNet-20 and -56, all candidates made from the same ONNX file and the same calibration images, and judged
against FP32 on the same test images: the share of images whose predicted class changes, the RMS difference of the
logits, which is the steadier of the two, and what `gate --max-drop 0.5` says. Every file runs in ONNX Runtime with
graph optimisations off: activations and weights are rounded as the file says, and all arithmetic between is float, as
exact as the 32-bit sums of a CPU with VNNI. `here` is the same file as ONNX Runtime runs it on this CPU by default, on
every fifth image. Model Optimizer pins old packages, so it runs in an interpreter of its own:
--modelopt-python PYTHON after `pip install "nvidia-modelopt[onnx]"` there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peer_static import quantize_static
from resdeploy import store
from resdeploy.data import datasets
from resdeploy.deploy import export
from resdeploy.deploy.model_string import Request
from resdeploy.deploy.pixel_input import uint8_input
from resdeploy.judge import accuracy
from resdeploy.measure import environment, prediction_files
from resdeploy.quantize import ptq
from resdeploy.records import Artifact, Calibration, Effort, Predictions, Preprocessing, Target

Images = NDArray[np.float32]
Pixels = NDArray[np.uint8]

NETWORKS = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}
CALIBRATION_IMAGES = 300
BATCH = 20


MAX_DROP_PP = 0.5
MODELOPT: Path | None = None  # an interpreter that has it, from --modelopt-python
MODELOPT_SCRIPT = """
import sys
import numpy as np
from modelopt.onnx.quantization import quantize

source, images, method, out = sys.argv[1:]
# In FP32 where not INT8, as all others here; its default is FP16.
quantize(source, quantize_mode="int8", calibration_data={"input": np.load(images)}, calibration_method=method,
         calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=out, log_level="ERROR")
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """The same images as floats and as pixels, each (n, C, H, W)."""

    inputs: Images
    pixels: Pixels


# Makes an INT8 file at the path from the FP32 file, the calibration images and their seed.
Maker = Callable[[Artifact, Sample, int, Path], None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate, one calibration set."""

    network: str
    scheme: str
    candidate: str
    seed: int
    changed_pct: float
    rms_logit_error: float
    top1_pct: float
    gate: str
    here_changed_pct: float
    here_rms_logit_error: float
    made_s: float


def session(model: str | bytes, *, exact: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def logits(path: Path, images: Images, pixels: Pixels, *, exact: bool = True) -> Images:
    opened = session(str(path), exact=exact)
    (taken,) = opened.get_inputs()
    given = pixels if taken.type == "tensor(uint8)" else images
    parts = [opened.run(None, {taken.name: given[i : i + BATCH]})[0] for i in range(0, len(given), BATCH)]
    return np.concatenate(parts)


@contextlib.contextmanager
def in_process(model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> Iterator[Callable[[Images], Images]]:
    """For resdeploy's calibration, in one thread as the peers'."""
    opened = session(model.SerializeToString(), exact=False)
    source = opened.get_inputs()[0]

    def predict(found: Images) -> Images:
        size = source.shape[0] if isinstance(source.shape[0], int) else len(found)
        parts = [opened.run(None, {source.name: found[i : i + size]})[0] for i in range(0, len(found), size)]
        return np.concatenate(parts)

    yield predict


def ours(
    target: Target,
    method: str = "percentile",
    *,
    effort: Effort = "normal",
    portable: bool = False,
    uint8: bool = False,
) -> Maker:
    def build(source: Artifact, images: Sample, seed: int, out: Path) -> None:
        given: NDArray[Any] = images.pixels if uint8 else images.inputs
        if uint8:
            source = uint8_input(source, out.with_name("uint8.onnx"))
        calibration = Calibration(data="cifar10", count=len(given), seed=seed, method=method, effort=effort)
        batches = (given[i : i + BATCH] for i in range(0, len(given), BATCH))
        options = ptq.FileOptions(portable=portable)
        ptq.quantize(source, batches, options, calibration=calibration, target=target, out=out, run=in_process)

    return build


def static(method: str, *, symmetric: bool) -> Maker:
    def build(source: Artifact, sample: Sample, seed: int, out: Path) -> None:
        images = sample.inputs
        batches = ({"input": images[start : start + BATCH]} for start in range(0, len(images), BATCH))
        quantize_static(
            Path(source.path), batches, out, method=method, symmetric=symmetric, prepared=False,
            activations="QInt8" if symmetric else "QUInt8",
        )  # fmt: skip

    return build


def nncf_default(source: Artifact, sample: Sample, seed: int, out: Path) -> None:
    import nncf

    data = nncf.Dataset([{"input": image[None]} for image in sample.inputs])
    onnx.save(nncf.quantize(onnx.load(source.path), data, subset_size=len(sample.inputs)), out)


def modelopt(method: str) -> Maker:
    def build(source: Artifact, sample: Sample, seed: int, out: Path) -> None:
        if MODELOPT is None:
            msg = "no --modelopt-python given"
            raise ImportError(msg)
        images = out.with_name("modelopt.npy")
        np.save(images, sample.inputs)
        command = [MODELOPT, "-c", MODELOPT_SCRIPT, source.path, images, method, out]
        subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)

    return build


# (scheme, candidate) -> how it is made. The scheme is that of the activations and the weights.
CANDIDATES: dict[tuple[str, str], Maker] = {
    ("U8S8", "resdeploy openvino"): ours("openvino"),
    ("U8S8", "resdeploy onnxruntime"): ours("onnxruntime"),
    ("U8S8", "resdeploy openvino --portable"): ours("openvino", portable=True),
    ("U8S8", "resdeploy openvino --input uint8"): ours("openvino", uint8=True),
    ("U8S8", "resdeploy openvino --effort high"): ours("openvino", effort="high"),
    ("U8S8", "quantize_static MinMax"): static("MinMax", symmetric=False),
    ("U8S8", "quantize_static Percentile"): static("Percentile", symmetric=False),
    ("U8S8", "nncf default"): nncf_default,
    ("S8S8", "resdeploy tensorrt"): ours("tensorrt"),
    ("S8S8", "resdeploy tensorrt --calib-method mse"): ours("tensorrt", "mse"),
    ("S8S8", "resdeploy tensorrt --input uint8"): ours("tensorrt", uint8=True),
    ("S8S8", "resdeploy tensorrt --effort high --calib-method mse"): ours("tensorrt", "mse", effort="high"),
    ("S8S8", "quantize_static MinMax"): static("MinMax", symmetric=True),
    ("S8S8", "quantize_static Percentile"): static("Percentile", symmetric=True),
    ("S8S8", "modelopt max"): modelopt("max"),
    ("S8S8", "modelopt entropy"): modelopt("entropy"),
}


def sample(dataset: datasets.Dataset, spec: Preprocessing) -> Sample:
    """All images of a data set, as floats and as pixels."""
    raw = dataclasses.replace(spec, dtype="uint8")
    return Sample(
        inputs=np.concatenate([batch.inputs for batch in datasets.batches(dataset, spec, 100)]),
        pixels=np.concatenate([batch.inputs for batch in datasets.batches(dataset, raw, 100)]),
    )


def verdict(before: Images, after: Images, labels: NDArray[np.int64]) -> str:
    """`gate --max-drop 0.5`."""
    sides = [
        Predictions(
            model=name,
            ids=(),
            labels=labels,
            top=prediction_files.top_classes(found),
            logits=found,
            data="cifar10",
            data_fingerprint="",
            preprocessing_fingerprint="",
            sha256=name,
        )
        for name, found in (("fp32", before), ("int8", after))
    ]
    return accuracy.judge(sides[0], sides[1], max_drop_pp=MAX_DROP_PP).state


def changed(before: Images, after: Images) -> tuple[float, float]:
    """Share of predictions that differ in percent, RMS difference of the logits."""
    share = 100 * float((before.argmax(axis=1) != after.argmax(axis=1)).mean())
    return share, float(np.sqrt(np.square(after.astype(np.float64) - before).mean()))


def measure(
    data: Path,
    network: str,
    seeds: Sequence[int],
    folder: Path,
    skipped: dict[str, str],
    chosen: Sequence[tuple[str, str]],
) -> Iterator[tuple[float, Row]]:
    """FP32 top-1 in percent and a row, for each calibration set and chosen candidate that is installed."""
    request = Request(model=network, weights=str(data / "weights" / NETWORKS[network]))
    source = export.to_onnx(request, folder / f"{network}.onnx", progress=lambda *_: None)
    spec = source.model.preprocessing if source.model is not None else None
    assert spec is not None
    test = datasets.open_dataset(str(data / "cifar10"), split="test")
    train = datasets.open_dataset(str(data / "cifar10"), split="train")
    images = sample(test, spec)
    exact = logits(Path(source.path), images.inputs, images.pixels)
    for seed in seeds:
        calibration = sample(datasets.choose(train, CALIBRATION_IMAGES, seed), spec)
        for scheme, candidate in chosen:
            build = CANDIDATES[scheme, candidate]
            out, started_s = folder / "int8.onnx", time.perf_counter()
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    build(source, calibration, seed, out)
            except ImportError as e:
                skipped[candidate] = str(e)
                continue
            made_s = time.perf_counter() - started_s
            int8 = logits(out, images.inputs, images.pixels)
            share, rms = changed(exact, int8)
            here = logits(out, images.inputs[::5], images.pixels[::5], exact=False)
            here_share, here_rms = changed(exact[::5], here)
            row = Row(
                network=network,
                scheme=scheme,
                candidate=candidate,
                seed=seed,
                changed_pct=share,
                rms_logit_error=rms,
                top1_pct=_top1(int8, test.labels),
                gate=verdict(exact, int8, test.labels),
                here_changed_pct=here_share,
                here_rms_logit_error=here_rms,
                made_s=made_s,
            )
            print(row, file=sys.stderr, flush=True)
            yield _top1(exact, test.labels), row


def _top1(found: Images, labels: NDArray[np.int64]) -> float:
    return 100 * float((found.argmax(axis=1) == labels).mean())


def _version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _modelopt_version() -> str | None:
    if MODELOPT is None:
        return None
    code = "from importlib.metadata import version; print(version('nvidia-modelopt'))"
    return subprocess.run([str(MODELOPT), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with weights/ and cifar10/{train,test}/")
    parser.add_argument("--seeds", type=int, default=3, help="calibration sets (default: 3)")
    parser.add_argument("--seed", type=int, action="append", help="these calibration sets instead")
    parser.add_argument("--network", choices=NETWORKS, action="append", help="default: both")
    parser.add_argument("--side", choices=("ours", "peers"), help="only these candidates (default: all)")
    parser.add_argument("--candidate", action="append", help="only these, by name (default: all)")
    parser.add_argument("--scheme", choices=("U8S8", "S8S8"), help="only this scheme (default: both)")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    parser.add_argument("--modelopt-python", type=Path, help="an interpreter that has nvidia-modelopt[onnx]")
    arguments = parser.parse_args()
    global MODELOPT
    MODELOPT = arguments.modelopt_python
    chosen = [
        (scheme, name)
        for scheme, name in CANDIDATES
        if arguments.scheme in (None, scheme)
        and arguments.side in (None, "ours" if name.startswith("resdeploy") else "peers")
        and (arguments.candidate is None or name in arguments.candidate)
    ]
    result: dict[str, Any] = {
        "benchmark": "quantization",
        "calibration_images": CALIBRATION_IMAGES,
        "fp32_top1_pct": {},
        "skipped": {},
        "versions": {name: _version(name) for name in ("onnxruntime", "nncf", "onnx", "numpy")}
        | {"nvidia-modelopt": _modelopt_version()},
        "environment": environment.capture(),
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for network in arguments.network or NETWORKS:
            seeds = arguments.seed or range(arguments.seeds)
            found = measure(arguments.data, network, seeds, Path(folder), result["skipped"], chosen)
            for top1, row in found:
                result["fp32_top1_pct"][network] = top1
                result["rows"].append(asdict(row))
                if arguments.output is not None:  # after each, so that what is done is not lost
                    store.write_json(arguments.output, result)
    json.dump(result, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
