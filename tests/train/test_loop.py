"""Training: it learns, goes on bit by bit after a kill, and stops with a reason."""

from __future__ import annotations

import csv
import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from resdeploy import store
from resdeploy.data import preprocess
from resdeploy.data.datasets import Dataset, choose, open_dataset
from resdeploy.errors import UsageError
from resdeploy.models import weights, zoo
from resdeploy.records import Artifact, Preprocessing
from resdeploy.train import loop, state

SPEC = zoo.spec("resnet20", classes=10, preprocessing=Preprocessing(size=(8, 8), channels="L", mean=(0.3,), std=(0.4,)))
SETTINGS = {"epochs": 3, "lr": 0.1, "batch_size": 16, "seed": 5, "threads": 1}


@pytest.fixture(scope="module")
def images() -> tuple[Dataset, Dataset]:
    return some()


def some() -> tuple[Dataset, Dataset]:
    """A hundred training images and thirty others."""
    return tuple(choose(open_dataset("digits", split=s), n, 0) for s, n in (("train", 100), ("test", 30)))


def run(out: Path, images: tuple[Dataset, Dataset], **changes: object) -> Artifact:
    return loop.train(SPEC, *images, out=out, **{**SETTINGS, **changes})


def tensors(artifact: Artifact) -> dict[str, bytes]:
    """Names and bits; not the file's, whose header has its entries in no fixed order."""
    return {name: value.numpy().tobytes() for name, value in load_file(artifact.path).items()}


class Stop(Exception):
    pass


def stop_at(step: int, error: type[BaseException] = Stop) -> object:
    def progress(what: str, done: int, total: int) -> None:
        if what == "training" and done == step:
            raise error

    return progress


def test_resnet20_learns_handwriting_on_images_it_has_not_seen(tmp_path: Path) -> None:
    """Five epochs at 8x8 reach 90 % on held-out digits; the sidecar's figure is what the saved file really does."""
    train, test = open_dataset("digits", split="train"), open_dataset("digits", split="test")
    out = tmp_path / "r20.safetensors"
    artifact = loop.train(SPEC, train, test, epochs=5, lr=0.1, batch_size=32, seed=0, out=out, threads=1)
    assert artifact.checks["test_top1"] > 90
    net = zoo.create(SPEC, seed=9)
    weights.load_into(net, out)
    inputs = np.stack(
        [preprocess.apply(preprocess.Image.fromarray(test.read(i)), SPEC.preprocessing) for i in range(360)]
    )
    with torch.no_grad():
        right = (net(torch.from_numpy(inputs)).argmax(1).numpy() == test.labels).mean()
    assert 100 * right == pytest.approx(artifact.checks["test_top1"], abs=0.3)
    stored = store.load(out)
    assert stored is not None
    assert stored.model.labels == tuple("0123456789")
    assert stored.weights.source == "trained:digits"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "r20.history.csv",
        "r20.safetensors",
        "r20.safetensors.json",
    ]
    rows = list(csv.DictReader((tmp_path / "r20.history.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_interrupted_anywhere_and_resumed_is_bit_identical(
    tmp_path: Path, images: tuple[Dataset, Dataset], recipe: str
) -> None:
    """Stopped in every epoch, also before the first state: every parameter is bit for bit the uninterrupted one's."""
    whole = run(tmp_path / "whole.safetensors", images, recipe=recipe)
    assert tensors(whole) != tensors(run(tmp_path / "seed.safetensors", images, recipe=recipe, seed=6))
    out = tmp_path / "cut.safetensors"
    for step in (2, 6, 9, 17):
        with pytest.raises(Stop):
            run(out, images, recipe=recipe, resume=True, progress=stop_at(step))
    assert not out.exists()
    assert tensors(run(out, images, recipe=recipe, resume=True)) == tensors(whole)
    assert [p.name for p in tmp_path.glob("cut*")] != []
    assert not list(tmp_path.glob("cut.last*"))


def test_a_killed_training_resumes_bit_identically(tmp_path: Path, images: tuple[Dataset, Dataset]) -> None:
    """SIGKILL in the third epoch of a real process."""
    whole = run(tmp_path / "whole.safetensors", images)
    out = tmp_path / "killed.safetensors"
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_loop
images = test_loop.some()
die = lambda what, done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 14 and what == "training" else None
test_loop.run(Path({str(out)!r}), images, progress=die)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    seen: list[int] = []
    again = run(
        out, images, resume=True, progress=lambda what, done, _: seen.append(done) if what == "training" else None
    )
    assert seen[0] == 13  # two epochs of six steps were done
    assert tensors(again) == tensors(whole)


def test_a_damaged_state_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, images: tuple[Dataset, Dataset]
) -> None:
    """One flipped bit in a tensor, and a truncated file: same result, with a note."""
    whole = run(tmp_path / "whole.safetensors", images)
    for name, damage in (
        ("flip", lambda d: d[:-9] + bytes([d[-9] ^ 1]) + d[-8:]),
        ("cut", lambda d: d[: len(d) // 2]),
        ("empty", lambda d: b""),
    ):
        out = tmp_path / f"{name}.safetensors"
        with pytest.raises(Stop):
            run(out, images, progress=stop_at(14))
        last, _ = state.paths(out)
        last.write_bytes(damage(last.read_bytes()))
        again = run(out, images, resume=True)
        assert tensors(again) == tensors(whole)
        assert any("damaged" in note for note in again.notes)


def test_resuming_with_other_settings_or_data_is_refused(tmp_path: Path, images: tuple[Dataset, Dataset]) -> None:
    """What differs is named and the state stays."""
    out = tmp_path / "r.safetensors"
    with pytest.raises(Stop):
        run(out, images, progress=stop_at(8))
    before = state.paths(out)[0].read_bytes()
    with pytest.raises(UsageError, match="lr, seed"):
        run(out, images, resume=True, lr=0.2, seed=1)
    with pytest.raises(UsageError, match="data"):
        run(out, (images[0].subset(range(99)), images[1]), resume=True)
    assert state.paths(out)[0].read_bytes() == before


def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_last_state(
    tmp_path: Path, images: tuple[Dataset, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named: the step, the learning rate, the state; no checkpoint is written."""
    out = tmp_path / "nan.safetensors"
    with pytest.raises(UsageError, match=r"step \d+") as caught:
        run(out, images, lr=1e20)
    assert caught.value.code == "E-DIVERGED"
    assert not out.exists()
    usual = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", lambda r, peak, step, n: 1e25 if step >= 8 else usual(r, peak, step, n))
    with pytest.raises(UsageError) as caught:
        run(out, images)
    assert "nan.last.safetensors" in caught.value.fix
    monkeypatch.undo()
    assert tensors(run(out, images, resume=True)) == tensors(run(tmp_path / "whole.safetensors", images))


def test_an_interrupt_leaves_the_last_state_and_no_temporary_files(
    tmp_path: Path, images: tuple[Dataset, Dataset]
) -> None:
    """Ctrl-C passes through; what is on disk can be resumed."""
    out = tmp_path / "r.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(out, images, progress=stop_at(8, KeyboardInterrupt))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.history.csv", "r.last.safetensors"]


def test_data_that_cannot_train_the_model_are_refused(tmp_path: Path, images: tuple[Dataset, Dataset]) -> None:
    """One class only, no labels, more classes than the model has."""
    train, test = images
    one = train.subset(np.flatnonzero(train.labels == 3))
    with pytest.raises(UsageError, match="one class"):
        run(tmp_path / "x.safetensors", (one, test))
    with pytest.raises(UsageError, match="no labels"):
        run(tmp_path / "x.safetensors", (open_dataset("synthetic:8", need_labels=False), test))
    small = dataclasses.replace(SPEC, classes=4)
    with pytest.raises(UsageError, match="10 classes"):
        loop.train(small, train, test, out=tmp_path / "x.safetensors", **SETTINGS)
    assert not list(tmp_path.iterdir())


def test_inputs_in_training_are_those_of_inference() -> None:
    """Without augmentation the float32 inputs are bit-identical to `preprocess.normalise`, and channels last."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 3), dtype=np.uint8)
    spec = Preprocessing(size=(8, 6))
    found = loop.normalise(torch.from_numpy(pixels), spec)
    np.testing.assert_array_equal(found.numpy(), np.stack([preprocess.normalise(p, spec) for p in pixels]))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_augmentation_is_a_shift_over_black_and_a_mirror() -> None:
    """Each result is one of the 81 (x 2) crops of the padded image, and all offsets occur; without `flip` no mirror."""
    image = torch.randint(1, 256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image[0], (0, 0, 4, 4, 4, 4))
    crops = {padded[y : y + 32, x : x + 32].numpy().tobytes(): (y, x, False) for y in range(9) for x in range(9)}
    crops |= {
        padded[y : y + 32, x : x + 32].flip(1).numpy().tobytes(): (y, x, True) for y in range(9) for x in range(9)
    }
    for flip in (True, False):
        out = loop.augment(image.expand(2000, -1, -1, -1), flip, torch.Generator().manual_seed(1))
        found = [crops[one.numpy().tobytes()] for one in out]
        assert {(y, x) for y, x, _ in found} == {(y, x) for y in range(9) for x in range(9)}
        assert np.mean([mirrored for *_, mirrored in found]) == pytest.approx(0.5 if flip else 0, abs=0.05)


def test_the_papers_schedule_and_the_one_cycle() -> None:
    """Paper: 0.1, then 0.01 from 32k and 0.001 from 48k of 64k steps. Fast: a tenth, the peak, nearly nothing."""
    paper = [loop.learning_rate("paper", 0.1, s, 64_000) for s in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert paper == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    fast = [loop.learning_rate("fast", 0.4, s, 1000) for s in range(1000)]
    assert fast[0] == pytest.approx(0.04)
    assert max(fast) == fast[200] == pytest.approx(0.4)
    assert fast[-1] < 1e-5
    assert np.all(np.diff(fast[:201]) > 0)
    assert np.all(np.diff(fast[200:]) < 0)


def test_unreadable_images_are_left_out_and_named(tmp_path: Path) -> None:
    """Training goes on without them; the sidecar lists them."""
    from PIL import Image

    for name, value in (("a", 0), ("b", 255)):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), abs(value - i)).save(tmp_path / f"d/{name}/{i}.png")
    (tmp_path / "d/a/0.png").write_bytes(b"")
    data = open_dataset(str(tmp_path / "d"))
    spec = dataclasses.replace(SPEC, classes=2)
    artifact = loop.train(
        spec, data, data, out=tmp_path / "x.safetensors", **{**SETTINGS, "epochs": 1, "batch_size": 4}
    )
    assert "left out of training, unreadable: a/0.png: an empty file" in artifact.notes
