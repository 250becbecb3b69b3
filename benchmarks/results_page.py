"""Puts measured results into docs/results.md: the quickstart's table and picture, and the table of other tools.

    python benchmarks/results_page.py runs/quickstart/results.json
    python benchmarks/results_page.py benchmarks/results/peers.json

Keeps a copy of the quickstart's result, without its raw samples, as benchmarks/results/quickstart.json.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from resdeploy import store
from resdeploy.report import render

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of a quickstart run, or peers.json")
    document = json.loads(parser.parse_args().results.read_text())
    if "ratios" in document:
        put("peers", peers(document))
        return
    for row in document["results"]:
        del row["samples_ms"]
    store.write_json(ROOT / "benchmarks/results/quickstart.json", document)
    picture(document, ROOT / "docs/quickstart.svg")
    put("quickstart", render.render(document, "md"))


def put(name: str, block: str) -> None:
    """Replaces what stands between the page's markers of this name."""
    page = ROOT / "docs/results.md"
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = re.sub(
        f"{begin}.*?{end}", lambda _: f"{begin}\n{block}{end}", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    store.write_bytes(page, text.encode())


def peers(document: dict[str, Any]) -> str:
    """A line per tool: latency at batch 1, its best throughput, and our fastest file against it."""
    rows = {row["label"]: row for row in document["rows"] if row["who"] != "peak"}
    scenarios = ("single-stream", "offline")
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for label, row in rows.items():
        tool, way = label.rsplit(", ", 1)
        key = tool, way.partition(" ")[0]
        if key not in best or row["throughput_ips"] > best[key]["throughput_ips"]:
            best[key] = row
    against = {
        (one["against"].rsplit(", ", 1)[0], scenario): one
        for scenario in scenarios
        for one in document["ratios"][scenario]["time_ratios"]
    }
    lines = [
        "| ResNet-50, 224x224 | p50 ms, batch 1 [95 %] | ours / its time [95 %] | best images/s | ours / its time |",
        "|---|---:|---:|---:|---:|",
    ]
    for tool in sorted({tool for tool, _ in best}, key=lambda tool: best[tool, "single-stream"]["p50_ms"]):
        single, offline = (best[tool, scenario] for scenario in scenarios)
        low, high = single["p50_ci95_ms"]
        ratios = [_ratio(against.get((tool, scenario))) for scenario in scenarios]
        lines.append(
            f"| {tool} | {single['p50_ms']:.1f} [{low:.1f}, {high:.1f}]{_doubt(single)} | {ratios[0]} "
            f"| {offline['throughput_ips']:.1f}{_doubt(offline)} | {ratios[1]} |"
        )
    peak = document["ratios"]["offline"]["peak"]
    low, high = peak["share_ci95"]
    cpu = document["environment"]["cpu"]
    isa = "AMX" if cpu["amx"] else "VNNI" if cpu["vnni"] else ""
    about = (
        f"Our offline throughput is {peak['share']:.2f} [{low:.2f}, {high:.2f}] of the INT8 peak of this machine, "
        f"{peak['gmacs_per_s']:.0f} GMAC/s in a chain of large convolutions in the same run. "
        f"{cpu['model']}, {cpu['usable_cores']} usable cores, {f'with {isa}' if isa else 'without VNNI'}. "
        "`*`: the bench calls the row INVALID (see `warnings` in the result)."
    )
    return "\n".join([*lines, "", about]) + "\n"


def _ratio(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    low, high = found["time_ratio_ci95"]
    return f"{found['time_ratio']:.2f} [{low:.2f}, {high:.2f}]{'' if found['valid'] else ' *'}"


def _doubt(row: dict[str, Any]) -> str:
    return "" if row["valid"] else " *"


def picture(document: dict[str, object], out: Path) -> None:
    """What the command prints on a terminal, as SVG."""
    import io

    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ resdeploy run profiles/quickstart.toml\n", style="bold"))
    console.print(Text.from_ansi(render.render(document, width=100, color=True)))
    store.write_bytes(out, console.export_svg(title="resdeploy").encode())


if __name__ == "__main__":
    main()
