"""What `gate` cannot be asked: options that contradict each other, or what the sides are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resdeploy.deploy.model_string import PreprocessingOverride
from resdeploy.errors import refuse
from resdeploy.measure import prediction_files
from resdeploy.verbs.gate_options import GatePlan
from resdeploy.verbs.judge_limits import Limits

Refusal = tuple[bool, str, str]  # whether, what, and its remedy: of `errors.refuse`
NO_LIMIT = (
    "Add --max-drop 0.5, --max-top5-drop, --max-slowdown 3, --max-cpu-slowdown 3, --max-size, --max-memory "
    "or --require-fused"
)


def refuse_contradictions(plan: GatePlan, benches: Sequence[bool]) -> None:
    """Refuses what could only fail later.

    Args:
        plan: what is asked.
        benches: whether the baseline, and each candidate, is a saved bench.

    Raises:
        UsageError: all that contradicts, each with its remedy.
    """
    sides = (plan.baseline, *plan.candidates)
    saved = [name for name in sides if is_saved(name)]
    refuse(
        (plan.limits == Limits(), "gate was given no limit", NO_LIMIT),
        *_refused_in_order(plan, saved),
        (
            any(benches) and not all(benches),
            "one side is a saved bench and another is not",
            "Compare two saved benches, or two models",
        ),
        *(_refused_of_benches(plan) if all(benches) else ()),
        *(_refused_of_predictions(plan, saved) if saved and not any(benches) else ()),
        *_refused_of_data(plan, [name for name in sides if not is_saved(name)]),
        *(() if all(benches) else _refused_of_update(plan)),
    )


def _refused_of_benches(plan: GatePlan) -> tuple[Refusal, ...]:
    """What times alone cannot tell."""
    return (
        (
            plan.limits.of_accuracy,
            "a saved bench has no predictions to judge --max-drop on",
            "Leave it out, or name models",
        ),
        (
            plan.update_baseline,
            "--update-baseline stores predictions, not a bench",
            "Keep the bench's own JSON file",
        ),
        (
            plan.limits.fused,
            "a saved bench has no layers to look for fusion in",
            "Name models for --require-fused",
        ),
    )


def _refused_of_predictions(plan: GatePlan, saved: Sequence[str]) -> tuple[Refusal, ...]:
    """What predictions alone cannot tell."""
    limits, own = plan.limits, [name for name in saved if name in plan.candidates]
    return (
        (
            limits.slowdown_pct is not None,
            f"{saved[0]} holds predictions, and --max-slowdown needs times",
            "Name two model files, or two saved results of bench",
        ),
        (
            limits.cpu_slowdown_pct is not None,
            f"{saved[0]} holds predictions, and --max-cpu-slowdown needs times",
            "Name two model files",
        ),
        (
            bool(own) and (limits.size_mb is not None or limits.memory_mb is not None or limits.fused),
            f"{next(iter(own), '')} holds predictions, not a model with a size and layers",
            "Name the model file",
        ),
    )


def _refused_of_data(plan: GatePlan, models: Sequence[str]) -> tuple[Refusal, ...]:
    """Models need images, and nothing else has a use for them."""
    return (
        (
            bool(models) and (plan.limits.of_accuracy or plan.update_baseline) and plan.data is None,
            f"{next(iter(models), '')} is a model, and judging it needs images",
            "Add --data DIR",
        ),
        (
            not models and (plan.data is not None or plan.override != PreprocessingOverride()),
            "--data and how images are seen say nothing of saved results, which are of images of their own",
            "Leave them out, or name a model",
        ),
    )


def _refused_of_update(plan: GatePlan) -> tuple[Refusal, ...]:
    """What cannot become the new baseline."""
    limits = plan.limits
    one = is_saved(plan.baseline) and len(plan.candidates) == len(plan.backends) == 1
    return (
        (
            plan.update_baseline and limits != Limits() and not limits.of_accuracy,
            (
                "--update-baseline needs a limit of accuracy. "
                "What the next candidates are compared with must itself have been judged by it"
            ),
            "Add --max-drop or --max-top5-drop",
        ),
        (
            plan.update_baseline and not one,
            "--update-baseline stores one candidate's predictions in the file that --baseline names",
            f"Name one candidate, and a baseline that ends in {' or '.join(prediction_files.SUFFIXES)}",
        ),
    )


def _refused_in_order(plan: GatePlan, saved: Sequence[str]) -> tuple[Refusal, ...]:
    """What cannot be judged image by image."""
    asked, limits = plan.sequential, plan.limits
    return (
        (
            asked and bool(saved),
            f"{next(iter(saved), '')} is a saved result, and --sequential saves running models on images",
            "Leave --sequential out: what is saved is judged whole, at no cost. Or name models, and --data",
        ),
        (
            asked and limits.drop_pp is None,
            "--sequential needs a drop to be decided, and there is no --max-drop",
            "Add --max-drop 0.5, or leave --sequential out",
        ),
        (
            asked and limits.top5_drop_pp is not None,
            "--sequential stops when the drop of top-1 is decided, and --max-top5-drop may need more images",
            "Leave one of the two out",
        ),
        (
            asked and plan.update_baseline,
            "--sequential may stop after a part of the images, and such predictions are no baseline",
            "Leave --sequential or --update-baseline out",
        ),
    )


def is_saved(name: str) -> bool:
    """Whether a side is a file of predictions (or of times) rather than a model, by its suffix."""
    return Path(name).suffix.lower() in prediction_files.SUFFIXES
