"""The table of docs/results.md out of a result of gpu_suite.py.

    python benchmarks/gpu_table.py benchmarks/results/gpu.json

One row per network, precision and batch: medians over the builds with their spread, since each build chooses its
kernels anew, and beside them what the audit found of the build that fused least, and the comparison with FP32. Peers
follow.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HEAD = "| network | precision | batch | images/s | GPU, ms (builds) | end to end, ms | adds fused | top-1 as FP32 |"


def key(row: Row) -> tuple[Any, ...]:
    return (row["network"], row["precision"], row["batch"])


def of(rows: list[Row], what: str) -> list[Row]:
    return [row for row in rows if row["what"] == what and "error" not in row]


def ours(rows: list[Row]) -> list[str]:
    timed: dict[tuple[Any, ...], list[Row]] = {}
    for row in of(rows, "time"):
        if row["peer"] == "resdeploy":
            timed.setdefault(key(row), []).append(row)
    audits = sorted(of(rows, "audit"), key=lambda row: -int(row["fused"]))  # the last of a key stays: the worst build
    fused = {key(r): f"{r['fused']} of {r['blocks']} in {', '.join(r['adds_in'])}" for r in audits}
    agreed = {(r["network"], r["precision"]): f"{r['top1_agreement_percent']:.1f} %" for r in of(rows, "agreement")}
    lines = []
    for (network, precision, batch), found in timed.items():
        device = [row["device_p50_ms"] for row in found if row["device_p50_ms"] is not None]
        if not device:
            continue
        middle = statistics.median(device)
        spread = f"{middle:.3f} ({min(device):.3f}-{max(device):.3f}, {len(device)})"
        end = statistics.median(row["end_to_end_p50_ms"] for row in found)
        cells = (network, precision, batch, f"{batch / middle * 1e3:,.0f}", spread, f"{end:.3f}")
        told = (fused.get((network, precision, batch), "-"), agreed.get((network, precision), "-"))
        lines.append(f"| {' | '.join(map(str, (*cells, *told)))} |")
    return lines


def peers(rows: list[Row]) -> list[str]:
    found = [row for row in of(rows, "time") if row["peer"] != "resdeploy"]
    return [
        f"| {row['network']}, {row['peer']} | {row['precision']} | {row['batch']} | {row['images_per_s']:,.0f} "
        f"| {row['device_p50_ms']:.3f} | - | - | - |"
        for row in found
    ]


def main() -> None:
    rows = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["results"]
    print("\n".join([HEAD, "|---|---|---:|---:|---:|---:|---|---:|", *ours(rows), *peers(rows)]))


if __name__ == "__main__":
    main()
