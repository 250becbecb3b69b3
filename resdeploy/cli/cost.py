"""`resdeploy cost`."""

from typing import Annotated

import typer

from resdeploy.cli import console, options


def cost(
    model: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Zoo names or ONNX files.")],
    classes: options.Classes = None,
    img_size: options.ImgSize = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="One row a layer.")] = False,
    fmt: options.Format = "table",
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Count parameters, multiply-accumulates (MACs) and FLOPs (2 x MACs) at batch 1.

    Examples: resdeploy cost resnet18 resnet50 · resdeploy cost r50.int8.onnx --per-layer
    """
    from resdeploy.measure import environment
    from resdeploy.pipeline import bench
    from resdeploy.report import documents

    requests = [options.request(name, options.sight(img_size), classes=classes) for name in model]
    with console.progress(quiet=quiet) as progress:
        costs = bench.costs(requests, progress=progress)
    console.emit(documents.cost(costs, environment.capture(), per_layer=per_layer), fmt, output)
