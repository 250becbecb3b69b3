"""docs/quantization.md's table and picture, from what benchmarks/quantization.py measured.

    python benchmarks/quantization_page.py benchmarks/results/quantization-*.json

Several results are put together: each may hold networks and calibration sets of its own.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "quantization.md"
PICTURE = PAGE.with_suffix(".svg")
BEGIN, END = "<!-- quantization: begin -->", "<!-- quantization: end -->"
MEDIANS = ("changed_pct", "rms_logit_error", "top1_pct", "here_changed_pct", "made_s")
# Widths and heights of the picture, in pixels.
LABEL, BAR, ROW, HEAD, PLOT = 300, 12, 19, 40, 330
OURS, PEERS = "#2166ac", "#b2b2b2"

Groups = Mapping[tuple[str, str], Mapping[str, Sequence[Mapping[str, Any]]]]
Medians = Mapping[str, float]


def merged(paths: Sequence[Path]) -> dict[str, Any]:
    """One result of several."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    first: dict[str, Any] = results[0]
    first["rows"] = [row for result in results for row in result["rows"]]
    first["fp32_top1_pct"] = {name: top1 for result in results for name, top1 in result["fp32_top1_pct"].items()}
    first["cpus"] = list(dict.fromkeys(_cpu(result["environment"]["cpu"]) for result in results))
    first["skipped"] = {name: why for result in results for name, why in result["skipped"].items()}
    return first


def _cpu(cpu: Mapping[str, Any]) -> str:
    return f"{cpu['model']} ({'with' if cpu['vnni'] else 'without'} VNNI)"


def groups(result: Mapping[str, Any]) -> Groups:
    """(network, scheme) -> candidate -> its rows, one a calibration set."""
    found: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for row in result["rows"]:
        found.setdefault((row["network"], row["scheme"]), {}).setdefault(row["candidate"], []).append(row)
    return found


def medians(rows: Sequence[Mapping[str, Any]]) -> Medians:
    return {key: statistics.median(row[key] for row in rows) for key in MEDIANS}


def best_peer(candidates: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> float:
    """The least median of a figure among the peers; NaN without any."""
    peers = [medians(rows)[key] for name, rows in candidates.items() if not name.startswith("resdeploy")]
    return min(peers, default=float("nan"))


def gates(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the gate said, with counts where it said several things; the first results do not hold it."""
    counts = Counter(row.get("gate", "-") for row in rows)
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {state}" for state, n in counts.items())


def table(result: Mapping[str, Any]) -> str:
    """Medians over the calibration sets, and ratios to the best peer's median of the scheme."""
    accuracy = ", ".join(f"{name} {top1:.2f} %" for name, top1 in result["fp32_top1_pct"].items())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    about = (
        f'{result["calibration_images"]} calibration images; medians over the calibration sets counted in "sets"; '
        f"FP32 top-1: {accuracy}; {versions}; {', '.join(result['cpus'])}."
    )
    head = (
        "| network | scheme | candidate | sets | changed % | / best peer | RMS logit error | / best peer | top-1 % "
        "| gate | changed % as run here | made in s |"
    )
    lines = [about, "", head, "|---|---|---|--:|--:|--:|--:|--:|--:|---|--:|--:|"]
    for (network, scheme), candidates in groups(result).items():
        best = {key: best_peer(candidates, key) for key in ("changed_pct", "rms_logit_error")}
        for name, rows in candidates.items():
            found = medians(rows)
            lines.append(
                f"| {network} | {scheme} | {name} | {len(rows)} "
                f"| {found['changed_pct']:.2f} | {found['changed_pct'] / best['changed_pct']:.2f} "
                f"| {found['rms_logit_error']:.3f} | {found['rms_logit_error'] / best['rms_logit_error']:.2f} "
                f"| {found['top1_pct']:.2f} | {gates(rows)} | {found['here_changed_pct']:.2f} | {found['made_s']:.0f} |"
            )
    lines += [f"\nSkipped: {name} ({why})." for name, why in result["skipped"].items()]
    return "\n".join(lines)


def picture(result: Mapping[str, Any]) -> str:
    """Bars of the RMS logit error, one per candidate, a dot for each calibration set; blue is ours."""
    found = groups(result)
    largest = max(medians(rows)["rms_logit_error"] for candidates in found.values() for rows in candidates.values())
    limit = min(largest, 2.5 * max(best_peer(candidates, "rms_logit_error") for candidates in found.values()))
    shapes, y = list[str](), 0
    for (network, scheme), candidates in found.items():
        y += HEAD
        shapes.append(f'<text x="8" y="{y - 10}" font-weight="bold">{network}, {scheme}: RMS logit error</text>')
        for name, rows in sorted(candidates.items(), key=lambda item: medians(item[1])["rms_logit_error"]):
            value = medians(rows)["rms_logit_error"]
            width = PLOT * min(value, limit) / limit
            colour = OURS if name.startswith("resdeploy") else PEERS
            shapes.append(f'<text x="{LABEL - 6}" y="{y + BAR}" text-anchor="end">{escape(name)}</text>')
            shapes.append(f'<rect x="{LABEL}" y="{y + 2}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>')
            shapes += [
                f'<circle cx="{LABEL + PLOT * min(row["rms_logit_error"], limit) / limit:.1f}" cy="{y + 8}" r="2.5"/>'
                for row in rows
            ]
            shapes.append(f'<text x="{LABEL + width + 8:.1f}" y="{y + BAR}">{value:.3f}</text>')
            y += ROW
    width, height = LABEL + PLOT + 60, y + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    result = merged([Path(argument) for argument in sys.argv[1:]])
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{table(result)}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
    PICTURE.write_text(picture(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
