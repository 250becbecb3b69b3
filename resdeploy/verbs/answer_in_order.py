"""`gate --sequential`: models answer images in random order until every candidate's drop is decided."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resdeploy.data import datasets
from resdeploy.data.datasets import Dataset
from resdeploy.judge import in_order, pairs
from resdeploy.judge.pairs import Pair
from resdeploy.measure import run_images
from resdeploy.measure.interleaved import Candidate
from resdeploy.measure.run_images import Part
from resdeploy.records import Preprocessing, Progress, Verdict
from resdeploy.verbs.gate_options import GatePlan


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A candidate and the baseline on the images that were needed, and the verdict on them."""

    pair: Pair
    verdict: Verdict


def answer(
    baseline: Candidate, candidates: Sequence[Candidate], plan: GatePlan, *, progress: Progress
) -> tuple[Answered, ...]:
    """Shows images to both sides until each candidate is decided, or all were seen.

    Each candidate is judged on the images up to the one that decided it, in the order that `plan.seed` gives. Images
    are read once before, for the hashes of their contents: what is there twice is shown once.

    Raises:
        UsageError: a model that was calibrated on synthetic images or on some of these.
        MalformedInput: images that cannot be decoded, unless `plan.skip_bad`. Those that were not reached stay unknown.
        ResdeployError: what the backend or the data raised.
    """
    images = _shuffled(plan)
    for side in (baseline, *candidates):
        pairs.refuse_calibrated_on(side.artifact.calibration, images.hashes, model=side.model, data=images.name)
    assert plan.limits.drop_pp is not None
    limit_pp, several = plan.limits.drop_pp, len(candidates)
    reached = _show(baseline, candidates, images, plan, progress)
    answered = []
    for candidate, (before, after) in zip(candidates, reached, strict=True):
        pair = pairs.match(
            run_images.predictions_of(baseline, images, _spec(baseline), before),
            run_images.predictions_of(candidate, images, _spec(candidate), after),
        )
        verdict = in_order.judge(
            pair,
            _outcomes(before, after),
            of=len(images) - sum(len(part.unreadable) for part in before),
            max_drop_pp=limit_pp,
            confidence=plan.confidence,
            candidates=several,
        )
        answered.append(Answered(pair=pair, verdict=verdict))
    return tuple(answered)


def _show(
    baseline: Candidate, candidates: Sequence[Candidate], images: Dataset, plan: GatePlan, progress: Progress
) -> list[tuple[list[Part], list[Part]]]:
    """What the baseline and each candidate answered to the images that it was decided by."""
    assert plan.limits.drop_pp is not None
    size = max(run_images.DECODED, plan.batch_size)
    seen: list[tuple[list[Part], list[Part]]] = [([], []) for _ in candidates]
    with contextlib.ExitStack() as stack:
        first, *streams = (
            stack.enter_context(contextlib.closing(run_images.answer(side, images, _spec(side), batch_size=size)))
            for side in (baseline, *candidates)
        )
        undecided = dict(enumerate(streams))
        for before in first:
            if not plan.skip_bad:
                run_images.refuse_unreadable(before.unreadable, len(images))
            for k, stream in list(undecided.items()):
                after = next(stream)
                # Whether an image can be decoded depends on its bytes alone, so all sides have the same batches.
                assert np.array_equal(before.indices, after.indices)
                seen[k][0].append(before)
                seen[k][1].append(after)
                count = in_order.decided_after(
                    _outcomes(*seen[k]),
                    max_drop_pp=plan.limits.drop_pp,
                    confidence=plan.confidence,
                    candidates=len(candidates),
                )
                if count is not None:
                    seen[k] = (_first(seen[k][0], count), _first(seen[k][1], count))
                    undecided.pop(k).close()
            progress("judging images", int(before.indices[-1]) + 1, len(images))
            if not undecided:
                break
    return seen


def _shuffled(plan: GatePlan) -> Dataset:
    """Every image of the test split once, in random order."""
    assert plan.data is not None
    images = datasets.deduplicate(datasets.open_dataset(plan.data, split="test"))
    return images.subset(np.random.default_rng(plan.seed).permutation(len(images)))


def _spec(side: Candidate) -> Preprocessing | None:
    return side.artifact.model.preprocessing if side.artifact.model else None


def _first(parts: Sequence[Part], count: int) -> list[Part]:
    """The parts up to an image."""
    kept: list[Part] = []
    for part in parts:
        kept.append(part.first(count))
        count -= len(part.indices)
        if count <= 0:
            break
    return kept


def _outcomes(before: Sequence[Part], after: Sequence[Part]) -> np.ndarray:
    """Of each image in order: 1 lost, -1 gained, 0 unchanged."""
    right = [np.concatenate([part.right for part in side]).astype(np.int8) for side in (before, after)]
    return right[0] - right[1]
