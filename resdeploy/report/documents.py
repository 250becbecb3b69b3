"""Records to documents: the plain dictionaries that `--format json` prints, one function per command.

Keys that CI jobs read are fixed by `docs/architecture.md`; adding one is free, changing one is a new `SCHEMA_VERSION`.
A number that does not exist is null, never NaN. A candidate that failed is a row like the others, with nulls.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resdeploy.records import (
    Answered,
    Audit,
    Availability,
    BackendName,
    BlockAudit,
    Change,
    Comparison,
    Failure,
    Flip,
    Gate,
    Layer,
    Score,
    Summary,
    Verdict,
)
from resdeploy.report import sentences
from resdeploy.report.rows import (
    Json,
    bench_row,
    check_row,
    comparison_row,
    finite,
    finite_interval,
    ms,
    reported_row,
    score_row,
)

if TYPE_CHECKING:
    from resdeploy.models.zoo import Entry
    from resdeploy.vocabulary import OnInconclusive

SCHEMA_VERSION = 1
EFFECTS = ("right to wrong", "wrong to right", "wrong to other")

Environment = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One model on one backend in one precision, everything that a run found out about it."""

    outcome: Summary | Failure
    score: Score | None = None
    comparison: Comparison | None = None  # against the baseline; None: it is the baseline
    verdict: Verdict | None = None
    audit: Audit | None = None
    source: str = ""  # the ONNX file that was audited


def document(command: str, environment: Environment, results: list[Json], **parts: Any) -> Json:
    """The frame that all documents share."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "environment": dict(environment),
        "results": results,
        **parts,
    }


def bench(
    outcomes: Iterable[Summary | Failure],
    comparisons: Iterable[Comparison],
    environment: Environment,
    *,
    notes: Iterable[str] = (),
) -> Json:
    """`bench`: one row per candidate, and the speed-ups; `notes` are of the whole run."""
    outcomes, comparisons = tuple(outcomes), tuple(comparisons)
    rows = [bench_row(outcome) for outcome in outcomes]
    compared = [comparison_row(comparison) for comparison in comparisons]
    return document(
        "bench",
        environment,
        rows,
        answers=[row["answer"] for row in compared],
        comparisons=compared,
        notes=[*notes, *_notes(rows), *kernel_notes(comparisons), *_uncounted_notes(outcomes)],
    )


def kernel_notes(comparisons: Iterable[Comparison]) -> list[str]:
    """Of each comparison whether both sides execute the same, where that is known."""
    return [note for comparison in comparisons if (note := sentences.kernels(comparison)) is not None]


def predict(answered: Answered, environment: Environment) -> Json:
    """`predict`: of each image the likeliest classes, probabilities in percent; the times are per image."""
    rows = []
    for answer in answered.answers:
        seen = [
            {"class": number, "name": name, "probability": 100 * share}
            for number, name, share in zip(answer.classes, answer.names, answer.probabilities, strict=True)
        ]
        others = ", ".join(f"{each['name']} {each['probability']:.1f} %" for each in seen[1:])
        rows.append({"image": answer.image, **seen[0], "others": others, "top": seen})
    of = {"model": answered.model, "backend": answered.backend, "precision": answered.precision}
    times_ms = {"prepare": 1e3 * answered.prepare_s, "answer": 1e3 * answered.answer_s}
    note = (
        f"{answered.model} in {answered.precision} on {answered.backend}: per image {times_ms['prepare']:.3g} ms "
        f"to read and prepare it, {times_ms['answer']:.3g} ms to answer; how fast the model is, `bench` says"
    )
    return document("predict", environment, rows, **of, ms_per_image=times_ms, notes=[note])


def gate(gated: Gate, environment: Environment, *, on_inconclusive: OnInconclusive = "fail") -> Json:
    """`gate`: the verdict, the checks it is made of, and of each candidate the classes and images that changed.

    What was not decided stays `inconclusive`, whatever the job was told to make of it.
    """
    checks, reported, candidates, flips, flipped, classes = [], [], [], [], [], []
    for one in gated.judged:
        name = one.candidate.name
        checks += [{"candidate": name, **check_row(check)} for check in one.verdict.checks]
        reported += [{"candidate": name, **reported_row(row)} for row in one.verdict.reported]
        candidates.append({**dataclasses.asdict(one.candidate), "verdict": one.verdict.state})
        if one.unchanged is not None:
            effects = Counter[str](flip.effect for flip in one.flips)
            counts = {effect.replace(" ", "_"): effects[effect] for effect in EFFECTS}
            flips.append({"candidate": name, **counts, "unchanged": one.unchanged})
        names = {drop.label: drop.name for drop in one.classes}
        flipped.append([_flip_row(name, flip, names) for flip in one.flips])
        classes += [{"candidate": name, **vars(drop), "drop_pp": drop.drop_pp} for drop in one.classes]
    return document(
        "gate",
        environment,
        checks,
        answers=[
            answer
            for one in gated.judged
            for check in one.verdict.checks
            if (answer := sentences.judged(check, one.candidate.name, gated.baseline.name)) is not None
        ],
        verdict=gated.verdict.state,
        on_inconclusive=on_inconclusive,
        confidence=gated.confidence,
        checks=checks,
        reported=reported,
        baseline=dataclasses.asdict(gated.baseline),
        candidates=candidates,
        flips=flips,
        # A table shows the first ones: each candidate has its turn, and the largest drop of all comes first.
        flipped=[flip for turn in itertools.zip_longest(*flipped) for flip in turn if flip is not None],
        classes=sorted(classes, key=lambda row: -row["drop_pp"]),
        notes=list(gated.notes),
    )


def audit(result: Audit, environment: Environment) -> Json:
    """`audit`: the verdict, one row per residual block, and every executed kernel."""
    blocks = [_block_row(block) for block in result.blocks]
    remedies = dict.fromkeys(block.remedy for block in result.blocks if block.remedy)
    return document(
        "audit",
        environment,
        blocks,
        subject=result.subject,
        asked=result.asked,
        verdict=result.verdict.state,
        checks=[check_row(check) for check in result.verdict.checks],
        blocks=blocks,
        unfused=[block for block in blocks if not block["fused"]],
        superfluous=[layer.name for layer in result.superfluous],
        layers=[_layer_row(layer) for layer in result.layers],
        time_ms=ms(result.time_s),
        kernels=result.kernels,
        activation_bytes=result.activation_bytes,
        notes=[*_traffic(result), *result.notes, *remedies],
    )


def _traffic(result: Audit) -> list[str]:
    """How many kernels there are and what they move, in a sentence; none where that is not told."""
    if result.activation_bytes is None:
        return []
    moved = f"{result.kernels} kernels read and write {result.activation_bytes / 1e6:.1f} MB of activations"
    return [f"{moved}, each tensor as often as a kernel does, weights left out"]


def _block_row(block: BlockAudit) -> Json:
    return {
        "name": block.name,
        "fused": block.fused,
        "fusion": {True: "fused", False: "not fused", None: "unknown"}[block.fused],
        "precision": block.precision,
        "asked": block.asked,
        "conv_precisions": list(block.conv_precisions),
        "executed_as": list(block.executed_as),
        "reformats": list(block.reformats),
        "inside": dict(block.inside),
        "kernels": block.kernels,
        "activation_bytes": block.activation_bytes,
        "time_ms": ms(block.time_s),
        "reason": block.reason,
        "remedy": block.remedy,
    }


def _layer_row(layer: Layer) -> Json:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "role": layer.role,
        "precision": layer.precision,
        "doubt": layer.doubt,
        "sources": list(layer.sources),
        "time_ms": ms(layer.time_s),
    }


def compare(changes: Iterable[Change], notes: Iterable[str], environment: Environment) -> Json:
    """`compare`: one row per quantity of a model; `environment` is that of the comparison, not of the measurements."""
    rows = [
        {
            "subject": change.subject,
            "quantity": change.quantity,
            "before": finite(change.before),
            "after": finite(change.after),
            "unit": change.unit,
            "change": finite(change.change),
            "change_ci95": finite_interval(change.interval),
            "change_unit": change.change_unit,
            "finding": change.finding,
        }
        for change in changes
    ]
    return document("compare", environment, rows, notes=list(notes))


def models(entries: Iterable[Entry], environment: Environment) -> Json:
    """`models`: the zoo."""
    rows = []
    for entry in entries:
        published = entry.published[0] if entry.published else None
        rows.append(
            {
                "model": entry.name,
                "family": entry.family,
                "params": entry.params,
                "macs": entry.macs,
                "input_shape": list(entry.input_shape),
                "classes": entry.classes,
                "paper": entry.paper,
                "published_top1": published.top1 if published else None,
                "published_source": published.source if published else None,
                "published": [dataclasses.asdict(p) for p in entry.published],
            }
        )
    return document("models", environment, rows)


def cache(folder: str, parts: Iterable[Any], environment: Environment) -> Json:
    """What the cache holds: one row for each of its folders."""
    rows = [{"part": part.name, "entries": part.entries, "size_bytes": part.size_bytes} for part in parts]
    total = sum(row["size_bytes"] for row in rows)
    return document("cache", environment, rows, folder=folder, notes=[f"{folder}: {total / 1e6:.1f} MB"])


def cache_verify(checked: int, doubts: Iterable[Any], environment: Environment) -> Json:
    """The entries of the cache that will not be used, and how many were looked at."""
    rows = [{"file": doubt.file, "state": doubt.state, "why": doubt.why} for doubt in doubts]
    return document("cache verify", environment, rows, checked=checked)


def doctor(
    survey: Mapping[BackendName, Availability], environment: Environment, engine: Mapping[str, bool] | None = None
) -> Json:
    """`doctor`: what each backend says, the machine, and what the TensorRT that is installed can do."""
    rows = [
        {"backend": name, **dataclasses.asdict(diagnosis), "builds": diagnosis.ok or diagnosis.builds}
        for name, diagnosis in survey.items()
    ]
    able = [{"name": name, "has": has} for name, has in (engine or {}).items()]
    machine = [{"name": k, "value": v} for k, v in _facts(environment)]
    return document("doctor", environment, rows, machine=machine, tensorrt=able)


def run(profile: str, rows: Iterable[RunRow], verdict: Verdict | None, environment: Environment) -> Json:
    """`run`: what a profile led to, one row per model, backend and precision."""
    rows = tuple(rows)
    results: list[Json] = []
    comparisons: list[Json] = []
    checks: list[Json] = []
    reported: list[Json] = []
    for row in rows:
        result = bench_row(row.outcome)
        result |= score_row(row.score)
        if row.score is not None:
            result["notes"] = [*result["notes"], *row.score.repeats.notes]
        result |= {"speedup": None, "speedup_ci95": None, "speedup_ci99": None, "drop_pp": None, "verdict": None}
        if row.comparison is not None:
            comparison = comparison_row(row.comparison)
            comparisons.append(comparison)
            if row.comparison.valid:
                result |= {key: comparison[key] for key in ("speedup", "speedup_ci95", "speedup_ci99")}
        if row.verdict is not None:
            result["verdict"] = row.verdict.state
            checks += [{"subject": result["label"], **check_row(check)} for check in row.verdict.checks]
            reported += [{"subject": result["label"], **reported_row(one)} for one in row.verdict.reported]
            drop = next((check for check in row.verdict.checks if check.name == "top1"), None)
            if drop is not None:
                result |= {"drop_pp": finite(drop.observed), "drop_ci_pp": finite_interval(drop.interval)}
        result["audit"] = row.audit.verdict.state if row.audit is not None else None
        results.append(result)
    return document(
        "run",
        environment,
        results,
        profile=profile,
        answers=[row["answer"] for row in comparisons],
        comparisons=comparisons,
        checks=checks,
        reported=reported,
        verdict=verdict.state if verdict else None,
        notes=[
            *_run_notes(results, checks),
            *_audit_notes(rows),
            *kernel_notes(row.comparison for row in rows if row.comparison),
            *_uncounted_notes([row.outcome for row in rows]),
        ],
    )


def _audit_notes(rows: Iterable[RunRow]) -> list[str]:
    """What audits of candidates found, and what shows it by block; where that is judged, the checks have said it."""
    notes = []
    for row in rows:
        if row.audit is None or row.audit.verdict.state != "fail" or isinstance(row.outcome, Failure):
            continue
        if row.verdict is not None and any(check.name.startswith("fused: ") for check in row.verdict.checks):
            continue
        ran = row.outcome.measurement
        if row.comparison is None:  # the baseline
            continue
        failed = "; ".join(check.name for check in row.audit.verdict.checks if check.state == "fail")
        how = f"`resdeploy audit {row.source} --backend {ran.backend}` shows every block"
        notes.append(f"{ran.label}: the audit fails ({failed}): {how}")
    return notes


def _run_notes(rows: list[Json], checks: list[Json]) -> list[str]:
    """What must be known of the rows, and what stands in the way of a verdict or a speed claim."""
    notes = [f"{row['label']}: {note}" for row in rows for note in row["notes"]]
    notes += [f"{check['subject']}: {check['note']}" for check in checks if check["state"] != "pass"]
    notes += [f"{row['label']}: {row['error']['message']}" for row in rows if "error" in row]
    wrong = [row["label"] for row in rows if row["state"] == "INVALID"]
    if wrong:
        notes.append(
            f"INVALID times, so no speed-up is claimed: {', '.join(wrong)}. The reasons are under 'warnings' in the "
            "JSON; mend them, and run again with --again bench"
        )
    return [*notes, *_unsteady_note(rows)]


def _flip_row(candidate: str, flip: Flip, names: Mapping[int, str]) -> Json:
    return {
        "candidate": candidate,
        "image": flip.image,
        "label": flip.label,
        "label_name": names.get(flip.label) or None,
        "baseline": flip.baseline,
        "baseline_name": names.get(flip.baseline) or None,
        "candidate_class": flip.candidate,
        "candidate_name": names.get(flip.candidate) or None,
        "effect": flip.effect,
    }


def _notes(rows: list[Json]) -> list[str]:
    """The rows' notes and warnings; what is true of the whole run, and that times are unsteady, is said once."""
    shared = {w for w in rows[0]["warnings"] if all(w in row["warnings"] for row in rows)} if len(rows) > 1 else set()
    own = [
        f"{row['label']}: {note}"
        for row in rows
        for note in (*row["notes"], *(w for w in row["warnings"] if w not in row["unsteady"]))
        if note not in shared
    ]
    return [*(f"all rows: {w}" for w in rows[0]["warnings"] if w in shared), *own, *_unsteady_note(rows, shared)]


def _uncounted_notes(outcomes: Iterable[Summary | Failure]) -> list[str]:
    """Which of the processor's counters could not be read, once for all rows."""
    reasons = [outcome.measurement.uncounted for outcome in outcomes if isinstance(outcome, Summary)]
    return [reason for reason in dict.fromkeys(reasons) if reason]


def _unsteady_note(rows: list[Json], told: Collection[str] = ()) -> list[str]:
    """That times wandered, in one line, whose reasons are told for one row alone."""
    labels = [row["label"] for row in rows if row["state"] == "unsteady"]
    if not labels:
        return []
    reasons = [why for row in rows for why in row["unsteady"] if why not in told]
    one = f": {reasons[0]}" if len(labels) == 1 and reasons else ""
    note = (
        f"Unsteady times, of this machine at that time ({', '.join(labels)}){one}. A speed-up is judged by its own "
        "interval; the reasons are under 'unsteady' in the JSON"
    )
    return [note]


def _facts(environment: Environment) -> list[tuple[str, str]]:
    """The machine in words, for `doctor`."""
    cpu = environment["cpu"]
    flags = {"VNNI": cpu["vnni"], "AMX": cpu["amx"], "BF16": cpu["bf16"]}
    quota = "no quota" if cpu["quota_cores"] is None else f"a quota of {cpu['quota_cores']:g}"
    memory = environment["memory_bytes"]
    return [
        ("CPU", cpu["model"]),
        ("instruction sets", " ".join(cpu["isa"])),
        ("INT8 and BF16", ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in flags.items())),
        ("cores", f"{cpu['usable_cores']} usable of {cpu['logical_cores']}, {quota}"),
        ("memory", f"{memory / 1e9:.1f} GB" if memory else "unknown"),
        ("system", f"{environment['os']}, {environment['kernel']} {environment['machine']}"),
        ("Python", environment["python"]),
        ("packages", ", ".join(f"{name} {version}" for name, version in environment["packages"].items())),
    ]
