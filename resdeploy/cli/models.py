"""`resdeploy models`: the zoo as a table or a chart."""

from pathlib import Path
from typing import Annotated

import typer

from resdeploy.cli import console, options
from resdeploy.errors import UnknownName, UsageError


def models(
    name: Annotated[str, typer.Argument(help="Only names that contain this.")] = "",
    chart: Annotated[
        Path | None,
        typer.Option(help="SVG: published accuracy over MACs or --latencies.", callback=options.svg),
    ] = None,
    latencies: Annotated[
        Path | None, typer.Option(help="With --chart: a saved `bench` whose latencies these are.")
    ] = None,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    output: options.Output = None,
    verbose: options.Verbose = 0,
) -> None:
    """List the zoo: family, parameters, MACs, input, published accuracy.

    Examples: resdeploy models resnext · resdeploy models --chart accuracy.svg --latencies bench.json
    """
    from resdeploy.measure import environment
    from resdeploy.models import zoo
    from resdeploy.report import documents

    entries = [entry for entry in zoo.ENTRIES.values() if name in entry.name]
    if not entries:
        raise UnknownName(f"no name of the zoo contains {name!r}", fix="resdeploy models lists them all")
    if latencies is not None and chart is None:
        raise UsageError("--latencies are drawn in a chart", fix="Add --chart F.svg")
    if chart is not None:
        from resdeploy import store
        from resdeploy.cost import charts
        from resdeploy.measure import results

        bench = None if latencies is None else results.load(latencies)
        svg = charts.draw_entries(entries) if bench is None else charts.draw_over_latency(bench)
        store.write_bytes(chart, svg.encode())
        console.note(f"wrote {chart}")
    console.emit(documents.models(entries, environment.capture()), fmt, output)
