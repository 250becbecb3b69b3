"""What may have gone wrong when a model lost accuracy: only causes that the predictions themselves show."""

from __future__ import annotations

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
    prints = (pair.baseline.preprocessing_fingerprint, pair.candidate.preprocessing_fingerprint)
    found = []
    if all(prints) and prints[0] != prints[1]:
        found.append(
            f"The two models' images were preprocessed differently ({prints[0][:12]} and {prints[1][:12]}): "
            "check size, mean, std and channel order"
        )
    found.append(_renumbered(pair))
    found.append(_collapsed(pair))
    return tuple(sentence for sentence in found if sentence)


def _renumbered(pair: Pair) -> str:
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


def _collapsed(pair: Pair) -> str:
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
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()]), float(counts.max() / len(values))
