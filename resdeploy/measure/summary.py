"""What a measurement says: percentiles, an interval, throughput, speed-ups, and what speaks against them.

Times that wander are no error: they are shown, with the word *unsteady* and how they wandered. A ratio of two that took
turns is judged by its own interval, which is as wide as the machine was restless. INVALID is what makes a figure wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from resdeploy import stats
from resdeploy.measure import environment, kernels
from resdeploy.measure.quiet import LEAST_TURNS, are_quiet
from resdeploy.records import Block, Comparison, Measurement, Summary
from resdeploy.records.times import LEAST_PAIRS
from resdeploy.stats import looks
from resdeploy.vocabulary import EQUAL_WITHIN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Times = NDArray[np.float64]

ERROR = 0.01  # how often a comparison may miss the truth, all looks at it together
FAULTS = ("few-blocks", "cached")  # doubts of `stats.doubts` that make a figure wrong

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

DOUBTS = {
    "few-blocks": "{observed:.0f} blocks could be timed, {limit:.0f} are needed; raise --duration or --max-time",
    "drift": "times drifted by {observed:+.1%} over the run; let the machine settle or cool down, then measure again",
    "slow-first": "the first block was {observed:.1%} slower than the others; measure again, or raise --duration",
    "bimodal": "times fall into two groups {observed:.1%} apart; stop other programs, or give fewer --threads",
    "outliers": "{observed:.1%} of the times are far from the rest; stop other programs and measure again",
    "cached": "an input seen before was answered {observed:.0%} faster than new ones, {limit:.0%} are allowed; "
    "something keeps results: turn that off",
    "variance": "times spread by {observed:.1%} of their median; stop other programs, or give fewer --threads",
}

UNSTEADY = tuple(kind for kind in DOUBTS if kind not in FAULTS)


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
    wrong, unsteady = faults(measurement), unsteadiness(measurement)
    return Summary(
        measurement=measurement,
        latency_s=latency,
        end_to_end_p50_s=_quantile(np.concatenate([_end_to_end_s(block) for block in blocks]), 0.5),
        p50_ci95_s=_median_interval(_latencies_s(measurement)),
        throughput_ips=images / sum(map(_wall_s, blocks)),
        cpu_s_per_image=sum(block.cpu_s for block in blocks) / images,
        energy_j_per_image=_per_image(images, [block.energy_j for block in blocks]),
        instructions_per_image=_per_image(images, [block.instructions for block in blocks]),
        cycles_per_image=_per_image(images, [block.cycles for block in blocks]),
        valid=not wrong,
        warnings=(*warnings, *wrong, *unsteady),
        unsteady=unsteady,
        samples_s=tuple(times.tolist()),
    )


def _per_image(images: int, values: Sequence[float | None]) -> float | None:
    """The sum over the images; None where it could not be read in every block."""
    known = [value for value in values if value is not None]
    return sum(known) / images if len(known) == len(values) else None


def faults(measurement: Measurement) -> tuple[str, ...]:
    """What makes its figures wrong, one sentence each with its remedy."""
    return _doubts(measurement, FAULTS)


def unsteadiness(measurement: Measurement) -> tuple[str, ...]:
    """How its times wandered and what disturbed the machine, one sentence each with its remedy."""
    return (*_doubts(measurement, UNSTEADY), *measurement.disturbances)


def _doubts(measurement: Measurement, kinds: Collection[str]) -> tuple[str, ...]:
    doubts = list(stats.doubts(per_image_s(measurement)))
    if replays := measurement.replays:
        cached = stats.cached([replay.fresh_s for replay in replays], [replay.replayed_s for replay in replays])
        doubts += [cached] if cached else []
    return tuple(
        DOUBTS[doubt.kind].format(observed=doubt.observed, limit=doubt.limit) for doubt in doubts if doubt.kind in kinds
    )


def compare(baseline: Measurement, candidate: Measurement, *, equal_within: float = EQUAL_WITHIN) -> Comparison:
    """How much faster `candidate` is than `baseline`, by pairs of processes that took turns in one interleaved run.

    Every turn, of a block of each, met the same machine; so the speed-up is not exactly the ratio of the two medians
    over the whole run.
    """
    pairs = process_pairs(baseline, candidate)
    once, all_looks = (stats.ratio_of_pairs(pairs, confidence=share) for share in (0.95, looks.confidence(ERROR)))
    cpu, instructions = (
        stats.ratio_of_pairs(own, confidence=looks.confidence(ERROR)) if own else None
        for own in (
            cpu_pairs(candidate, baseline),
            _pairs_of_means(candidate, baseline, lambda block: block.instructions),
        )
    )
    several = len(pairs) > 1
    # Without the pairs that a claim needs nothing is said anyway, and why there are few blocks is told by their number.
    kinds = FAULTS if len(pairs) >= LEAST_PAIRS else ("cached",)
    return Comparison(
        baseline=baseline.label,
        candidate=candidate.label,
        speedup=once.value,
        speedup_ci95=(once.low, once.high) if several else None,
        speedup_ci99=(all_looks.low, all_looks.high) if several else None,
        cpu_ratio=cpu.value if cpu else None,
        cpu_ratio_ci99=_finite(cpu),
        instructions_ratio=instructions.value if instructions else None,
        instructions_ratio_ci99=_finite(instructions),
        pairs=len(pairs),
        equal_within=equal_within,
        needed_s=_needed_s(all_looks, len(pairs), span_s(baseline, candidate), equal_within),
        invalid=tuple(
            [f"{m.label}: {why}" for m in (baseline, candidate) for why in _doubts(m, kinds)]
            + _one_sided(baseline, candidate)
        ),
        kernels=kernels.compare(baseline.kernels, candidate.kernels) if baseline.backend == candidate.backend else None,
    )


def _finite(ratio: stats.Estimate | None) -> tuple[float, float] | None:
    return (ratio.low, ratio.high) if ratio is not None and math.isfinite(ratio.high) else None


def process_pairs(baseline: Measurement, candidate: Measurement) -> list[tuple[list[Times], list[Times]]]:
    """Seconds per image of both in each pair of their processes, turn by turn.

    Quiet turns only (`measure.quiet`), where at least half of the pairs have some, and enough of them for a claim.
    """
    turns = _turns(baseline, candidate)
    quiet = {process: [turn for turn in own if turn.quiet] for process, own in turns.items()}
    quiet = {process: own for process, own in quiet.items() if len(own) >= LEAST_TURNS}
    if len(quiet) == len(turns) or (len(quiet) >= LEAST_PAIRS and 2 * len(quiet) >= len(turns)):
        turns = quiet
    return [([turn.baseline_s for turn in own], [turn.candidate_s for turn in own]) for own in turns.values()]


@dataclass(frozen=True)
class _Turn:
    baseline_s: Times
    candidate_s: Times
    quiet: bool


def _turns(baseline: Measurement, candidate: Measurement) -> dict[int, list[_Turn]]:
    """By process; a block that met none is left out."""
    sides = []
    for m in (baseline, candidate):
        table: dict[int, list[tuple[Times, bool]]] = {}
        for block, times, quiet in zip(m.blocks, per_image_s(m), are_quiet(m.blocks), strict=True):
            table.setdefault(block.process, []).append((times, quiet))
        sides.append(table)
    before, after = sides
    return {
        process: [
            _Turn(one, other, quiet and also)
            for (one, quiet), (other, also) in zip(before[process], after[process], strict=False)
        ]
        for process in sorted(before.keys() & after.keys())
    }


def cpu_pairs(baseline: Measurement, candidate: Measurement) -> list[tuple[list[Times], list[Times]]]:
    """CPU seconds per image of both in each pair of their processes, one mean for each process.

    Other load changes it far less than the time. A process in which none was counted is left out.
    """
    return _pairs_of_means(baseline, candidate, lambda block: block.cpu_s)


def _pairs_of_means(
    baseline: Measurement, candidate: Measurement, value: Callable[[Block], float | None]
) -> list[tuple[list[Times], list[Times]]]:
    """What a block counted, per image, of both in each pair of their processes; those without it are left out."""

    def per_query(block: Block) -> float | None:
        counted = value(block)
        return counted / len(block.run_s) if counted else None

    before, after = (
        {process: mean / m.batch_size for process, mean in _per_process(m, per_query).items()}
        for m in (baseline, candidate)
    )
    return [([np.array([before[p]])], [np.array([after[p]])]) for p in sorted(before.keys() & after.keys())]


def _per_process(measurement: Measurement, value: Callable[[Block], float | None]) -> dict[int, float]:
    """The mean of a block's value in each process; processes without one are left out."""
    table: dict[int, list[float]] = {}
    for block in measurement.blocks:
        if (one := value(block)) is not None:
            table.setdefault(block.process, []).append(one)
    return {process: float(np.mean(values)) for process, values in table.items()}


def _one_sided(baseline: Measurement, candidate: Measurement) -> list[str]:
    """What disturbed one side and not the other, which pairing cannot take out of a ratio."""
    reasons = []
    for what, limit, share in (
        ("other processes", environment.OTHER_LOAD_SHARE, lambda block: block.others),
        ("the hypervisor or a quota", environment.WITHHELD_SHARE, lambda block: block.withheld),
    ):
        before, after = (_per_process(m, share) for m in (baseline, candidate))
        common = sorted(before.keys() & after.keys())
        if len(common) < LEAST_PAIRS:
            continue
        difference = np.array([after[process] - before[process] for process in common])
        shares = [float(np.mean([side[process] for process in common])) for side in (before, after)]
        # On a busy machine two sides differ by chance, and by the kernel's ticks: one must have twice the other's load.
        if min(shares) < max(shares) / 2 and abs(difference.mean()) > limit and stats.surely_not_zero(difference):
            reasons.append(
                f"{what} took {shares[0]:.0%} of the usable cores beside {baseline.label} and {shares[1]:.0%} beside "
                f"{candidate.label}; stop what runs beside one alone"
            )
    return reasons


def span_s(baseline: Measurement, candidate: Measurement) -> float:
    """From the first block of both to the last: how long the comparison took."""
    blocks = (*baseline.blocks, *candidate.blocks)
    return max(b.started_s + _wall_s(b) for b in blocks) - min(b.started_s for b in blocks)


def _needed_s(ratio: stats.Estimate, pairs: int, spent_s: float, equal_within: float) -> float | None:
    """How long the run would take to decide, were the truth the estimate: an interval narrows as 1 / sqrt(pairs)."""
    if pairs < 2:
        return None
    value, half, band = abs(math.log(ratio.value)), math.log(ratio.high / ratio.low) / 2, math.log1p(equal_within)
    room = max(value, band - value)
    needed = max(LEAST_PAIRS, math.ceil(pairs * (half / room) ** 2))
    return spent_s * needed / pairs if needed <= looks.PAIRS[-1] else None


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
