"""`audit`: the executed layers of a model, from a lane or from saved inspector JSON, compared with its graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resdeploy.backends import choose, inspector
from resdeploy.backends.lane import Lane
from resdeploy.deploy import build, calibration, candidates, model_string
from resdeploy.deploy.model_string import Request
from resdeploy.errors import MissingInput, UsageError
from resdeploy.graph import files, intent
from resdeploy.judge import fusion
from resdeploy.records import Artifact, Audit, BackendName, Precision, Progress

# Enough runs that a kernel's mean is not its first, cold run.
TIMED_RUNS = 20
COMPILED: dict[str, BackendName] = {"openvino": "openvino", "engine": "tensorrt"}


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """What to compare the model with, and how to run it."""

    times: Path | None = None  # a saved profile, for saved inspector JSON
    against: str | None = None  # the ONNX file that a compiled model was made from
    backend: str = "auto"
    precision: Precision | None = None  # asked for; None: what the model is
    batch_size: int = 1
    threads: int | None = None


def audit(request: Request, plan: AuditPlan, calibration: calibration.CalibrationPlan, *, progress: Progress) -> Audit:
    """Audits a model on a backend, or saved inspector JSON (a MODEL that ends in `.json`).

    Raises:
        MalformedInput: JSON that is not an inspector's, or a profile of another engine.
        UsageError: `times` for a model that is run, which times itself.
    """
    if request.model.lower().endswith(".json"):
        return _saved(Path(request.model), plan)
    if plan.times is not None:
        raise UsageError("--times belongs to saved inspector JSON", fix="Leave it out: a model that runs is timed")
    kind = model_string.format_of(request.model)
    if kind in COMPILED:
        backend, _ = choose.pick(COMPILED[kind], plan.precision or "fp32")
    else:
        backend, _ = choose.pick(plan.backend, plan.precision or "fp32")
    asked = plan.precision if kind != "openvino" else None
    source = candidates.source_for(request, backend, asked, calibration, progress=progress)
    return audit_file(source, backend, plan)


def audit_file(source: Artifact, backend: BackendName, plan: AuditPlan) -> Audit:
    """Audits a file on a backend; built first where it is an ONNX file, which then says what it asks for."""
    execution = candidates.execution_for(source, batch_size=plan.batch_size, threads=plan.threads)
    built = build.build(source, backend, execution)
    with Lane(backend) as lane:
        lane.open(built, execution, trace=True)
        lane.block(TIMED_RUNS)
        layers = lane.layers()
    graph = plan.against or (source.path if source.format == "onnx" else None)
    return fusion.judge(
        f"{model_string.stem(source.path)} on {backend}",
        layers,
        intent=_intent(graph),
        asked=plan.precision or source.precision,
        runtime=backend,
    )


def _saved(path: Path, plan: AuditPlan) -> Audit:
    inspection = inspector.parse(_read(path), str(path))
    layers = inspection.layers
    if plan.times is not None:
        layers = inspector.timed(layers, _read(plan.times), str(plan.times))
    return fusion.judge(
        path.name, layers, intent=_intent(plan.against), asked=plan.precision, bindings=inspection.bindings
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        raise MissingInput(f"there is no file {path}", fix="Check the path") from e


def _intent(graph: str | None) -> intent.Intent | None:
    return None if graph is None else intent.of(files.load_model(Path(graph)))
