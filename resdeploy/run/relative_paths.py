"""Paths in a profile are relative to its file, wherever the command is typed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from resdeploy.deploy import model_string
from resdeploy.deploy.model_string import ForeignName, ZooName
from resdeploy.records import Profile


def seen_from_here(profile: Profile, folder: Path) -> Profile:
    """The profile of a file in `folder`, its paths as they are from the current folder; names stay what they are."""

    def move(path: str) -> str:
        return str(folder / path)  # an absolute path stays

    def moved_data(data: str | None) -> str | None:
        if data is None or data == "digits" or data.startswith("synthetic:"):
            return data
        kind, colon, path = data.partition(":")
        return f"cifar10:{move(path)}" if colon and kind == "cifar10" else move(data)

    named = isinstance(model_string.classify(profile.model), (ZooName, ForeignName))
    is_file = Path(profile.weights).suffix and not re.match(r"\w+://", profile.weights)
    return dataclasses.replace(
        profile,
        model=profile.model if named else move(profile.model),
        weights=move(profile.weights) if is_file else profile.weights,
        data=moved_data(profile.data),
        calib_data=moved_data(profile.calib_data),
    )
