"""Blocks deleted and shuffled: ResNet-56 on CIFAR-10, and a plain network beside a residual one on digits.

    python benchmarks/lesion.py --weights resnet56-4bfd9763.th --data cifar10/test --output benchmarks/results

Writes `lesion-cifar10` and `lesion-digits`, a .json and three charts each. The networks for digits are trained first
(`resdeploy train`, 16 epochs at 16x16, the quickstart's setting).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path


def resdeploy(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "resdeploy", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="of ResNet-56, trained on CIFAR-10; without them only digits")
    parser.add_argument("--data", help="CIFAR-10 test images")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trained = []
        for name in ("plain20", "resnet20"):
            trained.append(f"{folder}/{name}.safetensors")
            resdeploy(
                "train", name, "--data", "digits", "--img-size", "16", "--epochs", "16", "--threads", "1", "--quiet",
                "-o", trained[-1],
            )  # fmt: skip
        out = str(arguments.output / "lesion-digits.json")
        resdeploy("study", "lesion", *trained, "--data", "digits", "--repeats", "10", "-o", out)
    if arguments.weights:
        resdeploy(
            "study", "lesion", "resnet56", "--weights", arguments.weights, "--data", arguments.data,
            "--images", str(arguments.images), "--repeats", "2", "-o", str(arguments.output / "lesion-cifar10.json"),
        )  # fmt: skip


if __name__ == "__main__":
    main()
