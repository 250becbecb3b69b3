"""What a trained network is without some of its blocks: the lesions of Veit et al. 2016 (arXiv:1605.06431, section 4).

Deleting a block leaves its shortcut (for a plain network, which has none: nothing), so that only blocks which keep
the shape can go from both kinds of network; from a residual one those that change it, too. Nothing is trained again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from resdeploy import store
from resdeploy.deploy import model_string, networks
from resdeploy.deploy.model_string import Request
from resdeploy.errors import UsageError
from resdeploy.models.resnet import BasicBlock, Bottleneck, ResNet, blocks_of
from resdeploy.report import chart, documents
from resdeploy.report.documents import Environment
from resdeploy.report.rows import Json
from resdeploy.train.images import Samples, normalise

if TYPE_CHECKING:
    from resdeploy.records import Preprocessing, Progress

BATCH = 250
Block = BasicBlock | Bottleneck
# Numbers of blocks to delete or pairs to swap, as far as there are so many.
COUNTS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24)


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """The network without one block."""

    block: str
    shortcut: str  # identity; change: the shape changes there; none: a plain network
    error: float  # percent


@dataclass(frozen=True, kw_only=True)
class Point:
    """The network without `blocks` of its blocks, or with so many pairs of them swapped, chosen at random."""

    blocks: int
    errors: tuple[float, ...]  # percent, one per random choice
    tau: float | None = None  # Kendall's rank correlation of the order with the original, the mean


class Patient:
    """A trained network and the images that its lesions are judged on."""

    def __init__(self, net: ResNet, samples: Samples, sight: Preprocessing) -> None:
        self.net, self.samples, self.sight = net.eval(), samples, sight
        self.blocks = blocks_of(net)
        self.names = tuple(self.blocks)

    @property
    def keeping(self) -> tuple[str, ...]:
        """Blocks that keep the shape: they can be deleted from any network, and trade places within their stage."""
        return tuple(name for name, block in self.blocks.items() if keeps_shape(block))

    @property
    def deletable(self) -> tuple[str, ...]:
        """Blocks that leave something behind: a shortcut, or nothing at all where the shape stays."""
        return tuple(name for name, block in self.blocks.items() if block.residual or keeps_shape(block))

    @torch.no_grad()
    def single(self, progress: Callable[[int, int], None]) -> tuple[float, tuple[Deleted, ...]]:
        """The whole network's error, and that without each block; what lies before a block is computed once."""
        wrong = dict.fromkeys(self.deletable, 0)
        whole = 0
        batches = list(self._batches())
        for i, (x, labels) in enumerate(batches):
            reached = self._stem(x)
            for k, name in enumerate(self.names):
                if name in wrong:
                    rest = self._run(self._without(name, reached), self.names[k + 1 :])
                    wrong[name] += int((rest != labels).sum())
                reached = self.blocks[name](reached)
            whole += int((self._answer(reached) != labels).sum())
            progress(i + 1, len(batches))
        total = len(self.samples)
        found = tuple(
            Deleted(block=name, shortcut=kind(self.blocks[name]), error=100 * count / total)
            for name, count in wrong.items()
        )
        return 100 * whole / total, found

    @torch.no_grad()
    def error(self, order: Sequence[str], deleted: Collection[str] = ()) -> float:
        """The error in percent with the blocks in this order and some of them deleted."""
        wrong = 0
        for x, labels in self._batches():
            wrong += int((self._run(self._stem(x), order, deleted) != labels).sum())
        return 100 * wrong / len(self.samples)

    def several(self, counts: Sequence[int], repeats: int, seed: int, progress: Callable[[int, int], None]) -> tuple[
        Point, ...
    ]:  # fmt: skip
        """The error without k random blocks that keep the shape, for each k, `repeats` times."""
        random = np.random.default_rng((seed, 0))
        points = []
        for i, count in enumerate(counts):
            errors = [
                self.error(self.names, set(random.choice(self.keeping, count, replace=False))) for _ in range(repeats)
            ]
            points.append(Point(blocks=count, errors=tuple(errors)))
            progress(i + 1, len(counts))
        return tuple(points)

    def shuffled(self, counts: Sequence[int], repeats: int, seed: int, progress: Callable[[int, int], None]) -> tuple[
        Point, ...
    ]:  # fmt: skip
        """The error after k random swaps of two blocks of a stage that keep the shape, for each k."""
        random = np.random.default_rng((seed, 1))
        points = []
        for i, count in enumerate(counts):
            orders = [self._swapped(count, random) for _ in range(repeats)]
            taus = [kendall([self.names.index(name) for name in order]) for order in orders]
            points.append(
                Point(blocks=count, errors=tuple(self.error(order) for order in orders), tau=float(np.mean(taus)))
            )
            progress(i + 1, len(counts))
        return tuple(points)

    def _swapped(self, count: int, random: np.random.Generator) -> list[str]:
        order = list(self.names)
        stages = {name.partition(".")[0] for name in self.keeping}
        places = [
            [i for i, n in enumerate(order) if n in self.keeping and n.startswith(f"{s}.")] for s in sorted(stages)
        ]
        pairs = [place for place in places if len(place) > 1]
        for _ in range(count if pairs else 0):
            a, b = random.choice(pairs[random.integers(len(pairs))], 2, replace=False)
            order[a], order[b] = order[b], order[a]
        return order

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.samples), BATCH):
            part = slice(start, start + BATCH)
            yield normalise(self.samples.pixels[part], self.sight), self.samples.labels[part]

    def _stem(self, x: Tensor) -> Tensor:
        result: Tensor = self.net.maxpool(self.net.relu(self.net.bn1(self.net.conv1(x))))
        return result

    def _without(self, name: str, x: Tensor) -> Tensor:
        block = self.blocks[name]
        if not block.residual:
            return x
        # The block's ReLU changes nothing where the input is one's output, but a projection's may be negative.
        return x if block.downsample is None else block.downsample(x).relu()

    def _run(self, x: Tensor, order: Sequence[str], deleted: Collection[str] = ()) -> Tensor:
        for name in order:
            x = self._without(name, x) if name in deleted else self.blocks[name](x)
        return self._answer(x)

    def _answer(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net.fc(torch.flatten(self.net.avgpool(x), 1))
        return logits.argmax(1)


def keeps_shape(block: Block) -> bool:
    """Whether a block's output has its input's shape, so that nothing is missed where it was."""
    first, last = block.conv1, block.conv3 if isinstance(block, Bottleneck) else block.conv2
    return bool(first.in_channels == last.out_channels and first.stride == (1, 1) and block.conv2.stride == (1, 1))


def kind(block: Block) -> str:
    """What stays where a block was."""
    if not block.residual:
        return "none"
    return "identity" if block.downsample is None else "change"


def kendall(order: Sequence[int]) -> float:
    """Kendall's tau of a permutation with the ascending order: 1 the same, -1 reversed."""
    n = len(order)
    agreeing = sum(np.sign(order[j] - order[i]) for i in range(n) for j in range(i + 1, n))
    return float(agreeing) / (n * (n - 1) / 2) if n > 1 else 1.0


@dataclass(frozen=True, kw_only=True)
class LesionPlan:
    """Which images, and how many random choices."""

    data: str
    images: int = 500
    repeats: int = 3
    seed: int = 0


def study_lesions(
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
        name, whole, single, several, shuffled, told = _operate(request, plan, progress)
        notes |= dict.fromkeys(told)
        wholes.append({"model": name, "error": whole})
        rows += [{"model": name, **one, "rise_pp": one["error"] - whole} for one in single]
        curves["several"] += [{"model": name, **dataclasses.asdict(point)} for point in several]
        curves["shuffled"] += [{"model": name, **dataclasses.asdict(point)} for point in shuffled]
    document = lesion_document(
        rows, {"whole": wholes, "plan": dataclasses.asdict(plan), **curves, "notes": list(notes)}, environment
    )
    if out is not None:
        store.write_json(out, document)
        for kind, drawn in charts_of(document).items():
            store.write_bytes(out.with_name(f"{out.stem}.{kind}.svg"), drawn.encode())
    return document


def _operate(
    request: Request, plan: LesionPlan, progress: Progress
) -> tuple[str, float, list[dict[str, Any]], Sequence[Point], Sequence[Point], Sequence[str]]:
    from resdeploy.data import datasets
    from resdeploy.models import resnet, weights, zoo
    from resdeploy.train.images import load_to_judge

    network = networks.resolve(request)
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
    name = model_string.stem(request.model)
    whole, single = patient.single(lambda done, total: progress(f"{name}: one block", done, total))
    counts = [count for count in COUNTS if count <= len(patient.keeping)]
    several = patient.several(
        counts, plan.repeats, plan.seed, lambda done, total: progress(f"{name}: several", done, total)
    )
    shuffled = patient.shuffled(
        counts, plan.repeats, plan.seed, lambda done, total: progress(f"{name}: shuffled", done, total)
    )
    return name, whole, [dataclasses.asdict(one) for one in single], several, shuffled, notes


def charts_of(document: Mapping[str, Any]) -> dict[str, str]:
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


def lesion_document(rows: Sequence[Mapping[str, Any]], curves: Mapping[str, Any], environment: Environment) -> Json:
    """`study lesion`: a row per block that was deleted, and the curves of several deletions and of shuffles."""
    return documents.document("study lesion", environment, [dict(row) for row in rows], **curves)
