"""What quantization-aware training wins back: predictions changed by INT8 before and after it, and by what setting.

    python benchmarks/qat.py --data ../shared/data                    # writes benchmarks/results/qat.json
    python benchmarks/qat.py --data ../shared/data --held-out 2000    # to choose settings: test images are not read
    python benchmarks/qat.py --data ../shared/data --case tensorrt --epochs 1

ResNet-20 on CIFAR-10. A case is a target and the effort of the file that training starts from; for every seed (of the
calibration set and of the order) the file is made, trained on the training images without labels, and both are judged
against FP32 on the same images: the share whose predicted class changes, the RMS difference of the logits. Files run
in ONNX Runtime with graph optimisations off, as in quantization.py. `agreement` is the share of images on which the
trained file there and the trained graph in torch, in float64, give one class. With --held-out N, N training images are
kept out of training and calibration and judged on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quantization import NETWORKS, Images, changed, logits, sample
from resdeploy import store
from resdeploy.data import datasets
from resdeploy.deploy import export
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import Request
from resdeploy.graph import files, program
from resdeploy.measure import environment
from resdeploy.quantize import ptq, ranges
from resdeploy.records import Artifact, Calibration, Effort, Target
from resdeploy.train import qat
from resdeploy.train.fake import Graph

RESULTS = Path(__file__).parent / "results"
CALIBRATION_IMAGES, BATCH = 300, 100
# CPU targets hold weights in 7 bits: files that are exact on any CPU.
CASES: dict[str, tuple[Target, Effort]] = {
    "tensorrt": ("tensorrt", "normal"),
    "tensorrt --effort high": ("tensorrt", "high"),
    "openvino": ("openvino", "normal"),
    "openvino --effort high": ("openvino", "high"),
}


def started(source: Artifact, case: str, train: datasets.Dataset, seed: int, out: Path) -> Artifact:
    """The post-training quantized file."""
    target, effort = CASES[case]
    spec = source.model.preprocessing if source.model is not None else None
    assert spec is not None
    chosen = datasets.choose(train, CALIBRATION_IMAGES, seed)
    stream = (batch.inputs for batch in datasets.batches(chosen, spec, BATCH))
    calibration = Calibration(
        data="cifar10", count=len(chosen), seed=seed, method=CalibrationPlan().method, effort=effort
    )
    options = ptq.FileOptions(portable=True)
    return ptq.quantize(source, stream, options, calibration=calibration, target=target, out=out)


@torch.no_grad()
def in_torch(file: Artifact, images: Images) -> Images:
    limit = ranges.FULL_RANGE if file.target == "tensorrt" else ranges.REDUCED_RANGE
    read = program.read(files.load_model(Path(file.path)))
    graph = Graph(read, weight_limit=limit, dtype=torch.float64)
    return np.concatenate([graph(torch.from_numpy(images[i : i + BATCH])) for i in range(0, len(images), BATCH)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with weights/ and cifar10/{train,test}/")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=qat.Plan(epochs=1).lr)
    parser.add_argument("--augmentation", choices=("shift", "none"), default="none")
    parser.add_argument("--held-out", type=int, metavar="N", help="training images to judge on instead of the test set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "qat.json")
    arguments = parser.parse_args()
    document: dict[str, Any] = {
        "command": f"python benchmarks/qat.py {' '.join(sys.argv[1:])}",
        "environment": environment.capture(),
        "results": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        request = Request(model="resnet20", weights=str(arguments.data / "weights" / NETWORKS["resnet20"]))
        source = export.to_onnx(request, folder / "fp32.onnx", progress=lambda *_: None)
        spec = source.model.preprocessing if source.model is not None else None
        assert spec is not None
        train = datasets.open_dataset(str(arguments.data / "cifar10"), split="train")
        judging = datasets.open_dataset(str(arguments.data / "cifar10"), split="test")
        if arguments.held_out:
            order = np.random.default_rng(0).permutation(len(train)).tolist()
            judging, train = train.subset(order[: arguments.held_out]), train.subset(order[arguments.held_out :])
        images = sample(judging, spec)
        exact = logits(Path(source.path), images.inputs, images.pixels)
        for seed in range(arguments.seeds):
            for case in arguments.case or CASES:
                start = started(source, case, train, seed, folder / "ptq.onnx")
                plan = qat.Plan(
                    epochs=arguments.epochs, lr=arguments.lr, seed=seed, augmentation=arguments.augmentation,
                    threads=arguments.threads,
                )  # fmt: skip
                begun_s = time.perf_counter()
                made = qat.train(source, start, train, plan, out=folder / "qat.onnx")
                seconds = time.perf_counter() - begun_s
                before, after = (logits(Path(f.path), images.inputs, images.pixels) for f in (start, made))
                agreement = float((in_torch(made, images.inputs).argmax(axis=1) == after.argmax(axis=1)).mean())
                row = {
                    "case": case,
                    "seed": seed,
                    "images": len(images.inputs),
                    "before": dict(zip(("changed_pct", "rms_logit_error"), changed(exact, before), strict=True)),
                    "after": dict(zip(("changed_pct", "rms_logit_error"), changed(exact, after), strict=True)),
                    "agreement": agreement,
                    "training_s": seconds,
                }
                document["results"].append(row)
                store.write_json(arguments.output, document)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
