"""Charts of the studies' documents: losses by epoch, and errors without some of a network's blocks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from resdeploy.report import chart

Document = Mapping[str, Any]
Row = Mapping[str, Any]


def degradation(document: Document) -> dict[str, str]:
    """Training losses of `study degradation` by network: the mean over the seeds and their range."""
    curves: dict[str, list[list[float]]] = {}
    for training in document["trainings"]:
        losses = [epoch["train_loss"] for epoch in training["history"]]
        curves.setdefault(f"{training['kind']}{training['depth']}", []).append(losses)
    lines = [
        _line(name, range(1, len(runs[0]) + 1), list(zip(*runs, strict=True)))
        for name, runs in curves.items()
        if runs[0]
    ]
    title = "Training loss: mean and range over the seeds"
    return {"loss": chart.lines(lines, title=title, x="epoch", y="loss")} if lines else {}


def lesion(document: Document) -> dict[str, str]:
    """The three figures of Veit et al. (arXiv:1605.06431): one block deleted, several deleted, blocks shuffled."""
    single = [
        chart.Line(name=model, xs=[float(k) for k in range(len(rows))], ys=[row["error"] for row in rows], dots=True)
        for model, rows in _by_model(document["results"]).items()
    ]
    charts = {"single": chart.lines(single, title="One block deleted", x="block", y="error (%)")} if single else {}
    whole = {row["model"]: row["error"] for row in document["whole"]}
    for kind, title, x in (
        ("several", "Random blocks deleted", "blocks deleted"),
        ("shuffled", "Pairs of blocks swapped", "swaps"),
    ):
        curves = [
            _line(model, [0, *(row["blocks"] for row in rows)], [[whole[model]], *(row["errors"] for row in rows)])
            for model, rows in _by_model(document[kind]).items()
        ]
        if curves:
            charts[kind] = chart.lines(curves, title=title, x=x, y="error (%)")
    return charts


def _by_model(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["model"], []).append(row)
    return found


def _line(name: str, xs: Iterable[float], values: Iterable[Iterable[float]]) -> chart.Line:
    """The mean of the values at each x, and their range."""
    several = [list(each) for each in values]
    return chart.Line(
        name=name,
        xs=[float(x) for x in xs],
        ys=[statistics.fmean(each) for each in several],
        low=[min(each) for each in several],
        high=[max(each) for each in several],
    )
