"""The paired drop watched image by image: a test that may stop at any image and is still wrong as rarely as it says.

Two gamblers bet on every image before it is seen, one that the drop is below the limit, one that it is above. At stakes
that are fair (or worse) where the gambler is wrong, a fortune grows large only by luck: whoever starts with 1 ever
reaches 1 / `tail` with probability `tail` at most (Ville's inequality), however often somebody looks and whenever they
stop. A fortune of 1 / `tail` is therefore a decision, at every image and not at a planned number of them only.

An outcome is +1 where the answer was lost, -1 where it was gained, 0 where nothing changed; its mean is the drop. All
that is assumed is that this mean is the same for each image whatever the earlier ones were, as it is for images drawn
at random or put in random order.

Sources: Waudby-Smith and Ramdas, J. R. Statist. Soc. B 86 (2024) 1-27 (betting on a bounded mean, predictable stakes,
the confidence sequence of all means not rejected); Ville, Etude critique de la notion de collectif (1939).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Side = Literal["within", "beyond"]  # what the gambler bets on: a drop below the limit, or above it

# What each gambler divides the first 1 among: (distance of the drop that a part bets on from the limit, in limits;
# share). "Within" believes in no drop at all, and a little in half and double that distance; nobody knows
# how far "beyond" a broken candidate is. Any choice is valid. This one was taken from a few by simulation: with a
# limit of 1 point and 4 % flips it stops at the fewest images without a drop that still leave a chance to candidates
# which are better, or worse, than that (benchmarks/gate_sequential.py).
PARTS: dict[Side, tuple[tuple[float, float], ...]] = {
    "within": ((1.0, 4 / 6), (0.5, 1 / 6), (2.0, 1 / 6)),
    "beyond": ((1.0, 0.25), (3.0, 0.25), (10.0, 0.5)),
}
NO_LIMIT = 0.01  # the unit of "within" where the limit is 0, which itself is no distance
SMALLEST = 0.005  # the smallest unit of "beyond": a broken candidate is not better hidden by a strict limit
# The share of flips is estimated as (flips + 1) / (images + 10): a first bet as if 10 % flipped, which is cautious.
FLIPS_BEFORE, IMAGES_BEFORE = 1, 10
AT_STAKE = 0.9  # of a part's fortune at most, so that no single image ruins it (theirs is 1/2 or 3/4)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The first image at which a fortune sufficed."""

    within: bool  # shown to be below the limit; else above
    images: int  # seen until then


def decide(outcomes: ArrayLike, limit: float, *, tail: float = 0.05) -> Decision | None:
    """The first decision while the outcomes come in one by one; None where all together decide nothing.

    A drop of `limit` or more is ever called within with probability `tail` at most, and a drop of `limit` or less
    beyond likewise. A decision is final: outcomes that come later do not change it.

    Args:
        outcomes: (n,) of -1, 0 and 1 in random order.
        limit: of the drop, a fraction from 0 up to 1.
        tail: the error of each of both, in (0, 0.5).
    """
    needed = -math.log(tail)
    first = {side: _first(log_fortune(outcomes, limit, side=side) >= needed) for side in PARTS}
    reached = {side: images for side, images in first.items() if images is not None}
    if not reached:
        return None
    side = min(reached, key=reached.__getitem__)
    return Decision(within=side == "within", images=reached[side])


def bounds(outcomes: ArrayLike, limit: float, *, tail: float = 0.05) -> tuple[float, float]:
    """The drops that neither gambler rules out now, those of a gate with this `limit`.

    Each bound is passed by the true drop at any image with probability `tail` at most. At the image of a decision the
    bounds agree with it: the upper one is at most the limit where it is within, the lower one at least where beyond;
    and as long as nothing was decided the limit lies between them.

    Args:
        outcomes: (n,) of -1, 0 and 1 in random order, none included.
        limit: what the bets are made for. Any limit gives valid bounds, narrow ones around itself.
        tail: of each bound, in (0, 0.5).
    """
    return _lower(outcomes, limit, "beyond", tail), -_lower(outcomes, limit, "within", tail)


def log_fortune(outcomes: ArrayLike, limit: float, *, side: Side) -> NDArray[np.float64]:
    """The logarithm of what one gambler has after each image.

    Args:
        outcomes: (..., n) of -1, 0 and 1; every row is a game of its own.
        limit: of the drop.
        side: what is bet on.

    Returns:
        (..., n).
    """
    y, mean = _mirrored(outcomes, limit, side)
    bets = _bets(y, mean, side, limit)
    return _together([np.cumsum(_growth(y, mean, bet), axis=-1) for bet in bets], side)


def _first(reached: NDArray[np.bool_]) -> int | None:
    return int(reached.argmax()) + 1 if reached.any() else None


def _mirrored(outcomes: ArrayLike, limit: float, side: Side) -> tuple[NDArray[np.float64], float]:
    """Outcomes and limit of a bet that the mean is above it: "within" is "beyond" of the two models exchanged."""
    x = np.asarray(outcomes, np.float64)
    return (x, limit) if side == "beyond" else (-x, -limit)


def _together(grown: list[NDArray[np.float64]], side: Side) -> NDArray[np.float64]:
    """The fortune of all parts: a weighted mean of fair games is a fair game."""
    shares = [math.log(share) for _, share in PARTS[side]]
    fortune: NDArray[np.float64] = np.logaddexp.reduce([a + b for a, b in zip(shares, grown, strict=True)], axis=0)
    return fortune


def _bets(y: NDArray[np.float64], mean: float, side: Side, limit: float) -> list[NDArray[np.float64]]:
    """Each part's bet on each image, made from the share of flips in the images before it."""
    flips = np.cumsum(y != 0, axis=-1) - (y != 0)
    share = (flips + FLIPS_BEFORE) / (np.arange(y.shape[-1]) + IMAGES_BEFORE)
    unit = (limit or NO_LIMIT) if side == "within" else max(limit, SMALLEST)
    return [best_bet(mean, min(mean + distance * unit, 1.0), share) for distance, _ in PARTS[side]]


def best_bet(mean: float, drop: float, flips: ArrayLike) -> NDArray[np.float64]:
    """The bet b under which log(1 + b (outcome - mean)) grows fastest if the truth is `drop` with this share of flips.

    Kelly's criterion: with p the share of each outcome x, the derivative sum p (x - mean) / (1 + b (x - mean)) is 0.
    For three outcomes that is A b^2 - B b + (drop - mean) = 0 with A = mean (1 - mean^2), B = 3 mean (drop - mean) + v
    and v the variance around the mean, E (x - mean)^2; the root sought is the positive one of those nearest to 0.

    Source: Kelly, Bell Syst. Tech. J. 35 (1956) 917-926; GRAPA in Waudby-Smith and Ramdas, appendix B. The algebra is
    ours, checked numerically in tests/stats/test_stats_eprocess.py.

    Args:
        mean: what the bet is against, in (-1, 1).
        drop: above it, at most 1.
        flips: the share of outcomes that are not 0; taken as |drop| where it is below, since a drop needs flips.
    """
    excess = drop - mean
    variance = np.maximum(flips, abs(drop)) - 2 * mean * drop + mean * mean
    square, linear = mean * (1 - mean * mean), 3 * mean * excess + variance
    root = np.sqrt(np.maximum(linear * linear - 4 * square * excess, 0))
    bet: NDArray[np.float64] = 2 * excess / (linear + root)
    return bet


def _growth(y: NDArray[np.float64], mean: float, bet: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of what each image multiplies a fortune by, if the outcomes have this mean or a lower one."""
    # The worst outcome is -1: it takes (1 + mean) of each unit at stake.
    kept = np.minimum(bet, AT_STAKE / (1 + mean))
    return np.log1p(kept * (y - mean))


def _lower(outcomes: ArrayLike, limit: float, side: Side, tail: float) -> float:
    """The largest mean (of the mirrored outcomes) that the fortune rules out; -1 where it rules out none.

    The same bets are held against every mean. Since bets do not depend on it but for the cap, each factor falls (or
    stays) as the mean grows, so that what is ruled out is all below one value, found by halving.
    """
    y, mean = _mirrored(outcomes, limit, side)
    bets = _bets(y, mean, side, limit)
    needed = -math.log(tail)

    def ruled_out(value: float) -> bool:
        return bool(_together([_growth(y, value, bet).sum(axis=-1) for bet in bets], side) >= needed)

    low, high = -1.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if ruled_out(middle) else (low, middle)
    # What was decided at the limit is said of the limit itself, not of a value 2^-39 below it.
    return mean if low < mean <= high and ruled_out(mean) else low
