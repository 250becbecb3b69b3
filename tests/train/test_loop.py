"""Training: it learns, goes on bit by bit after a kill, and stops with a reason."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import itertools
import multiprocessing
import multiprocessing.process
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save

from resdeploy import store, vocabulary
from resdeploy.data import preprocess
from resdeploy.data.datasets import Dataset, choose, open_dataset
from resdeploy.errors import DiskFull, MissingInput, UsageError, WeightsMismatch
from resdeploy.models import weights, zoo
from resdeploy.records import Artifact, ModelSpec, Preprocessing, Weights
from resdeploy.train import distributed, loop, recipes, state
from resdeploy.train.images import Samples, Step, augment, load, normalise

SIGHT = Preprocessing(size=(8, 8), channels="L", mean=(0.3,), std=(0.4,))
RESNET20 = zoo.spec("resnet20", classes=10, preprocessing=SIGHT)
# With one block left in each stage: what does not depend on the depth.
SPEC = dataclasses.replace(
    RESNET20, removed=tuple(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (1, 2)), params=None
)
HANGS_S = 600  # only a process that hangs takes as long
PORT_TAKEN = 98  # by another program, since it was seen to be free
SETTINGS: dict[str, Any] = {"epochs": 3, "lr": 0.1, "batch_size": 16, "seed": 5, "threads": 1}


@pytest.fixture(scope="module")
def images() -> tuple[Dataset, Dataset]:
    return some()


def some() -> tuple[Dataset, Dataset]:
    """A hundred training images and thirty others."""
    return choose(open_dataset("digits", split="train"), 100, 0), choose(open_dataset("digits", split="test"), 30, 0)


@pytest.fixture(scope="module")
def whole(images: tuple[Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a training gives that nothing interrupts."""
    return tensors(run(tmp_path_factory.mktemp("whole") / "whole.safetensors", images))


def run(out: Path, images: tuple[Dataset, Dataset], **changes: Any) -> Artifact:
    of_plan, of_task = (
        {field.name: changes.pop(field.name) for field in dataclasses.fields(kind) if field.name in changes}
        for kind in (loop.Plan, loop.Task)
    )
    plan = loop.Plan(**{**SETTINGS, **of_plan})
    return loop.train(task(SPEC, images, plan, out, **of_task), **changes)


def task(spec: ModelSpec, images: tuple[Dataset, Dataset], plan: loop.Plan, out: Path, **more: Any) -> loop.Task:
    train, test = images
    return loop.Task(spec=spec, train_data=train, test_data=test, plan=plan, out=out, **more)


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


@pytest.mark.acceptance
def test_resnet20_learns_handwriting_on_images_it_has_not_seen(tmp_path: Path) -> None:
    """Five epochs at 8x8 reach 90 % on held-out digits; the sidecar's figure is what the saved file really does."""
    train, test = open_dataset("digits", split="train"), open_dataset("digits", split="test")
    out = tmp_path / "r20.safetensors"
    artifact = loop.train(task(RESNET20, (train, test), loop.Plan(epochs=5, batch_size=32, threads=1), out))
    assert artifact.checks["test_top1"] > 90
    net = zoo.create(RESNET20, seed=9)
    weights.load_into(net, out)
    inputs = np.stack([preprocess.apply(Image.fromarray(np.asarray(test.read(i))), SIGHT) for i in range(360)])
    with torch.no_grad():
        right = (net(torch.from_numpy(inputs)).argmax(1).numpy() == test.labels).mean()
    assert 100 * right == pytest.approx(artifact.checks["test_top1"], abs=0.3)
    stored = store.load(out)
    assert stored is not None
    assert stored.model is not None
    assert stored.weights is not None
    assert stored.model.labels == tuple("0123456789")
    assert stored.weights.source == "trained:digits"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "r20.history.csv",
        "r20.history.svg",
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


def forked(work: Callable[..., object], *args: object) -> multiprocessing.process.BaseProcess:
    """A process that has imported torch already, where there is no GPU, which would be this process's alone."""
    method = "spawn" if torch.cuda.is_available() else "fork"
    context: Any = multiprocessing.get_context(method)
    process: multiprocessing.process.BaseProcess = context.Process(target=work, args=args)
    process.start()
    return process


def ended(process: multiprocessing.process.BaseProcess) -> int | None:
    process.join(HANGS_S)
    status = process.exitcode
    if status is None:
        process.kill()
        process.join()
    return status


def killed(out: Path) -> None:
    """Trains until its own SIGKILL."""

    def die(what: str, done: int, _total: int) -> None:
        if (what, done) == ("training", 14):
            os.kill(os.getpid(), signal.SIGKILL)

    run(out, some(), progress=die)


def test_a_killed_training_resumes_bit_identically(
    tmp_path: Path, images: tuple[Dataset, Dataset], whole: dict[str, bytes]
) -> None:
    """SIGKILL in the third epoch of a process of its own."""
    out = tmp_path / "killed.safetensors"
    assert ended(forked(killed, out)) == -signal.SIGKILL
    assert not out.exists()
    seen: list[int] = []
    again = run(
        out, images, resume=True, progress=lambda what, done, _: seen.append(done) if what == "training" else None
    )
    assert seen[:2] == [12, 13]  # two epochs of six steps were done
    assert tensors(again) == whole


def test_a_damaged_state_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, images: tuple[Dataset, Dataset], whole: dict[str, bytes]
) -> None:
    """One flipped bit in a tensor, and a truncated file: same result, with a note."""
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
        assert tensors(again) == whole
        assert any("damaged" in note and "went on" in note for note in again.notes)


def test_two_damaged_states_are_both_named_and_the_training_starts_anew(
    tmp_path: Path, images: tuple[Dataset, Dataset], whole: dict[str, bytes]
) -> None:
    """With the result of a training that nobody interrupted."""
    out = tmp_path / "r.safetensors"
    with pytest.raises(Stop):
        run(out, images, progress=stop_at(14))
    odd = save({"x": torch.zeros(1)}, {"train": "[" * 100_000})  # JSON that Python cannot nest
    for path, content in zip(state.paths(out), (b"", odd), strict=True):
        path.write_bytes(content)
    again = run(out, images, resume=True)
    assert tensors(again) == whole
    (note,) = (note for note in again.notes if "damaged" in note)
    assert all(path.name in note for path in state.paths(out))
    assert note.endswith("training started anew")


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
    tmp_path: Path, images: tuple[Dataset, Dataset], whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named: the step, the learning rate, the state; no checkpoint is written."""
    out = tmp_path / "nan.safetensors"
    with pytest.raises(UsageError, match=r"step \d+") as caught:
        run(out, images, lr=1e20)
    assert caught.value.code == "E-DIVERGED"
    assert not out.exists()
    usual = recipes.learning_rate
    monkeypatch.setattr(
        recipes, "learning_rate", lambda r, peak, step, n: 1e25 if step >= 8 else usual(r, peak, step, n)
    )
    with pytest.raises(UsageError) as caught:
        run(out, images)
    assert "nan.last.safetensors" in caught.value.fix
    monkeypatch.undo()
    assert tensors(run(out, images, resume=True)) == whole


def test_an_interrupt_leaves_the_last_state_and_no_temporary_files(
    tmp_path: Path, images: tuple[Dataset, Dataset]
) -> None:
    """Ctrl-C passes through; what is on disk can be resumed."""
    out = tmp_path / "r.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(out, images, progress=stop_at(8, KeyboardInterrupt))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.history.csv", "r.history.svg", "r.last.safetensors"]


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
        loop.train(task(small, images, loop.Plan(**SETTINGS), tmp_path / "x.safetensors"))
    assert not list(tmp_path.iterdir())


def test_inputs_in_training_are_those_of_inference() -> None:
    """Without augmentation the float32 inputs are bit-identical to `preprocess.normalise`, and channels last."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 3), dtype=np.uint8)
    spec = Preprocessing(size=(8, 6))
    found = normalise(torch.from_numpy(pixels), spec)
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
        out = augment(
            image.expand(2000, -1, -1, -1), "shift" if flip else "shift-only", torch.Generator().manual_seed(1)
        )
        found = [crops[one.numpy().tobytes()] for one in out]
        assert {(y, x) for y, x, _ in found} == {(y, x) for y in range(9) for x in range(9)}
        assert np.mean([mirrored for *_, mirrored in found]) == pytest.approx(0.5 if flip else 0, abs=0.05)


def test_the_papers_schedule_and_the_one_cycle() -> None:
    """Paper: 0.1, then 0.01 from 32k and 0.001 from 48k of 64k steps. Fast: a tenth, the peak, nearly nothing."""
    paper = [recipes.learning_rate("paper", 0.1, s, 64_000) for s in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert paper == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    fast = [recipes.learning_rate("fast", 0.4, s, 1000) for s in range(1000)]
    assert fast[0] == pytest.approx(0.04)
    assert max(fast) == fast[200] == pytest.approx(0.4)
    assert fast[-1] < 1e-5
    assert np.all(np.diff(fast[:201]) > 0)
    assert np.all(np.diff(fast[200:]) < 0)


def test_unreadable_images_are_left_out_and_named(tmp_path: Path) -> None:
    """Training goes on without them; the sidecar lists them."""
    train, test = pictures(tmp_path)
    (tmp_path / "d/train/a/0.png").write_bytes(b"")
    (tmp_path / "d/test/b/1.png").write_bytes(b"")
    artifact = run_two(tmp_path / "x.safetensors", train, test)
    assert "left out of training, unreadable: train/a/0.png: an empty file" in artifact.notes
    assert "left out of testing, unreadable: test/b/1.png: an empty file" in artifact.notes
    assert artifact.checks["test_images"] == 7


def pictures(folder: Path) -> tuple[Dataset, Dataset]:
    """Two classes of four images each, in two splits, all of them different."""
    from PIL import Image

    for split, value in (("train", 0), ("test", 20)):
        for name in "ab":
            (folder / "d" / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("L", (8, 8), value + i + 100 * (name == "b")).save(folder / f"d/{split}/{name}/{i}.png")
    return open_dataset(str(folder / "d"), split="train"), open_dataset(str(folder / "d"), split="test")


def run_two(out: Path, train: Dataset, test: Dataset, **changes: Any) -> Artifact:
    plan = loop.Plan(**{**SETTINGS, "epochs": 1, "batch_size": 4, **changes})
    return loop.train(task(dataclasses.replace(SPEC, classes=2), (train, test), plan, out))


def test_what_is_learned_from_is_not_judged_on_and_what_is_there_twice_is_judged_once(tmp_path: Path) -> None:
    """By the bytes: of eight test images two are training images and two the same one; six and five are left."""
    pictures(tmp_path)
    d = tmp_path / "d"
    for there, copy in (("train/a/0", "test/a/0"), ("train/b/3", "test/b/2"), ("test/b/0", "test/b/1")):
        (d / f"{copy}.png").write_bytes((d / f"{there}.png").read_bytes())
    train, test = (open_dataset(str(d), split=split) for split in ("train", "test"))
    made = run_two(tmp_path / "x.safetensors", train, test)
    assert made.checks["test_images"] == 5
    assert [note for note in made.notes if "judge on" in note] == [
        "to judge on: 1 repeat of others: each image is counted once (test/b/1.png is test/b/0.png)",
        "to judge on: 2 images learned from too: left out (test/a/0.png, test/b/2.png)",
    ]
    with pytest.raises(UsageError, match="all images to judge on are also learned from"):
        run_two(tmp_path / "y.safetensors", train, train)


def test_an_epoch_is_not_chosen_on_images_that_were_learned_from(tmp_path: Path) -> None:
    """Each training image is there twice: what is held out is judged on if its copy is held out too, and then once."""
    train, test = pictures(tmp_path)
    for path in sorted((tmp_path / "d/train").rglob("*.png")):
        os.link(path, path.with_stem(f"{path.stem}-again"))
    train = open_dataset(str(tmp_path / "d"), split="train")
    held_out = choose(train, 8, SETTINGS["seed"])
    learned = {name.replace("-again", "") for name in train.ids if name not in held_out.ids}
    fresh = {name.replace("-again", "") for name in held_out.ids} - learned
    sizes: list[int] = []
    original = loop.evaluate

    def evaluate(net: torch.nn.Module, samples: Samples, *more: Any) -> tuple[float, float]:
        sizes.append(len(samples))
        return original(net, samples, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluate)
        run_two(tmp_path / "x.safetensors", train, test, hold_out=0.5)
    assert 0 < len(fresh) < 8
    assert sizes == [len(fresh), 8]


def test_the_average_looks_back_over_a_fiftieth_of_the_steps() -> None:
    """Of 100 steps: a half goes over from step to step once the warm-up is past. Torch's own AveragedModel agrees."""
    from torch.optim.swa_utils import AveragedModel

    net = zoo.create(SPEC, seed=1).train()
    mine = recipes.Average(net, 100)
    decay = lambda step: min(0.5, (1 + step) / (10 + step))  # noqa: E731 (0.5 from step 8 on)
    theirs = AveragedModel(
        net, avg_fn=lambda a, b, n: a * decay(int(n) - 1) + b * (1 - decay(int(n) - 1)), use_buffers=True
    )
    theirs.update_parameters(net)  # the first call copies
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in range(14):
        net(x).square().sum().backward()
        with torch.no_grad():
            for p in net.parameters():
                assert p.grad is not None
                p.sub_(1e-4 * p.grad)
        mine.update(net, step)
        theirs.update_parameters(net)
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(mine.tensors[name], value, rtol=1e-5, atol=1e-7)


def test_the_average_is_what_is_judged_and_saved(tmp_path: Path, images: tuple[Dataset, Dataset]) -> None:
    """The last state holds both: the file has the average's tensors, not the network's, and all figures are its own."""
    out = tmp_path / "r.safetensors"
    states: list[dict[str, torch.Tensor]] = []
    lines: list[state.Epoch] = []

    def watch(line: state.Epoch) -> None:
        lines.append(line)
        states.append(load_file(state.paths(out)[0]))

    artifact = run(out, images, batch_size=4, held_out=images[1], watch=watch)  # 75 steps: it looks back over 1.5
    saved = load_file(out)
    assert all(torch.equal(saved[name], states[-1][f"average.{name}"]) for name in saved)
    assert not all(torch.equal(saved[name], states[-1][f"model.{name}"]) for name in saved)
    net = zoo.create(SPEC)
    weights.load_into(net, out)
    loss, top1 = loop.evaluate(net, load(images[1], SIGHT)[0], SIGHT)
    assert artifact.checks["test_top1"] == lines[-1].held_out_top1 == top1
    assert lines[-1].held_out_loss == pytest.approx(loss, rel=1e-6)


def test_held_out_images_choose_the_best_epoch_and_are_not_learned_from(
    tmp_path: Path, images: tuple[Dataset, Dataset]
) -> None:
    """A fifth of the training images; the best checkpoint is that epoch's and does on them what the curve says."""
    out = tmp_path / "r.safetensors"
    lines: list[state.Epoch] = []
    artifact = run(out, images, hold_out=0.2, watch=lines.append)
    figures: list[Any] = [line.held_out_top1 for line in lines]
    assert artifact.checks["best_epoch"] == 1 + figures.index(max(figures))
    assert lines[-1].steps == 3 * (80 // 16)
    held_out = choose(images[0], 20, SETTINGS["seed"])
    net = zoo.create(SPEC)
    weights.load_into(net, loop.best_path(out))
    samples, _ = load(held_out, SIGHT)
    assert loop.evaluate(net, samples, SIGHT)[1] == max(figures)
    kept = store.load(loop.best_path(out))
    assert kept is not None
    assert kept.checks == {"held_out_top1": max(figures), "epoch": artifact.checks["best_epoch"]}


def test_weights_of_other_classes_get_a_new_head_and_other_networks_are_refused(
    tmp_path: Path, images: tuple[Dataset, Dataset]
) -> None:
    """All but the last layer is the file's; a checkpoint of another network is named as such."""
    other = dataclasses.replace(SPEC, classes=4)
    first = tmp_path / "four.safetensors"
    net: Any = zoo.create(other, seed=9)
    weights.save(net, other, first, Weights(source="random", seed=9))
    made: Any = zoo.create(SPEC, seed=3)
    head = made.fc.weight.clone()
    weights.load_into(made, first, new_head=True)
    assert torch.equal(made.fc.weight, head)
    assert torch.equal(made.layer3.get_submodule("0").conv2.weight, net.layer3.get_submodule("0").conv2.weight)
    lines: list[state.Epoch] = []
    made_anew = run(tmp_path / "r.safetensors", images, epochs=1, initial=first, lr=None, watch=lines.append)
    assert lines[0].lr == recipes.learning_rate("fast", vocabulary.ADAPTING_LR, 5, 6)
    assert "test_top1_before" not in made_anew.checks  # of four classes, or of a random last layer: no figure at all
    deeper = zoo.spec("resnet32", classes=10, preprocessing=SPEC.preprocessing)
    weights.save(zoo.create(deeper), deeper, tmp_path / "r32.safetensors", Weights(source="random", seed=0))
    with pytest.raises(WeightsMismatch, match="does not fit"):
        run(tmp_path / "x.safetensors", images, initial=tmp_path / "r32.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_trained_weights_are_judged_first_and_trained_on_gently(
    tmp_path: Path, images: tuple[Dataset, Dataset]
) -> None:
    """The rate for fine-tuning, not for random weights; the figure before is that of the weights, resumed or not."""
    first = run(tmp_path / "first.safetensors", images, epochs=1)
    assert "test_top1_before" not in first.checks
    lines: list[state.Epoch] = []
    tuned = {"initial": Path(first.path), "lr": None, "watch": lines.append}
    whole = run(tmp_path / "whole.safetensors", images, **tuned)
    peaks = [recipes.learning_rate("fast", vocabulary.FINE_TUNING_LR, step, 18) for step in (5, 11, 17)]
    assert [line.lr for line in lines] == peaks
    assert whole.checks["test_top1_before"] == first.checks["test_top1"]
    out = tmp_path / "cut.safetensors"
    with pytest.raises(Stop):
        run(out, images, progress=stop_at(8), **tuned)
    again = run(out, images, resume=True, **tuned)
    assert (again.checks, tensors(again)) == (whole.checks, tensors(whole))


def test_a_full_disk_loses_nothing(
    tmp_path: Path, images: tuple[Dataset, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th write fails, for every n until none is left: the error says so, and what is on disk resumes to the same.

    Every file is synced once it is written, and its folder once it is in place: those are the calls that fail.
    """
    few = (images[0].subset(range(32)), images[1].subset(range(10)))
    whole = tensors(run(tmp_path / "whole.safetensors", few, epochs=2))
    real, failed = os.fsync, 0
    for failing in itertools.count():
        out, calls = tmp_path / f"full{failing}.safetensors", itertools.count()

        def full(handle: int, calls: Iterator[int] = calls, failing: int = failing) -> None:
            if next(calls) == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(handle)

        monkeypatch.setattr(os, "fsync", full)
        try:
            made = run(out, few, epochs=2)
        except DiskFull:
            failed += 1
            monkeypatch.undo()
            # Nothing, or the whole: the sync that fails may be the one after the file is in place.
            with contextlib.suppress(MissingInput):
                kept = store.load(out)
                assert kept is not None
                assert tensors(kept) == whole
            assert out.exists() == store.sidecar(out).exists()
            made = run(out, few, epochs=2, resume=True)
        monkeypatch.undo()
        assert tensors(made) == whole
        assert store.load(out) == made
        if next(calls) <= failing:
            break
    assert failed >= failing - 1 > 15  # the last sync of a file that is in place already is tried again


def test_a_state_that_another_wrote_is_told_from_ones_own(
    tmp_path: Path, images: tuple[Dataset, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's folder goes on from the latter alone; no state, or a damaged one, is nobody's."""
    out = tmp_path / "net.safetensors"
    assert state.own(out)
    with pytest.raises(Stop):
        run(out, images, progress=stop_at(7))
    assert state.own(out)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
    assert not state.own(out)
    monkeypatch.undo()
    last = state.paths(out)[0]
    data = last.read_bytes()
    planted = data.replace(b"train_top1", b"train_top2")
    assert planted != data
    last.write_bytes(planted)
    assert not state.own(out)
    last.write_bytes(data[:100])
    assert state.own(out)


def test_dividing_a_batch_changes_the_gradients_by_rounding_only(
    tmp_path: Path, images: tuple[Dataset, Dataset]
) -> None:
    """Of a network without batch statistics: float64, two parts of unequal size against the whole batch."""
    data = Samples(pixels=torch.randint(0, 256, (7, 8, 8, 1), dtype=torch.uint8), labels=torch.arange(7) % 3)
    step = Step(number=0, pixels=data.pixels, labels=data.labels)
    found = []
    for parts in (1, 2):
        torch.manual_seed(0)
        net: Any = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).double()
        divided = loop._Run(
            plan=loop.Plan(epochs=1, accumulate=parts, recipe="paper"), lr=0.1, group=distributed.Group(), net=net,
            optimizer=recipes.optimizer(net, "paper"), average=None, teacher=None, preprocessing=SIGHT,
            augmentation="none", steps=1, history=[],
        )  # fmt: skip
        loss, _ = loop._step(divided, net, step)
        found.append((loss, net[1].weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-12, atol=1e-14)


def one_of_two(rank: int, port: int, out: Path) -> None:
    """A process as torchrun starts it."""
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    images = some()
    try:
        run(out, images, recipe="paper", precision="fp64", epochs=4, batch_size=20, held_out=images[1])
    except Exception as e:
        if "EADDRINUSE" in str(e):
            os._exit(PORT_TAKEN)
        raise


def by_two(out: Path) -> list[int | None]:
    """The exit statuses of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [forked(one_of_two, rank, port, out) for rank in (0, 1)]
    # The second waits for the first, which ends at once where somebody took the port meanwhile.
    if ended(both[0]) != 0:
        both[1].kill()
    return [ended(process) for process in both]


def test_two_processes_train_as_one_that_accumulates_over_the_same_shards(
    tmp_path: Path, images: tuple[Dataset, Dataset]
) -> None:
    """Twenty steps in float64 under torchrun's variables with gloo: parameters within 1e-5, evaluation shards alike.

    What the two judge, each on half of the images, is the network that one of them saves.
    """
    out = tmp_path / "two.safetensors"
    while (statuses := by_two(out))[0] == PORT_TAKEN:
        pass
    assert statuses == [0, 0]
    one = run(
        tmp_path / "one.safetensors", images,
        recipe="paper", precision="fp64", epochs=4, batch_size=20, accumulate=2,
    )  # fmt: skip
    found, expected = load_file(out), load_file(one.path)
    for name, value in expected.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
    curves = [list(csv.DictReader((tmp_path / f"{n}.history.csv").open())) for n in ("one", "two")]
    for a, b in zip(*curves, strict=True):
        assert a["steps"] == b["steps"]
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), abs=1e-9)
        assert float(a["train_top1"]) == pytest.approx(float(b["train_top1"]))
    net = zoo.create(SPEC)
    weights.load_into(net, out)
    loss, top1 = loop.evaluate(net, load(images[1], SIGHT)[0], SIGHT)
    stored = store.load(out)
    assert stored is not None
    assert stored.checks["test_top1"] == top1 == float(curves[1][-1]["held_out_top1"])
    assert float(curves[1][-1]["held_out_loss"]) == pytest.approx(loss, rel=1e-6)  # saved in float32


def test_random_crops_scale_a_part_to_the_full_size() -> None:
    """Of a constant image: itself. Of a ramp: within its values, and mirrored in half of the cases."""
    constant = torch.full((5, 96, 96, 3), 77, dtype=torch.uint8)
    assert torch.equal(augment(constant, "crop", torch.Generator().manual_seed(0)), constant)
    ramp = torch.arange(0, 192, 2, dtype=torch.uint8)[None, None, :, None].expand(200, 96, 96, 3)
    found = augment(ramp, "crop", torch.Generator().manual_seed(1)).float()
    slope = (found[:, 48, 95, 0] - found[:, 48, 0, 0]).sign()
    assert 70 < int((slope < 0).sum()) < 130
    assert int(found.max()) <= 190


def test_bf16_learns_as_well(tmp_path: Path, images: tuple[Dataset, Dataset]) -> None:
    """Emulated here: parameters stay float32 and the loss falls."""
    lines: list[state.Epoch] = []
    artifact = run(tmp_path / "r.safetensors", images, precision="bf16", watch=lines.append)
    assert {value.dtype for name, value in load_file(artifact.path).items() if "num" not in name} == {torch.float32}
    assert lines[-1].train_loss < lines[0].train_loss
