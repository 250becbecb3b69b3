"""What a measurement says: percentiles, an interval, throughput, speed-ups, and whether it is reliable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from resdeploy import stats
from resdeploy.records import Block, Comparison, Measurement, Summary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Times = NDArray[np.float64]

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

DOUBTS = {
    "few-blocks": "only {observed:.0f} blocks could be timed and {limit:.0f} are needed; raise --duration",
    "drift": "times drifted by {observed:+.1%} over the run; let the machine settle or cool down, then measure again",
    "slow-first": "the first block was {observed:.1%} slower than the others; measure again, or raise --duration",
    "bimodal": "times fall into two groups {observed:.1%} apart; stop other programs, or give fewer --threads",
    "outliers": "{observed:.1%} of the times are far from the rest; stop other programs and measure again",
    "cached": "an input seen before was answered {observed:.0%} faster than new ones, {limit:.0%} are allowed; "
    "something keeps results: turn that off",
    "variance": "times spread by {observed:.1%} of their median; stop other programs, or give fewer --threads",
}


def summarise(measurement: Measurement) -> Summary:
    """Derives everything that is reported.

    Latency is that of the measurement's scope: compute alone with the inputs on the device, or with the copies (from
    host memory), or with decoding too (from JPEG files). Percentiles are order statistics; one whose sample is too
    small (`stats.minimum_queries`: 64 for p90, 662 for p99) is None, with a warning.
    """
    blocks = measurement.blocks
    times = np.concatenate(_latencies_s(measurement))
    latency: dict[str, float | None] = {}
    warnings = []
    for name, share in PERCENTILES.items():
        needed = 1 if name == "p50" else stats.minimum_queries(share)
        latency[name] = _quantile(times, share) if len(times) >= needed else None
        if len(times) < needed:
            warnings.append(f"{name} needs {needed} queries and has {len(times)}; raise --duration")
    latency |= {"mean": float(times.mean()), "min": float(times.min()), "max": float(times.max())}
    latency["std"] = float(times.std(ddof=1)) if len(times) > 1 else None
    images = measurement.batch_size * len(times)
    energies = [block.energy_j for block in blocks]
    against = doubts(measurement)
    return Summary(
        measurement=measurement,
        latency_s=latency,
        end_to_end_p50_s=_quantile(np.concatenate([_end_to_end_s(block) for block in blocks]), 0.5),
        p50_ci95_s=_median_interval(_latencies_s(measurement)),
        throughput_ips=images / sum(map(_wall_s, blocks)),
        cpu_s_per_image=sum(block.cpu_s for block in blocks) / images,
        energy_j_per_image=None if None in energies else sum(e for e in energies if e is not None) / images,
        valid=not against,
        warnings=(*warnings, *against),
        samples_s=tuple(times.tolist()),
    )


def doubts(measurement: Measurement) -> tuple[str, ...]:
    """Why no speed may be claimed from it, one sentence each with its remedy; empty where nothing speaks against it."""
    found = list(stats.doubts(per_image_s(measurement)))
    if measurement.replays:
        replays = measurement.replays
        cached = stats.cached([replay.fresh_s for replay in replays], [replay.replayed_s for replay in replays])
        found += [cached] if cached else []
    named = (DOUBTS[doubt.kind].format(observed=doubt.observed, limit=doubt.limit) for doubt in found)
    return (*named, *measurement.disturbances)


def compare(baseline: Measurement, candidate: Measurement) -> Comparison:
    """Speed-up of `candidate` over `baseline`: the ratio of their times per image in a turn, with its 95 % interval.

    Both belong to one interleaved run: every turn, of a block of each, met the same machine. So it is not exactly the
    ratio of the two medians over the whole run.
    """
    found = stats.paired_ratio(per_image_s(baseline), per_image_s(candidate))
    return Comparison(
        baseline=baseline.label,
        candidate=candidate.label,
        speedup=found.value,
        speedup_ci95=(found.low, found.high) if math.isfinite(found.high) else None,
        valid=not doubts(baseline) and not doubts(candidate),
    )


def per_image_s(measurement: Measurement) -> list[Times]:
    """Seconds per image, one array per block: what speed is judged by.

    Single-stream and multi-stream: the time of each query over its batch. Offline: queries of several sessions
    overlap, so a block has one value, its wall time over its images.
    """
    if measurement.scenario != "offline":
        return [times / measurement.batch_size for times in _latencies_s(measurement)]
    return [np.array([_wall_s(b) / (len(b.run_s) * measurement.batch_size)]) for b in measurement.blocks]


def _latencies_s(measurement: Measurement) -> list[Times]:
    if measurement.scope == "compute":
        return [np.asarray(block.run_s) for block in measurement.blocks]
    return [_end_to_end_s(block) for block in measurement.blocks]


def _end_to_end_s(block: Block) -> Times:
    total: Times = np.array([block.put_s, block.run_s, block.get_s]).sum(axis=0)
    return total


def _wall_s(block: Block) -> float:
    return block.wall_s or float(_end_to_end_s(block).sum())


def _quantile(times: Times, share: float) -> float:
    return float(np.quantile(times, share, method="inverted_cdf"))


def _median_interval(blocks: Sequence[Times]) -> tuple[float, float] | None:
    if len(blocks) < 2:
        return None
    found = stats.percentile(blocks, 0.5)
    return found.low, found.high
