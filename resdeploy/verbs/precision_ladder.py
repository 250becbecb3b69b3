"""The fastest mixed-precision model within an accuracy budget: which layers stay in floats, and which result holds.

Candidates form a ladder from the most exact to the one with every layer in INT8. It is made without looking at the
images that judge: from what each layer costs alone (`quantize.sensitivity`, on the calibration images). Errors of
different layers are nearly independent, so their noise adds up, and each mix leaves in float those layers that give
most noise for the arithmetic they take until a given share of the noise is left.

The judging goes down the ladder and ends with the first candidate that is not shown to be within the budget. Such a
fixed sequence, its order chosen beforehand, keeps the chance of any wrong pass at `1 - confidence` without a
correction for the number of candidates (Maurer, Hothorn and Lehmacher 1995; Westfall and Krishen, J. Stat. Plan.
Inference 99 (2001) 25-40). Of those that passed, measured latency decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from resdeploy.judge import accuracy
from resdeploy.measure import interleaved, summary
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import Failure, Measurement, Mixed, Predictions, Progress, Sensitivity
from resdeploy.vocabulary import MAX_TIME_S

# Noise left, as a share of the noise of INT8 everywhere: halved from one mix to the next, 3 dB of the logits each.
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)


def ladder(layers: Sequence[Sensitivity], macs: Mapping[str, int]) -> tuple[Mixed, ...]:
    """The candidates, the most exact first: FP16, INT8 with ever fewer layers in float, INT8.

    Args:
        layers: of every quantized layer; blocks are left out of account.
        macs: multiply-accumulates of each layer.
    """
    single = [layer for layer in layers if layer.kind != "block"]
    total = math.fsum(layer.noise for layer in single)
    first = sorted(single, key=lambda layer: -layer.noise / max(macs.get(layer.name, 1), 1))
    mixes = [Mixed(label="fp16", precision="fp16", keep_float=(), noise_share=0.0)]
    for share in (*SHARES, 1.0):
        kept: list[str] = []
        left = total
        for layer in first:
            if left <= share * total:
                break
            kept.append(layer.name)
            left -= layer.noise
        label = f"int8, {len(kept)} in fp32" if kept else "int8"
        names = {layer.name for layer in single if layer.name in kept}
        mix = Mixed(
            label=label,
            precision="int8",
            keep_float=tuple(layer.name for layer in single if layer.name in names),
            noise_share=max(left, 0.0) / total if total else 0.0,
        )
        # All layers in float would be no INT8 model.
        if len(kept) < len(single) and mix.keep_float not in [other.keep_float for other in mixes[1:]]:
            mixes.append(mix)
    return tuple(mixes)


def judge_mixes(
    mixes: Sequence[Mixed],
    baseline: Predictions,
    predict: Callable[[Mixed], Predictions],
    *,
    max_drop_pp: float,
    confidence: float,
) -> tuple[Mixed, ...]:
    """Down the ladder until one is not shown to be within the budget; the rest stays unjudged."""
    judged: list[Mixed] = []
    for mix in mixes:
        if judged and (judged[-1].check is None or judged[-1].check.state != "pass"):
            judged.append(mix)
            continue
        verdict = accuracy.judge(baseline, predict(mix), max_drop_pp=max_drop_pp, confidence=confidence)
        judged.append(replace(mix, check=next(check for check in verdict.checks if check.name == "top1")))
    return tuple(judged)


def time_mixes(
    mixes: Sequence[Mixed],
    baseline: Candidate,
    built: Callable[[Mixed], Candidate],
    *,
    duration_s: float,
    seed: int,
    max_time_s: float = MAX_TIME_S,
    progress: Progress | None = None,
) -> tuple[Mixed, ...]:
    """Those within the budget timed in one interleaved run with FP32, and the fastest chosen.

    Where none is within the budget, the one with the least certain drop among those judged is chosen, untimed.
    """
    passed = [mix for mix in mixes if mix.check is not None and mix.check.state == "pass"]
    if not passed:
        best = min((mix for mix in mixes if mix.check is not None), key=_most_lost)
        return tuple(replace(mix, chosen=mix is best) for mix in mixes)
    rivals = [built(mix) for mix in passed]
    outcomes = interleaved.run(
        [baseline, *rivals],
        interleaved.Schedule(duration_s=duration_s, seed=seed, max_time_s=max_time_s),
        interleaved.Listener(progress=progress),
        questions=[interleaved.Question(baseline=baseline.label, candidate=rival.label) for rival in rivals],
    )
    times = {outcome.label: outcome for outcome in outcomes if isinstance(outcome, Measurement)}
    timed = [_with_times(mix, times.get(mix.label), times.get(baseline.label)) for mix in mixes]
    measurable = [mix for mix in timed if mix.summary is not None]
    if not measurable:
        interleaved.measurement_or_raise(next(outcome for outcome in outcomes if isinstance(outcome, Failure)))
    fastest = min(measurable, key=_p50_s)
    return tuple(replace(mix, chosen=mix is fastest) for mix in timed)


def _with_times(mix: Mixed, measured: Measurement | None, fp32: Measurement | None) -> Mixed:
    if measured is None:
        return mix
    speedup = None if fp32 is None else summary.compare(fp32, measured)
    return replace(mix, summary=summary.summarise(measured), speedup=speedup)


def _p50_s(mix: Mixed) -> float:
    assert mix.summary is not None
    p50_s = mix.summary.latency_s["p50"]
    assert p50_s is not None
    return p50_s


def _most_lost(mix: Mixed) -> float:
    """The largest drop that the images leave possible, in points."""
    assert mix.check is not None
    return mix.check.interval[1] if mix.check.interval is not None else math.inf
