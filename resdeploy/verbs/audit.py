"""`audit`: the executed layers of a model, from a lane or from saved inspector JSON, compared with its graph."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from resdeploy import backends
from resdeploy.backends import inspector
from resdeploy.deploy import candidates
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import Request
from resdeploy.errors import MissingInput, UsageError, refuse
from resdeploy.judge import fusion
from resdeploy.records import Audit, EngineOptions, Precision, Progress
from resdeploy.verbs.audit_candidate import audit_candidate, intent_of


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """What to compare the model with, and how to run it."""

    times: Path | None = None  # a saved profile, for saved inspector JSON
    against: str | None = None  # the ONNX file that a compiled model was made from
    backend: str = "auto"
    precision: Precision | None = None  # asked for; None: what the model is
    batch_size: int = 1
    threads: int | None = None
    targets: tuple[str, ...] = ()  # GPUs that TensorRT-RTX compiles for; (): its own choice


def audit(request: Request, plan: AuditPlan, calibration: CalibrationPlan, *, progress: Progress) -> Audit:
    """Audits a model on a backend, or saved inspector JSON (a MODEL that ends in `.json`).

    Raises:
        MalformedInput: JSON that is not an inspector's, or a profile of another engine.
        UsageError: `times` for a model that is run, which times itself; `targets` for what is built already, or for a
            backend without such.
    """
    if request.model.lower().endswith(".json"):
        _refuse_targets(plan, request.model)
        return _audit_saved(Path(request.model), plan)
    if plan.times is not None:
        raise UsageError("--times belongs to saved inspector JSON", fix="Leave it out: a model that runs is timed")
    compiler = request.compiler
    backend = candidates.pick_backend(request, "auto" if compiler else plan.backend, plan.precision, running=False)
    if compiler is not None or "targets" not in backends.load(backend).HEEDS:
        _refuse_targets(plan, f"{request.model} on {backend}")
    # A compiled file's record says in which precision it is; what is asked for may be another, and is then not found.
    asked = plan.precision if compiler is None or backends.load(compiler).FOREIGN else None
    source = candidates.source_for(request, backend, asked, calibration, progress=progress)
    execution = candidates.execution_for(source, batch_size=plan.batch_size, threads=plan.threads)
    execution = dataclasses.replace(execution, engine=EngineOptions(targets=plan.targets))
    candidate = candidates.candidate(source, backend, execution=execution)
    return audit_candidate(source, candidate, against=plan.against, asked=plan.precision)


def _refuse_targets(plan: AuditPlan, subject: str) -> None:
    refuse(
        (plan.targets, f"--targets has no effect on {subject}", "Leave it out, or build with --backend tensorrt-rtx")
    )


def _audit_saved(path: Path, plan: AuditPlan) -> Audit:
    inspection = inspector.parse(_read(path), str(path))
    layers = inspection.layers
    if plan.times is not None:
        layers = inspector.add_times(layers, _read(plan.times), str(plan.times))
    return fusion.judge(
        path.name, layers, intent=intent_of(plan.against), asked=plan.precision, bindings=inspection.bindings
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        raise MissingInput(f"there is no file {path}", fix="Check the path") from e
