"""How much INT8 changes a network's answers: resdeploy against ONNX Runtime's quantize_static and NNCF.

    python benchmarks/quantization.py --data ../shared/data --output benchmarks/results/quantization.json
    python benchmarks/quantization.py --data ../shared/data --seeds 1       # quick: one calibration set
    python benchmarks/quantization.py --page benchmarks/results/quantization.json   # docs/quantization.md from a result

CIFAR-10 ResNet-20 and -56, all candidates made from the same ONNX file and the same calibration images, and judged
against FP32 on the same test images: the share of images whose predicted class changes, and the RMS difference of
the logits, which is the steadier of the two. Every file runs in ONNX Runtime with graph optimisations off: activations
and weights are rounded as the file says, and all arithmetic between is float, as exact as the 32-bit sums of a CPU with
VNNI. `here` is the same file as ONNX Runtime runs it on this CPU by default, on every fifth image.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from resdeploy import store
from resdeploy.data import datasets
from resdeploy.measure import environment
from resdeploy.pipeline import make
from resdeploy.pipeline.request import Request
from resdeploy.quantize import ptq
from resdeploy.records import Artifact, Calibration, Target

Images = NDArray[np.float32]
# Makes an INT8 file at the path from the FP32 file, the calibration images and their seed.
Maker = Callable[[Artifact, Images, int, Path], None]

NETWORKS = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}
CALIBRATION_IMAGES = 300
BATCH = 20
PAGE = Path(__file__).resolve().parents[1] / "docs" / "quantization.md"
BEGIN, END = "<!-- quantization: begin -->", "<!-- quantization: end -->"


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


def logits(path: Path, images: Images, *, exact: bool = True) -> Images:
    opened = session(str(path), exact=exact)
    name = opened.get_inputs()[0].name
    parts = [opened.run(None, {name: images[i : i + BATCH]})[0] for i in range(0, len(images), BATCH)]
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


def ours(target: Target, method: str) -> Maker:
    def build(source: Artifact, images: Images, seed: int, out: Path) -> None:
        calibration = Calibration(data="cifar10", count=len(images), seed=seed, method=method)
        batches = (images[i : i + BATCH] for i in range(0, len(images), BATCH))
        ptq.quantize(source, batches, calibration=calibration, target=target, out=out, run=in_process)

    return build


def quantize_static(method: str, *, symmetric: bool) -> Maker:
    def build(source: Artifact, images: Images, seed: int, out: Path) -> None:
        from onnxruntime import quantization

        class Reader(quantization.CalibrationDataReader):
            def __init__(self) -> None:
                self.left = iter(range(0, len(images), BATCH))

            def get_next(self) -> dict[str, Images] | None:
                start = next(self.left, None)
                return None if start is None else {"input": images[start : start + BATCH]}

        quantization.quantize_static(
            source.path,
            str(out),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=getattr(quantization.CalibrationMethod, method),
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True} if symmetric else {},
        )

    return build


def nncf_default(source: Artifact, images: Images, seed: int, out: Path) -> None:
    import nncf

    data = nncf.Dataset([{"input": image[None]} for image in images])
    onnx.save(nncf.quantize(onnx.load(source.path), data, subset_size=len(images)), out)


# (scheme, candidate) -> how it is made. The scheme is that of the activations and the weights.
CANDIDATES: dict[tuple[str, str], Maker] = {
    ("U8S8", "resdeploy openvino minmax"): ours("openvino", "minmax"),
    ("U8S8", "resdeploy openvino percentile"): ours("openvino", "percentile"),
    ("U8S8", "resdeploy openvino auto"): ours("openvino", "auto"),
    ("U8S8", "resdeploy onnxruntime percentile"): ours("onnxruntime", "percentile"),
    ("U8S8", "quantize_static MinMax"): quantize_static("MinMax", symmetric=False),
    ("U8S8", "quantize_static Percentile"): quantize_static("Percentile", symmetric=False),
    ("U8S8", "nncf default"): nncf_default,
    ("S8S8", "resdeploy tensorrt minmax"): ours("tensorrt", "minmax"),
    ("S8S8", "resdeploy tensorrt percentile"): ours("tensorrt", "percentile"),
    ("S8S8", "resdeploy tensorrt auto"): ours("tensorrt", "auto"),
    ("S8S8", "quantize_static MinMax"): quantize_static("MinMax", symmetric=True),
    ("S8S8", "quantize_static Percentile"): quantize_static("Percentile", symmetric=True),
}


def changed(before: Images, after: Images) -> tuple[float, float]:
    """Share of predictions that differ in percent, RMS difference of the logits."""
    share = 100 * float((before.argmax(axis=1) != after.argmax(axis=1)).mean())
    return share, float(np.sqrt(np.square(after.astype(np.float64) - before).mean()))


def measure(data: Path, network: str, seeds: int, folder: Path, skipped: dict[str, str]) -> tuple[float, list[Row]]:
    """FP32 top-1 in percent, and a row for each calibration set and candidate that is installed."""
    request = Request(model=network, weights=str(data / "weights" / NETWORKS[network]))
    source = make.onnx_fp32(request, folder / f"{network}.onnx", progress=lambda *_: None)
    spec = source.model.preprocessing if source.model is not None else None
    assert spec is not None
    test = datasets.open_dataset(str(data / "cifar10"), split="test")
    train = datasets.open_dataset(str(data / "cifar10"), split="train")
    images = np.concatenate([batch.inputs for batch in datasets.batches(test, spec, 100)])
    exact = logits(Path(source.path), images)
    rows: list[Row] = []
    for seed in range(seeds):
        chosen = datasets.choose(train, CALIBRATION_IMAGES, seed)
        calibration = np.concatenate([batch.inputs for batch in datasets.batches(chosen, spec, 100)])
        for (scheme, candidate), build in CANDIDATES.items():
            out, started_s = folder / "int8.onnx", time.perf_counter()
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    build(source, calibration, seed, out)
            except ImportError as e:
                skipped[candidate] = str(e)
                continue
            made_s = time.perf_counter() - started_s
            int8 = logits(out, images)
            share, rms = changed(exact, int8)
            here_share, here_rms = changed(exact[::5], logits(out, images[::5], exact=False))
            rows.append(
                Row(
                    network=network,
                    scheme=scheme,
                    candidate=candidate,
                    seed=seed,
                    changed_pct=share,
                    rms_logit_error=rms,
                    top1_pct=_top1(int8, test.labels),
                    here_changed_pct=here_share,
                    here_rms_logit_error=here_rms,
                    made_s=made_s,
                )
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return _top1(exact, test.labels), rows


def _top1(found: Images, labels: NDArray[np.int64]) -> float:
    return 100 * float((found.argmax(axis=1) == labels).mean())


def _version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def table(result: dict[str, Any]) -> str:
    """Medians over the seeds, for each network and scheme the best peer first computed, then the ratio to it."""
    seeds = "one calibration set" if result["seeds"] == 1 else f"medians over {result['seeds']} calibration sets"
    accuracy = ", ".join(f"{name} {top1:.2f} %" for name, top1 in result["fp32_top1_pct"].items())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    about = (
        f"{result['calibration_images']} calibration images, {seeds}; FP32 top-1: {accuracy}; "
        f"{versions}; {result['environment']['cpu']['model']}."
    )
    head = (
        "| network | scheme | candidate | changed % | / best peer | RMS logit error | / best peer | top-1 % "
        "| changed % as run here |"
    )
    lines = [about, "", head, "|---|---|---|--:|--:|--:|--:|--:|--:|"]
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["network"], row["scheme"]), {}).setdefault(row["candidate"], []).append(row)
    for (network, scheme), candidates in groups.items():
        medians = {
            name: {
                key: statistics.median(row[key] for row in rows)
                for key in ("changed_pct", "rms_logit_error", "top1_pct", "here_changed_pct")
            }
            for name, rows in candidates.items()
        }
        peers = [found for name, found in medians.items() if not name.startswith("resdeploy")]
        for name, found in medians.items():
            ratios = {
                key: f"{found[key] / min(peer[key] for peer in peers):.2f}" if peers else "-"
                for key in ("changed_pct", "rms_logit_error")
            }
            lines.append(
                f"| {network} | {scheme} | {name} | {found['changed_pct']:.2f} | {ratios['changed_pct']} "
                f"| {found['rms_logit_error']:.3f} | {ratios['rms_logit_error']} | {found['top1_pct']:.2f} "
                f"| {found['here_changed_pct']:.2f} |"
            )
    lines += [f"\nSkipped: {name} ({why})." for name, why in result["skipped"].items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with weights/ and cifar10/{train,test}/")
    parser.add_argument("--seeds", type=int, default=3, help="calibration sets (default: 3)")
    parser.add_argument("--network", choices=NETWORKS, action="append", help="default: both")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    parser.add_argument("--page", type=Path, metavar="RESULT", help="only write docs/quantization.md's table")
    arguments = parser.parse_args()
    if arguments.page is not None:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        made = f"{head}{BEGIN}\n\n{table(json.loads(arguments.page.read_text()))}\n\n{END}{rest.split(END)[1]}"
        PAGE.write_text(made, encoding="utf-8")
        return 0
    if arguments.data is None:
        parser.error("--data is needed")
    result: dict[str, Any] = {
        "benchmark": "quantization",
        "seeds": arguments.seeds,
        "calibration_images": CALIBRATION_IMAGES,
        "fp32_top1_pct": {},
        "skipped": {},
        "versions": {name: _version(name) for name in ("onnxruntime", "nncf", "onnx", "numpy")},
        "environment": environment.capture(),
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for network in arguments.network or NETWORKS:
            top1, rows = measure(arguments.data, network, arguments.seeds, Path(folder), result["skipped"])
            result["fp32_top1_pct"][network] = top1
            result["rows"] += [asdict(row) for row in rows]
            if arguments.output is not None:  # after each network, so that what is done is not lost
                store.write_json(arguments.output, result)
    json.dump(result, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
