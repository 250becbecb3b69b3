"""`init`: a profile for a model and its images, with every key explained."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from resdeploy import backends
from resdeploy.backends import choose
from resdeploy.data import datasets
from resdeploy.deploy import model_string
from resdeploy.deploy.model_string import ForeignName, Request, ZooName
from resdeploy.records import profile
from resdeploy.records.profile import Key, Profile
from resdeploy.registered_backends import PREFERENCE

FLIPS = 0.04  # of the images change sides between FP32 and INT8, commonly (docs/gate.md)
Z95 = 1.645  # one-sided 95 % of the normal distribution
COLUMN = 40  # where explanations begin


def init(request: Request, data: str) -> str:
    """TOML with every key: those set that the model, the images and this machine decide, the others commented out.

    Raises:
        MissingInput, UnknownName: no such model, or no such images.
    """
    model_string.refuse_missing([request])
    images = len(datasets.open_dataset(data, split="test"))
    named = model_string.classify(request.model)
    stem = re.sub(r"[^\w.-]", "-", model_string.stem(request.model))
    given: dict[str, Any] = {"name": stem, "model": request.model}
    by_name = isinstance(named, (ZooName, ForeignName))
    if by_name:
        given["weights"] = request.weights
    given |= {
        "data": data,
        "precisions": Profile.precisions,
        "backends": _runtimes(),
        "duration_s": Profile.duration_s,
        "max_drop_pp": limit_for(images),
    }
    if request.classes is not None:
        given["classes"] = request.classes
    notes = {"max_drop_pp": f"; {images:,} test images can show so much"}
    if given.get("weights") == "random":
        notes["weights"] = "; with random ones accuracy says nothing: name yours, or set epochs"
    lines = [
        f"# resdeploy run {stem}.toml",
        "# Paths are relative to this file. What is commented out is a default, or an example where there is none.",
    ]
    for key in profile.every_key():
        if key.says.group:
            lines += ["", f"# {key.says.group}"]
        if key.name in ("weights", "classes") and not by_name:  # a file has its own
            continue
        lines.append(_line(key, given, notes.get(key.name, "")))
    return "\n".join(lines) + "\n"


def _line(key: Key, given: Mapping[str, Any], note: str) -> str:
    if key.name in given:
        setting = f"{key.name} = {toml(given[key.name])}"
    else:
        setting = f"# {key.name} = {toml(key.says.example if key.default is None else key.default)}"
    return f"{setting:<{COLUMN}}  # {key.says.what}{note}"


def _runtimes() -> tuple[str, ...]:
    """Who runs ONNX files on this machine, the best first; the default where nobody does."""
    survey = choose.survey()
    here = tuple(name for name in PREFERENCE if survey[name].ok and backends.load(name).SOURCE == "onnx")
    return here or Profile.backends


def limit_for(images: int) -> float:
    """The least drop in points, in halves, that so many images can show not to be exceeded where there is none.

    The half width of the interval of a difference of two paired proportions, z sqrt(share that flips / images).
    """
    width_pp = 100 * Z95 * math.sqrt(FLIPS / max(images, 1))
    return min(max(math.ceil(2 * width_pp) / 2, 0.5), 50.0)


def toml(value: Any) -> str:
    """A value as TOML writes it: that of JSON, for booleans, numbers, texts and lists."""
    return json.dumps(value, ensure_ascii=False)
