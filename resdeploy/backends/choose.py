"""Which backend: what this machine has, and what `--backend auto` takes.

No vendor package is imported: the packages' metadata and the GPU driver are asked.
"""

from __future__ import annotations

from typing import cast

from resdeploy import backends, packages
from resdeploy.errors import BackendMissing, refuse
from resdeploy.records import Availability, BackendName, Precision
from resdeploy.registered_backends import BACKENDS, PREFERENCE

SUGGESTED: tuple[BackendName, ...] = ("openvino", "onnxruntime")  # where none is here: pip installs them anywhere


def survey() -> dict[BackendName, Availability]:
    """Every backend's availability, in the order of preference, the null backend last."""
    return {name: backends.load(name).available() for name in BACKENDS}


def missing_backends() -> str:
    """What `--backend all` goes without, and why, in a line."""
    missing = {name: availability for name, availability in survey().items() if not availability.ok}
    why = "; ".join(f"not {name}: {availability.reason}" for name, availability in missing.items())
    return f"backend all: all that are here{'; ' + why if why else ''}"


def unable(name: str, precision: Precision) -> tuple[bool, str, str]:
    """What `refuse` is told of a backend that does not run `precision`."""
    able = [other for other in PREFERENCE if precision in backends.load(other).ACCEPTS]
    return (
        precision not in backends.load(name).ACCEPTS,
        f"backend {name} does not run {precision}",
        f"Choose one of: {', '.join(able)}",
    )


def pick(name: str, precision: Precision, *, running: bool = True) -> tuple[BackendName, str]:
    """A backend that is here and runs `precision`, and why this one.

    Args:
        name: a backend's, or `auto`: the first of `PREFERENCE` that will do.
        precision: of the model to run.
        running: whether it is to run; else one that is named need only build here.

    Raises:
        UnknownName: no such backend.
        UsageError: the backend does not run this precision.
        BackendMissing: it is not installed or has no device; for `auto`, none is.
    """
    if name != "auto":
        module = backends.load(name)
        backends.require(module.available(), name, running=running)
        refuse(unable(name, precision))
        return cast("BackendName", name), "as asked"
    reasons: list[str] = []
    missing: Availability | None = None
    for candidate in PREFERENCE:
        module = backends.load(candidate)
        if precision not in module.ACCEPTS:
            reasons.append(f"{candidate} does not run {precision}")
            continue
        availability = module.available()
        if availability.ok:
            return candidate, "; ".join([*reasons, f"{candidate} {availability.version} is the best here"])
        reasons.append(f"not {candidate}: {availability.reason}")
        missing = availability  # the last is the easiest to install
    assert missing is not None
    raise BackendMissing(
        f"no backend here runs {precision}", cause="; ".join(reasons), fix=f"Run `{packages.install(*SUGGESTED)}`"
    )
