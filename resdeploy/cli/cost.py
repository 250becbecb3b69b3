"""`resdeploy cost`: its options, and counts of what a network computes and moves."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from resdeploy import vocabulary
from resdeploy.cli import console, live_view, options
from resdeploy.errors import refuse

_ROOFS = "Roofs and charts"
DURATION_S = 3.0
Convention = Annotated[
    Literal["torchvision", "fvcore", "thop", "ptflops", "ptflops-pytorch"] | None,
    typer.Option(help="Also the count that this tool would give, to reconcile the two."),
]
Against = Annotated[
    Literal["basic", "naive"] | None,
    typer.Option(help="What 1x1 convolutions save: basic blocks for bottlenecks, naive modules for Inception."),
]
Roofs = Annotated[
    str | None,
    typer.Option(
        "--roofline",
        metavar="MACHINE",
        help="The time that arithmetic and memory allow: machine (measured once), or "
        "t4, l4, a10, l40s, a100, h100, h200, b200, orin (data sheets).",
        rich_help_panel=_ROOFS,
    ),
]
Precisions = Annotated[
    str,
    typer.Option("--precision", help="For --roofline: fp32,int8; default: all of its.", rich_help_panel=_ROOFS),
]
Refresh = Annotated[bool, typer.Option("--refresh", help="Measure this machine's roofs again.", rich_help_panel=_ROOFS)]
Chart = Annotated[
    Path | None,
    typer.Option(
        help="SVG: kernels under their roofs, else published accuracy over MACs.",
        callback=options.svg,
        rich_help_panel=_ROOFS,
    ),
]


def cost(
    model: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Zoo names or ONNX files.")],
    batch_size: Annotated[str, typer.Option("--batch-size", "-b", help="Images at once: 1, or a list 1,8,32.")] = "1",
    convention: Convention = None,
    against: Against = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --against basic or --roofline machine: latencies too.")
    ] = False,
    roofline: Roofs = None,
    precision: Precisions = "",
    refresh: Refresh = False,
    chart: Chart = None,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    duration: options.Duration = DURATION_S,
    max_time: options.MaxTime = vocabulary.MAX_TIME_S,
    classes: options.Classes = None,
    img_size: options.ImgSize = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="One row per layer.")] = False,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Count parameters, multiply-accumulates (MACs), FLOPs (2 x MACs), activations and bytes moved.

    Examples: resdeploy cost resnet18 resnet50 · resdeploy cost r50.int8.onnx -b 1,32 --per-layer ·
    resdeploy cost resnet50 --convention fvcore · resdeploy cost resnet50 --against basic --measure ·
    resdeploy cost resnet50 --roofline machine --measure --per-layer --chart roofs.svg
    """
    from resdeploy import store
    from resdeploy.cost import charts, cost, json_parts
    from resdeploy.measure import environment
    from resdeploy.verbs.bench import BenchPlan

    untimed = "--duration and --max-time are of the timing that --measure adds", "Add --measure, or leave them out"
    refuse((not measure and (duration, max_time) != (DURATION_S, vocabulary.MAX_TIME_S), *untimed))
    requests = [options.request(name, options.preprocessing_override(img_size), classes=classes) for name in model]
    sizes = options.positive_integers(batch_size, "--batch-size")
    plan = cost.CostPlan(
        convention=convention,
        against=against,
        machine=roofline,
        precisions=options.precisions(precision),
        refresh=refresh,
        measured=measure,
        timing=BenchPlan(
            backends=(backend,), batch_sizes=sizes, threads=(threads,), duration_s=duration, max_time_s=max_time
        ),
    )
    with live_view.progress(quiet=quiet) as progress:
        report = cost.cost(requests, plan, progress=progress)
    document = json_parts.cost_document(report, environment.capture(), per_layer=per_layer)
    console.emit(document, fmt, output, quiet=quiet)
    if chart is not None:  # last: what was counted and measured is not lost where it cannot be drawn
        store.write_bytes(chart, charts.draw_report(report).encode())
        console.note(f"wrote {chart}", quiet=quiet)
