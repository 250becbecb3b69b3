"""A document of every command as users have it: long names of files, layers and kernels, long reasons, failed rows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from resdeploy.cache import Doubt, Part
from resdeploy.models import zoo
from resdeploy.records import (
    Answer,
    Answered,
    Audit,
    Availability,
    BackendName,
    BlockAudit,
    Change,
    Check,
    ClassDrop,
    Comparison,
    Execution,
    Failure,
    Fault,
    Flip,
    Gate,
    Judged,
    Mixed,
    Origin,
    Partial,
    Precision,
    Reported,
    Sensitivity,
    Shard,
    Subject,
    Summary,
    Verdict,
    Verified,
)
from resdeploy.report import documents, evaluations, mixed, packaged_folder
from tests.report import test_render as simple

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"
FP32, INT8, HIGH = "resnet50.a1_in1k", "resnet50.a1_in1k.int8", "resnet50.a1_in1k.int8.effort-high"
ENVIRONMENT = {
    **simple.ENVIRONMENT,
    "packages": {"openvino": "2026.4.1", "onnxruntime": "1.32.0", "torch": "2.13.0+cpu"},
    "cpu": {**simple.ENVIRONMENT["cpu"], "model": "Intel(R) Xeon(R) Processor @ 2.50GHz",  # type: ignore[dict-item]
            "isa": ["avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "amx_tile", "amx_int8"]},
}  # fmt: skip
UNSTEADY = (
    "the 16 blocks differ by 14.2 %, more than the 5 % that blocks of one machine do: other processes took 75 % of "
    "the usable cores for part of the run"
)


def timed(
    name: str, backend: BackendName, precision: Precision, scale: float, *, notes: tuple[str, ...] = (), **fields: Any
) -> Summary:
    """A row of `bench` as long as real ones are."""
    base = simple.summary(name)
    measurement = dataclasses.replace(
        base.measurement, label=f"{name} {backend} b1", model="timm:resnet50.a1_in1k", backend=backend,
        precision=precision, execution=Execution(threads=2), size_bytes=int(102_000_000 * scale),
        peak_rss_bytes=417_000_000, notes=notes, load_s=1.31, first_s=0.0461,
    )  # fmt: skip
    latency = {key: scale * value for key, value in zip(base.latency_s, (0.0412, 0.0431, 0.044, 0.0452), strict=False)}
    return dataclasses.replace(
        base, measurement=measurement, latency_s=base.latency_s | latency, cpu_s_per_image=0.0812 * scale,
        p50_ci95_s=(0.0405 * scale, 0.0419 * scale), throughput_ips=24.26 / scale, **fields,
    )  # fmt: skip


def compared(baseline: str, candidate: str, **fields: Any) -> Comparison:
    """A speed-up with its CPU time."""
    known: dict[str, Any] = {"speedup": 2.41, "speedup_ci95": (2.37, 2.46), "speedup_ci99": (2.35, 2.48), "pairs": 14}
    known |= {"cpu_ratio": 2.38, "cpu_ratio_ci99": (2.33, 2.44)}
    return Comparison(baseline=f"{baseline} b1", candidate=f"{candidate} b1", **known | fields)


def bench() -> dict[str, Any]:
    """Two files of one network, one on another backend, and a row that failed."""
    rows = [
        timed(FP32, "openvino", "fp32", 1.0),
        timed(INT8, "openvino", "int8", 0.415, unsteady=(UNSTEADY,)),
        timed(HIGH, "openvino", "int8", 0.417),
        timed(INT8, "onnxruntime", "int8", 0.6, notes=("stored in FP16, computed in FP32 by onnxruntime here",)),
    ]
    failed = Failure(
        label=f"{INT8} tensorrt b1", model="timm:resnet50.a1_in1k", backend="tensorrt", precision="int8", batch_size=1,
        error_code="E-BACKEND-CRASH", exit_status=7,
        message="tensorrt died of SIGSEGV while it built resnet50.a1_in1k.int8.onnx. Run the command again with -vv",
    )  # fmt: skip
    pairs = [
        compared(f"{FP32} openvino", f"{INT8} openvino"),
        compared(f"{FP32} openvino", f"{HIGH} openvino", speedup=1.001, speedup_ci99=(0.99, 1.012)),
        compared(
            f"{FP32} openvino", f"{INT8} onnxruntime", invalid=("the machine suspended the run: a block is lost",)
        ),
    ]
    return documents.bench([*rows, failed], pairs, ENVIRONMENT, notes=("waited 12 s for other processes to end",))


def evaluation() -> dict[str, Any]:
    """Two files of one network on one folder."""
    rows = []
    for name, precision in ((FP32, "fp32"), (HIGH, "int8")):
        predictions = dataclasses.replace(
            simple.predicted("timm:resnet50.a1_in1k"), data="/data/imagenette2-320/val", unreadable=()
        )
        score = dataclasses.replace(simple.scored(), top5=99.72)
        rows.append((name, predictions, score, "openvino", precision))
    return evaluations.evaluation(rows, ENVIRONMENT)


def sharded() -> dict[str, Any]:
    """The second of three parts of ImageNet."""
    partial = Partial(shard=Shard(number=2, count=3), images=50_000, listing="l" * 64, batch_size=32, threads=16)
    origin = Origin(backend="openvino", precision="int8")
    predictions = dataclasses.replace(
        simple.predicted("timm:resnet50.a1_in1k"),
        data="/data/imagenet/val",
        unreadable=(),
        partial=partial,
        origin=origin,
    )
    return evaluations.shard(HIGH, predictions, ENVIRONMENT)


def check(name: str, state: Any, observed: float | None, limit: float, unit: str, note: str, **fields: Any) -> Check:
    """A judged quantity."""
    known = {"interval": None} | fields
    return Check(name=name, state=state, observed=observed, limit=limit, unit=unit, note=note, **known)


CHECKS = (
    check(
        "top1", "inconclusive", 0.21, 0.5, "pp",
        "the drop is 0.21 points [-0.18, 0.60] on 3,925 images, which cannot show that it is within 0.5; about 15,340 "
        "images would decide",
        interval=(-0.18, 0.60),
    ),
    check("slowdown", "pass", -58.6, 10, "%", "2.41 times as fast, 14 pairs", interval=(-59.7, -57.4)),
    check(
        "require-fused", "fail", 44, 0, "blocks",
        "44 of 53 convolutions do not write INT8: blocks.0.0.se.conv_expand/WithoutBiases, "
        "blocks.1.0.se.conv_expand/WithoutBiases and 42 more; quantize again with --target openvino",
    ),
)  # fmt: skip
REPORTED = Reported(
    name="peak memory", observed=417.3, unit="MB", note="of the child process while it ran", interval=None
)


def gate(candidates: int = 2) -> dict[str, Any]:
    """Candidates against a baseline: several limits, classes and images with long names."""
    classes = (
        ClassDrop(label=482, name="cassette player", images=357, lost=9, gained=2, p_adjusted=0.31),
        ClassDrop(label=574, name="golf ball", images=399, lost=4, gained=3, p_adjusted=1.0),
    )
    image = "n02979186/ILSVRC2012_val_00011993_n02979186.JPEG"
    judged = []
    for name in (INT8, HIGH)[:candidates]:
        subject = Subject(name=name, model="timm:resnet50.a1_in1k", backend="openvino", precision="int8")
        flips = tuple(Flip(image=image.replace("11", str(k)), label=482, baseline=482, candidate=574) for k in range(3))
        verdict = Verdict(checks=CHECKS, reported=(REPORTED,))
        judged.append(Judged(candidate=subject, verdict=verdict, flips=flips, unchanged=3890, classes=classes))
    baseline = Subject(name=FP32, model="timm:resnet50.a1_in1k", backend="openvino", precision="fp32")
    notes = ("the two were calibrated and judged on disjoint images of /data/imagenette2-320: 300 and 3,925",)
    found = Gate(baseline=baseline, judged=tuple(judged), confidence=0.95, notes=notes)
    return documents.gate(found, ENVIRONMENT)


def audit() -> dict[str, Any]:
    """Blocks of a network with squeeze and excitation, in TensorRT's words."""
    rows = [
        BlockAudit(
            name=f"blocks.{k}.0", fused=fused, precision="int8" if fused else "fp32", asked="int8",
            conv_precisions=("int8", "fp32"),
            executed_as=(f"/blocks/blocks.{k}/conv_pwl/Conv + /blocks/blocks.{k}/Add", "Reformatting CopyNode 3"),
            reformats=("Reformatting CopyNode for Input Tensor 0 to /blocks/Add",) if not fused else (),
            time_s=0.000213,
            reason="" if fused else "the residual add reads a tensor that two convolutions write, which this backend "
            "does not fuse; the add ran in FP32 between two conversions",
            remedy="" if fused else "Quantize again: resdeploy quantize mobilenetv3_small_100.onnx --target openvino",
        )
        for k, fused in enumerate((True, False, True))
    ]  # fmt: skip
    result = Audit(
        subject="mobilenetv3_small_100.int8", asked="int8", verdict=Verdict(checks=CHECKS[2:]), blocks=tuple(rows),
        layers=(), superfluous=(), notes=("OpenVINO names no kernels of its own; times are of one traced run",),
    )  # fmt: skip
    return documents.audit(result, ENVIRONMENT)


def doctor() -> dict[str, Any]:
    """Backends that are there, and those that are not with the reasons that a CPU machine gives."""
    remedy = "pip install 'resdeploy[gpu]'"
    survey: dict[BackendName, Availability] = {
        "tensorrt": Availability(
            ok=False, install=remedy,
            reason="the package tensorrt is not installed; besides, this machine has no CUDA driver (libcuda.so.1)",
        ),
        "openvino": Availability(ok=True, version="2026.4.1", devices=("CPU",)),
        "onnxruntime": Availability(ok=True, version="1.32.0", devices=("CPUExecutionProvider",)),
        "torch": Availability(ok=True, version="2.13.0+cpu", devices=("cpu",)),
    }  # fmt: skip
    return documents.doctor(survey, ENVIRONMENT)


def compare() -> dict[str, Any]:
    """Two saved benches of two files."""
    rows = [
        Change(
            subject=f"{name} openvino b1", quantity=quantity, unit=unit, before=41.2, after=40.9, change=-0.7,
            interval=(-1.9, 0.4), change_unit="%", finding="equal within 2 %",
        )
        for name in (FP32, HIGH)
        for quantity, unit in (("time per image", "ms"), ("file size", "MB"), ("top-1", "%"))
    ]  # fmt: skip
    notes = [f"{HIGH} openvino b1: the two were measured on machines with different CPUs: Xeon 2.50GHz, Xeon 2.70GHz"]
    return documents.compare(rows, notes, ENVIRONMENT)


def run() -> dict[str, Any]:
    """A profile's rows, of two backends in three precisions."""
    rows = []
    for backend in ("openvino", "onnxruntime"):
        for precision, scale in (("fp32", 1.0), ("fp16", 1.0), ("int8", 0.41)):
            label = f"timm:resnet50.a1_in1k {backend} {precision}"
            outcome = timed("x", backend, precision, scale)  # type: ignore[arg-type]
            outcome = dataclasses.replace(outcome, measurement=dataclasses.replace(outcome.measurement, label=label))
            low = precision != "fp32"
            top1 = check("top1", "pass", 0.02, 0.5, "pp", "within 0.5", interval=(-0.31, 0.36))
            rows.append(
                documents.RunRow(
                    outcome=outcome, score=simple.scored(), verdict=Verdict(checks=(top1,)) if low else None,
                    comparison=compared(f"timm:resnet50.a1_in1k {backend} fp32", label) if low else None,
                )
            )  # fmt: skip
    return documents.run("imagenette", rows, Verdict(checks=(CHECKS[1],)), ENVIRONMENT)


def quantized() -> list[dict[str, Any]]:
    """What layers cost, and the search among mixed models."""
    layers = [
        Sensitivity(
            name=f"/layer{k}/layer{k}.0/conv{k}/Conv", kind="layer", layers=(f"/layer{k}/layer{k}.0/conv{k}/Conv",),
            images=300, changed=k, signal=1.0, noise=0.001 * k,
        )
        for k in range(1, 5)
    ]  # fmt: skip
    names = tuple(f"/layer{k}/layer{k}.0/conv{k}/Conv" for k in range(1, 9))
    candidates = [
        Mixed(
            label=f"int8, {kept} in fp32" if kept else "int8", precision="int8", keep_float=names[:kept],
            noise_share=0.5, check=CHECKS[0], summary=timed(INT8, "openvino", "int8", 0.41),
            speedup=compared("fp32", INT8), chosen=not kept,
        )
        for kept in (8, 3, 0)
    ]  # fmt: skip
    return [mixed.sensitivity(FP32, layers, ENVIRONMENT), mixed.search(FP32, candidates, layers, ENVIRONMENT)]


def cache() -> list[dict[str, Any]]:
    """What is kept, and what of it is not used."""
    digest = "3f9d2b7c" * 4
    doubt = Doubt(file=f"models/{digest}.onnx", state="damaged", why="its bytes are not those that were signed")
    parts = [Part(name="models", entries=31, size_bytes=1_300_000_000), Part(name="engines", entries=2, size_bytes=9)]
    return [
        documents.cache("/home/someone/.cache/resdeploy", parts, ENVIRONMENT),
        documents.cache_verify(33, [doubt], ENVIRONMENT),
    ]


def predict() -> dict[str, Any]:
    """Photographs with long paths, and classes of ImageNet with long names."""
    names = ("Norwegian elkhound, elkhound", "keeshond", "malamute, malemute, Alaskan malamute")
    answers = [
        Answer(
            image=f"data/imagenet/val/n02091467/ILSVRC2012_val_0000{number}.JPEG",
            classes=(174, 261, 249),
            names=names,
            probabilities=(0.917, 0.041, 0.012),
        )
        for number in (1023, 4711)
    ]
    answered = Answered(
        model="timm:resnet50.a1_in1k", backend="openvino", precision="int8", answers=tuple(answers),
        prepare_s=0.0036, answer_s=0.0071,
    )  # fmt: skip
    return documents.predict(answered, ENVIRONMENT)


def packages() -> list[dict[str, Any]]:
    """A folder as it is written, and one with what may become of it."""
    names = ("README.md", "classifier.py", "model.bin", "model.xml", "requirements.txt", "spec.json")
    manifest = dataclasses.replace(
        simple.manifest(f"{HIGH}.onnx"), files=dict.fromkeys(names, "3f9d2b7c" * 8), gate="inconclusive"
    )
    faults = (
        Fault(file="spec.json", what="mean", why="mean (0.5, 0.5, 0.5), where the source has (0.485, 0.456, 0.406)"),
        Fault(file="classifier.py", what="module", why="it is not the one that resdeploy writes, and was not run"),
        Fault(
            file="all of it",
            what="logits",
            why="3925 of 3925 images have others, by 1.37 at most, and 212 another class",
        ),
    )
    found = Verified(manifest=manifest, source=f"models/{HIGH}.onnx", images=3925, changed=3925, faults=faults)
    return [
        packaged_folder.written(manifest, "services/imagenet", ENVIRONMENT),
        packaged_folder.verified(found, "services/imagenet", ENVIRONMENT),
    ]


def saved() -> list[dict[str, Any]]:
    """Real results of long runs."""
    names = ("cost-against", "cost-roofline", "degradation", "lesion-cifar10", "prune-resnet56-tuned", "quickstart")
    return [json.loads((RESULTS / f"{name}.json").read_text()) for name in names]


def all_documents() -> list[dict[str, Any]]:
    """One or several of every command."""
    few = documents.models(list(zoo.ENTRIES.values())[::6], ENVIRONMENT)
    made = [
        bench(),
        evaluation(),
        sharded(),
        gate(),
        gate(1),
        audit(),
        doctor(),
        compare(),
        run(),
        predict(),
        *packages(),
        *quantized(),
        *cache(),
        few,
    ]
    return [*made, *saved()]
