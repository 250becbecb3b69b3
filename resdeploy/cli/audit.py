"""`resdeploy audit`: its options, and whether a model fused as asked."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from resdeploy.cli import console, engine, live_view, options
from resdeploy.cli.gate import EXIT


def audit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model, a built file, or saved inspector JSON.")],
    times: Annotated[Path | None, typer.Option(help="A saved profile that goes with inspector JSON.")] = None,
    against: Annotated[str | None, typer.Option(help="The ONNX file that a compiled MODEL was made from.")] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"] | None, typer.Option(help="Asked for; default: what the model is.")
    ] = None,
    backend: options.Backend = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per query.")] = 1,
    threads: options.Threads = None,
    targets: engine.Targets = "",
    weights: options.Weights = "random",
    calib_data: options.CalibData = None,
    img_size: options.ImgSize = None,
    trust_engine: options.TrustEngine = False,
    seed: options.Seed = 0,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Say which convolutions and residual adds were really fused, and in which precision they ran: exit 0, 1 or 3.

    Examples: resdeploy audit r50.int8.onnx --backend openvino · resdeploy audit F.graph.json --times F.profile.json
    """
    from resdeploy.deploy.calibration import CalibrationPlan
    from resdeploy.measure import environment
    from resdeploy.report import documents
    from resdeploy.verbs import audit

    request = options.request(
        model, options.preprocessing_override(img_size), weights=weights, seed=seed, trust_engine=trust_engine
    )
    plan = audit.AuditPlan(
        times=times,
        against=against,
        backend=backend,
        precision=precision,
        batch_size=batch_size,
        threads=threads,
        targets=engine.names_in(targets),
    )
    calibration = CalibrationPlan(data=calib_data, seed=seed)
    with live_view.progress(quiet=quiet) as progress:
        audited = audit.audit(request, plan, calibration, progress=progress)
    console.emit(documents.audit(audited, environment.capture()), fmt, output, quiet=quiet)
    raise typer.Exit(EXIT[audited.verdict.state])
