"""Dropping residual blocks: those whose absence changes the network's answers least, as many as a budget allows.

A trained residual network behaves like an ensemble of paths of different lengths, most of which survive the loss of a
block (Veit et al. 2016, arXiv:1605.06431). What a block is worth is measured by leaving it out: the mean Kullback-
Leibler divergence of the answers from the whole network's, which tells blocks apart where counts of wrong answers
cannot. Blocks go one by one, each the cheapest given those that are gone. The cost of the others mostly grows as blocks
go, so only the one that looks cheapest is tried again, and it goes if it still is the cheapest (Minoux 1978's lazy
greedy choice).

Everything here works on the ONNX graph and needs no torch. The images to choose on and the images to judge on are
different ones, and nothing is chosen on the latter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resdeploy import scratch, stats, store
from resdeploy.data import datasets
from resdeploy.errors import NothingRemoved, UsageError
from resdeploy.graph import drop, files, metadata
from resdeploy.judge import accuracy, pairs
from resdeploy.records import Artifact, Lesion, Predictions, Progress, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.data.datasets import Dataset

# Per-image answers of an FP32 ONNX file on images.
Predict = Callable[[Artifact, "Dataset"], Predictions]
# A network without these blocks, trained a little, as an FP32 ONNX file.
Tune = Callable[[tuple[str, ...]], Artifact]
TRIES = 4  # candidates tried again for each block that goes, at most


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be lost."""

    max_drop_pp: float
    confidence: float = 0.95
    blocks: int | None = None  # remove exactly so many, whatever they cost


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The result, and how it came about."""

    artifact: Artifact  # FP32 ONNX with fewer blocks
    removed: tuple[str, ...]  # in the order in which they went
    lesions: tuple[Lesion, ...]  # every block that can go, alone
    path: tuple[Lesion, ...]  # after each removal, all before it gone too; the last may be the one that was too much
    tuned: Lesion | None  # after the fine-tuning
    baseline: Predictions  # of the images to judge on
    candidate: Predictions
    verdict: Verdict


def prune(
    source: Artifact,
    choosing: Dataset,
    judging: Dataset,
    budget: Budget,
    *,
    predict: Predict,
    out: Path,
    tune: Tune | None = None,
    progress: Progress | None = None,
) -> Pruned:
    """Removes blocks from an FP32 ONNX file while the drop stays within the budget, and writes the result.

    A block goes if, with the drop and the flips seen on the images to choose on, the images to judge on would pass the
    gate with a probability of 80 %.

    Args:
        source: an FP32 ONNX file with residual blocks.
        choosing: labelled images to choose on.
        judging: other ones, for the verdict.
        budget: what may be lost.
        predict: runs a file.
        out: where to write, `.onnx`.
        tune: trains the network without the blocks chosen.
        progress: told of each lesion.

    Raises:
        UsageError: no block can be removed, or the two sets share images.
        NothingRemoved: none may be, within the budget; nothing is written.
    """
    if shared := set(choosing.ids) & set(judging.ids):
        raise UsageError(f"{len(shared)} images are to be chosen on and judged on", fix="Give two different sets")
    with scratch.folder() as folder:
        search = _Search(source, choosing, len(judging), budget, predict, folder, progress)
        lesions = search.try_each()
        removed, path = search.choose(lesions)
        search.refuse_none(removed, path)
        tuned = None
        if tune is not None:
            trained = tune(removed)
            store.write_bytes(out, Path(trained.path).read_bytes())
            artifact = dataclasses.replace(trained, path=str(out))
            tuned = search.compare(removed[-1], predict(artifact, choosing))
        else:
            artifact = search.write_without(removed, out)
    artifact = _note_removal(artifact, removed, choosing)
    baseline, candidate = predict(source, judging), predict(artifact, judging)
    return Pruned(
        artifact=artifact,
        removed=removed,
        lesions=lesions,
        path=path,
        tuned=tuned,
        baseline=baseline,
        candidate=candidate,
        verdict=accuracy.judge(baseline, candidate, max_drop_pp=budget.max_drop_pp, confidence=budget.confidence),
    )


def prune_unjudged(
    source: Artifact,
    choosing: Dataset,
    judged_on: int,
    budget: Budget,
    *,
    predict: Predict,
    out: Path,
    progress: Progress | None = None,
) -> Artifact:
    """As `prune`, but the caller makes the verdict, on `judged_on` images that are not seen here.

    Raises:
        UsageError: no block can be removed.
        NothingRemoved: none may be, within the budget; nothing is written.
    """
    with scratch.folder() as folder:
        search = _Search(source, choosing, judged_on, budget, predict, folder, progress)
        removed, path = search.choose(search.try_each())
        search.refuse_none(removed, path)
        return _note_removal(search.write_without(removed, out), removed, choosing)


def _note_removal(artifact: Artifact, removed: Sequence[str], choosing: Dataset) -> Artifact:
    """The artifact with a note on what is missing from it, and how that was chosen."""
    note = f"without {', '.join(removed)}, chosen on {len(choosing):,} images of {choosing.name}"
    return dataclasses.replace(artifact, notes=(*artifact.notes, note))


class _Search:
    """The network, the images to choose on, and the network's answers on them."""

    def __init__(
        self,
        source: Artifact,
        images: Dataset,
        judged_on: int,
        budget: Budget,
        predict: Predict,
        folder: Path,
        progress: Progress | None,
    ) -> None:
        self.source, self.images, self.judged_on, self.budget = source, images, judged_on, budget
        self.predict, self.folder = predict, folder
        self.progress = progress or (lambda _what, _done, _total: None)
        self.model = files.load_model(Path(source.path))
        self.candidates = drop.removable_blocks(self.model)
        if not self.candidates:
            raise UsageError(
                f"{source.path} has no residual block with an identity shortcut",
                cause="Only such blocks can go and leave nothing behind; plain networks have none",
                fix="Name a residual network",
            )
        if budget.blocks is not None and budget.blocks > len(self.candidates):
            raise UsageError(f"{budget.blocks} blocks cannot go, there are {len(self.candidates)} that can")
        self.whole = predict(source, images)

    def write_without(self, names: Sequence[str], out: Path) -> Artifact:
        """Writes the network without these blocks."""
        model = drop.remove(self.model, names)
        spec = self.source.model
        if spec is not None:
            spec = dataclasses.replace(spec, removed=(*spec.removed, *names), params=None)
            metadata.attach(model, spec)
        files.save_model(model, out)
        return store.derive(self.source, out, model=spec)

    def compare(self, block: str, answers: Predictions) -> Lesion:
        """What these answers have lost against the whole network's, `block` being the last to go."""
        pair = pairs.match(self.whole, answers)
        lost, gained = int(pair.lost.sum()), int(pair.gained.sum())
        low, high = stats.tango_interval(lost, gained, pair.images, tail=1 - self.budget.confidence)
        assert pair.baseline.logits is not None  # ours always have them
        assert pair.candidate.logits is not None
        return Lesion(
            block=block,
            divergence=divergence(pair.baseline.logits, pair.candidate.logits),
            drop_pp=100 * (lost - gained) / pair.images,
            interval_pp=(100 * low, 100 * high),
            flips=lost + gained,
        )

    def try_each(self) -> tuple[Lesion, ...]:
        """Every block that can go, alone."""
        lesions = []
        for i, name in enumerate(self.candidates):
            lesions.append(self._try((name,)))
            self.progress("lesions", i + 1, len(self.candidates))
        return tuple(lesions)

    def _try(self, names: Sequence[str]) -> Lesion:
        path = self.folder / "tried.onnx"
        return self.compare(names[-1], self.predict(self.write_without(names, path), self.images))

    def choose(self, lesions: Sequence[Lesion]) -> tuple[tuple[str, ...], tuple[Lesion, ...]]:
        """The blocks that go, in order, and the path; its last point is the first block too many, if there is one."""
        worth = {lesion.block: lesion.divergence for lesion in lesions}  # what each cost when last tried
        removed: tuple[str, ...] = ()
        path: list[Lesion] = []
        spent = 0.0
        while worth and len(removed) != self.budget.blocks:
            best = self._find_cheapest(removed, worth, spent)
            path.append(best)
            if self.budget.blocks is None and not self._is_affordable(best):
                break
            removed, spent = (*removed, best.block), best.divergence
            del worth[best.block]
            self.progress("removing", len(removed), len(self.candidates))
        self.progress("removing", len(self.candidates), len(self.candidates))
        return removed, tuple(path)

    def refuse_none(self, removed: Sequence[str], path: Sequence[Lesion]) -> None:
        """Says why no block may go, where none may.

        Raises:
            NothingRemoved: with what the cheapest block costs, and what would be needed for it.
        """
        if removed:
            return
        best, limit_pp = path[-1], self.budget.max_drop_pp
        low, high = best.interval_pp
        if best.drop_pp >= limit_pp:
            why, fix = "That is not within the budget", f"Allow more: --max-drop {math.ceil(best.drop_pp + 1)}"
        else:
            share, drop_share = best.flips / len(self.whole.labels), best.drop_pp / 100
            needed = stats.images_to_decide(share, drop_share, limit_pp / 100, tail=1 - self.budget.confidence)
            why = f"To show that, about {needed:,} images are needed and {self.judged_on:,} judge" if needed else ""
            fix = "Give more images, or allow more with --max-drop; --blocks 1 removes it whatever it costs"
        raise NothingRemoved(
            f"none of the {len(self.candidates)} blocks of {self.source.path} that could go may go within "
            f"{limit_pp:g} points: {best.block}, the cheapest, loses {best.drop_pp:.2f} points of top-1 on "
            f"{len(self.whole.labels):,} images [{low:+.2f}, {high:+.2f}]",
            cause=why,
            fix=f"{fix}. Nothing was written",
        )

    def _find_cheapest(self, removed: tuple[str, ...], worth: dict[str, float], spent: float) -> Lesion:
        """The block whose loss costs least now; `worth` gets what is learned about the others."""
        trials: dict[str, Lesion] = {}
        while True:
            name = min(worth, key=lambda block: worth[block])
            if name in trials:
                return trials[name]
            if len(trials) == TRIES:
                return min(trials.values(), key=lambda lesion: lesion.divergence)
            trials[name] = self._try((*removed, name))
            worth[name] = trials[name].divergence - spent

    def _is_affordable(self, lesion: Lesion) -> bool:
        """Whether as many images as the verdict is on would probably pass with this drop and these flips."""
        share = lesion.flips / len(self.whole.labels)
        limit, drop_share = self.budget.max_drop_pp / 100, lesion.drop_pp / 100
        if drop_share >= limit:
            return False
        images = stats.images_to_decide(share, drop_share, limit, tail=1 - self.budget.confidence)
        return images is not None and images <= self.judged_on


def divergence(whole: NDArray[np.float32], lesioned: NDArray[np.float32]) -> float:
    """Mean Kullback-Leibler divergence of the softmax of logits (n, classes) from that of the whole network's, nats."""
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (whole, lesioned))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def halves(images: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """One half to choose on and the other to judge on, every class divided evenly."""
    names = set(datasets.choose(images, len(images) // 2, seed).ids)
    first = [i for i, name in enumerate(images.ids) if name in names]
    second = [i for i, name in enumerate(images.ids) if name not in names]
    return images.subset(first), images.subset(second)
