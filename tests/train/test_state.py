"""Training states that somebody else has made up: passed over with a word, whatever they hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from resdeploy.train import state

LINE = state.Epoch(epoch=1, steps=2, lr=0.1, train_loss=1.0, train_top1=50.0, seconds=1.0)


def network(width: int = 2) -> tuple[Any, Any]:
    module = torch.nn.Linear(width, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for parameter in module.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    return module, optimizer


PLANTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda _: [],
    "text": lambda _: "settings",
    "no settings": lambda found: {**found, "settings": 1},
    "no history": lambda found: {k: v for k, v in found.items() if k != "history"},
    "a key that an epoch has not": lambda found: {**found, "history": [{**asdict(LINE), "more": 1}]},
    "a number that is text": lambda found: {**found, "history": [{**asdict(LINE), "epoch": "first"}]},
    "an epoch that is a list": lambda found: {**found, "history": [[]]},
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_state_with_a_made_up_header_is_damaged_and_nothing_else(case: str, tmp_path: Path) -> None:
    """Its tensors and their digest are right."""
    module, optimizer = network()
    out = tmp_path / "net.safetensors"
    state.save(out, module, optimizer, None, [LINE], {"seed": 0})
    last = state.paths(out)[0]
    with safe_open(last, "pt") as file:
        held = json.loads(file.metadata()["train"])
    save_file(load_file(last), last, {"train": json.dumps(PLANTED[case](held))})
    state.own(out)
    history, note = state.restore(out, *network(), None, {"seed": 0})
    assert history == []
    assert "damaged" in note
    assert note.endswith("training started anew")


def test_a_state_of_another_network_is_damaged_and_changes_nothing(tmp_path: Path) -> None:
    """Whole in itself, with the same settings, and of one weight more."""
    out = tmp_path / "net.safetensors"
    state.save(out, *network(3), None, [LINE], {"seed": 0})
    module, optimizer = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    history, note = state.restore(out, module, optimizer, None, {"seed": 0})
    assert history == []
    assert "not those of this network" in note
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_state_of_ones_own_gives_everything_back(tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    module, optimizer = network()
    state.save(out, module, optimizer, None, [LINE], {"seed": 0})
    other, its_optimizer = network()
    for parameter in other.parameters():
        its_optimizer.state[parameter]["momentum_buffer"].zero_()
    assert state.own(out)
    assert state.restore(out, other, its_optimizer, None, {"seed": 0}) == ([LINE], "")
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    for parameter in other.parameters():
        assert its_optimizer.state[parameter]["momentum_buffer"].eq(1).all()
