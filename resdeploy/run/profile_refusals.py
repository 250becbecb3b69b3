"""What a profile asks for and cannot be had: all of it at once, before any work."""

from __future__ import annotations

from pathlib import Path

from resdeploy import backends
from resdeploy.deploy import model_string
from resdeploy.deploy.model_string import CompiledFile, ForeignName, OnnxFile, ZooName
from resdeploy.errors import ProfileError, refuse
from resdeploy.records import Profile

Problem = tuple[object, str]  # whether it is one, and what is wrong


def refuse_nonsense(profile: Profile) -> None:
    """Refuses what could only fail later, or would be ignored.

    Raises:
        ProfileError: keys that are out of range, contradict each other, or have nothing to act on.
        BackendMissing: a backend that the profile names cannot run here.
    """
    runs_onnx = [name for name in profile.backends if backends.load(name).SOURCE == "onnx"]
    refuse(
        *(
            (wrong, message, "Correct these keys")
            for wrong, message in (
                *_out_of_range(profile),
                *_without_data(profile),
                *_ignored(profile),
                *_contradictory(profile),
                (len(runs_onnx) < len(profile.backends), "backends: only those that run ONNX (not torch)"),
            )
        ),
        kind=ProfileError,
        subject=f"profile {profile.name}: ",
    )
    for name in runs_onnx:
        backends.require(backends.load(name).available(), name)


def _out_of_range(profile: Profile) -> tuple[Problem, ...]:
    points = ("max_drop_pp", "max_top5_drop_pp", "prune_drop_pp", "search_drop_pp")
    slowdowns = ("max_slowdown_pct", "max_cpu_slowdown_pct")
    megabytes = ("max_size_mb", "max_memory_mb")
    sizes = ("classes", "img_size", "train_batch_size", "accumulate", "calib_samples")
    counts = (*sizes, "batch_size", "threads", "streams")
    seconds = ("duration_s", "max_time_s", "wait_quiet_s")
    return (
        (not _is_file_name(profile.name), "name: the name of a folder in runs/, without a path"),
        (profile.epochs < 0, "epochs: a number from 0"),
        (profile.lr is not None and profile.lr <= 0, "lr: a number above 0"),
        (not 0 <= profile.hold_out <= 0.9, "hold_out: a share from 0 to 0.9"),
        (not 0.5 < profile.confidence < 1, "confidence: a share above 0.5 and below 1"),
        (profile.resize is not None and profile.resize < 0, "resize: a number from 0"),
        *((not 0 <= (_of(profile, key) or 0) < 100, f"{key}: points of top-1 from 0 up to 100") for key in points),
        *(((_of(profile, key) or 0) <= -100, f"{key}: a percentage above -100") for key in slowdowns),
        *((_is_at_most(profile, key, 0), f"{key}: megabytes above 0") for key in megabytes),
        *((_is_at_most(profile, key, 0), f"{key}: seconds above 0") for key in seconds),
        *((_is_at_most(profile, key, 0.5), f"{key}: a number from 1") for key in counts),
        (len(set(profile.precisions)) < len(profile.precisions), "precisions: one is named twice"),
        (not profile.backends, "backends: name at least one"),
        (len(set(profile.backends)) < len(profile.backends), "backends: one is named twice"),
    )


def _of(profile: Profile, key: str) -> float | None:
    value: float | None = getattr(profile, key)
    return value


def _is_at_most(profile: Profile, key: str, bound: float) -> bool:
    value = _of(profile, key)
    return value is not None and value <= bound


def _is_file_name(name: str) -> bool:
    return name == Path(name).name and name not in ("", "..") and name.isprintable()


def _without_data(profile: Profile) -> tuple[Problem, ...]:
    needs = {
        "epochs: training": bool(profile.epochs),
        "max_drop_pp: judging accuracy": profile.max_drop_pp is not None,
        "max_top5_drop_pp: judging accuracy": profile.max_top5_drop_pp is not None,
        "prune_drop_pp: dropping blocks": profile.prune_drop_pp is not None,
        "search_drop_pp: judging a mix": profile.search_drop_pp is not None,
    }
    return tuple((asked and profile.data is None, f"{what} needs data") for what, asked in needs.items())


def _ignored(profile: Profile) -> tuple[Problem, ...]:
    """Keys that nothing would heed."""
    of_training = ("lr", "recipe", "train_batch_size", "accumulate", "hold_out", "augmentation", "train_precision")
    of_int8 = ("calib_method", "calib_precision", "portable", "effort", "search_drop_pp")
    has_file = not isinstance(model_string.classify(profile.model), (ZooName, ForeignName))
    return (
        *((not profile.epochs and _given(profile, key), f"{key}: of a training; add epochs") for key in of_training),
        *(
            ("int8" not in profile.precisions and _given(profile, key), f"{key}: of INT8, which precisions lacks")
            for key in of_int8
        ),
        *((has_file and _given(profile, key), f"{key}: {profile.model} has its own") for key in ("weights", "classes")),
        (profile.require_fused and not profile.audit, "require_fused: is judged by the audit; leave audit out"),
    )


def _given(profile: Profile, key: str) -> bool:
    return bool(getattr(profile, key) != getattr(Profile, key))


def _contradictory(profile: Profile) -> tuple[Problem, ...]:
    limits = (
        *(profile.max_drop_pp, profile.max_top5_drop_pp, profile.max_slowdown_pct, profile.max_cpu_slowdown_pct),
        *(profile.max_size_mb, profile.max_memory_mb),
    )
    limited = profile.require_fused or any(limit is not None for limit in limits)
    named = model_string.classify(profile.model)
    return (
        ("fp32" not in profile.precisions, "precisions: fp32 is what the others are compared with"),
        (
            limited and profile.prune_drop_pp is None and set(profile.precisions) == {"fp32"},
            "precisions: limits need one beside fp32 to be judged",
        ),
        (isinstance(named, CompiledFile), f"model: {profile.model} is compiled; name what it was made from"),
        (isinstance(named, OnnxFile) and profile.epochs, "epochs: an ONNX file cannot be trained; name its checkpoint"),
        (profile.sequential and profile.max_drop_pp is None, "sequential: decides max_drop_pp, which is not there"),
        (profile.sequential and profile.max_top5_drop_pp is not None, "sequential: decides no max_top5_drop_pp"),
        (
            profile.scenario == "single-stream" and (profile.streams or 1) > 1,
            "streams: single-stream has one",
        ),
    )
