"""Comparisons in plain words: the sentence that a result begins with, and the word in its table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from resdeploy.records import Artifact, Check, Comparison, ModelSpec, Preprocessing
from resdeploy.records.times import LEAST_PAIRS, SAME_KERNELS

MAX_TIME = "--max-time (in a profile max_time_s)"
TWICE = 1.1  # from here on a factor is easier to understand than a percentage


def answer(comparison: Comparison) -> str:
    """One sentence: who takes how much longer than whom, within which bounds; and where nothing is sure, what helps."""
    candidate, baseline = comparison.candidate, comparison.baseline
    verdict = comparison.verdict
    if verdict == "INVALID":
        return f"no claim about {candidate} and {baseline}: {comparison.invalid[0]}"
    if verdict == "equal":
        bounds = _percentages(comparison, slower=False)
        return f"{candidate} is as fast as {baseline}, within {100 * comparison.equal_within:g} % {bounds}"
    if verdict in ("faster", "slower"):
        return f"{candidate} {_difference(comparison, slower=verdict == 'slower')} {baseline} {_bounds(comparison)}"
    if comparison.speedup_ci99 is None or comparison.pairs < LEAST_PAIRS:
        return (
            f"undecided between {candidate} and {baseline}: {comparison.pairs} of at least {LEAST_PAIRS} pairs of "
            f"processes could be timed; raise {MAX_TIME}"
        )
    low, high = comparison.speedup_ci99
    return (
        f"undecided between {candidate} and {baseline}: the first takes {1 / high:.3g} to {1 / low:.3g} times as long "
        f"as the second; {_what_it_takes(comparison)}"
    )


def judged(check: Check, candidate: str, baseline: str) -> str | None:
    """One sentence on a limit of accuracy or speed: what was seen of the candidate, and on which side of it that is.

    None: a limit that no comparison is behind, or of which nothing was seen; its row says why.
    """
    if check.observed is None or check.interval is None or check.limit is None:
        return None
    low, high = check.interval
    if check.name in ("top1", "top5"):
        name = f"top-{check.name[-1]}"
        lost = f"{abs(check.observed):.2f} points of {name}"
        seen = f"{candidate} {'loses' if check.observed >= 0 else 'gains'} {lost} against {baseline}"
        seen += f" [{low:.2f}, {high:.2f}]" if check.observed >= 0 else f" [{-high:.2f}, {-low:.2f}]"
        limit = f"{check.limit:g}"
    elif check.name in ("slowdown", "cpu-slowdown"):
        times = [1 + value / 100 for value in (check.observed, low, high)]
        much = "long" if check.name == "slowdown" else "much CPU time"
        seen = f"{candidate} takes {times[0]:.3g} times as {much} as {baseline} [{times[1]:.3g}, {times[2]:.3g}]"
        limit = f"{1 + check.limit / 100:.3g}"
    else:
        return None
    side = {"pass": "within", "fail": "beyond"}.get(check.state)
    return (
        f"{seen}: {side} the limit of {limit}" if side else f"{seen}: whether within the limit of {limit} is not sure"
    )


SIGHT_OPTIONS = "--img-size, --resize, --interpolation, --mean or --std"


def preprocessing(seen: Preprocessing) -> str:
    """What a network sees of an image, step by step: size, resizing, crop, normalisation, layout."""
    height, width = seen.size
    if seen.resize is None:
        resized = "images not resized"
    else:
        sides = "shorter side" if seen.resize_mode == "shorter" else "both sides"
        crop = ", centre crop" if seen.resize_mode == "shorter" or seen.size != (seen.resize, seen.resize) else ""
        resized = f"{sides} to {seen.resize} ({seen.interpolation}){crop}"
    mean, std = (",".join(f"{value:.4g}" for value in values) for values in (seen.mean, seen.std))
    whose = ", which the model does itself" if seen.dtype == "uint8" else ""
    return f"{height}x{width} {seen.channels} as NCHW {seen.dtype}: {resized}, mean {mean}, std {std}{whose}"


def seen_by(specs: Iterable[ModelSpec], says: str, change: str = SIGHT_OPTIONS) -> list[str]:
    """A sentence for each way in which these see images, with who says so and what changes it; none where nobody does.

    Args:
        specs: of networks; several may see alike.
        says: where the preprocessing comes from.
        change: the options, or whatever else, that change it.
    """
    ways: dict[str, dict[str, None]] = {}
    for spec in specs:
        if spec.preprocessing is not None:
            ways.setdefault(preprocessing(spec.preprocessing), {})[spec.name] = None
    return [
        f"{', '.join(names)} {'see' if len(names) > 1 else 'sees'} {way}; from {says}; change it with {change}"
        for way, names in ways.items()
    ]


CHECKS: Mapping[str, str] = {  # of an artifact's record; what is not here is told as it is called there
    "max_rel_error": "within {:.2g} of torch in float64",
    "snr_db": "{:.1f} dB of signal to noise",
    "train_loss": "training loss {:.4g}",
    "distillation_loss": "squared distance of logits {:.4g}",
    "held_out_top1": "top-1 {:.2f} % on what was held out",
    "best_epoch": "epoch {:.0f} was the best",
    "drop_pp": "a drop of {:+.2f} points",
    "drop_at_most_pp": "at most {:.2f}",
    "build_s": "built in {:.1f} s",
    "build_peak_rss_mib": "{:,.0f} MiB of memory",
}
TOLD_ELSEWHERE = ("max_abs_error", "torch_fp32_rel_error", "test_top1", "test_top1_before", "test_images")


def checked(artifact: Artifact) -> list[str]:
    """What a file was checked to, in words: its agreement with torch, its batch sizes, the adds that can fuse."""
    checks = artifact.checks
    told = [CHECKS[name].format(value) for name, value in checks.items() if name in CHECKS]
    if sizes := [f"{value:.0f}" for name, value in checks.items() if name.startswith("batch_size_")]:
        told.append(f"tried at batch {' and '.join(sizes)}")
    if checks.get("residual_adds"):
        told.append(f"{checks['fusable_adds']:.0f} of {checks['residual_adds']:.0f} residual adds can fuse")
    if artifact.precision == "int8" and artifact.target not in (None, "tensorrt"):
        told.append("needs VNNI" if artifact.machine == "vnni" else "portable")
    known = ("batch_size_", "residual_adds", "fusable_adds", *CHECKS, *TOLD_ELSEWHERE)
    return [*told, *(f"{name} {value:.3g}" for name, value in checks.items() if not name.startswith(known))]


def finding(comparison: Comparison) -> str:
    """The verdict as a word, with what it needs to be understood."""
    verdict = comparison.verdict
    if verdict == "equal":
        return f"equal within {100 * comparison.equal_within:g} %"
    return {"INVALID": "no claim: INVALID"}.get(verdict, verdict)


def kernels(comparison: Comparison) -> str | None:
    """Whether the two execute the same, and what follows; None: it is not known, or they ran on different backends."""
    candidate, baseline = comparison.candidate, comparison.baseline
    if comparison.kernels is None:
        return None
    if comparison.kernels != SAME_KERNELS:
        return f"{candidate} does not execute what {baseline} does: {comparison.kernels}"
    told = f"{candidate} and {baseline} execute the same kernels on the same shapes and types"
    if comparison.verdict in ("faster", "slower"):
        return f"{told}: the difference is not expected to come from the model"
    return f"{told}: the model is not expected to have changed its speed"


def _difference(comparison: Comparison, *, slower: bool) -> str:
    factor = 1 / comparison.speedup if slower else comparison.speedup
    if factor >= TWICE:
        return f"takes {factor:.3g} times as long as" if slower else f"is {factor:.3g} times as fast as"
    return f"is {100 * (factor - 1):.2g} % {'slower' if slower else 'faster'} than"


def _bounds(comparison: Comparison) -> str:
    slower = comparison.verdict == "slower"
    if (1 / comparison.speedup if slower else comparison.speedup) < TWICE:
        return _percentages(comparison, slower=slower)
    low, high = comparison.speedup_ci99 or (math.nan, math.nan)
    return f"[{1 / high:.3g}, {1 / low:.3g}]" if slower else f"[{low:.3g}, {high:.3g}]"


def _percentages(comparison: Comparison, *, slower: bool) -> str:
    low, high = comparison.speedup_ci99 or (math.nan, math.nan)
    if slower:
        low, high = 1 / high, 1 / low
    return f"[{100 * (low - 1):.2g}, {100 * (high - 1):.2g}]"


def _what_it_takes(comparison: Comparison) -> str:
    if comparison.needed_s is None:
        return "no sensible time decides"
    minutes = comparison.needed_s / 60
    about = f"{minutes:.0f} min" if minutes >= 2 else f"{comparison.needed_s:.0f} s"
    return f"a run of about {about} would decide: raise {MAX_TIME}"
