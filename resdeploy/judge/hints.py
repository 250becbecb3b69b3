"""Likely causes of lost accuracy: only those that the predictions themselves show."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.judge.pairs import Pair

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A renumbering explains a drop if undoing it brings back this share of what was lost, on images it was not fitted to.
EXPLAINED = 0.5
COLLAPSED = 0.9


def hints(pair: Pair) -> tuple[str, ...]:
    """Sentences naming likely causes; empty where nothing can be known."""
    sentences = (_explain_preprocessing(pair), _explain_renumbering(pair), _explain_collapse(pair))
    return tuple(sentence for sentence in sentences if sentence)


def _explain_preprocessing(pair: Pair) -> str:
    """Images that the two models saw differently; which settings differ, where both sides tell them."""
    prints = (pair.baseline.preprocessing_fingerprint, pair.candidate.preprocessing_fingerprint)
    if not all(prints) or prints[0] == prints[1]:
        return ""
    opening = f"The two models' images were preprocessed differently ({prints[0][:12]} and {prints[1][:12]}): "
    specs = [side.origin.preprocessing if side.origin else None for side in (pair.baseline, pair.candidate)]
    if specs[0] is None or specs[1] is None:
        return opening + "check size, mean, std and channel order"
    before, after = (dataclasses.asdict(spec) for spec in specs if spec is not None)
    changed = [
        f"{name} {_write_setting(before[name])} and {_write_setting(after[name])}"
        for name in before
        if before[name] != after[name]
    ]
    return opening + (", ".join(changed) or "another version of the image decoder")


def _write_setting(value: object) -> str:
    """A setting as the command line takes it."""
    return ",".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)


def _explain_renumbering(pair: Pair) -> str:
    """Classes that were shifted or permuted between the two models."""
    before, after, labels = pair.baseline.top[:, 0], pair.candidate.top[:, 0], pair.baseline.labels
    lost = float(np.mean(before == labels) - np.mean(after == labels))
    if lost <= 0:
        return ""
    shift = _commonest(after - before)[0]
    if shift and np.mean(after - shift == labels) - np.mean(after == labels) > EXPLAINED * lost:
        return f"The candidate's classes are the baseline's shifted by {shift:+d}: its class list starts elsewhere"
    # Fitted on every other image and tried on the rest: with many classes a renumbering can be fitted to noise.
    undo = _renumbering(before[::2], after[::2])
    undone = np.array([undo.get(name, name) for name in after[1::2].tolist()])
    recovered = np.mean(undone == labels[1::2]) - np.mean(after[1::2] == labels[1::2])
    if recovered <= EXPLAINED * lost or len(set(undo.values())) < len(undo):
        return ""
    moved = sum(new != old for new, old in undo.items())
    return f"The candidate numbers {moved} classes otherwise than the baseline: its class list is in another order"


def _renumbering(before: NDArray[np.int64], after: NDArray[np.int64]) -> dict[int, int]:
    """For each class of the candidate, what the baseline mostly calls the same images."""
    return {int(name): _commonest(before[after == name])[0] for name in np.unique(after)}


def _explain_collapse(pair: Pair) -> str:
    """A model that answers with one class whatever it is shown."""
    favourite, share = _commonest(pair.candidate.top[:, 0])
    if share < COLLAPSED or np.mean(pair.baseline.top[:, 0] == favourite) > share / 2:
        return ""
    return (
        f"The candidate answers class {favourite} for {100 * share:.0f} % of the images: "
        "its activations saturate, or its input is scaled wrongly"
    )


def _commonest(values: NDArray[np.int64]) -> tuple[int, float]:
    """The most frequent value and its share."""
    distinct, counts = np.unique(values, return_counts=True)
    return int(distinct[counts.argmax()]), float(counts.max() / len(values))
