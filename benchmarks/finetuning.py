"""What one epoch of fine-tuning does to a trained network, by the peak learning rate.

    python benchmarks/finetuning.py --data ../shared/data              # writes benchmarks/results/finetuning.json
    python benchmarks/finetuning.py --data ../shared/data --check      # the default rates, on other images

He et al.'s ResNets for CIFAR-10, trained on by one epoch of the recipe `fast` with every other default: on 1,000 and
10,000 training images of the classes that they know, and with a new last layer, on the images of five classes. Rates
are compared on one half of the test images, since the networks have seen every training image before; `--check` judges
the default rates on the other half, which chose nothing. What is there already in the output is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quantization import NETWORKS
from resdeploy import store
from resdeploy.data import datasets
from resdeploy.deploy import networks
from resdeploy.deploy.model_string import Request
from resdeploy.measure import environment
from resdeploy.train import loop
from resdeploy.verbs import block_search, train

RESULTS = Path(__file__).parent / "results"
RATES = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
HALVES = ("first half", "second half")  # of the test images
CLASSES = 5  # of those with a new last layer


def images(data: Path, count: int, classes: int, *, check: bool) -> tuple[datasets.Dataset, datasets.Dataset]:
    """To learn from and to judge on."""
    train = datasets.open_dataset(str(data / "cifar10"), split="train")
    test = datasets.open_dataset(str(data / "cifar10"), split="test")
    learned, judged = (
        dataclasses.replace(some.subset(np.flatnonzero(some.labels < classes)), classes=some.classes[:classes])
        for some in (train, block_search.halves(test, 0)[check])
    )
    return datasets.choose(learned, min(count, len(learned)), 0), judged


def row(
    data: Path, network: str, count: int, classes: int, lr: float | None, seed: int, *, check: bool, threads: int
) -> dict[str, Any]:
    learned, judged = images(data, count, classes, check=check)
    request = Request(model=network, weights=str(data / "weights" / NETWORKS[network]))
    start = networks.resolve(request)
    with tempfile.TemporaryDirectory() as folder:
        made = loop.train(loop.Task(
            spec=train.spec_for(start.spec, learned), train_data=learned, test_data=judged,
            plan=loop.Plan(epochs=1, lr=lr, seed=seed, threads=threads),
            out=Path(folder) / "x.safetensors", initial=start.path,
        ))  # fmt: skip
    return {
        "network": network, "images": len(learned), "classes": classes, "lr": lr, "seed": seed,
        "judged_on": HALVES[check], "judged": len(judged),
        "top1_before": made.checks.get("test_top1_before"), "top1_after": made.checks["test_top1"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with weights/ and cifar10/{train,test}/")
    parser.add_argument("--network", choices=NETWORKS, action="append", help="default: both")
    parser.add_argument("--images", type=int, action="append", help="default: 1000 and all")
    parser.add_argument("--classes", type=int, choices=(10, CLASSES), action="append", help="default: both")
    parser.add_argument("--lr", type=float, action="append", help=f"default: {RATES}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="the default rates, on the other half")
    parser.add_argument("--output", type=Path, default=RESULTS / "finetuning.json")
    arguments = parser.parse_args()
    document: dict[str, Any] = {"results": []}
    if arguments.output.is_file():
        document = json.loads(arguments.output.read_text())
    document |= {"command": f"python benchmarks/finetuning.py {' '.join(sys.argv[1:])}"}
    document |= {"environment": environment.capture()}
    done = {
        tuple(r[k] for k in ("network", "asked", "classes", "lr", "seed", "judged_on")) for r in document["results"]
    }
    rates = (None,) if arguments.check else arguments.lr or RATES
    for count in arguments.images or (1000, 10_000):
        for network in arguments.network or NETWORKS:
            for classes in arguments.classes or (10, CLASSES):
                for lr in rates:
                    for seed in range(arguments.seeds):
                        if (network, count, classes, lr, seed, HALVES[arguments.check]) in done:
                            continue
                        found = row(
                            arguments.data,
                            network,
                            count,
                            classes,
                            lr,
                            seed,
                            check=arguments.check,
                            threads=arguments.threads,
                        )
                        document["results"].append(found | {"asked": count})
                        store.write_json(arguments.output, document)
                        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
