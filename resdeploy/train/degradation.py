"""Depth hurts plain networks and not residual ones: figures 1 and 6 of He et al. 2015 (arXiv:1512.03385).

What degrades is the training error, so it is no overfitting. The study trains plain and residual networks of several
depths under one budget, several times, and gives the difference that depth makes for each kind, and the difference
between those, with Student's interval over the seeds: everything else of a seed is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from resdeploy import stats
from resdeploy.models import zoo
from resdeploy.train import loop
from resdeploy.train.state import Epoch

if TYPE_CHECKING:
    from resdeploy.data.datasets import Dataset
    from resdeploy.records import ModelSpec, Progress

KINDS = ("plain", "resnet")


@dataclass(frozen=True, kw_only=True)
class Training:
    """One network trained once."""

    kind: str  # plain or resnet
    depth: int
    seed: int
    history: tuple[Epoch, ...]  # held out: the test images, looked at and not chosen on

    @property
    def name(self) -> str:
        return f"{self.kind}{self.depth}"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of final training losses, the mean over the seeds and its interval."""

    of: str
    value: float
    ci95: tuple[float, float]


def run(
    spec_of: Callable[[str], ModelSpec],
    train_data: Dataset,
    test_data: Dataset,
    plan: loop.Plan,
    *,
    depths: Sequence[int],
    seeds: Sequence[int],
    folder: Path,
    progress: Progress | None = None,
    watch: Callable[[Training], None] | None = None,
) -> tuple[Training, ...]:
    """Trains every network with every seed; checkpoints go to `folder`, and an interrupted training goes on.

    Args:
        spec_of: the description of a zoo name.
        train_data: images to learn from.
        test_data: images for the test curve.
        plan: of every training but its seed.
        depths: 6n + 2 each.
        seeds: of weights, order and augmentation.
        folder: where checkpoints and curves go.
        progress: of the training in hand.
        watch: called after every training.
    """
    found = []
    for seed in seeds:
        for depth in depths:
            for kind in KINDS:
                zoo.find(f"{kind}{depth}")
                history: list[Epoch] = []
                loop.train(
                    spec_of(f"{kind}{depth}"), train_data, test_data, replace(plan, seed=seed),
                    out=folder / f"{kind}{depth}.{seed}.safetensors", held_out=test_data,
                    progress=progress, watch=history.append,
                )  # fmt: skip
                found.append(Training(kind=kind, depth=depth, seed=seed, history=tuple(history)))
                if watch is not None:
                    watch(found[-1])
    return tuple(found)


def differences(trainings: Sequence[Training]) -> tuple[Difference, ...]:
    """What depth adds to the final training loss, from the shallowest to the deepest network of each kind."""
    loss: Mapping[tuple[str, int, int], float] = {
        (t.kind, t.depth, t.seed): t.history[-1].train_loss for t in trainings
    }
    depths, seeds = sorted({t.depth for t in trainings}), sorted({t.seed for t in trainings})
    shallow, deep = depths[0], depths[-1]
    added = {kind: [loss[kind, deep, s] - loss[kind, shallow, s] for s in seeds] for kind in KINDS}
    rows = [(f"{kind}{deep} - {kind}{shallow}", values) for kind, values in added.items()]
    rows.append(("the first minus the second", [a - b for a, b in zip(added["plain"], added["resnet"], strict=True)]))
    return tuple(
        Difference(of=name, value=sum(values) / len(values), ci95=stats.mean_interval(values)) for name, values in rows
    )
