"""What a trained network is without some of its blocks: the lesions of Veit et al. 2016 (arXiv:1605.06431, section 4).

Deleting a block leaves its shortcut (for a plain network, which has none: nothing), so that only blocks which keep
the shape can go from both kinds of network; from a residual one those that change it, too. Nothing is trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from resdeploy.data import datasets
from resdeploy.deploy import model_string, networks
from resdeploy.deploy.model_string import Request
from resdeploy.errors import refuse
from resdeploy.models import weights
from resdeploy.models.resnet import VARIANTS, BasicBlock, Bottleneck, ResNet, blocks_of
from resdeploy.report import documents
from resdeploy.report.documents import Environment
from resdeploy.report.rows import Json
from resdeploy.train.images import Samples, load_to_judge, normalise

if TYPE_CHECKING:
    from resdeploy.data.datasets import Dataset
    from resdeploy.records import Preprocessing, Progress

BATCH = 250
# Numbers of blocks to delete or pairs to swap, as far as there are so many.
COUNTS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24)
Block = BasicBlock | Bottleneck
Tell = Callable[[int, int], None]  # how much is done, and of how much


@dataclass(frozen=True, kw_only=True)
class LesionPlan:
    """Which images, and how many random choices."""

    data: str
    images: int = 500
    repeats: int = 3
    seed: int = 0


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


@dataclass(frozen=True, kw_only=True)
class NetworkLesions:
    """One network, whole and without some of its blocks."""

    model: str
    error: float  # of the whole network, percent
    single: tuple[Deleted, ...]
    several: tuple[Point, ...]
    shuffled: tuple[Point, ...]
    notes: tuple[str, ...] = ()  # on the images


@dataclass(frozen=True, kw_only=True)
class LesionReport:
    """All networks, judged on the same images."""

    plan: LesionPlan
    networks: tuple[NetworkLesions, ...]


def study_lesions(requests: Sequence[Request], plan: LesionPlan, *, progress: Progress) -> LesionReport:
    """Deletes and swaps blocks of trained networks.

    Raises:
        UsageError: random weights, or a network that is not one of ours: of any of them, before the first is run.
    """
    subjects = _admit(requests, plan)
    return LesionReport(plan=plan, networks=tuple(_operate(one, plan, progress) for one in subjects))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained network, and the images to judge it on, not read yet."""

    name: str
    net: ResNet
    images: Dataset
    preprocessing: Preprocessing


def _admit(requests: Sequence[Request], plan: LesionPlan) -> list[Subject]:
    """The trained networks.

    Raises:
        UsageError: random weights, or a network without such blocks or without its preprocessing.
        WeightsMismatch: weights of another network.
    """
    resolutions = [(request.model, networks.resolve(request)) for request in requests]
    refuse(*(problem for model, network in resolutions for problem in _problems(model, network)))
    images = datasets.open_dataset(plan.data, split="test")
    subjects = []
    for model, network in resolutions:
        net = weights.create(network.spec, network.path)
        assert isinstance(net, ResNet)
        assert network.spec.preprocessing is not None
        sample = datasets.choose(datasets.align(images, network.spec.labels), plan.images, plan.seed)
        name = model_string.stem(model)
        subjects.append(Subject(name=name, net=net, images=sample, preprocessing=network.spec.preprocessing))
    return subjects


def _problems(model: str, network: networks.Network) -> Iterator[tuple[bool, str, str]]:
    """What `refuse` is told of a network."""
    ours = network.spec.name in VARIANTS
    yield network.path is None, f"{model} is not trained", "Name a checkpoint, or add --weights FILE"
    yield (
        not ours,
        f"{model} has no residual blocks that can be deleted here",
        "Name a plain or residual network of ours, such as resnet56, plain56 or resnet50",
    )
    yield (
        ours and network.spec.preprocessing is None,
        f"{model} does not say how images become its input",
        "Name a network of the zoo",
    )


def _operate(one: Subject, plan: LesionPlan, progress: Progress) -> NetworkLesions:
    samples, notes = load_to_judge(one.images, one.preprocessing, progress=progress)
    patient, name = Patient(one.net, samples, one.preprocessing), one.name
    counts = [count for count in COUNTS if count <= len(patient.keeping)]
    error, single = patient.delete_each(lambda done, total: progress(f"{name}: one block", done, total))
    return NetworkLesions(
        model=name,
        error=error,
        single=single,
        several=patient.delete_several(
            counts, plan.repeats, plan.seed, lambda done, total: progress(f"{name}: several", done, total)
        ),
        shuffled=patient.shuffle(
            counts, plan.repeats, plan.seed, lambda done, total: progress(f"{name}: shuffled", done, total)
        ),
        notes=tuple(notes),
    )


class Patient:
    """A trained network and the images that its lesions are judged on."""

    def __init__(self, net: ResNet, samples: Samples, preprocessing: Preprocessing) -> None:
        self.net, self.samples, self.preprocessing = net.eval(), samples, preprocessing
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
    def delete_each(self, tell: Tell) -> tuple[float, tuple[Deleted, ...]]:
        """The whole network's error, and that without each block; what lies before a block is computed once."""
        wrong = dict.fromkeys(self.deletable, 0)
        whole = 0
        batches = list(self._batches())
        for i, (x, labels) in enumerate(batches):
            activations = self._stem(x)
            for k, name in enumerate(self.names):
                if name in wrong:
                    rest = self._run(self._bypass(name, activations), self.names[k + 1 :])
                    wrong[name] += int((rest != labels).sum())
                activations = self.blocks[name](activations)
            whole += int((self._classify(activations) != labels).sum())
            tell(i + 1, len(batches))
        total = len(self.samples)
        lesions = tuple(
            Deleted(block=name, shortcut=shortcut_of(self.blocks[name]), error=100 * count / total)
            for name, count in wrong.items()
        )
        return 100 * whole / total, lesions

    @torch.no_grad()
    def measure_error(self, order: Sequence[str], deleted: Collection[str] = ()) -> float:
        """The error in percent with the blocks in this order and some of them deleted."""
        wrong = 0
        for x, labels in self._batches():
            wrong += int((self._run(self._stem(x), order, deleted) != labels).sum())
        return 100 * wrong / len(self.samples)

    def delete_several(self, counts: Sequence[int], repeats: int, seed: int, tell: Tell) -> tuple[Point, ...]:
        """The error without k random blocks that keep the shape, for each k, `repeats` times."""
        random = np.random.default_rng((seed, 0))
        points = []
        for i, count in enumerate(counts):
            choices = (random.choice(self.keeping, count, replace=False) for _ in range(repeats))
            errors = tuple(self.measure_error(self.names, set(choice)) for choice in choices)
            points.append(Point(blocks=count, errors=errors))
            tell(i + 1, len(counts))
        return tuple(points)

    def shuffle(self, counts: Sequence[int], repeats: int, seed: int, tell: Tell) -> tuple[Point, ...]:
        """The error after k random swaps of two blocks of a stage that keep the shape, for each k, `repeats` times."""
        random = np.random.default_rng((seed, 1))
        points = []
        for i, count in enumerate(counts):
            orders = [self._swap(count, random) for _ in range(repeats)]
            taus = [kendall([self.names.index(name) for name in order]) for order in orders]
            errors = tuple(self.measure_error(order) for order in orders)
            points.append(Point(blocks=count, errors=errors, tau=float(np.mean(taus))))
            tell(i + 1, len(counts))
        return tuple(points)

    def _swap(self, count: int, random: np.random.Generator) -> list[str]:
        """The blocks in order after so many swaps."""
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
            yield normalise(self.samples.pixels[part], self.preprocessing), self.samples.labels[part]

    def _stem(self, x: Tensor) -> Tensor:
        result: Tensor = self.net.maxpool(self.net.relu(self.net.bn1(self.net.conv1(x))))
        return result

    def _bypass(self, name: str, x: Tensor) -> Tensor:
        block = self.blocks[name]
        if not block.residual:
            return x
        # The block's ReLU changes nothing where the input is one's output, but a projection's may be negative.
        return x if block.downsample is None else block.downsample(x).relu()

    def _run(self, x: Tensor, order: Sequence[str], deleted: Collection[str] = ()) -> Tensor:
        for name in order:
            x = self._bypass(name, x) if name in deleted else self.blocks[name](x)
        return self._classify(x)

    def _classify(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net.fc(torch.flatten(self.net.avgpool(x), 1))
        return logits.argmax(1)


def keeps_shape(block: Block) -> bool:
    """Whether a block's output has its input's shape, so that nothing is missed where it was."""
    first, last = block.conv1, block.conv3 if isinstance(block, Bottleneck) else block.conv2
    return bool(first.in_channels == last.out_channels and first.stride == (1, 1) and block.conv2.stride == (1, 1))


def shortcut_of(block: Block) -> str:
    """What stays where a block was."""
    if not block.residual:
        return "none"
    return "identity" if block.downsample is None else "change"


def kendall(order: Sequence[int]) -> float:
    """Kendall's tau of a permutation with the ascending order: 1 the same, -1 reversed."""
    n = len(order)
    agreeing = sum(np.sign(order[j] - order[i]) for i in range(n) for j in range(i + 1, n))
    return float(agreeing) / (n * (n - 1) / 2) if n > 1 else 1.0


def lesion_document(report: LesionReport, environment: Environment) -> Json:
    """`study lesion`: a row per block that was deleted, and the curves of several deletions and of shuffles."""
    return documents.document(
        "study lesion",
        environment,
        [
            {"model": network.model, **asdict(deleted), "rise_pp": deleted.error - network.error}
            for network in report.networks
            for deleted in network.single
        ],
        whole=[{"model": network.model, "error": network.error} for network in report.networks],
        plan=asdict(report.plan),
        several=[{"model": n.model, **asdict(point)} for n in report.networks for point in n.several],
        shuffled=[{"model": n.model, **asdict(point)} for n in report.networks for point in n.shuffled],
        notes=list(dict.fromkeys(note for network in report.networks for note in network.notes)),
    )
