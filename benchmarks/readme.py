"""Puts the quickstart's real result into the README: a picture of the terminal and the table in text.

    python benchmarks/readme.py runs/quickstart/results.json

Keeps a copy of the result, without its raw samples, as benchmarks/results/quickstart.json.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from resdeploy import store
from resdeploy.report import render

ROOT = Path(__file__).resolve().parents[1]
MARKERS = "<!-- quickstart -->", "<!-- /quickstart -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of a quickstart run")
    document = json.loads(parser.parse_args().results.read_text())
    for row in document["results"]:
        del row["samples_ms"]
    store.write_json(ROOT / "benchmarks/results/quickstart.json", document)
    picture(document, ROOT / "docs/quickstart.svg")
    readme = ROOT / "README.md"
    begin, end = MARKERS
    block = f"{begin}\n{render.render(document, 'md')}{end}"
    text = re.sub(f"{begin}.*?{end}", lambda _: block, readme.read_text(), flags=re.DOTALL)
    store.write_bytes(readme, text.encode())


def picture(document: dict[str, object], out: Path) -> None:
    """What the command prints on a terminal, as SVG."""
    import io

    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=150, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ resdeploy run profiles/quickstart.toml\n", style="bold"))
    console.print(Text.from_ansi(render.render(document, width=150, color=True)))
    store.write_bytes(out, console.export_svg(title="resdeploy").encode())


if __name__ == "__main__":
    main()
