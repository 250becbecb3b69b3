"""What an interrupted training resumes from: one safetensors file, its predecessor, and the settings they belong to.

Random numbers need no state: they are functions of (seed, epoch). The tensors' digest lies in the header, so
that a damaged file is noticed and the previous one taken. The header is signed: in a run's folder (`own`) a training
goes on from what this user wrote alone. A state that the user names may come from another machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from resdeploy import places, signing, store
from resdeploy.errors import MalformedInput, UsageError
from resdeploy.records import STRICT
from resdeploy.train.recipes import Average


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One line of the history."""

    __pydantic_config__ = STRICT

    epoch: int  # from 1
    steps: int  # so far
    lr: float  # of the last step
    train_loss: float  # mean over the epoch, with its augmentation and label smoothing
    train_top1: float  # percent, likewise
    seconds: float
    held_out_loss: float | None = None  # cross-entropy of what is judged (the average), without augmentation
    held_out_top1: float | None = None  # percent, likewise


def paths(out: Path) -> tuple[Path, Path]:
    """The training state that belongs to the checkpoint `out`: the newest and the one before."""
    return out.with_name(f"{out.stem}.last.safetensors"), out.with_name(f"{out.stem}.previous.safetensors")


def save(
    out: Path,
    module: nn.Module,
    optimizer: torch.optim.SGD,
    average: Average | None,
    history: list[Epoch],
    settings: Mapping[str, Any],
) -> None:
    """Writes the state after an epoch; the one before it is kept."""
    trained = _tensors(module, optimizer, average)
    tensors = {name: value.detach().cpu().contiguous() for name, value in trained.items()}
    header: dict[str, Any] = {"settings": settings, "history": [asdict(line) for line in history]}
    header["digest"] = _digest(tensors)
    header["signature"] = signing.mac("state", store.fingerprint(header))
    last, previous = paths(out)
    data = safetensors.torch.save(tensors, {"train": json.dumps(header)})
    with store.disk_errors(last), contextlib.suppress(FileNotFoundError):
        os.replace(last, previous)
    store.write_bytes(last, data)


def _tensors(module: nn.Module, optimizer: torch.optim.SGD, average: Average | None) -> dict[str, Tensor]:
    """All that a training changes, by its name in a state: the tensors themselves."""
    tensors = {f"model.{name}": value for name, value in module.state_dict().items()}
    tensors |= {f"momentum.{name}": optimizer.state[p]["momentum_buffer"] for name, p in module.named_parameters()}
    return tensors | {f"average.{name}": value for name, value in ({} if average is None else average.tensors).items()}


def own(out: Path) -> bool:
    """Whether nobody but this user has written the states of `out`; a damaged one is `restore`'s to pass over."""
    for path in paths(out):
        try:
            with safe_open(path, "pt") as file:
                header = _header(file, path)
            if signing.good(header.pop("signature", None), "state", store.fingerprint(header)):
                continue
        except (OSError, SafetensorError, MalformedInput, RecursionError):
            continue
        places.log.warning("%s is not signed by you: training starts anew", path)
        return False
    return True


def restore(
    out: Path,
    module: nn.Module,
    optimizer: torch.optim.SGD,
    average: Average | None,
    settings: Mapping[str, Any],
) -> tuple[list[Epoch], str]:
    """Loads the newest undamaged state into module, optimizer and average.

    Returns:
        The history so far, empty where there is nothing to go on from, and a note if a file was damaged.

    Raises:
        UsageError: the state is of other settings or other data.
    """
    damaged, ours = [], _tensors(module, optimizer, average)
    for path in paths(out):
        if not path.is_file():
            continue
        try:
            tensors, settings_then, history = _load(path)
        except (SafetensorError, MalformedInput, RecursionError) as e:
            damaged.append(f"{path.name} was damaged ({e})")
            continue
        _refuse_changed(settings_then, settings, path)
        if _shapes(tensors) != _shapes(ours):
            damaged.append(f"{path.name} was damaged (its tensors are not those of this network)")
            continue
        for name, value in ours.items():
            value.copy_(tensors[name])
        return history, _note(damaged, "training went on from the epoch before")
    return [], _note(damaged, "training started anew")


def _note(damaged: list[str], then: str) -> str:
    return "; ".join((*damaged, then)) if damaged else ""


def remove(out: Path) -> None:
    """Removes the state of a training that is done."""
    for path in paths(out):
        path.unlink(missing_ok=True)


def _header(file: Any, path: Path) -> dict[str, Any]:
    """What an open state says of its tensors, not yet verified.

    Raises:
        MalformedInput: nothing that `save` writes.
    """
    header = store.parse_json((file.metadata() or {}).get("train", ""), str(path))
    if not isinstance(header, dict) or not isinstance(header.get("settings"), dict):
        raise MalformedInput("its header is no record")
    return header


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[Epoch]]:
    """The tensors, the settings and the history."""
    with safe_open(path, "pt") as file:
        header = _header(file, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    history = store.parse(list[Epoch], json.dumps(header.get("history")), str(path))
    if _digest(tensors) != header.get("digest"):
        raise MalformedInput("its tensors do not match their digest")
    return tensors, header["settings"], history


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].numpy().tobytes())
    return sha.hexdigest()


def _refuse_changed(saved: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """The settings as JSON sees them (tuples are lists there)."""
    now = json.loads(json.dumps(now))
    changed = [key for key in now if saved.get(key) != now[key]]
    if changed:
        raise UsageError(
            f"the training in {path} was started with another " + ", ".join(changed),
            fix="Give the same settings and data to resume it, or start anew without --resume",
        )
