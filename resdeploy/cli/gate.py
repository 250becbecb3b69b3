"""`resdeploy gate`."""

from typing import Annotated

import typer

from resdeploy.cli import console, options

EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}


def gate(
    baseline: Annotated[str, typer.Option(help="A model, or saved predictions (.npz, .json, .csv).")],
    candidate: Annotated[str, typer.Option(help="Likewise.")],
    max_drop: Annotated[
        float, typer.Option(min=0.0, max=99.99, help="Largest top-1 drop allowed, in percentage points.")
    ],
    data: options.Data = None,
    max_slowdown: Annotated[
        float | None, typer.Option(min=0.0, help="Largest slow-down of the median latency allowed, in percent.")
    ] = None,
    confidence: Annotated[float, typer.Option(min=0.51, max=0.9999, help="One-sided confidence.")] = 0.95,
    backend: options.Backend = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images a query.")] = 32,
    threads: options.Threads = None,
    skip_bad: options.SkipBad = False,
    img_size: options.ImgSize = None,
    resize: options.Resize = None,
    interpolation: options.Interpolation = None,
    mean: options.Mean = None,
    std: options.Std = None,
    seed: options.Seed = 0,
    fmt: options.Format = "table",
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Judge a candidate against a baseline: exit 0 pass, 1 fail, 3 inconclusive.

    The candidate passes when its drop is shown to lie within --max-drop, image by image, at the stated confidence.

    Example: resdeploy gate --baseline r56.onnx --candidate r56.int8.onnx --data cifar10/test --max-drop 0.5
    """
    from resdeploy.measure import environment
    from resdeploy.pipeline import judge
    from resdeploy.report import documents

    plan = judge.GatePlan(
        data=data,
        sight=options.sight(img_size, resize, interpolation, mean, std),
        skip_bad=skip_bad,
        max_drop_pp=max_drop,
        max_slowdown_pct=max_slowdown,
        confidence=confidence,
        backend=backend,
        batch_size=batch_size,
        threads=threads,
        seed=seed,
    )
    with console.progress(quiet=quiet) as progress:
        verdict = judge.gate(baseline, candidate, plan, progress=progress)
    console.emit(documents.gate(verdict, environment.capture()), fmt, output)
    raise typer.Exit(EXIT[verdict.state])
