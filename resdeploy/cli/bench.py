"""`resdeploy bench`: its options, and times of models from one interleaved run."""

from typing import Annotated, Literal

import typer

from resdeploy import interrupts, vocabulary
from resdeploy.cli import console, live_view, options


def bench(
    model: Annotated[list[str] | None, typer.Argument(metavar="[MODEL...]", help="Default: resnet50.")] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"] | None,
        typer.Option(help="Compared with FP32 in the same run; default: what the model is."),
    ] = None,
    backend: options.Backends = "auto",
    batch_size: Annotated[
        str, typer.Option("--batch-size", "-b", help="Images per query; a list: 1,8,32; default: 1, multi-stream: 8.")
    ] = "",
    threads: Annotated[
        str | None, typer.Option(help="CPU threads; default: the usable cores; a list: 1,2.", show_default=False)
    ] = None,
    scenario: Annotated[
        Literal["single-stream", "multi-stream", "offline"] | None,
        typer.Option(help="As in MLPerf: one query at a time (p90), 8 images per query (p99), throughput."),
    ] = None,
    streams: Annotated[
        int | None, typer.Option(min=1, help="Independent sessions side by side; offline: one for each thread.")
    ] = None,
    scope: Annotated[
        Literal["compute", "host", "jpeg"],
        typer.Option(help="What is timed: compute alone, with copies from host memory, or from JPEG files (--data)."),
    ] = "compute",
    duration: options.Duration = 3.0,
    max_time: options.MaxTime = vocabulary.MAX_TIME_S,
    wait_quiet: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=1.0,
            max=86400.0,
            help="Before timing, wait until other processes leave the machine alone for 1 s; at most so long.",
            show_default=False,
        ),
    ] = None,
    equal_within: Annotated[
        float, typer.Option(min=0.1, max=50.0, help="Difference that is called none, in percent of the time.")
    ] = 100 * vocabulary.EQUAL_WITHIN,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a row that does not answer counts as hanging.")
    ] = 900.0,
    provider: Annotated[
        Literal["cpu", "cuda", "tensorrt"], typer.Option(help="What ONNX Runtime computes on.")
    ] = "cpu",
    data: options.Data = None,
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
    channels: options.Channels = None,
    labels: options.Labels = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 3 if a row is INVALID.")] = False,
    trust_engine: options.TrustEngine = False,
    seed: options.Seed = 0,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Measure latency and throughput, all rows interleaved in one run, until it is sure which is faster.

    What has been measured is kept after every block: `resdeploy show` shows it if the run is cut short.

    Examples: resdeploy bench --precision int8 --backend all · resdeploy bench r18.onnx r50.onnx -b 1,8 --threads 1,2 ·
    resdeploy bench r50.onnx --scenario offline
    """
    from resdeploy.backends import choose

    if backend not in ("auto", "all") and "," not in backend:  # of several, those that are here are measured
        choose.pick(backend, "fp32")  # what cannot run here is said before its imports
    from resdeploy.deploy import candidates, model_string
    from resdeploy.deploy.calibration import CalibrationPlan
    from resdeploy.measure import environment, journal, one_run
    from resdeploy.records import Summary
    from resdeploy.report import documents
    from resdeploy.verbs import bench

    override = options.preprocessing_override(img_size, resize, interpolation, mean, std, channels, labels)
    requests = [
        options.request(name, override, weights=weights, classes=classes, seed=seed, trust_engine=trust_engine)
        for name in (model or ["resnet50"])
    ]
    plan = bench.BenchPlan(
        precision=precision,
        backends=tuple(backend.split(",")),
        batch_sizes=options.positive_integers(
            batch_size or ("8" if scenario == "multi-stream" else "1"), "--batch-size"
        ),
        threads=options.positive_integers(threads, "--threads") if threads else (None,),
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
        seed=seed,
        journal=journal.of_this_run(),
    )
    calibration = CalibrationPlan(data=calib_data, samples=calib_samples, portable=portable, seed=seed)
    model_string.refuse_missing(requests)
    console.chosen(backend, [precision or candidates.precision_of(each) for each in requests], quiet=quiet)
    if "all" in backend.split(","):
        console.note(choose.missing_backends(), quiet=quiet)
    try:
        with live_view.live(quiet=quiet) as (progress, watch, starting):
            result = bench.bench(requests, plan, calibration, progress=progress, watch=watch, starting=starting)
    except interrupts.Interrupted:
        console.note("what was measured so far: resdeploy show", quiet=quiet)
        raise
    if scope == "jpeg" or calib_data:
        console.tell_preprocessing(requests, [source.model for source in result.sources], quiet=quiet)
    console.announce(*result.sources, quiet=quiet)
    outcomes = one_run.summaries(result.outcomes)
    document = documents.bench(outcomes, result.comparisons, environment.capture(), notes=result.notes)
    console.emit(document, fmt, output, quiet=quiet)
    if result.failures:
        raise typer.Exit(max(failure.exit_status for failure in result.failures))
    if strict and not all(outcome.valid for outcome in outcomes if isinstance(outcome, Summary)):
        raise typer.Exit(3)
