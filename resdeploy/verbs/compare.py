"""`compare`: two saved results, and what changed from the first to the second.

The two were measured in runs of their own, so what the machine did between them is in no block of either. `noise_pct`
stands for it: a ratio's interval is widened by that much at both ends, and a change is one that leaves 1 outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resdeploy import stats, vocabulary
from resdeploy.errors import UsageError
from resdeploy.measure import results
from resdeploy.records import Change

# Chosen as `vocabulary.NOISE_PCT` is: a peak holds whatever the allocator and the thread pools happened to keep.
MEMORY_NOISE_PCT = 5.0
KINDS = ("bench", "eval", "run")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What changed, row by row, and what must be known of the two runs."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]  # lines for the reader of the result
    warnings: tuple[str, ...]  # the two were not measured alike


def compare(baseline: Path, candidate: Path, *, noise_pct: float = vocabulary.NOISE_PCT, seed: int = 0) -> Compared:
    """Every row that both files have: its time, size, peak memory and accuracy, before and after.

    Raises:
        MissingInput, MalformedInput: a file is not there, or is no saved result.
        UsageError: the files are of different commands, or have no row in common.
    """
    before, after = results.read(baseline), results.read(candidate)
    if before["command"] != after["command"] or before["command"] not in KINDS:
        raise UsageError(
            f"{baseline} is a result of {before['command']} and {candidate} of {after['command']}",
            fix=f"Compare two results of one command: {', '.join(KINDS)}, each saved with --format json -o FILE",
        )
    changes: list[Change] = []
    lost: list[str] = []
    if before["command"] != "eval":
        old, new = results.load(baseline).rows, results.load(candidate).rows
        pairs = results.in_common(old, new)
        changes += [change for pair in pairs for change in _compare_times(*pair, noise_pct=noise_pct, seed=seed)]
        lost += _one_sided_rows(old, new, pairs)
    notes: list[str] = []
    if before["command"] != "bench":
        old_scores, new_scores = results.load_scores(baseline), results.load_scores(candidate)
        scored = results.in_common(old_scores, new_scores)
        changes += [change for pair in scored for change in _compare_scores(*pair)]
        lost += _one_sided_rows(old_scores, new_scores, scored) if before["command"] == "eval" else []
        notes += [note for pair in scored for note in _of_images(*pair)]
    if not changes:
        raise UsageError(
            f"{baseline} and {candidate} have no row of the same model, backend, precision and batch size",
            fix="Measure the same rows on both sides, or one row each",
        )
    if before["command"] != "eval":
        notes.append(
            f"Times are of two runs: intervals are widened by {noise_pct:g} %, for what the machine did between"
        )
    return Compared(
        changes=tuple(changes),
        notes=(*dict.fromkeys(notes), *lost),
        warnings=tuple(_unlike(before.get("environment") or {}, after.get("environment") or {})),
    )


def _compare_times(old: results.SavedRow, new: results.SavedRow, *, noise_pct: float, seed: int) -> Iterable[Change]:
    """What a bench tells: the time per image, the file, and the memory."""
    if _blocks(old, new) > 1:
        yield _compare_speed(old, new, noise_pct=noise_pct, seed=seed)
    for quantity, was, now, noise in (
        ("file size", old.size_bytes, new.size_bytes, 0.0),
        ("peak memory", old.peak_rss_bytes, new.peak_rss_bytes, MEMORY_NOISE_PCT),
    ):
        if was and now:
            change = 100 * (now / was - 1)
            words = "the same" if noise == 0 else "no difference found"
            finding = words if abs(change) <= noise else "bigger" if change > 0 else "smaller"
            yield Change(
                subject=_subject(old.label, new.label),
                quantity=quantity,
                unit="MB",
                before=was / 1e6,
                after=now / 1e6,
                change=change,
                interval=None,
                change_unit="%",
                finding=finding,
            )


def _compare_speed(old: results.SavedRow, new: results.SavedRow, *, noise_pct: float, seed: int) -> Change:
    """The time per image.

    Nothing tells what the machine did between the two runs: times that wandered decide here nothing, as they would in
    turns of one run.
    """
    ratio = stats.ratio_of_medians(new.blocks_s, old.blocks_s, seed=seed)
    noise = 1 + noise_pct / 100
    low, high = 100 * (ratio.low / noise - 1), 100 * (ratio.high * noise - 1)
    equal_pct = noise_pct + 100 * vocabulary.EQUAL_WITHIN
    doubts = [f"{side}: {why}" for side, row in (("before", old), ("after", new)) if (why := _doubts(row))]
    if doubts:
        finding = f"undecided ({'; '.join(doubts)})"
    elif low > 0 or high < 0:
        finding = "slower" if low > 0 else "faster"
    else:
        finding = f"equal within {equal_pct:g} %" if max(-low, high) <= equal_pct else "undecided"
    return Change(
        subject=_subject(old.label, new.label),
        quantity="time per image",
        unit="ms",
        before=1e3 * stats.percentile(old.blocks_s).value,
        after=1e3 * stats.percentile(new.blocks_s).value,
        change=100 * (ratio.value - 1),
        interval=(low, high),
        change_unit="%",
        finding=finding,
    )


def _doubts(row: results.SavedRow) -> str:
    """Why its times are unreliable; "" where they are not."""
    return ", ".join(doubt.kind for doubt in stats.doubts(row.blocks_s)) or ("" if row.valid else "INVALID")


def _compare_scores(old: results.SavedScore, new: results.SavedScore) -> Iterable[Change]:
    """What an evaluation tells; without the images' own answers the interval is that of two separate samples."""
    right: tuple[tuple[str, Callable[[results.SavedScore], int | None]], ...] = (
        ("top-1", lambda row: row.correct),
        ("top-5", lambda row: row.correct_top5),
    )
    for quantity, count in right:
        was, now = count(old), count(new)
        if was is None or now is None:
            continue
        low, high = (100 * bound for bound in stats.newcombe_interval(now, new.total, was, old.total))
        finding = "less exact" if high < 0 else "more exact" if low > 0 else "no difference found"
        if _other_images(old, new):
            finding = "no claim (other images)"
        yield Change(
            subject=_subject(old.label, new.label),
            quantity=quantity,
            unit="%",
            before=100 * was / old.total,
            after=100 * now / new.total,
            change=100 * (now / new.total - was / old.total),
            interval=(low, high),
            change_unit="points",
            finding=finding,
        )


def _of_images(old: results.SavedScore, new: results.SavedScore) -> Iterable[str]:
    if _other_images(old, new):
        yield f"{new.label}: the two were evaluated on different images, or with other preprocessing"
    else:
        yield (
            "Accuracies are compared as of separate images; image by image is several times as sharp: "
            "resdeploy eval MODEL --predictions FILE on both sides, then resdeploy gate"
        )


def _other_images(old: results.SavedScore, new: results.SavedScore) -> bool:
    return (
        old.data_fingerprint != new.data_fingerprint or old.preprocessing_fingerprint != new.preprocessing_fingerprint
    )


def _subject(old: str, new: str) -> str:
    return old if old == new else f"{old} -> {new}"


def _blocks(*rows: results.SavedRow) -> int:
    return min(len(row.blocks_s) for row in rows)


def _one_sided_rows(
    old: Iterable[results.Row], new: Iterable[results.Row], pairs: Iterable[tuple[Any, Any]]
) -> list[str]:
    """Rows that only one side has."""
    matched = {id(row) for pair in pairs for row in pair}
    return [
        f"{row.label}: only in the {side} file"
        for side, rows in (("first", old), ("second", new))
        for row in rows
        if id(row) not in matched
    ]


def _unlike(before: dict[str, Any], after: dict[str, Any]) -> Iterable[str]:
    """What was different about the two measurements: the machine, and the versions of what ran."""
    for what, name in (("model", "processor"), ("usable_cores", "number of usable cores"), ("governor", "governor")):
        was, now = ((side.get("cpu") or {}).get(what) for side in (before, after))
        if was != now:
            yield f"another {name}: {was}, then {now}; measure both on one machine"
    versions = [{**(side.get("packages") or {}), "resdeploy": side.get("resdeploy")} for side in (before, after)]
    changed = [
        f"{name} {versions[0].get(name) or 'absent'} -> {versions[1].get(name) or 'absent'}"
        for name in sorted(versions[0].keys() | versions[1].keys())
        if versions[0].get(name) != versions[1].get(name)
    ]
    if changed:
        yield f"other versions: {', '.join(changed)}"
