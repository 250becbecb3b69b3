"""What a trained network is without some of its blocks: the lesions of Veit et al. 2016 (arXiv:1605.06431, section 4).

Deleting a block leaves its shortcut (for a plain network, which has none: nothing), so that only blocks which keep
the shape can go from both kinds of network; from a residual one those that change it, too. Nothing is trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from resdeploy.models.resnet import BasicBlock, Bottleneck, ResNet, blocks_of
from resdeploy.train.images import Samples, normalise

if TYPE_CHECKING:
    from resdeploy.records import Preprocessing

BATCH = 250
Block = BasicBlock | Bottleneck


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
