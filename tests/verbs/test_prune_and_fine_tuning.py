"""What fine-tuning may learn from: no image that chooses blocks or judges them; and none of those does both."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from resdeploy.data.datasets import Dataset, contents
from resdeploy.deploy.model_string import Request
from resdeploy.errors import UsageError
from resdeploy.verbs import block_search, prune
from resdeploy.verbs.block_search import Budget

pytest.importorskip("torch")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """`split` with training and test images, `flat` with the test images alone."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4)):
        for label in ("a", "b"):
            (tmp_path / "split" / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "split" / split / label / f"{i}.png")
    shutil.copytree(tmp_path / "split/val", tmp_path / "flat")
    return tmp_path


def refused(folder: Path, data: str, train_data: str | None = None, *, epochs: int = 1) -> UsageError:
    """The refusal; the network does not exist, so that nothing can have been done before it."""
    plan = prune.PrunePlan(
        data=str(folder / data), budget=Budget(max_drop_pp=2), training=prune.fine_tuning_plan(epochs, 0.01, 0),
        train_data=train_data and str(folder / train_data),
    )  # fmt: skip
    with pytest.raises(UsageError) as caught:
        prune.prune(Request(model="no-such-network"), plan, folder / "out.onnx", progress=lambda *_: None)
    assert sorted(path.name for path in folder.iterdir()) == ["flat", "split"]
    return caught.value


def test_a_folder_without_training_images_is_refused_and_the_option_named(images: Path) -> None:
    """`--data cifar10/test --epochs 1`; without fine-tuning the same folder is fine."""
    found = refused(images, "flat")
    assert "no training images" in found.what
    assert "--train-data" in found.fix
    assert "no-such-network" in refused(images, "flat", epochs=0).what


def test_training_images_that_choose_or_judge_are_refused_by_their_contents(images: Path) -> None:
    """All of them, or one under another name; a training split of its own is taken."""
    assert "8 images" in refused(images, "flat", "flat").what
    assert "no-such-network" in refused(images, "flat", "split").what
    assert "no-such-network" in refused(images, "split").what
    shutil.copy(images / "split/val/b/2.png", images / "split/train/a/other.png")
    for data, train_data in (("flat", "split"), ("split", None)):
        found = refused(images, data, train_data)
        assert found.what.startswith("1 images")
        assert "--train-data" in found.fix


def test_no_image_is_read_twice_before_the_work_begins(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test images are told apart from each other and from the training images by one reading."""
    read: list[str] = []
    original = Dataset.read

    def noted(self: Dataset, k: int) -> Any:
        read.append(f"{self.name}/{self.ids[k]}")
        return original(self, k)

    monkeypatch.setattr(Dataset, "read", noted)
    assert "no-such-network" in refused(images, "flat", "split").what
    assert len(read) == len(set(read)) == 8 + 12


def test_an_image_that_is_there_twice_is_not_chosen_on_and_judged_on(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the halves are made: each content once, the verdict on as many images as differ."""
    for path in sorted((images / "flat").rglob("*.png")):
        os.link(path, path.with_stem(f"{path.stem}_again"))
    shape = {"input": [1, 1, 8, 8], "logits": [1, 64]}
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in shape.items()]
    graph = helper.make_graph([helper.make_node("Flatten", ["input"], ["logits"])], "flat", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), images / "m.onnx")
    divided: list[tuple[Dataset, Dataset]] = []

    def halves(found: Dataset, seed: int) -> tuple[Dataset, Dataset]:
        divided.append(original(found, seed))
        raise RuntimeError

    original = block_search.halves
    monkeypatch.setattr(block_search, "halves", halves)
    plan = prune.PrunePlan(data=str(images / "flat"), budget=Budget(max_drop_pp=2))
    with pytest.raises(RuntimeError):
        prune.prune(Request(model=str(images / "m.onnx")), plan, images / "out.onnx", progress=lambda *_: None)
    ((choosing, judging),) = divided
    assert (len(choosing), len(judging)) == (4, 4)
    assert not set(contents(choosing)) & set(contents(judging))
