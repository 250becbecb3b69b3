"""Proportions, and above all the difference of two proportions on the same images.

A pair of predictions for one image is right/right, right/wrong (*lost*), wrong/right (*gained*) or wrong/wrong. The
drop is `(lost - gained) / images`; only the flips tell anything about it, which is why a paired test needs several
times fewer images than two separate accuracies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def normal_quantile(probability: float) -> float:
    """The standard normal quantile."""
    return NormalDist().inv_cdf(probability)


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of one proportion; (0, 1) where nothing was tried.

    Source: Wilson, JASA 22 (1927) 209-212; Newcombe, Stat. Med. 17 (1998) 857-872, method 3.
    """
    if trials == 0:
        return 0.0, 1.0
    z = normal_quantile((1 + confidence) / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # At the ends the exact limit is 0 or 1; the difference of two equal numbers misses it by rounding.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == trials else (centre + half) / scale
    return low, high


def newcombe_interval(
    successes: int, trials: int, other_successes: int, other_trials: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Two-sided interval of the difference of two proportions of separate samples, `first - other`.

    Source: Newcombe, Stat. Med. 17 (1998) 873-890, method 10 (from the two Wilson intervals).
    """
    share, other = successes / trials, other_successes / other_trials
    low, high = wilson_interval(successes, trials, confidence=confidence)
    other_low, other_high = wilson_interval(other_successes, other_trials, confidence=confidence)
    difference = share - other
    return (
        difference - math.hypot(share - low, other_high - other),
        difference + math.hypot(high - share, other - other_low),
    )


def tango_score(lost: ArrayLike, gained: ArrayLike, images: ArrayLike, drop: ArrayLike) -> NDArray[np.float64]:
    """Score statistic of "the true drop is `drop`", elementwise: standard normal where that is so.

    Positive where more was lost than `drop` says. At drop 0 it is McNemar's `(lost - gained) / sqrt(lost + gained)`.
    The share of gains is estimated by maximum likelihood under the constraint, which is a quadratic's larger root.

    Source: Tango, Stat. Med. 17 (1998) 891-908, equations (24)-(26), with drop for his -Delta.
    """
    b, c, n, d = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (lost, gained, images, drop)))
    linear = -b - c + (2 * n - b + c) * d
    constant = -c * d * (1 - d)
    root = np.sqrt(np.maximum(linear * linear - 8 * n * constant, 0))
    # Both forms are the same root; each loses all digits by cancellation where the other does not.
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(linear > 0, -2 * constant / (linear + root), (root - linear) / (4 * n))
        share = np.maximum(share, np.maximum(-d, 0))  # lost = gained + drop cannot be negative either
        excess = b - c - n * d
        # No excess is no evidence, also at 0/0: the limit where nothing flipped.
        return np.where(excess == 0, 0.0, excess / np.sqrt(n * (2 * share + d * (1 - d))))


def tango_interval(lost: float, gained: float, images: float, *, tail: float = 0.05) -> tuple[float, float]:
    """Score interval of the drop: each limit is passed by the true drop with probability `tail`.

    `tail=0.05` gives two one-sided 95 % bounds (a 90 % interval), `tail=0.025` the two-sided 95 % interval. Unlike the
    Wald interval it is right with few flips, none included, and stays within [-1, 1].

    Args:
        lost: images that only the baseline gets right.
        gained: images that only the candidate gets right.
        images: all images, at least `lost + gained`. All three may be divided by a design effect.
        tail: in (0, 0.5).

    Raises:
        ValueError: counts that no set of images can give.
    """
    if images <= 0 or min(lost, gained) < 0 or lost + gained > images or not 0 < tail < 0.5:
        msg = f"no paired table: lost={lost}, gained={gained}, images={images}, tail={tail}"
        raise ValueError(msg)
    z = normal_quantile(1 - tail)
    # Exchanging the two models turns the lower limit into an upper one.
    return -_upper_limit(gained, lost, images, z), _upper_limit(lost, gained, images, z)


def _upper_limit(lost: float, gained: float, images: float, z: float) -> float:
    """The drop at which the score falls to -z; it falls steadily from 0 at the drop observed."""
    low, high = (lost - gained) / images, 1.0
    if low == high:
        return high
    # Nine steps of 64 parts, one vectorised call each, reach 2^-53; to import a root finder would take longer.
    for _ in range(9):
        drops = np.linspace(low, high, 65)
        above = int(np.count_nonzero(tango_score(lost, gained, images, drops) > -z))
        low, high = float(drops[above - 1]), float(drops[above])
    return high


def mcnemar_midp(lost: int, gained: int) -> float:
    """Two-sided mid-p value of "both models are equally often right": flips are fair coin tosses.

    Source: Fagerland, Lydersen, Laake, BMC Med. Res. Methodol. 13 (2013) 91: it kept its level in all 9,595 scenarios
    tried, unlike the exact test and the continuity-corrected one, which waste power.
    """
    if lost + gained == 0:
        return 1.0
    exactly, at_most = _coin(min(lost, gained), lost + gained)
    return 1 - exactly / 2 if lost == gained else 2 * at_most - exactly


def _coin(heads: int, tosses: int) -> tuple[float, float]:
    """Probabilities of `heads`, and of at most `heads`, with a fair coin."""
    # By logarithms: with thousands of tosses the coefficient overflows.
    ways = math.lgamma(tosses + 1) - math.lgamma(heads + 1) - math.lgamma(tosses - heads + 1)
    exactly = math.exp(ways - tosses * math.log(2))
    fewer = np.arange(heads, 0, -1)
    return exactly, exactly * (1 + float(np.cumprod(fewer / (tosses - fewer + 1)).sum()))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values: those at most alpha may be believed together at level alpha.

    Source: Holm, Scand. J. Statist. 6 (1979) 65-70.
    """
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return tuple(adjusted)


def images_to_decide(
    flip_rate: float, drop: float, margin: float, *, tail: float = 0.05, power: float = 0.8
) -> int | None:
    """Images with which a true `drop` would be told from `margin` with probability `power`; None if they are equal.

    The variance under the margin is that of the constrained estimate in the expected table, the one under the truth is
    `flip_rate - drop**2`. With no flips it is exactly the size at which Tango's bound meets the margin.

    Source: Nam, Biometrics 53 (1997) 1422-1430, the sample size of the score test in matched pairs.
    """
    if drop == margin:
        return None
    lost, gained = (flip_rate + drop) / 2, (flip_rate - drop) / 2
    # The score of the expected table of one image is (drop - margin) / standard deviation under the margin.
    under_margin = (drop - margin) / float(tango_score(lost, gained, 1.0, margin))
    under_truth = math.sqrt(max(flip_rate - drop * drop, 0.0))
    distance = normal_quantile(1 - tail) * under_margin + normal_quantile(power) * under_truth
    return math.ceil((distance / (margin - drop)) ** 2)


def calibration_error(confidences: ArrayLike, correct: ArrayLike, *, bins: int = 15) -> float:
    """Expected calibration error: mean distance of accuracy and confidence over equal-width bins, a fraction.

    Source: Naeini et al., AAAI 2015; Guo et al., ICML 2017, section 2, equation (3); 15 bins as there.
    """
    p, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    # Bins are closed above, as in equation (1).
    which = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(which, weights=right - p, minlength=bins)
    return float(np.abs(gaps).sum() / len(p))
