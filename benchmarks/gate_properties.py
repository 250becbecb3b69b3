"""How often the accuracy gate is wrong, by exact enumeration: regenerates the tables of docs/gate.md.

    python benchmarks/gate_properties.py            # writes docs/gate.md between its markers
    python benchmarks/gate_properties.py --check    # exit 1 if the page is not what this computes

For a true drop and flip rate the number of flips is binomial and, given that, so is the number of losses; every table
of counts but a tail of 1e-10 is judged by the gate's own statistic and its probability added up. Nothing is simulated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from scipy.stats import binom

from resdeploy import stats

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gate.md"
BEGIN, END = "<!-- gate_properties: begin -->", "<!-- gate_properties: end -->"
MISSED = 1e-10
ONE_SIDED, TWO_SIDED = NormalDist().inv_cdf(0.95), NormalDist().inv_cdf(0.975)
SIZES = (500, 1000, 5000, 10_000, 50_000)
FLIP_RATES = (0.01, 0.02, 0.04, 0.08)
LIMITS = (0.005, 0.01)
# The grid of the summary is finer and reaches beyond what the table shows.
FINE_SIZES = (500, 700, 1000, 2000, 3000, 5000, 7000, 10_000, 20_000, 50_000)
FINE_FLIP_RATES = (0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12)
FINE_DROPS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02)
MIN_FLIPS = 10
Point = tuple[int, float, float]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Probabilities of the verdicts for one truth, and that the two-sided 95 % interval holds it."""

    passes: float
    fails: float
    naive_passes: float  # "observed drop <= limit"
    covered: float


Counts = np.ndarray
Statistic = Callable[[Counts, Counts, int, float], Counts]  # lost, gained, images, drop -> standard normal if true


def tango(lost: Counts, gained: Counts, images: int, drop: float) -> Counts:
    """The gate's own."""
    return stats.tango_score(lost, gained, images, drop)


def wald(lost: Counts, gained: Counts, images: int, drop: float) -> Counts:
    """The difference over its standard error as seen: what a t-test of the differences is, too."""
    excess = lost - gained - images * drop
    error = np.sqrt(lost + gained - (lost - gained) ** 2 / images)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(excess == 0, 0.0, excess / error)


def bonett_price(lost: Counts, gained: Counts, images: int, drop: float) -> Counts:
    """Wald with one added to both kinds of flips (Bonett and Price, J. Educ. Behav. Stat. 37 (2012) 479-488)."""
    lost, gained = (lost + 1) / (images + 2), (gained + 1) / (images + 2)
    return (lost - gained - drop) / np.sqrt((lost + gained - (lost - gained) ** 2) / (images + 2))


def skewness_corrected(lost: Counts, gained: Counts, images: int, drop: float) -> Counts:
    """Tango's score z with z - skewness / 6 (z^2 - 1) in its place (Laud, Pharm. Stat. 16 (2017) 334-348).

    The skewness is that of one image's outcome under the constrained estimate, over sqrt(images).
    """
    score = stats.tango_score(lost, gained, images, drop)
    excess = lost - gained - images * drop
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.where(score == 0, np.nan, (excess / score) ** 2 / images)  # of one image, constrained
        flips = variance + drop * drop
        skewness = (drop - 3 * drop * flips + 2 * drop**3) / variance**1.5 / np.sqrt(images)
    return np.where(np.isnan(skewness), score, score - skewness / 6 * (score * score - 1))


METHODS: dict[str, Statistic] = {
    "Tango's score (the gate)": tango,
    "Tango's score, corrected for skewness": skewness_corrected,
    "Wald": wald,
    "Bonett and Price": bonett_price,
}


def rates(images: int, flip_rate: float, drop: float, limit: float, statistic: Statistic = tango) -> Rates:
    """Exact up to `MISSED`: the sum over all numbers of flips and losses."""
    share = (flip_rate + drop) / 2 / flip_rate
    passes = fails = naive = covered = 0.0
    first, last = binom.ppf(MISSED, images, flip_rate), binom.isf(MISSED, images, flip_rate)
    for flips in range(int(first), int(last) + 1):
        lost = np.arange(binom.ppf(MISSED, flips, share), binom.isf(MISSED, flips, share) + 1)
        lost = lost[(lost >= 0) & (lost <= flips)]
        weight = binom.pmf(flips, images, flip_rate) * binom.pmf(lost, flips, share)
        against_limit = statistic(lost, flips - lost, images, limit)
        against_truth = against_limit if drop == limit else statistic(lost, flips - lost, images, drop)
        passes += weight[against_limit <= -ONE_SIDED].sum()
        fails += weight[against_limit >= ONE_SIDED].sum()
        naive += weight[2 * lost - flips <= images * limit].sum()
        covered += weight[np.abs(against_truth) <= TWO_SIDED].sum()
    return Rates(passes=passes, fails=fails, naive_passes=naive, covered=covered)


def table() -> str:
    """One row for each size, flip rate and limit with at least ten flips expected."""
    head = (
        "| images | flips | limit | drop = limit: passes | fails | naive rule passes | 95 % interval covers "
        "| drop = 0: passes | fails | naive rule fails |"
    )
    rows = [head, "|--:" * 10 + "|"]
    for images in SIZES:
        for flip_rate in FLIP_RATES:
            for limit in LIMITS:
                if images * flip_rate < MIN_FLIPS:
                    continue
                worst, best = rates(images, flip_rate, limit, limit), rates(images, flip_rate, 0.0, limit)
                rows.append(
                    f"| {images:,} | {flip_rate:.0%} | {100 * limit:g} | {worst.passes:.2%} | {worst.fails:.2%} "
                    f"| {worst.naive_passes:.1%} | {worst.covered:.2%} | {best.passes:.1%} | {best.fails:.3%} "
                    f"| {1 - best.naive_passes:.1%} |"
                )
    return "\n".join(rows)


def grid() -> list[Point]:
    """Images, share of flips and drop of every point of the fine grid."""
    return [
        (images, flip_rate, drop)
        for images in FINE_SIZES
        for flip_rate in FINE_FLIP_RATES
        for drop in FINE_DROPS
        if images * flip_rate >= MIN_FLIPS and drop <= flip_rate
    ]


def methods() -> str:
    """The extremes of other bounds over the fine grid."""
    lines = [
        "| bound | drop = limit passes, at most | fails, at most | 95 % interval covers | points outside 94 to 96 % |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, statistic in METHODS.items():
        found = {point: rates(*point, point[2], statistic) for point in grid()}
        limited = [r for point, r in found.items() if point[2] > 0]
        covered = [r.covered for r in found.values()]
        outside = sum(not 0.94 <= share <= 0.96 for share in covered)
        lines.append(
            f"| {name} | {max(r.passes for r in limited):.2%} | {max(r.fails for r in limited):.2%} "
            f"| {min(covered):.1%} to {max(covered):.1%} | {outside} of {len(covered)} |"
        )
    return "\n".join(lines)


def summary() -> str:
    """The extremes over the fine grid, with the points where coverage leaves 94 to 96 %."""
    points = grid()
    found = {point: rates(*point, point[2]) for point in points}
    passed = max(((r.passes, p) for p, r in found.items() if p[2] > 0))
    failed = max(((r.fails, p) for p, r in found.items() if p[2] > 0))
    outside = {p: r.covered for p, r in found.items() if not 0.94 <= r.covered <= 0.96}
    inside = [r.covered for p, r in found.items() if p not in outside]
    over = (
        f"Over {len(points)} points ({FINE_SIZES[0]:,} to {FINE_SIZES[-1]:,} images, {FINE_FLIP_RATES[0]:.1%} to "
        f"{FINE_FLIP_RATES[-1]:.0%} flips, true drops of 0 to {100 * FINE_DROPS[-1]:g} points, "
        f"at least {MIN_FLIPS} flips expected):"
    )
    lines = [
        over,
        "",
        f"- a true drop of exactly the limit passes at most {passed[0]:.2%} of the time ({_where(passed[1])});",
        f"- it is called a fail at most {failed[0]:.2%} of the time ({_where(failed[1])});",
    ]
    others = f", and at the other {len(outside)}, where every flip is a loss:" if outside else "."
    lines.append(
        f"- the two-sided 95 % interval covers the true drop in {min(inside):.1%} to {max(inside):.1%} at "
        f"{len(inside)} points{others}"
    )
    lines += [f"  {covered:.1%} at {_where(point)};" for point, covered in outside.items()]
    gate = rates(5000, 0.04, 0.0, 0.01)
    lines.append(f"- a true drop of 0 with a limit of 1 point, 4 % flips and 5,000 images passes {gate.passes:.1%}.")
    return "\n".join(lines)


def _where(point: Point) -> str:
    return f"{point[0]:,} images, {point[1]:.1%} flips, drop {100 * point[2]:g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    made = f"{head}{BEGIN}\n\n{summary()}\n\n{methods()}\n\n{table()}\n\n{END}{tail}"
    if arguments.check:
        print("docs/gate.md is up to date" if made == page else "docs/gate.md is out of date: run without --check")
        return int(made != page)
    PAGE.write_text(made, encoding="utf-8")
    print(f"wrote {PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
