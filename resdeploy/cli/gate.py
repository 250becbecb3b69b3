"""`resdeploy gate`: its options, and a verdict with the reports that CI reads."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from resdeploy import vocabulary
from resdeploy.cli import console, live_view, options

EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}
_LIMITS = "Limits (at least one)"
_CI = "For CI"


def gate(
    baseline: Annotated[str, typer.Option(help="A model, saved predictions, or a saved bench (.json).")],
    candidate: Annotated[list[str], typer.Option(help="Likewise; may be repeated, Holm's correction is applied.")],
    max_drop: Annotated[
        float | None,
        typer.Option(min=0.0, max=99.99, help="Largest top-1 drop, in percentage points.", rich_help_panel=_LIMITS),
    ] = None,
    max_top5_drop: Annotated[
        float | None, typer.Option(min=0.0, max=99.99, help="Likewise of top-5.", rich_help_panel=_LIMITS)
    ] = None,
    max_slowdown: Annotated[
        float | None,
        typer.Option(min=-99.0, help="Largest slow-down of the median latency, in percent.", rich_help_panel=_LIMITS),
    ] = None,
    max_cpu_slowdown: Annotated[
        float | None,
        typer.Option(min=-99.0, help="Likewise of the CPU time per image.", rich_help_panel=_LIMITS),
    ] = None,
    max_size: Annotated[
        float | None, typer.Option(min=0.000001, help="Largest model file, in MB.", rich_help_panel=_LIMITS)
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(min=0.000001, help="Largest peak memory of the process, in MB.", rich_help_panel=_LIMITS),
    ] = None,
    require_fused: Annotated[
        bool,
        typer.Option("--require-fused", help="Every block fused, as `audit` finds it.", rich_help_panel=_LIMITS),
    ] = False,
    data: options.Data = None,
    sequential: Annotated[
        bool,
        typer.Option("--sequential", help="Images in random order, only as many as decide --max-drop; needs models."),
    ] = False,
    confidence: options.Confidence = 0.95,
    backend: options.SomeBackends = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per query, for accuracy.")] = 32,
    duration: Annotated[float, typer.Option(min=0.1, help="Seconds of timing per model, at least.")] = 3.0,
    max_time: options.MaxTime = vocabulary.MAX_TIME_S,
    threads: options.Threads = None,
    skip_bad: options.SkipBad = False,
    img_size: options.ImgSize = None,
    resize: options.Resize = None,
    interpolation: options.Interpolation = None,
    mean: options.Mean = None,
    std: options.Std = None,
    channels: options.Channels = None,
    labels: options.Labels = None,
    seed: options.Seed = 0,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Store a candidate that passes as the new baseline.")
    ] = False,
    trust_engine: options.TrustEngine = False,
    on_inconclusive: Annotated[
        Literal["fail", "warn"],
        typer.Option(help="A verdict that is inconclusive: exit 3, or a warning and exit 0.", rich_help_panel=_CI),
    ] = "fail",
    junit: Annotated[
        Path | None, typer.Option(help="JUnit XML to write.", callback=options.writable, rich_help_panel=_CI)
    ] = None,
    comment: Annotated[
        Path | None,
        typer.Option(help="Markdown for a pull request to write.", callback=options.writable, rich_help_panel=_CI),
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(help="OpenMetrics text to write (GitLab).", callback=options.writable, rich_help_panel=_CI),
    ] = None,
    report: options.Report = None,
    github: Annotated[
        bool | None,
        typer.Option(
            "--github/--no-github",
            help="Annotations and step summary; default: where GITHUB_ACTIONS is true.",
            show_default=False,
            rich_help_panel=_CI,
        ),
    ] = None,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Judge candidates against a baseline: exit 0 pass, 1 fail, 3 inconclusive (0 with --on-inconclusive warn).

    A candidate passes when its drop is shown to lie within --max-drop, image by image, at the stated confidence.

    Example: resdeploy gate --baseline r56.onnx --candidate r56.int8.onnx --data cifar10/test --max-drop 0.5
    """
    from resdeploy.deploy import model_string
    from resdeploy.measure import environment, prediction_files
    from resdeploy.report import ci, documents
    from resdeploy.verbs import gate, gate_options

    options.distinct((output, junit, comment, metrics, report), (baseline, *candidate))
    with console.report_errors(junit, github=github):
        plan = gate_options.plan_of(
            baseline,
            candidate,
            max_drop=max_drop,
            max_top5_drop=max_top5_drop,
            max_slowdown=max_slowdown,
            max_cpu_slowdown=max_cpu_slowdown,
            max_size=max_size,
            max_memory=max_memory,
            require_fused=require_fused,
            data=data,
            sequential=sequential,
            img_size=options.size(img_size),
            resize=resize,
            interpolation=interpolation,
            mean=options.numbers(mean, "--mean"),
            std=options.numbers(std, "--std"),
            channels=channels,
            labels=None if labels is None else options.names_in(labels),
            skip_bad=skip_bad,
            confidence=confidence,
            backend=backend,
            batch_size=batch_size,
            threads=threads,
            duration=duration,
            max_time=max_time,
            seed=seed,
            update_baseline=update_baseline,
            trust_engine=trust_engine,
            on_inconclusive=on_inconclusive,
        )
        for side in (baseline, *candidate):
            console.name_program(side)
        with live_view.progress(quiet=quiet) as progress:
            outcome = gate.gate(plan, progress=progress)
        document = documents.gate(outcome.gate, environment.capture(), on_inconclusive=on_inconclusive)
    console.chosen(backend, [source.precision for source in outcome.sources], quiet=quiet)
    if data is not None:
        models = [side for side in (baseline, *candidate) if Path(side).suffix not in prediction_files.SUFFIXES]
        requests = [model_string.Request(model=side, override=plan.override) for side in models]
        console.tell_preprocessing(requests, [source.model for source in outcome.sources], quiet=quiet)
    console.announce(*outcome.sources, quiet=quiet)
    files: dict[Path | None, console.Form] = {junit: ci.junit, comment: ci.comment, metrics: ci.metrics}
    if report is not None:
        files[report] = console.page_form(data)
    console.publish(document, fmt, output, files, github=github, quiet=quiet)
    state = outcome.gate.verdict.state
    if state == "inconclusive" and on_inconclusive == "warn":
        console.note("warning: the verdict is inconclusive; exit 0, since --on-inconclusive is warn", quiet=quiet)
        return
    raise typer.Exit(EXIT[state])
