"""Pruning: the cheapest blocks go, within the budget, and nothing is chosen on the images that judge."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resdeploy.data.datasets import Dataset, open_dataset
from resdeploy.errors import NothingRemoved, UsageError
from resdeploy.graph import drop, files
from resdeploy.models import zoo
from resdeploy.records import Artifact, Predictions, Preprocessing, Weights
from resdeploy.verbs import block_search
from tests import quick

SIGHT = Preprocessing(size=(8, 8), channels="L", mean=(0.3,), std=(0.4,))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    spec = zoo.spec("resnet20", classes=10, preprocessing=SIGHT)
    path = tmp_path_factory.mktemp("prune") / "r.onnx"
    return quick.export(zoo.create(spec), spec, path)


@pytest.fixture(scope="module")
def images() -> tuple[Dataset, Dataset]:
    return block_search.halves(open_dataset("digits", split="all"), 0)


class World:
    """Answers of a network whose blocks are worth what we say: each block that is gone spoils its share of images.

    `seen` is what it was asked for: which file, which images.
    """

    def __init__(self, whole: Artifact, worth: dict[str, float]) -> None:
        self.names = drop.removable_blocks(files.load_model(Path(whole.path)))
        self.worth = worth
        self.seen: list[tuple[tuple[str, ...], tuple[str, ...]]] = []

    def __call__(self, artifact: Artifact, images: Dataset) -> Predictions:
        left = drop.removable_blocks(files.load_model(Path(artifact.path)))
        gone = [name for name in self.names if name not in left]
        self.seen.append((tuple(gone), images.ids))
        spoilt = sum(self.worth.get(name, 0.0) for name in gone)
        place = np.random.default_rng(7).permutation(len(images))
        logits = np.full((len(images), 10), -2.0, np.float32)
        answers = np.where(place < round(spoilt * len(images)), (images.labels + 1) % 10, images.labels)
        logits[np.arange(len(images)), answers] = 2.0
        return Predictions(
            model="r", ids=images.ids, labels=images.labels, top=np.argsort(-logits, 1)[:, :5].astype(np.int64),
            logits=logits, data="digits", data_fingerprint=str(len(images)), preprocessing_fingerprint="p", sha256="s",
        )  # fmt: skip


WORTH = {
    "layer1.0": 0.002,
    "layer1.1": 0.3,
    "layer1.2": 0.001,
    "layer2.1": 0.004,
    "layer2.2": 0.2,
    "layer3.1": 0.1,
    "layer3.2": 0.3,
}


def go(
    world: World, source: Artifact, images: tuple[Dataset, Dataset], out: Path, **budget: Any
) -> block_search.Pruned:
    limits = block_search.Budget(**{"max_drop_pp": 2.0, **budget})
    return block_search.prune(source, *images, limits, predict=world, out=out)


def test_the_cheapest_blocks_go_in_order_and_no_more_than_the_budget_allows(
    source: Artifact, images: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    """Three blocks cost 0.7 points together, the fourth ten: it is on the path and stays."""
    found = go(World(source, WORTH), source, images, tmp_path / "p.onnx")
    assert found.removed == ("layer1.2", "layer1.0", "layer2.1")
    assert [step.block for step in found.path] == [*found.removed, "layer3.1"]
    assert {lesion.block for lesion in found.lesions} == set(WORTH)
    assert found.verdict.state == "pass"
    assert drop.removable_blocks(files.load_model(tmp_path / "p.onnx")) == tuple(
        n for n in WORTH if n not in found.removed
    )
    assert found.artifact.model is not None
    assert found.artifact.model.removed == found.removed
    assert any("layer1.2" in note for note in found.artifact.notes)


def test_nothing_is_chosen_on_the_images_that_judge(
    source: Artifact, images: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    """They are disjoint and of equal size; the judging ones are answered twice, when all is decided."""
    choosing, judging = images
    assert not set(choosing.ids) & set(judging.ids)
    assert abs(len(choosing) - len(judging)) <= 1
    world = World(source, WORTH)
    found = go(world, source, images, tmp_path / "p.onnx")
    on_judging = [i for i, (_, ids) in enumerate(world.seen) if ids == judging.ids]
    assert on_judging == [len(world.seen) - 2, len(world.seen) - 1]
    assert all(ids in (choosing.ids, judging.ids) for _, ids in world.seen)
    assert world.seen[-1][0] == tuple(n for n in WORTH if n in found.removed)
    with pytest.raises(UsageError, match="chosen on and judged on"):
        go(World(source, WORTH), source, (choosing, choosing), tmp_path / "x.onnx")


def test_lazy_choice_takes_what_an_exhaustive_one_would(
    source: Artifact, images: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    """With worths that add up, the order is that of the worths."""
    found = go(World(source, WORTH), source, images, tmp_path / "p.onnx", blocks=7)
    assert found.removed[:5] == tuple(sorted(WORTH, key=WORTH.__getitem__)[:5])
    assert len(found.removed) == 7
    assert found.verdict.state == "fail"


def test_a_budget_of_nothing_removes_nothing_and_says_so(
    source: Artifact, images: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    """With an exit status of its own and no file; more blocks than there are, or a network without, are refused."""
    with pytest.raises(NothingRemoved, match=r"none of the 7 blocks .* loses .* points of top-1 on") as nothing:
        go(World(source, dict.fromkeys(WORTH, 0.4)), source, images, tmp_path / "p.onnx")
    assert nothing.value.exit_status == 8
    assert not (tmp_path / "p.onnx").exists()
    with pytest.raises(UsageError, match="there are 7"):
        go(World(source, WORTH), source, images, tmp_path / "x.onnx", blocks=8)
    spec = zoo.spec("plain20", classes=10, preprocessing=SIGHT)
    plain = quick.export(zoo.create(spec), spec, tmp_path / "plain.onnx")
    with pytest.raises(UsageError, match="no residual block"):
        go(World(source, WORTH), plain, images, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_divergence_is_scipys_mean_of_relative_entropies() -> None:
    """And zero for equal answers."""
    from scipy.special import rel_entr, softmax

    a, b = np.random.default_rng(0).normal(size=(2, 50, 10)).astype(np.float32)
    p, q = softmax(a.astype(np.float64), 1), softmax(b.astype(np.float64), 1)
    assert block_search.divergence(a, b) == pytest.approx(rel_entr(p, q).sum(1).mean(), rel=1e-6)
    assert block_search.divergence(a, a) == 0


def test_a_pruned_description_makes_the_same_network(source: Artifact, tmp_path: Path) -> None:
    """From the spec alone: its state has the keys of the blocks that are left, and its file survives a round trip."""
    from resdeploy.models import weights

    assert source.model is not None
    spec = dataclasses.replace(source.model, removed=("layer1.2", "layer3.1"), params=None)
    net = zoo.create(spec, seed=2)
    assert not any(key.startswith(("layer1.2.", "layer3.1.")) for key in net.state_dict())
    assert any(key.startswith("layer3.2.") for key in net.state_dict())
    weights.save(net, spec, tmp_path / "n.safetensors", Weights(source="random", seed=2))
    stored = weights.spec_in(tmp_path / "n.safetensors")
    assert stored is not None
    assert stored == spec
    again = zoo.create(stored)
    weights.load_into(again, tmp_path / "n.safetensors")
    with pytest.raises(UsageError, match=r"layer2\.0"):
        zoo.create(dataclasses.replace(spec, removed=("layer2.0",)))
