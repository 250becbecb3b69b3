"""Depth hurts plain networks and not residual ones: figures 1 and 6 of He et al. 2015 (arXiv:1512.03385).

What degrades is the training error, so it is no overfitting. The study trains plain and residual networks of several
depths under one budget, several times, and gives the difference that depth makes for each kind, and the difference
between those, with Student's interval over the seeds: everything else of a seed is shared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from resdeploy import __version__, stats, store
from resdeploy.errors import MalformedInput, ResdeployError
from resdeploy.models import zoo
from resdeploy.train import curves, loop, state
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
    """Trains every network with every seed; checkpoints go to `folder`, and an interrupted study goes on.

    What is there already and was made with the same settings and data is not trained again: of a finished network the
    curve is read, and a training that was interrupted is resumed. Anything else is trained anew in its place.

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
                out = folder / f"{kind}{depth}.{seed}.safetensors"
                spec, seeded = spec_of(f"{kind}{depth}"), replace(plan, seed=seed)
                _keep_if_of(out, _settings(spec, train_data, test_data, seeded))
                if not _finished(out, plan.epochs):
                    loop.train(
                        spec, train_data, test_data, seeded, out=out, held_out=test_data, resume=True, progress=progress
                    )
                found.append(Training(kind=kind, depth=depth, seed=seed, history=tuple(curves.read(out))))
                if watch is not None:
                    watch(found[-1])
    return tuple(found)


def _settings(spec: ModelSpec, train_data: Dataset, test_data: Dataset, plan: loop.Plan) -> str:
    """Changes with all that the curves depend on; the number of threads changes no more than roundings."""
    plan = replace(plan, threads=None)
    data = (train_data.signature(), test_data.signature())
    return store.fingerprint([asdict(spec), data, asdict(plan), __version__, torch.__version__])


def _keep_if_of(out: Path, settings: str) -> None:
    """Removes checkpoint, curves and state at `out` unless they are of these settings, which are noted beside it."""
    noted = out.with_name(f"{out.stem}.settings.json")
    with contextlib.suppress(FileNotFoundError, MalformedInput):
        if store.parse_json(noted.read_bytes(), str(noted)) == settings:
            return
    for path in (out, store.sidecar(out), *curves.paths(out)):
        path.unlink(missing_ok=True)
    state.remove(out)
    store.write_json(noted, settings)


def _finished(out: Path, epochs: int) -> bool:
    """Whether an undamaged checkpoint is there with the curve of all epochs; its state goes last."""
    if any(path.is_file() for path in state.paths(out)):
        return False
    try:
        return store.load(out) is not None and len(curves.read(out)) == epochs
    except (ResdeployError, ValueError, TypeError):  # of a damaged file
        return False


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
