"""`study`: the experiments behind residual networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy import stats, store
from resdeploy.errors import UsageError
from resdeploy.pipeline import sources, training
from resdeploy.pipeline.request import Request, Sight
from resdeploy.report import chart, studies

if TYPE_CHECKING:
    from resdeploy.records import ModelSpec, Progress
    from resdeploy.train.degradation import Training
    from resdeploy.train.lesion import Point
    from resdeploy.train.loop import Plan

# He et al. 2015, section 4.2: 64k steps of 128 images are 164 epochs of 50,000.
PAPER_EPOCHS, PAPER_BATCH = 164, 128
DEPTHS = (20, 32, 44, 56, 110)  # of the plain and residual networks for small images (He et al. 2015, section 4.2)
PAPER_DEPTHS = DEPTHS[:4]
# Numbers of blocks to delete or pairs to swap, as far as there are so many.
COUNTS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24)


@dataclass(frozen=True, kw_only=True)
class DegradationPlan:
    """The networks and the budget that all of them share."""

    data: str
    depths: tuple[int, ...]
    seeds: int
    training: Plan
    img_size: int | None = None


def full(data: str) -> DegradationPlan:
    """The setting of He et al.'s CIFAR experiments, for a GPU."""
    from resdeploy.train.loop import Plan

    papers = Plan(epochs=PAPER_EPOCHS, batch_size=PAPER_BATCH, recipe="paper")
    return DegradationPlan(data=data, depths=PAPER_DEPTHS, seeds=5, training=papers)


def degradation(
    plan: DegradationPlan,
    folder: Path,
    environment: Mapping[str, Any],
    *,
    progress: Progress,
    watch: Callable[[Training], None],
) -> dict[str, Any]:
    """Trains the networks into `folder`, draws the chart there, and returns the document.

    Raises:
        UsageError: depths that the zoo lacks, fewer than two depths or seeds, or a data set without a test split.
        UnknownName: no network of such a depth.
    """
    from resdeploy.train import degradation as study

    if unknown := set(plan.depths) - set(DEPTHS):
        raise UsageError(
            f"--depths: there is no plain network of {', '.join(map(str, sorted(unknown)))} layers",
            fix=f"Name two or more of {', '.join(map(str, DEPTHS))}",
        )
    if len(set(plan.depths)) < 2 or plan.seeds < 2:
        raise UsageError("one depth or one seed shows no difference", fix="Give at least two of each")
    train_data, test_data = training.training_images(plan.data)

    def spec_of(name: str) -> ModelSpec:
        request = Request(model=name, sight=Sight(img_size=plan.img_size))
        return training.spec_for(sources.network(request).spec, train_data)

    found = study.run(
        spec_of, train_data, test_data, plan.training, depths=plan.depths, seeds=range(plan.seeds),
        folder=folder, progress=progress, watch=watch,
    )  # fmt: skip
    store.write_bytes(folder / "degradation.svg", degradation_chart(found).encode())
    document = studies.degradation(
        [_row(name, [t for t in found if t.name == name]) for name in dict.fromkeys(t.name for t in found)],
        [dataclasses.asdict(one) for one in study.differences(found)],
        environment,
        plan=dataclasses.asdict(plan),
        trainings=[dataclasses.asdict(one) for one in found],
    )
    store.write_json(folder / "degradation.json", document)
    return document


def _row(name: str, trainings: Sequence[Training]) -> dict[str, Any]:
    last = [t.history[-1] for t in trainings]
    losses = [line.train_loss for line in last]
    return {
        "model": name,
        "depth": trainings[0].depth,
        "seeds": len(trainings),
        "train_loss": float(np.mean(losses)),
        "train_loss_ci95": list(stats.mean_interval(losses)),
        "train_error": 100 - float(np.mean([line.train_top1 for line in last])),
        "test_error": 100 - float(np.mean([line.held_out_top1 or 0.0 for line in last])),
    }


def degradation_chart(trainings: Sequence[Training]) -> str:
    """Training losses, the mean over the seeds and their range."""
    lines = []
    for name in dict.fromkeys(t.name for t in trainings):
        values = np.array([[line.train_loss for line in t.history] for t in trainings if t.name == name])
        lines.append(
            chart.Line(
                name=name,
                xs=[float(i + 1) for i in range(values.shape[1])],
                ys=values.mean(axis=0).tolist(),
                low=values.min(axis=0).tolist(),
                high=values.max(axis=0).tolist(),
            )
        )
    return chart.lines(lines, title="Training loss: mean and range over the seeds", x="epoch", y="loss")


@dataclass(frozen=True, kw_only=True)
class LesionPlan:
    """Which images, and how many random choices."""

    data: str
    images: int = 500
    repeats: int = 3
    seed: int = 0


def lesion(
    requests: Sequence[Request],
    plan: LesionPlan,
    environment: Mapping[str, Any],
    out: Path | None = None,
    *,
    progress: Progress,
) -> dict[str, Any]:
    """Deletes blocks of trained networks; charts go to `<out stem>.single.svg`, `.several.svg` and `.shuffled.svg`.

    Raises:
        UsageError: random weights, or a network that is not one of ours.
    """
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[dict[str, Any]]] = {"several": [], "shuffled": []}
    wholes = []
    notes: dict[str, None] = {}
    for request in requests:
        name, whole, single, several, shuffled, told = _operated(request, plan, progress)
        notes |= dict.fromkeys(told)
        wholes.append({"model": name, "error": whole})
        rows += [{"model": name, **one, "rise_pp": one["error"] - whole} for one in single]
        curves["several"] += [{"model": name, **dataclasses.asdict(point)} for point in several]
        curves["shuffled"] += [{"model": name, **dataclasses.asdict(point)} for point in shuffled]
    document = studies.lesion(
        rows, {"whole": wholes, "plan": dataclasses.asdict(plan), **curves, "notes": list(notes)}, environment
    )
    if out is not None:
        store.write_json(out, document)
        for kind, drawn in lesion_charts(document).items():
            store.write_bytes(out.with_name(f"{out.stem}.{kind}.svg"), drawn.encode())
    return document


def _operated(
    request: Request, plan: LesionPlan, progress: Progress
) -> tuple[str, float, list[dict[str, Any]], Sequence[Point], Sequence[Point], Sequence[str]]:
    from resdeploy.data import datasets
    from resdeploy.models import resnet, weights, zoo
    from resdeploy.train.images import load_to_judge
    from resdeploy.train.lesion import Patient

    network = sources.network(request)
    if network.path is None:
        raise UsageError(f"{request.model} is not trained", fix="Name a checkpoint, or add --weights FILE")
    net = zoo.create(network.spec)
    weights.load_into(net, network.path)
    if not isinstance(net, resnet.ResNet) or network.spec.preprocessing is None:
        raise UsageError(f"{request.model} is not a network of ours", fix="Choose one that `resdeploy models` lists")
    images = datasets.align(datasets.open_dataset(plan.data, split="test"), network.spec.labels)
    images = datasets.choose(images, plan.images, plan.seed)
    samples, notes = load_to_judge(images, network.spec.preprocessing, progress=progress)
    patient = Patient(net, samples, network.spec.preprocessing)
    name = sources.stem(request.model)
    whole, single = patient.single(lambda done, total: progress(f"{name}: one block", done, total))
    counts = [count for count in COUNTS if count <= len(patient.keeping)]
    several = patient.several(
        counts, plan.repeats, plan.seed, lambda done, total: progress(f"{name}: several", done, total)
    )
    shuffled = patient.shuffled(
        counts, plan.repeats, plan.seed, lambda done, total: progress(f"{name}: shuffled", done, total)
    )
    return name, whole, [dataclasses.asdict(one) for one in single], several, shuffled, notes


def lesion_charts(document: Mapping[str, Any]) -> dict[str, str]:
    """The three figures of Veit et al.: one block deleted, several deleted, blocks shuffled."""
    models = [whole["model"] for whole in document["whole"]]
    single = [
        chart.Line(name=model, xs=[float(i) for i in range(len(errors))], ys=errors, dots=True)
        for model in models
        if (errors := [row["error"] for row in document["results"] if row["model"] == model])
    ]
    drawn = {"single": chart.lines(single, title="One block deleted", x="block", y="error (%)")}
    for kind, title, x in (
        ("several", "Random blocks deleted", "blocks deleted"),
        ("shuffled", "Pairs of blocks swapped", "swaps"),
    ):
        lines = [
            chart.Line(
                name=model,
                xs=[0.0, *(float(point["blocks"]) for point in points)],
                ys=[whole, *(float(np.mean(point["errors"])) for point in points)],
                low=[whole, *(min(point["errors"]) for point in points)],
                high=[whole, *(max(point["errors"]) for point in points)],
            )
            for model, whole in ((one["model"], one["error"]) for one in document["whole"])
            if (points := [point for point in document[kind] if point["model"] == model])
        ]
        if lines:
            drawn[kind] = chart.lines(lines, title=title, x=x, y="error (%)")
    return drawn
