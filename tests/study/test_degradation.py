"""The study of depth: an interrupted one goes on, and nothing of other settings is taken for its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from resdeploy.data.datasets import choose, open_dataset
from resdeploy.errors import UsageError
from resdeploy.models import zoo
from resdeploy.records import ModelSpec, Preprocessing
from resdeploy.study import degradation
from resdeploy.train import curves, loop

PLAN = loop.Plan(epochs=2, batch_size=16, recipe="paper", threads=1)
STEPS = 4  # of a network: two epochs of 40 images
SIGHT = Preprocessing(size=(8, 8), channels="L", mean=(0.3,), std=(0.4,))


def spec_of(name: str) -> ModelSpec:
    return zoo.spec(name, classes=10, preprocessing=SIGHT)


class Counter:
    """Counts steps of training, and stops after so many."""

    def __init__(self, stop: int | None = None) -> None:
        self.steps, self.stop = 0, stop
        self.done = 0  # of one training, as told last

    def __call__(self, what: str, done: int, _total: int) -> None:
        if what == "training":
            self.steps += done == self.done + 1
            self.done = done
            if self.steps == self.stop:
                raise KeyboardInterrupt


def study(folder: Path, progress: Callable[[str, int, int], None], plan: loop.Plan = PLAN) -> list[object]:
    """Networks of 20 and 32 layers, one seed; curves without the times."""
    train, test = (open_dataset("digits", split=split) for split in ("train", "test"))
    train, test = choose(train, 40, 0), choose(test, 10, 0)
    both = degradation.DegradationPlan(data="digits", depths=(20, 32), seeds=1, training=plan)
    found = degradation.train_networks(spec_of, train, test, both, folder=folder, progress=progress)
    return [(t.name, t.seed, [dataclasses.replace(line, seconds=0.0) for line in t.history]) for t in found]


def weights(folder: Path) -> dict[str, dict[str, bytes]]:
    files = sorted(folder.glob("*.safetensors"))
    return {path.name: {name: t.numpy().tobytes() for name, t in load_file(path).items()} for path in files}


def test_an_interrupted_study_goes_on_where_it_was(tmp_path: Path) -> None:
    """Stopped in the second epoch of the third network: two are not trained again, and curves and weights are equal."""
    whole = study(tmp_path / "whole", Counter())
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "cut", Counter(stop=2 * STEPS + 3))
    rest = Counter()
    assert study(tmp_path / "cut", rest) == whole
    assert rest.steps == STEPS + 2  # the second epoch of the third network, and the fourth
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    again = Counter()
    assert study(tmp_path / "cut", again) == whole
    assert again.steps == 0


def test_networks_of_other_settings_are_trained_anew(tmp_path: Path) -> None:
    """Finished ones and an interrupted one; a damaged checkpoint and a curve that lost its end likewise."""
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "a", Counter(stop=2 * STEPS + 3))
    faster = dataclasses.replace(PLAN, lr=0.05)
    counter = Counter()
    changed = study(tmp_path / "a", counter, faster)
    assert counter.steps == 4 * STEPS
    assert changed == study(tmp_path / "b", Counter(), faster)
    checkpoint = tmp_path / "a/plain20.0.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    table, _ = curves.paths(tmp_path / "a/resnet32.0.safetensors")
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    counter = Counter()
    assert study(tmp_path / "a", counter, faster) == changed
    assert counter.steps == 2 * STEPS


def test_a_depth_named_twice_is_one_depth(tmp_path: Path) -> None:
    """Its trainings are not counted as those of further seeds."""
    plan = degradation.DegradationPlan(data="digits", depths=(20, 20), seeds=2, training=loop.Plan(epochs=1))
    with pytest.raises(UsageError, match="one depth"):
        degradation.study_depths(plan, tmp_path, progress=lambda *_: None, watch=lambda _: None)
    assert not list(tmp_path.iterdir())
