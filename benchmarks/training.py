"""Images a second in training: resdeploy against a plain torch loop with the same network, batch and arithmetic.

    python benchmarks/training.py --output benchmarks/results/training.json

The plain loop is what a user would write: torchvision's transforms are left out and the batches lie ready as float
tensors, so it does less than we do (we shuffle, augment, normalise, average the weights and watch the loss). Both take
turns in one process, a few steps each, and the ratio of the times of neighbouring turns is what is reported, with a
bootstrap interval. On CPUs with BF16 arithmetic both sides also run in it (torch's autocast).
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from resdeploy import store
from resdeploy.backends import machine
from resdeploy.measure import environment
from resdeploy.models import zoo
from resdeploy.train import distributed, loop, recipes
from resdeploy.train.images import Samples, steps_of

STEPS, WARM_UP = 4, 2  # a turn


def ours(name: str, size: int, batch_size: int, turns: int, precision: Any):
    spec = zoo.spec(name, classes=10, input_shape=(3, size, size))
    count = batch_size * (STEPS * turns + WARM_UP)
    pixels = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)
    samples = Samples(pixels=pixels, labels=torch.randint(0, 10, (count,)))
    assert spec.preprocessing is not None
    net: Any = zoo.create(spec)
    net = net.to(memory_format=torch.channels_last).train()
    steps = count // batch_size
    run = loop._Run(
        plan=loop.Plan(epochs=1, batch_size=batch_size, precision=precision), lr=0.1,
        group=distributed.Group(), net=net,
        optimizer=recipes.optimizer(net, "fast"), average=recipes.Average(net, steps), teacher=None,
        preprocessing=spec.preprocessing, augmentation="shift", steps=steps, history=[],
    )  # fmt: skip
    for step in steps_of(samples, batch_size, 0, 0, "shift"):
        for group in run.optimizer.param_groups:
            group["lr"] = recipes.learning_rate("fast", 0.1, step.number, steps)
        loss, _ = loop._step(run, net, step)
        loop._check_finite(loss, step.number, 0.1, Path("none"))
        assert run.average is not None
        run.average.update(net, step.number)
        yield


def plain(name: str, size: int, batch_size: int, turns: int, precision: str):
    net = zoo.create(zoo.spec(name, classes=10, input_shape=(3, size, size))).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    x, y = torch.randn(batch_size, 3, size, size), torch.randint(0, 10, (batch_size,))
    while True:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(net(x), y, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        loss.item()
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = []
    precisions = ("fp32", "bf16") if machine.cpu().bf16 else ("fp32",)
    settings = (("resnet20", 32, 64), ("resnet20", 16, 64), ("resnet56", 32, 64))
    for (name, size, batch_size), precision in itertools.product(settings, precisions):
        spec = zoo.spec(name, classes=10, input_shape=(3, size, size))
        threads = arguments.threads or loop.default_threads(spec, batch_size)
        torch.set_num_threads(threads)
        sides = [make(name, size, batch_size, arguments.turns, precision) for make in (ours, plain)]
        for side in sides:
            for _ in range(WARM_UP):
                next(side)
        times = np.empty((2, arguments.turns))
        for turn in range(arguments.turns):
            for k in (0, 1) if turn % 2 else (1, 0):
                started = time.perf_counter()
                for _ in range(STEPS):
                    next(sides[k])
                times[k, turn] = time.perf_counter() - started
        ratios = times[1] / times[0]
        draws = np.median(np.random.default_rng(0).choice(ratios, (10_000, len(ratios))), axis=1)
        low, high = np.quantile(draws, (0.025, 0.975))
        speeds = STEPS * batch_size / np.median(times, axis=1)
        results.append(
            {
                "network": name, "size": size, "batch_size": batch_size, "precision": precision,
                "threads": threads,
                "resdeploy_ips": float(speeds[0]), "plain_ips": float(speeds[1]),
                "ratio": float(np.median(ratios)), "ratio_ci95": [float(low), float(high)],
                "seconds": times.tolist(),
            }
        )  # fmt: skip
        row = results[-1]
        print(
            f"{name} at {size}, batch {batch_size}, {precision}, {threads} threads: "
            f"{speeds[0]:.0f} against {speeds[1]:.0f} images/s,"
            f" ratio {row['ratio']:.3f} [{low:.3f}, {high:.3f}]"
        )
    if arguments.output:
        store.write_json(arguments.output, {"results": results, "environment": environment.capture()})


if __name__ == "__main__":
    main()
