"""How soon and how rightly `gate --sequential` decides, beside a planned size: writes results/gate-sequential.json.

    python benchmarks/gate_sequential.py                # two or three minutes
    python benchmarks/gate_sequential.py --scale 0.05   # a rough look

Images are drawn with the shares of lost and gained answers that each row names, and judged after every one of them.
Beside it stands the gate's default on the same draws: Tango's bounds, once, at the size that was planned for no drop.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy import stats, store
from resdeploy.stats import eprocess

RESULTS = Path(__file__).resolve().parent / "results" / "gate-sequential.json"
RUNS, TOGETHER, TAIL = 2000, 100, 0.05


@dataclass(frozen=True, kw_only=True)
class Case:
    """A truth and a limit, in points and percent."""

    drop_pp: float
    flips_pct: float
    limit_pp: float
    images: int  # that there are


CASES = (
    # At the limit itself every decision but none is wrong.
    Case(drop_pp=1.0, flips_pct=4, limit_pp=1.0, images=10_000),
    Case(drop_pp=1.0, flips_pct=1.5, limit_pp=1.0, images=10_000),
    Case(drop_pp=0.5, flips_pct=2, limit_pp=0.5, images=10_000),
    # No drop, or a rise: how soon it passes.
    Case(drop_pp=0.0, flips_pct=4, limit_pp=1.0, images=10_000),
    Case(drop_pp=0.0, flips_pct=1, limit_pp=1.0, images=5000),
    Case(drop_pp=0.0, flips_pct=0, limit_pp=1.0, images=1000),
    Case(drop_pp=-0.5, flips_pct=4, limit_pp=1.0, images=10_000),
    Case(drop_pp=0.5, flips_pct=4, limit_pp=1.0, images=20_000),
    # More than the limit: how soon it fails.
    Case(drop_pp=2.0, flips_pct=8, limit_pp=1.0, images=20_000),
    Case(drop_pp=5.4, flips_pct=11, limit_pp=1.0, images=5000),
    Case(drop_pp=11.0, flips_pct=13, limit_pp=1.0, images=2000),
    Case(drop_pp=11.0, flips_pct=15, limit_pp=1.0, images=2000),
    Case(drop_pp=11.0, flips_pct=20, limit_pp=1.0, images=2000),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    runs = max(TOGETHER, round(RUNS * arguments.scale))
    rows = []
    for number, case in enumerate(CASES):
        rows.append(of_case(case, runs, seed=number))
        print(_sentence(rows[-1]), flush=True)
    document = {"command": "python benchmarks/gate_sequential.py", "runs": runs, "confidence": 1 - TAIL, "rows": rows}
    store.write_json(arguments.out, document)


def of_case(case: Case, runs: int, *, seed: int) -> dict[str, Any]:
    """Shares of verdicts, and quantiles of the images until a decision."""
    limit = case.limit_pp / 100
    planned = stats.images_to_decide(case.flips_pct / 100, 0.0, limit) or 0
    passed, failed, images, once = [], [], [], []
    for seen in _draws(case, runs, np.random.default_rng(seed)):
        within, beyond = (_stops(seen, limit, side) for side in ("within", "beyond"))
        passed.append((within < beyond) & (within <= case.images))
        failed.append((beyond < within) & (beyond <= case.images))
        images.append(np.minimum(np.minimum(within, beyond), case.images))
        if planned <= case.images:
            part = seen[:, :planned]
            score = stats.tango_score((part > 0).sum(axis=1), (part < 0).sum(axis=1), planned, limit)
            once.append(score <= -stats.proportions.normal_quantile(1 - TAIL))
    until = np.concatenate(images)
    return {
        "drop_pp": case.drop_pp,
        "flips_pct": case.flips_pct,
        "limit_pp": case.limit_pp,
        "images": case.images,
        "pass_share": float(np.concatenate(passed).mean()),
        "fail_share": float(np.concatenate(failed).mean()),
        "images_median": float(np.median(until)),
        "images_mean": float(until.mean()),
        "images_p90": float(np.quantile(until, 0.9)),
        "planned_images": planned,
        "planned_pass_share": float(np.concatenate(once).mean()) if once else None,
        "pass_share_by_planned": float((np.concatenate(passed) & (until <= planned)).mean()),
    }


def _draws(case: Case, runs: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    lost, gained = (case.flips_pct + case.drop_pp) / 200, (case.flips_pct - case.drop_pp) / 200
    for _ in range(math.ceil(runs / TOGETHER)):
        u = rng.random((TOGETHER, case.images))
        yield np.where(u < lost, 1, np.where(u < lost + gained, -1, 0)).astype(np.int8)


def _stops(seen: np.ndarray, limit: float, side: eprocess.Side) -> np.ndarray:
    reached = eprocess.log_fortune(seen, limit, side=side) >= -math.log(TAIL)
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, seen.shape[1] + 1)


def _sentence(row: dict[str, Any]) -> str:
    return (
        f"drop {row['drop_pp']:g}, flips {row['flips_pct']:g} %, limit {row['limit_pp']:g}: "
        f"{100 * row['pass_share']:.1f} % pass, {100 * row['fail_share']:.1f} % fail of {row['images']:,} images; "
        f"stopped after {row['images_median']:,.0f} (median), {row['images_mean']:,.0f} (mean), "
        f"{row['images_p90']:,.0f} (90 %); planned {row['planned_images']:,}"
    )


if __name__ == "__main__":
    main()
