"""`resdeploy bench`."""

from typing import Annotated, Literal

import typer

from resdeploy.cli import console, options


def bench(
    model: Annotated[list[str] | None, typer.Argument(metavar="[MODEL...]", help="Default: resnet50.")] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"] | None,
        typer.Option(help="Compared with FP32 in the same run; default: what the model is."),
    ] = None,
    backend: options.Backend = "auto",
    batch_size: Annotated[str, typer.Option("--batch-size", "-b", help="Images a query; a list: 1,8,32.")] = "1",
    threads: options.Threads = None,
    streams: Annotated[int, typer.Option(min=1, help="Independent sessions; more than 1: throughput.")] = 1,
    duration: Annotated[float, typer.Option(min=0.1, help="Seconds of timed queries a row, at least.")] = 3.0,
    provider: Annotated[
        Literal["cpu", "cuda", "tensorrt"], typer.Option(help="What ONNX Runtime computes on.")
    ] = "cpu",
    weights: options.Weights = "random",
    calib_data: options.CalibData = None,
    calib_samples: options.CalibSamples = 300,
    portable: options.Portable = None,
    classes: options.Classes = None,
    img_size: options.ImgSize = None,
    resize: options.Resize = None,
    interpolation: options.Interpolation = None,
    mean: options.Mean = None,
    std: options.Std = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 3 if a row is INVALID.")] = False,
    trust_engine: options.TrustEngine = False,
    seed: options.Seed = 0,
    fmt: options.Format = "table",
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Measure latency and throughput, all rows interleaved in one run.

    Examples: resdeploy bench --precision int8 · resdeploy bench r18.onnx r50.onnx -b 1,8 --backend openvino,onnxruntime
    """
    from resdeploy.measure import environment, summary
    from resdeploy.pipeline import bench as timing
    from resdeploy.pipeline import make
    from resdeploy.records import Failure, Summary
    from resdeploy.report import documents

    sight = options.sight(img_size, resize, interpolation, mean, std)
    requests = [
        options.request(name, sight, weights=weights, classes=classes, seed=seed, trust_engine=trust_engine)
        for name in (model or ["resnet50"])
    ]
    plan = timing.BenchPlan(
        precision=precision,
        backends=tuple(backend.split(",")),
        batch_sizes=options.positive_integers(batch_size, "--batch-size"),
        threads=threads,
        streams=streams,
        provider=provider,
        duration_s=duration,
        seed=seed,
    )
    calibration = make.CalibrationPlan(data=calib_data, samples=calib_samples, portable=portable, seed=seed)
    console.chosen(backend, precision, quiet=quiet)
    with console.progress(quiet=quiet) as progress:
        result = timing.bench(requests, plan, calibration, progress=progress)
    console.announce(*result.sources, quiet=quiet)
    outcomes = [o if isinstance(o, Failure) else summary.summarise(o) for o in result.outcomes]
    console.emit(documents.bench(outcomes, result.comparisons, environment.capture()), fmt, output)
    if result.failures:
        raise typer.Exit(max(failure.exit_status for failure in result.failures))
    if strict and not all(outcome.valid for outcome in outcomes if isinstance(outcome, Summary)):
        raise typer.Exit(3)
