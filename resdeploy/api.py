"""The Python interface: what the commands do, as functions of the same names and options that return records.

    from resdeploy import api

    api.export("resnet56", "r56.onnx", weights="resnet56.th")
    made = api.quantize("r56.onnx", "r56.int8.onnx", calib_data="cifar10/train")
    with api.load("r56.int8.onnx") as model:
        print(model.predict("horse.png")[0].name)

`resdeploy.load` is `api.load`. Options mean what `resdeploy COMMAND --help` says of them; files are written where the
command would write them. What a command prints as an error is raised: a `resdeploy.errors.ResdeployError` with `what`,
`cause`, `fix`, `code` and `exit_status`. Runtimes live in child processes that end with the thread that started them,
so work in a thread that outlives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from resdeploy.deploy.model_string import SightOptions
from resdeploy.errors import UsageError
from resdeploy.vocabulary import EQUAL_WITHIN, MAX_TIME_S

if TYPE_CHECKING:
    from os import PathLike
    from typing import Unpack  # from Python 3.11 on

    from resdeploy.deploy.calibration import CalibrationPlan
    from resdeploy.deploy.model_string import Request
    from resdeploy.measure.one_run import Bench
    from resdeploy.records import (
        Arithmetic,
        Artifact,
        Effort,
        Gate,
        Manifest,
        PackageKind,
        Precision,
        Predictions,
        Progress,
        Scenario,
        Scope,
        Target,
        Verified,
    )
    from resdeploy.verbs.evaluate import Evaluation
    from resdeploy.verbs.gate_options import GateOptions
    from resdeploy.verbs.predict import Predictor
    from resdeploy.verbs.quantize import Quantized

    PathOrName = str | PathLike[str]


class ModelOptions(SightOptions, total=False):
    """What MODEL is, where its name alone does not say it, and how images become its input."""

    weights: str  # random, imagenet1k_v1, imagenet1k_v2, a file or a URL
    classes: int | None
    seed: int
    trust_engine: bool


class CalibrationOptions(TypedDict, total=False):
    """Where the ranges of an INT8 model come from."""

    calib_data: str | None
    calib_samples: int
    calib_method: str
    calib_precision: Arithmetic | None
    portable: bool | None
    effort: Effort
    force: bool


class LoadOptions(ModelOptions, CalibrationOptions, total=False):
    """Options of MODEL and of its calibration."""


def load(
    model: PathOrName,
    *,
    backend: str = "auto",
    precision: Precision | None = None,
    batch_size: int = 1,
    threads: int | None = None,
    progress: Progress | None = None,
    **options: Unpack[LoadOptions],
) -> Predictor:
    """A model that is open and answers, by `predict(images)` and `logits(images)`; close it, or use `with`.

    Args:
        model: as on the command line.
        backend: what runs it.
        precision: what it runs in; None: what the model is.
        batch_size: images per query.
        threads: None: the usable cores.
        progress: told of what takes long.
        options: see `LoadOptions`.

    Raises:
        ResdeployError: as `resdeploy predict` ends with.
    """
    from resdeploy.verbs import predict

    request, calibration = _request(model, options), _calibration(options)
    plan = predict.PredictPlan(backend=backend, precision=precision, batch_size=batch_size, threads=threads)
    return predict.open_predictor(request, plan, calibration, progress=progress or _silent)


def export(
    model: PathOrName,
    output: PathOrName | None = None,
    *,
    input: Literal["float32", "uint8"] = "float32",  # noqa: A002  (as the command calls it)
    progress: Progress | None = None,
    **options: Unpack[ModelOptions],
) -> Artifact:
    """`resdeploy export`: a canonical ONNX file, compared with torch in float64.

    Raises:
        ResdeployError: as the command ends with.
    """
    from resdeploy.deploy import export, model_string, pixel_input

    request = _request(model, options)
    out = Path(output) if output is not None else Path(f"{model_string.stem(request.model)}.onnx")
    if input == "uint8":
        return pixel_input.uint8_input(export.to_onnx(request, progress=progress or _silent), out)
    return export.to_onnx(request, out, progress=progress or _silent)


def quantize(
    model: PathOrName,
    output: PathOrName | None = None,
    *,
    precision: Literal["fp16", "bf16", "int8"] = "int8",
    target: Target | Sequence[Target] = "openvino",
    input: Literal["float32", "uint8"] = "float32",  # noqa: A002  (as the command calls it)
    sensitivity: bool = False,
    max_drop: float | None = None,
    data: str | None = None,
    confidence: float = 0.95,
    max_time: float = MAX_TIME_S,
    progress: Progress | None = None,
    **options: Unpack[LoadOptions],
) -> Quantized:
    """`resdeploy quantize`: the file written (`artifact`), and what a search or `sensitivity` found.

    Where `max_drop` is given and no candidate is shown to be within it, `is_within_budget` is False: the command's
    exit status 1.

    Raises:
        ResdeployError: as the command ends with.
    """
    from resdeploy.deploy import export, model_string, pixel_input
    from resdeploy.graph import qdq_placement
    from resdeploy.verbs import quantize

    request, plan = _request(model, options), _calibration(options)
    goal = quantize.QuantizeGoal(
        sensitivity=sensitivity, max_drop_pp=max_drop, data=data, confidence=confidence, max_time_s=max_time
    )
    goal.refuse_nonsense(precision, plan)
    source = export.to_onnx(request, progress=progress or _silent)
    if input == "uint8":
        source = pixel_input.uint8_input(source)
    out = Path(output) if output is not None else model_string.beside(request.model, f".{precision}.onnx")
    form = qdq_placement.form_for([target] if isinstance(target, str) else list(target))
    return quantize.quantize(source, precision, form, plan, out, goal, progress=progress or _silent)


def package(
    model: PathOrName,
    output: PathOrName,
    *,
    for_: PackageKind = "python",
    backend: str = "auto",
    batch_size: int = 1,
    threads: int | None = None,
    gate: PathOrName | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """`resdeploy package`: a folder that is served without resdeploy, and what is in it.

    Raises:
        ResdeployError: as the command ends with.
    """
    from resdeploy.verbs import package

    plan = package.PackagePlan(
        kind=for_, backend=backend, batch_size=batch_size, threads=threads, gate=None if gate is None else Path(gate)
    )
    return package.package(_request(model, {}), plan, Path(output), progress=progress or _silent)


def verify_package(
    verify: PathOrName, model: PathOrName | None = None, *, data: str | None = None, progress: Progress | None = None
) -> Verified:
    """`resdeploy package --verify`: in what a packaged folder is not its source's (`faults`), and images replayed.

    Raises:
        ResdeployError: as the command ends with where nothing could be compared.
    """
    from resdeploy.verbs import verify_package

    source = None if model is None else str(model)
    return verify_package.verify(Path(verify), source, data, progress=progress or _silent)


def evaluate(
    model: PathOrName,
    *,
    data: str,
    backend: str = "auto",
    precision: Precision | None = None,
    batch_size: int = 32,
    threads: int | None = None,
    shard: str | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
    **options: Unpack[LoadOptions],
) -> Evaluation:
    """`resdeploy eval` of one model: per-image predictions with their logits.

    With `shard="2/3"` they are those of a part: `prediction_files.save` them, and `merge` the files of all parts.

    Raises:
        ResdeployError: as the command ends with.
    """
    from resdeploy.measure import shards
    from resdeploy.verbs import evaluate

    plan = evaluate.EvalPlan(
        data=data,
        backend=backend,
        precision=precision,
        batch_size=batch_size,
        threads=threads,
        shard=None if shard is None else shards.parse(shard),
        skip_bad=skip_bad,
    )
    return evaluate.evaluate(_request(model, options), plan, _calibration(options), progress=progress or _silent)


def merge(parts: Sequence[PathOrName], output: PathOrName) -> Predictions:
    """`resdeploy merge`: the predictions of one process from the files of all shards, written to `output` as well.

    Raises:
        ResdeployError: as the command ends with.
    """
    from resdeploy.verbs import merge

    return merge.merge([Path(part) for part in parts], Path(output))


def bench(
    models: PathOrName | Sequence[PathOrName],
    *,
    precision: Precision | None = None,
    backend: str = "auto",
    batch_size: int | Sequence[int] = 1,
    threads: int | Sequence[int] | None = None,
    scenario: Scenario | None = None,
    streams: int | None = None,
    scope: Scope = "compute",
    duration: float = 3.0,
    max_time: float = MAX_TIME_S,
    wait_quiet: float | None = None,
    equal_within: float = 100 * EQUAL_WITHIN,
    timeout: float = 900.0,
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu",
    data: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[LoadOptions],
) -> Bench:
    """`resdeploy bench`: every row's raw times (`outcomes`, failures among them) and the speed-ups (`comparisons`).

    `resdeploy.measure.summary.summarise(outcome)` says what a row's times amount to.

    Raises:
        ResdeployError: as the command ends with where no row could be measured.
    """
    from resdeploy.verbs import bench

    several = [models] if isinstance(models, str | Path) or not isinstance(models, Sequence) else models
    plan = bench.BenchPlan(
        precision=precision,
        backends=tuple(backend.split(",")),
        batch_sizes=_numbers(batch_size, "batch_size"),
        threads=(None,) if threads is None else _numbers(threads, "threads"),
        scenario=scenario,
        streams=streams,
        provider=provider,
        scope=scope,
        data=data,
        duration_s=duration,
        max_time_s=max_time,
        wait_quiet_s=wait_quiet,
        equal_within=equal_within / 100,
        timeout_s=timeout,
        seed=options.get("seed", 0),
    )
    requests = [_request(model, options) for model in several]
    return bench.bench(requests, plan, _calibration(options), progress=progress or _silent)


def gate(
    baseline: PathOrName,
    candidate: PathOrName | Sequence[PathOrName],
    *,
    progress: Progress | None = None,
    **options: Unpack[GateOptions],
) -> Gate:
    """`resdeploy gate`: the verdict (`verdict.state`: pass, fail or inconclusive) and the checks that it is made of.

    Raises:
        ResdeployError: as the command ends with where nothing could be judged.
    """
    from resdeploy.verbs import gate, gate_options

    several = [candidate] if isinstance(candidate, str | Path) or not isinstance(candidate, Sequence) else candidate
    plan = gate_options.plan_of(str(baseline), [str(each) for each in several], **options)
    return gate.gate(plan, progress=progress or _silent).gate


def _request(model: PathOrName, options: ModelOptions) -> Request:
    from resdeploy.deploy import model_string

    _refuse_unknown(options)
    request = model_string.Request(
        model=str(model),
        weights=options.get("weights", "random"),
        classes=options.get("classes"),
        seed=options.get("seed", 0),
        override=model_string.PreprocessingOverride.of(options),
        trust_engine=options.get("trust_engine", False),
    )
    model_string.refuse_missing([request])
    return request


def _calibration(options: LoadOptions) -> CalibrationPlan:
    from resdeploy.deploy.calibration import CalibrationPlan

    return CalibrationPlan(
        data=options.get("calib_data"),
        samples=options.get("calib_samples", CalibrationPlan.samples),
        method=options.get("calib_method", CalibrationPlan.method),
        portable=options.get("portable"),
        effort=options.get("effort", CalibrationPlan.effort),
        arithmetic=options.get("calib_precision"),
        seed=options.get("seed", 0),
        force=options.get("force", False),
    )


def _refuse_unknown(options: ModelOptions) -> None:
    """A misspelt option is no option.

    Raises:
        UsageError: one that nothing here has.
    """
    if unknown := sorted(options.keys() - LoadOptions.__annotations__):
        known = ", ".join(LoadOptions.__annotations__)
        raise UsageError(f"there is no option {', '.join(unknown)}", fix=f"Besides those of the function: {known}")


def _numbers(given: int | Sequence[int], name: str) -> tuple[int, ...]:
    """One positive number or several.

    Raises:
        UsageError: none, or one that is not positive.
    """
    numbers = (given,) if isinstance(given, int) else tuple(given)
    if not numbers or not all(isinstance(each, int) and each > 0 for each in numbers):
        raise UsageError(f"{name} takes positive whole numbers, not {given!r}")
    return numbers


def _silent(_what: str, _done: int, _total: int) -> None:
    """Nobody asked for progress."""
