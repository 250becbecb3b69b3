"""Whose INT8 file runs in integers where: kinds of files x runtimes, and whether `audit` counts what really ran.

    python benchmarks/matrix.py --folder F --nncf-python A/bin/python --modelopt-python B/bin/python
    python benchmarks/matrix.py --folder F --page        # writes docs/matrix.md from results/matrix.json

ResNet-18 with random weights and batch norms as training leaves them, calibrated on 16 images of N(0, 1), judged on 8
others in batch 1. Each file and each cell is kept in F as soon as it is there: a run that was cut short goes on.
Peers that need packages of their own run in interpreters of their own; without one their rows are left out.

In a cell `audit` counts the convolutions that ran in INT8, the sums that did (ONNX Runtime) or that ran inside a
convolution (OpenVINO), and the Q/DQ that ran as kernels. Beside it stands a reading that shares no code with it: of
ONNX Runtime the graph that it says it optimised the file to (`SessionOptions.optimized_model_filepath`), of OpenVINO
the runtime model. SNR is of centred logits against the FP32 file in ONNX Runtime. Times are `bench`'s to tell.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from resdeploy import store
from resdeploy.deploy import candidates, export
from resdeploy.errors import ResdeployError
from resdeploy.graph import files, intent, qdq_placement
from resdeploy.quantize import fidelity, ptq
from resdeploy.records import Artifact, Audit, BackendName, Calibration, Target
from resdeploy.verbs.audit_candidate import audit_candidate

RESULT = Path(__file__).parent / "results" / "matrix.json"
BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "matrix.md"
RUNTIMES: tuple[BackendName, ...] = ("onnxruntime", "openvino")
SIZE, CALIBRATION, TEST = 224, 16, 8
HERE = Path(__file__).parent
Cell = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to make an INT8 file."""

    name: str
    by: str  # ort, nncf, modelopt, ours
    options: Mapping[str, Any] = field(default_factory=dict)


def _ort(name: str, **options: Any) -> Kind:
    return Kind(name=f"quantize_static {name}", by="ort", options=options)


S8, U8, U16, S16 = "QInt8", "QUInt8", "QUInt16", "QInt16"
SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True}
KINDS = (
    _ort("U8S8 per channel", activation_type=U8, weight_type=S8, per_channel=True),
    _ort("U8S8 per channel, QOperator", activation_type=U8, weight_type=S8, per_channel=True, quant_format="QOperator"),
    _ort("U8S8 per tensor", activation_type=U8, weight_type=S8),
    _ort("U8S8 per tensor, QOperator", activation_type=U8, weight_type=S8, quant_format="QOperator"),
    _ort("U8S8 per channel, 7-bit weights", activation_type=U8, weight_type=S8, per_channel=True, reduce_range=True),
    _ort("U8S8 per channel, com.microsoft", activation_type=U8, weight_type=S8, per_channel=True,
         extra_options={"UseQDQContribOps": True}),
    _ort("U8S8 per channel, a pair for each reader", activation_type=U8, weight_type=S8, per_channel=True,
         extra_options={"DedicatedQDQPair": True}),
    _ort("U8S8 per channel, float weights with Q/DQ", activation_type=U8, weight_type=S8, per_channel=True,
         extra_options={"AddQDQPairToWeight": True}),
    _ort("U8S8 per channel, float biases", activation_type=U8, weight_type=S8, per_channel=True,
         extra_options={"QuantizeBias": False}),
    _ort("U8S8 per channel, percentile", activation_type=U8, weight_type=S8, per_channel=True,
         calibrate_method="Percentile"),
    _ort("U8U8 per tensor", activation_type=U8, weight_type=U8),
    _ort("U8U8 per channel", activation_type=U8, weight_type=U8, per_channel=True),
    _ort("S8S8 symmetric per channel", activation_type=S8, weight_type=S8, per_channel=True, extra_options=SYMMETRIC),
    _ort("S8S8 symmetric per channel, float biases", activation_type=S8, weight_type=S8, per_channel=True,
         extra_options={**SYMMETRIC, "QuantizeBias": False}),
    _ort("S8S8 defaults"),
    _ort("U16S8 per channel", activation_type=U16, weight_type=S8, per_channel=True),
    _ort("S16S8 symmetric per channel", activation_type=S16, weight_type=S8, per_channel=True, extra_options=SYMMETRIC),
    Kind(name="NNCF default", by="nncf"),
    Kind(name="NNCF preset MIXED", by="nncf", options={"preset": "MIXED", "target_device": "CPU"}),
    Kind(name="NNCF target GPU", by="nncf", options={"target_device": "GPU"}),
    Kind(name="NNCF weights per tensor", by="nncf", options={"per_tensor": True}),
    Kind(name="Model Optimizer int8, FP32", by="modelopt", options={"high_precision_dtype": "fp32"}),
    Kind(name="Model Optimizer int8, default", by="modelopt"),
    Kind(name="resdeploy --target openvino", by="ours", options={"targets": ["openvino"]}),
    Kind(name="resdeploy --target onnxruntime", by="ours", options={"targets": ["onnxruntime"]}),
    Kind(name="resdeploy --target openvino,onnxruntime", by="ours", options={"targets": ["openvino", "onnxruntime"]}),
    Kind(name="resdeploy --target tensorrt", by="ours", options={"targets": ["tensorrt"]}),
)  # fmt: skip


# What TensorRT-RTX 1.7.1 made of such files (SM89, built without a GPU, counted in its inspector's JSON, 2026-11-29).
RTX = {
    "quantize_static U8S8 per channel": "refused: INT32 bias behind Q/DQ",
    "quantize_static U8S8 per channel, QOperator": "refused: zero point",
    "quantize_static S8S8 symmetric per channel": "refused: INT32 bias behind Q/DQ",
    "quantize_static S8S8 symmetric per channel, float biases": "20 INT8 (to float), 0 sums inside",
    "quantize_static S8S8 defaults": "refused: INT32 bias behind Q/DQ",
    "NNCF default": "builds wrong: 18 uint8 quantizers taken for int8",
    "NNCF preset MIXED": "refused: zero point",
    "NNCF target GPU": "builds wrong: 18 uint8 quantizers taken for int8",
    "NNCF weights per tensor": "builds wrong: 18 uint8 quantizers taken for int8",
    "Model Optimizer int8, FP32": "20 INT8 (to float), 0 sums inside",
    "Model Optimizer int8, default": "20 INT8 (to float), 0 sums inside",
    "resdeploy --target openvino": "refused: zero point",
    "resdeploy --target onnxruntime": "refused: zero point",
    "resdeploy --target openvino,onnxruntime": "refused: zero point",
    "resdeploy --target tensorrt": "20 INT8 (to float), 0 sums inside",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--nncf-python")
    parser.add_argument("--modelopt-python")
    parser.add_argument("--page", action="store_true", help="only write the page from the result")
    asked = parser.parse_args()
    if not asked.page:
        asked.folder.mkdir(parents=True, exist_ok=True)
        pythons = {"nncf": asked.nncf_python, "modelopt": asked.modelopt_python}
        RESULT.write_text(json.dumps(fill(asked.folder, pythons), indent=1) + "\n", encoding="utf-8")
    old, result = PAGE.read_text(encoding="utf-8"), json.loads(RESULT.read_text(encoding="utf-8"))
    PAGE.write_text(page(old, result), encoding="utf-8")


def fill(folder: Path, pythons: Mapping[str, str | None]) -> dict[str, Any]:
    """The whole table; what is in `folder` already is taken from there."""
    source = float_file(folder)
    images = np.random.default_rng(0).standard_normal((CALIBRATION + TEST, 3, SIZE, SIZE)).astype(np.float32)
    np.save(folder / "images.npy", images[:CALIBRATION])
    test = images[CALIBRATION:]
    expected = logits("onnxruntime", Path(source.path), test)
    rows = []
    for number, kind in enumerate(KINDS):
        if kind.by in pythons and pythons[kind.by] is None:
            continue
        path = folder / f"kind{number}.onnx"
        row: dict[str, Any] = {"name": kind.name, "cells": {}}
        try:
            if not path.exists():
                make(kind, source, folder, path, pythons)
            row["mb"] = round(path.stat().st_size / 1e6, 1)
            for runtime in RUNTIMES:
                make_cell = functools.partial(cell, path, source, runtime, test, expected)
                row["cells"][runtime] = kept(folder / f"cell{number}.{runtime}.json", make_cell)
        except (ResdeployError, subprocess.CalledProcessError, RuntimeError, ValueError) as e:
            row["failed"] = type(e).__name__
        print(json.dumps(row), flush=True)
        rows.append(row)
    return {"versions": versions(), "rows": rows}


def versions() -> dict[str, str]:
    import onnxruntime
    import openvino

    from resdeploy.backends import machine

    return {
        "onnxruntime": onnxruntime.__version__,
        "openvino": openvino.__version__.split("-")[0],
        "onnx": onnx.__version__,
        "cpu": f"{machine.cpu().model}, with{'' if machine.cpu().vnni else 'out'} VNNI{', AMX' * machine.cpu().bf16}",
    }


def kept(path: Path, make_cell: Callable[[], Cell]) -> Cell:
    if not path.exists():
        path.write_text(json.dumps(make_cell()), encoding="utf-8")
    found: Cell = json.loads(path.read_text(encoding="utf-8"))
    return found


def float_file(folder: Path) -> Artifact:
    from benchmarks.networks import with_biases

    path = folder / "fp32.onnx"
    if not path.exists():
        export.to_onnx(with_biases("resnet18", folder), path, progress=lambda *_: None)
    found = store.load(path)
    assert found is not None
    return found


def make(kind: Kind, source: Artifact, folder: Path, out: Path, pythons: Mapping[str, str | None]) -> None:
    """Writes the kind's file; the images are in `folder`."""
    images, part = folder / "images.npy", out.with_suffix(".part.onnx")
    if kind.by == "ort":
        make_static(Path(source.path), np.load(images), part, kind.options)
    elif kind.by == "ours":
        make_ours(source, np.load(images), part, kind.options["targets"])
    else:
        python, script = pythons[kind.by], HERE / f"peer_{kind.by}.py"
        assert python is not None
        command = [python, str(script), source.path, str(images), str(part), json.dumps(dict(kind.options))]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part.replace(out)


def make_static(source: Path, images: NDArray[Any], out: Path, options: Mapping[str, Any]) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images[:, None])

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(({"input": image} for image in self.left), None)

    prepared = out.with_name("prepared.onnx")
    if not prepared.exists():
        quant_pre_process(str(source), str(prepared))
    named = {
        "activation_type": quantization.QuantType,
        "weight_type": quantization.QuantType,
        "quant_format": quantization.QuantFormat,
        "calibrate_method": quantization.CalibrationMethod,
    }
    chosen = {key: named[key][value] if key in named else value for key, value in options.items()}
    quantization.quantize_static(str(prepared), str(out), Reader(), **chosen)


def make_ours(source: Artifact, images: NDArray[Any], out: Path, targets: Sequence[Target]) -> None:
    """As `quantize` does, but for where the images come from: noise that no image file holds."""
    told = Calibration(data="noise", count=0, seed=0, method="percentile")
    target, forced = qdq_placement.form_for(targets), ptq.FileOptions(force=True)
    ptq.quantize(source, list(np.split(images, 4)), forced, calibration=told, target=target, out=out)


def cell(path: Path, source: Artifact, runtime: BackendName, test: NDArray[Any], expected: NDArray[Any]) -> Cell:
    """What `audit` counts of a file in a runtime, what a reading of the executed graph counts, SNR and time."""
    wanted = intent.of(files.load_model(path))
    record = Artifact(
        path=str(path), format="onnx", precision="int8", sha256=store.digest(path), model=source.model, target=None
    )
    try:
        candidate = candidates.candidate(record, runtime, threads=1)
        audit = audit_candidate(record, candidate)
    except ResdeployError as e:
        return {"refused": e.paragraph.replace(f"{path.parent}/", "")[:300]}
    sums = {block.add for block in wanted.blocks}
    read = READERS[runtime](path, sums)
    counted = of_audit(audit, runtime, sums)
    found = logits(runtime, path, test)
    snr = fidelity.snr_db(expected, found)
    return {
        "audit": counted,
        "read": read,
        "agree": counted == read,
        "snr_db": None if snr is None else round(snr, 1),
    }


def of_audit(audit: Audit, runtime: str, sums: set[str]) -> dict[str, int]:
    """From an audit's layers: those counted in its checks, without the limits that these judge by."""
    convolutions = [x for x in audit.layers if x.role == "compute" and re.search("conv(?!ert)", x.kind, re.IGNORECASE)]
    if runtime == "onnxruntime":
        added = sum(x.kind == "QLinearAdd" for x in audit.layers)
    else:
        added = sum(bool(sums.intersection(x.sources)) for x in convolutions)
    return {
        "convolutions": len(convolutions),
        "int8": sum(x.precision == "int8" for x in convolutions),
        "sums": added,
        "qdq": sum(x.role == "qdq" for x in audit.layers),
    }


def read_onnxruntime(path: Path, sums: set[str]) -> dict[str, int]:
    """From the graph that ONNX Runtime says it runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(saved := path.with_suffix(".optimised"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ops = Counter(node.op_type for node in onnx.load(saved, format="protobuf").graph.node)
    saved.unlink()
    integer = ops["QLinearConv"] + ops["ConvInteger"]
    return {
        "convolutions": integer + ops["Conv"] + ops["FusedConv"],
        "int8": integer,
        "sums": ops["QLinearAdd"],
        "qdq": ops["QuantizeLinear"] + ops["DequantizeLinear"],
    }


def read_openvino(path: Path, sums: set[str]) -> dict[str, int]:
    """From OpenVINO's runtime model, batch 1: a kernel's name ends in the type of what it reads."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape([1, *list(model.input(0).partial_shape)[1:]])
    config = {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True, "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    request.infer({0: np.zeros(list(compiled.input(0).shape), np.float32)})
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    executed = [{key: info[key].value for key in ("layerType", "primitiveType", "originalLayersNames", "execTimeMcs")}
                for info in nodes]  # fmt: skip
    executed = [info for info in executed if info["execTimeMcs"] != "not_executed"]
    convolutions = [info for info in executed if info["layerType"] == "Convolution"]
    file = onnx.load(path)
    quantizers = {node.name for node in file.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    return {
        "convolutions": len(convolutions),
        "int8": sum(info["primitiveType"].lower().endswith(("_i8", "_u8")) for info in convolutions),
        "sums": sum(bool(sums.intersection(info["originalLayersNames"].split(","))) for info in convolutions),
        "qdq": sum(
            info["layerType"] not in ("Reorder", "Convert", "Const", "Input", "Output")
            and quantizers.issuperset(info["originalLayersNames"].split(","))
            for info in executed
        ),
    }


READERS: Mapping[str, Callable[[Path, set[str]], dict[str, int]]] = {
    "onnxruntime": read_onnxruntime,
    "openvino": read_openvino,
}


def runner(runtime: str, path: Path) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Runs the file on one thread, one image after the other."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda image: session.run(None, {name: image})[0]
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape([1, *list(model.input(0).partial_shape)[1:]])
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(model, "CPU", config)
    return lambda image: next(iter(compiled(image).values()))


def logits(runtime: str, path: Path, images: NDArray[Any]) -> NDArray[Any]:
    run = runner(runtime, path)
    return np.concatenate([np.array(run(image)) for image in images[:, None]])


HEAD = """| file | MB | ONNX Runtime {ort} | OpenVINO {ov} | TensorRT-RTX 1.7.1 |
|---|---:|---|---|---|
"""


def page(old: str, result: Mapping[str, Any]) -> str:
    """docs/matrix.md with the table anew, between its markers."""
    rows = result["rows"]
    cells = [each for row in rows for each in row.get("cells", {}).values() if "audit" in each]
    text = HEAD.format(
        ort=result["versions"]["onnxruntime"],
        ov=result["versions"]["openvino"],
    )
    for row in rows:
        if "failed" in row:
            text += f"| {row['name']} | - | not made here | not made here | - |\n"
            continue
        shown = " | ".join(_shown(row["cells"][runtime]) for runtime in RUNTIMES)
        text += f"| {row['name']} | {row['mb']} | {shown} | {RTX.get(row['name'], '-')} |\n"
    agreeing = sum(each["agree"] for each in cells)
    text += (
        f"\n`audit` and the reading of the executed graphs agree in {agreeing} of {len(cells)} cells. "
        f"{result['versions']['cpu']}; images of {SIZE} x {SIZE}.\n"
    )
    before, _, rest = old.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}{END}{rest.partition(END)[2]}"


def _shown(one: Cell) -> str:
    if "refused" in one:
        return "**refused**"
    counts, read = (f"{found['int8']} / {found['sums']} / {found['qdq']}" for found in (one["audit"], one["read"]))
    return f"{counts} / {one['snr_db']}" + ("" if one["agree"] else f" (read: {read})")


if __name__ == "__main__":
    main()
