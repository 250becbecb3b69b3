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

import numpy as np
import torch

from resdeploy import __version__, stats, store
from resdeploy.data import datasets
from resdeploy.deploy import networks
from resdeploy.deploy.model_string import PreprocessingOverride, Request
from resdeploy.errors import MalformedInput, ResdeployError, refuse
from resdeploy.models import zoo
from resdeploy.report import documents
from resdeploy.report.documents import Environment
from resdeploy.report.rows import Json, finite_interval
from resdeploy.train import curves, loop, state
from resdeploy.train.state import Epoch
from resdeploy.verbs import train

if TYPE_CHECKING:
    from resdeploy.data.datasets import Dataset
    from resdeploy.records import ModelSpec, Progress

KINDS = ("plain", "resnet")
# He et al. 2015, section 4.2: 64k steps of 128 images are 164 epochs of 50,000.
PAPER_EPOCHS, PAPER_BATCH = 164, 128
DEPTHS = (20, 32, 44, 56, 110)  # of the plain and residual networks for small images (He et al. 2015, section 4.2)
PAPER_DEPTHS = DEPTHS[:4]


@dataclass(frozen=True, kw_only=True)
class DegradationPlan:
    """The networks and the budget that all of them share."""

    data: str
    depths: tuple[int, ...]
    seeds: int
    training: loop.Plan
    img_size: int | tuple[int, int] | None = None


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
class NetworkMeans:
    """One network after its last epoch, the mean over the seeds; errors in percent."""

    model: str
    depth: int
    seeds: int
    train_loss: float
    train_loss_ci95: tuple[float, float]
    train_error: float
    test_error: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of final training losses, the mean over the seeds and its interval."""

    of: str
    value: float
    ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class DegradationReport:
    """All trainings, and what they come to."""

    plan: DegradationPlan
    trainings: tuple[Training, ...]
    networks: tuple[NetworkMeans, ...]
    differences: tuple[Difference, ...]


def papers_plan(data: str) -> DegradationPlan:
    """The setting of He et al.'s CIFAR experiments, for a GPU."""
    training = loop.Plan(epochs=PAPER_EPOCHS, batch_size=PAPER_BATCH, recipe="paper")
    return DegradationPlan(data=data, depths=PAPER_DEPTHS, seeds=5, training=training)


def study_depths(
    plan: DegradationPlan, folder: Path, *, progress: Progress, watch: Callable[[Training], None]
) -> DegradationReport:
    """Trains the networks into `folder` and compares their final losses.

    Raises:
        UsageError: depths that the zoo lacks, fewer than two depths or seeds, or a data set without a test split.
        UnknownName: no network of such a depth.
    """
    plan = replace(plan, depths=tuple(dict.fromkeys(plan.depths)))  # a depth named twice is no further training
    unknown = sorted(set(plan.depths) - set(DEPTHS))
    refuse(
        (
            unknown,
            f"--depths: there is no plain network of {', '.join(map(str, unknown))} layers",
            f"Name two or more of {', '.join(map(str, DEPTHS))}",
        ),
        (
            len(plan.depths) < 2 or plan.seeds < 2,
            "one depth or one seed shows no difference",
            "Give at least two of each",
        ),
    )
    train_data, test_data = datasets.training_images(plan.data)

    def spec_of(name: str) -> ModelSpec:
        request = Request(model=name, override=PreprocessingOverride(img_size=plan.img_size))
        return train.spec_for(networks.resolve(request).spec, train_data)

    trainings = train_networks(spec_of, train_data, test_data, plan, folder=folder, progress=progress, watch=watch)
    names = dict.fromkeys(training.name for training in trainings)
    return DegradationReport(
        plan=plan,
        trainings=trainings,
        networks=tuple(_average([training for training in trainings if training.name == name]) for name in names),
        differences=differences(trainings),
    )


def train_networks(
    spec_of: Callable[[str], ModelSpec],
    train_data: Dataset,
    test_data: Dataset,
    plan: DegradationPlan,
    *,
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
        plan: the depths, 6n + 2 each, and how many seeds (of weights, order and augmentation), from 0 on.
        folder: where checkpoints and curves go.
        progress: of the training in hand.
        watch: called after every training.
    """
    trainings: list[Training] = []
    for seed in range(plan.seeds):
        for depth in plan.depths:
            for kind in KINDS:
                zoo.find(f"{kind}{depth}")
                out = folder / f"{kind}{depth}.{seed}.safetensors"
                spec, seeded = spec_of(f"{kind}{depth}"), replace(plan.training, seed=seed)
                _discard_others(out, _settings(spec, train_data, test_data, seeded))
                if not _is_finished(out, seeded.epochs):
                    task = loop.Task(
                        spec=spec, train_data=train_data, test_data=test_data, plan=seeded, out=out, held_out=test_data
                    )
                    loop.train(task, resume=True, progress=progress)
                trainings.append(Training(kind=kind, depth=depth, seed=seed, history=tuple(curves.read(out))))
                if watch is not None:
                    watch(trainings[-1])
    return tuple(trainings)


def _settings(spec: ModelSpec, train_data: Dataset, test_data: Dataset, plan: loop.Plan) -> str:
    """Changes with all that the curves depend on; the number of threads changes no more than roundings."""
    plan = replace(plan, threads=None)
    data = (train_data.signature(), test_data.signature())
    return store.fingerprint([asdict(spec), data, asdict(plan), __version__, torch.__version__])


def _discard_others(out: Path, settings: str) -> None:
    """Removes checkpoint, curves and state of other settings at `out`; these settings are noted beside it."""
    note = out.with_name(f"{out.stem}.settings.json")
    with contextlib.suppress(FileNotFoundError, MalformedInput):
        if store.parse_json(note.read_bytes(), str(note)) == settings:
            return
    for path in (out, store.sidecar(out), *curves.paths(out)):
        path.unlink(missing_ok=True)
    state.remove(out)
    store.write_json(note, settings)


def _is_finished(out: Path, epochs: int) -> bool:
    """Whether an undamaged checkpoint is there with the curve of all epochs; its state goes last."""
    if any(path.is_file() for path in state.paths(out)):
        return False
    try:
        return store.load(out) is not None and len(curves.read(out)) == epochs
    except (ResdeployError, ValueError, TypeError):  # of a damaged file
        return False


def _average(trainings: Sequence[Training]) -> NetworkMeans:
    """Of the trainings of one network."""
    last = [training.history[-1] for training in trainings]
    losses = [epoch.train_loss for epoch in last]
    return NetworkMeans(
        model=trainings[0].name,
        depth=trainings[0].depth,
        seeds=len(trainings),
        train_loss=float(np.mean(losses)),
        train_loss_ci95=stats.mean_interval(losses),
        train_error=100 - float(np.mean([epoch.train_top1 for epoch in last])),
        test_error=100 - float(np.mean([epoch.held_out_top1 or 0.0 for epoch in last])),
    )


def differences(trainings: Sequence[Training]) -> tuple[Difference, ...]:
    """What depth adds to the final training loss, from the shallowest to the deepest network of each kind."""
    loss: Mapping[tuple[str, int, int], float] = {
        (t.kind, t.depth, t.seed): t.history[-1].train_loss for t in trainings
    }
    depths, seeds = sorted({t.depth for t in trainings}), sorted({t.seed for t in trainings})
    shallow, deep = depths[0], depths[-1]
    rises = {kind: [loss[kind, deep, s] - loss[kind, shallow, s] for s in seeds] for kind in KINDS}
    rows = [(f"{kind}{deep} - {kind}{shallow}", values) for kind, values in rises.items()]
    rows.append(("the first minus the second", [a - b for a, b in zip(rises["plain"], rises["resnet"], strict=True)]))
    return tuple(
        Difference(of=name, value=sum(values) / len(values), ci95=stats.mean_interval(values)) for name, values in rows
    )


def degradation_document(report: DegradationReport, environment: Environment) -> Json:
    """`study degradation`: a row per network, the differences that depth makes, and the curves of every training."""
    return documents.document(
        "study degradation",
        environment,
        [{**asdict(means), "train_loss_ci95": finite_interval(means.train_loss_ci95)} for means in report.networks],
        differences=[{**asdict(each), "ci95": finite_interval(each.ci95)} for each in report.differences],
        plan=asdict(report.plan),
        trainings=[asdict(training) for training in report.trainings],
    )
