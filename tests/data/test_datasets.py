"""Data sets: digits, CIFAR-10 batches, image folders, label lists, synthetic images."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resdeploy.data import datasets
from resdeploy.data.datasets import align, choose, open_dataset
from resdeploy.errors import (
    MalformedInput,
    MissingInput,
    PickleRefused,
    ResdeployError,
    UnknownName,
    UsageError,
)

BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def picture(path: Path, value: int = 0, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture(params=["python", "python3", "binary"])
def cifar(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Six batches of four images, in the official layouts: (folder, pixels (24, 3072), labels)."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (24, 3072), dtype=np.uint8), rng.integers(0, 10, 24)
    folder = tmp_path / ("cifar-10-batches-bin" if request.param == "binary" else "cifar-10-batches-py")
    folder.mkdir()
    for i, name in enumerate(BATCHES):
        part = slice(4 * i, 4 * i + 4)
        if request.param == "binary":
            records = np.concatenate([labels[part, None].astype(np.uint8), pixels[part]], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            # Python 2 wrote str, which `encoding="bytes"` gives back as bytes; Python 3 writes either.
            key = (lambda k: k.encode()) if request.param == "python" else str
            batch = {key("data"): pixels[part], key("labels"): labels[part].tolist(), key("filenames"): [b"x.png"] * 4}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return tmp_path, pixels, labels


def test_digits_splits_are_disjoint_stratified_and_of_the_documented_sizes() -> None:
    """1,437 train and 360 held out, together all 1,797, every class within one image of a fifth."""
    train, test, everything = (open_dataset("digits", split=s) for s in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1437, 360, 1797)
    assert set(train.ids) | set(test.ids) == set(everything.ids)
    assert not set(train.ids) & set(test.ids)
    share = np.bincount(everything.labels) / 5
    assert np.abs(np.bincount(test.labels) - share).max() < 1


def test_digits_are_scikit_learns_images_on_the_full_scale() -> None:
    """Values 0 to 16 become 0 to 255, at 8x8."""
    from sklearn.datasets import load_digits

    digits, oracle = open_dataset("digits"), load_digits()
    pixels = np.stack([digits.read(i) for i in range(len(digits))])
    assert pixels.max() == 255
    np.testing.assert_array_equal(np.round(pixels / 255 * 16), oracle.images)
    np.testing.assert_array_equal(digits.labels, oracle.target)


def test_cifar_batches_of_both_versions_give_the_images_that_were_written(
    cifar: tuple[Path, np.ndarray, np.ndarray],
) -> None:
    """Planes R, G, B become H, W, C; test_batch is the test split; the prefix may be left out."""
    folder, pixels, labels = cifar
    train, test = open_dataset(f"cifar10:{folder}", split="train"), open_dataset(str(folder), split="test")
    assert (len(train), len(test)) == (20, 4)
    np.testing.assert_array_equal(np.asarray(train.read(5))[..., 2].ravel(), pixels[5, 2048:])
    np.testing.assert_array_equal(np.asarray(test.read(3))[1, 2], pixels[23].reshape(3, 32, 32)[:, 1, 2])
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), labels)
    assert train.classes[3] == "cat"


def test_a_missing_batch_is_named(cifar: tuple[Path, np.ndarray, np.ndarray]) -> None:
    """Four of five training batches are not the training set."""
    next(cifar[0].glob("*/data_batch_3*")).unlink()
    with pytest.raises(MissingInput, match="data_batch_3"):
        open_dataset(f"cifar10:{cifar[0]}", split="train")
    assert len(open_dataset(f"cifar10:{cifar[0]}", split="test")) == 4


class Canary:
    def __init__(self, call: tuple[object, tuple[object, ...]]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("hide", ["data", "filenames", "labels"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run_it(tmp_path: Path, hide: str) -> None:
    """The canary file never appears, wherever in the batch the payload sits."""
    canary = tmp_path / "canary"
    for call in ((os.system, (f"touch {canary}",)), (eval, (f"open({str(canary)!r}, 'w')",))):
        (tmp_path / "test_batch").write_bytes(pickle.dumps({b"labels": [0], hide.encode(): Canary(call)}, protocol=2))
        with pytest.raises(PickleRefused):
            open_dataset(f"cifar10:{tmp_path}", split="test")
        assert not canary.exists()


@pytest.mark.parametrize(
    "batch",
    [
        {b"data": np.zeros((2, 3072), np.float32), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": ["0", "1"]},
        {b"labels": [0]},
        [1, 2],
    ],
)
def test_a_pickle_of_another_shape_is_malformed(tmp_path: Path, batch: object) -> None:
    """Wrong type, label out of range, unequal lengths, no data: all one class of error."""
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(MalformedInput, match="test_batch"):
        open_dataset(f"cifar10:{tmp_path}", split="test")


def test_truncated_batches_are_malformed(cifar: tuple[Path, np.ndarray, np.ndarray]) -> None:
    """At any length: an error of ours, never a short data set."""
    path = next(cifar[0].glob("*/test_batch*"))
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2 - 5, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(MalformedInput):
            open_dataset(f"cifar10:{cifar[0]}", split="test")


def test_folder_classes_are_numbered_by_sorted_name(tmp_path: Path) -> None:
    """As torchvision's ImageFolder: sorted names, sorted files, nested folders included."""
    for name in ("dog/b.png", "dog/a.JPG", "cat/deep/x.jpeg", "Zebra/1.png"):
        picture(tmp_path / name)
    (tmp_path / "dog/notes.txt").write_text("no image")
    data = open_dataset(str(tmp_path))
    assert data.classes == ("Zebra", "cat", "dog")
    assert data.ids == ("Zebra/1.png", "cat/deep/x.jpeg", "dog/a.JPG", "dog/b.png")
    assert data.labels.tolist() == [0, 1, 2, 2]
    assert open_dataset(str(tmp_path), split="test").split == "all"


def test_folder_listing_equals_torchvisions(shared: Path, torchvision: object) -> None:
    """On the CIFAR-10 test images: the same files, in the same order, with the same numbers."""
    from torchvision.datasets import ImageFolder

    root = shared / "data/cifar10/test"
    oracle, data = ImageFolder(root), open_dataset(str(root))
    assert isinstance(data.items, tuple)
    assert [path for path, _ in oracle.samples] == [str(path) for path in data.items]
    assert [label for _, label in oracle.samples] == data.labels.tolist()
    assert tuple(oracle.classes) == data.classes


def test_splits_share_their_class_numbers_even_where_a_class_is_missing(tmp_path: Path) -> None:
    """val/ without `b` must not turn c's 2 into 1."""
    for name in ("train/a/1.png", "train/b/1.png", "train/c/1.png", "val/a/2.png", "val/c/2.png"):
        picture(tmp_path / name)
    test = open_dataset(str(tmp_path), split="test")
    assert test.labels.tolist() == [0, 2]
    assert open_dataset(str(tmp_path), split="train").ids == ("train/a/1.png", "train/b/1.png", "train/c/1.png")
    assert len(open_dataset(str(tmp_path))) == 5


@pytest.mark.parametrize("split", ["", "test/"])
@pytest.mark.parametrize(("link", "to", "again"), [("a/x", "..", ""), ("a/x", ".", "a"), ("a/deep/x", "..", "a")])
def test_a_link_to_a_folder_above_adds_nothing_and_is_named(
    tmp_path: Path, split: str, link: str, to: str, again: str
) -> None:
    """Forty copies of every image, and those of other classes, as long as the kernel follows the loop."""
    for k, name in enumerate(("a/1.png", "a/deep/2.png", "b/3.png")):
        picture(tmp_path / split / name, k)
    (tmp_path / split / link).symlink_to(to)
    data = open_dataset(str(tmp_path), split="test")
    assert data.ids == tuple(split + name for name in ("a/1.png", "a/deep/2.png", "b/3.png"))
    assert data.labels.tolist() == [0, 0, 1]
    assert data.repeats.again == (f"{split}{link} is {(split + again).rstrip('/') or '.'}",)


def test_two_links_into_each_other_come_to_an_end(tmp_path: Path) -> None:
    """Without a memory of folders their paths double with every step, and are followed for forty."""
    pool = tmp_path / "pool"
    for name in "pq":
        picture(pool / name / "1.png", ord(name))
    (pool / "p/x").symlink_to(pool / "q")
    (pool / "q/x").symlink_to(pool / "p")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a").symlink_to(pool / "p")
    data = open_dataset(str(tmp_path / "data"))
    assert data.ids == ("a/1.png", "a/x/1.png")
    assert data.repeats.again == ("a/x/x is a",)


def test_folders_elsewhere_are_followed_and_read_once_in_a_class(tmp_path: Path) -> None:
    """Subsets are made of links; a second link to one folder is a repeat, in another class it is not the reader's."""
    for k, name in enumerate(("cats/1.png", "cats/2.png", "dogs/1.png")):
        picture(tmp_path / "pool" / name, k)
    (tmp_path / "data/b").mkdir(parents=True)
    for link, to in (("a", "cats"), ("b/x", "dogs"), ("b/y", "dogs"), ("c", "cats")):
        (tmp_path / "data" / link).symlink_to(tmp_path / "pool" / to)
    data = open_dataset(str(tmp_path / "data"))
    assert data.ids == ("a/1.png", "a/2.png", "b/x/1.png", "c/1.png", "c/2.png")
    assert data.repeats.again == ("b/y is b/x",)
    assert datasets.deduplicate(data).repeats.contradicted == ("a/1.png is c/1.png", "a/2.png is c/2.png")


def test_distinct_images_are_told_by_their_bytes(tmp_path: Path) -> None:
    """A copy, a hard link and a link to a file; a damaged image and one that is gone stay, to be named later."""
    for k, name in enumerate(("a/1.png", "a/2.png", "b/1.png")):
        picture(tmp_path / name, k)
    (tmp_path / "a/3.png").write_bytes((tmp_path / "a/1.png").read_bytes())
    os.link(tmp_path / "a/2.png", tmp_path / "a/4.png")
    (tmp_path / "b/2.png").symlink_to("1.png")
    for gone in ("b/3.png", "b/4.png"):
        (tmp_path / gone).symlink_to("nowhere")
    found = datasets.deduplicate(open_dataset(str(tmp_path)))
    assert found.ids == ("a/1.png", "a/2.png", "b/1.png", "b/3.png", "b/4.png")
    assert found.repeats.again == ("a/3.png is a/1.png", "a/4.png is a/2.png", "b/2.png is b/1.png")
    digits = open_dataset("digits", split="test")
    assert datasets.deduplicate(digits).ids == digits.ids


def test_a_class_called_train_is_not_a_split(tmp_path: Path) -> None:
    """Vehicles: DIR/{car,train}/*.png."""
    picture(tmp_path / "train/1.png")
    picture(tmp_path / "car/1.png")
    assert open_dataset(str(tmp_path)).classes == ("car", "train")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("val.txt", "a 1.png 3\nb.png\t7\n"),
        ("val_map.txt", "a 1.png 3\n\nb.png 7"),
        ("val_map.csv", "file,label\na 1.png,3\nb.png, 7\n"),
    ],
)
def test_label_lists_give_class_ids(tmp_path: Path, name: str, text: str) -> None:
    """MLPerf's and OpenVINO's lists; names with spaces; a header in a .csv."""
    picture(tmp_path / "a 1.png")
    picture(tmp_path / "b.png")
    (tmp_path / name).write_text(text)
    data = open_dataset(str(tmp_path))
    assert data.ids == ("a 1.png", "b.png")
    assert data.labels.tolist() == [3, 7]
    assert data.classes == ()


def test_label_lists_may_name_classes_and_lie_beside_val(tmp_path: Path) -> None:
    """`n02 n01` labels are numbered in sorted order; files are looked for in val/."""
    picture(tmp_path / "val/x.png")
    picture(tmp_path / "val/y.png")
    (tmp_path / "val.txt").write_text("x.png n02\ny.png n01\n")
    data = open_dataset(str(tmp_path))
    assert data.classes == ("n01", "n02")
    assert data.labels.tolist() == [1, 0]
    assert isinstance(data.read(0), bytes)


@pytest.mark.parametrize("line", ["x.png", "../x.png 1", "/etc/passwd 1"])
def test_bad_lines_of_a_label_list_are_refused_with_their_number(tmp_path: Path, line: str) -> None:
    """No label, or a path out of the folder."""
    picture(tmp_path / "y.png")
    (tmp_path / "val.txt").write_text(f"y.png 1\n{line}\n")
    with pytest.raises(ResdeployError, match="line 2"):
        open_dataset(str(tmp_path))


def test_unlabelled_images_serve_calibration_only(tmp_path: Path) -> None:
    """A flat folder opens only where labels are not needed; so do synthetic images."""
    picture(tmp_path / "x.png")
    for data in (str(tmp_path), "synthetic:3"):
        with pytest.raises(MissingInput, match="no labels"):
            open_dataset(data)
        assert not open_dataset(data, need_labels=False).labelled


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ("digit", UnknownName),
        ("nowhere/at/all", MissingInput),
        ("cifar10:nowhere", MissingInput),
        ("synthetic:many", UsageError),
        ("synthetic:0", UsageError),
        ("", UnknownName),
    ],
)
def test_what_is_not_a_data_set_is_a_usage_error(data: str, error: type[ResdeployError]) -> None:
    """Exit status 2, and what would be accepted."""
    with pytest.raises(error) as caught:
        open_dataset(data)
    assert caught.value.exit_status == 2
    assert caught.value.fix


@pytest.mark.parametrize("make", [lambda p: None, lambda p: (p / "cat").mkdir(), lambda p: (p / "a.txt").touch()])
def test_an_empty_folder_is_missing_input(tmp_path: Path, make: Callable[[Path], object]) -> None:
    """No files, empty classes, no images."""
    make(tmp_path)
    with pytest.raises(MissingInput, match="no images"):
        open_dataset(str(tmp_path))


def test_labels_are_renumbered_to_the_models_order(tmp_path: Path) -> None:
    """The same names in another order, or a few of many, are matched by name."""
    for name in ("cat", "dog", "ant"):
        picture(tmp_path / name / "1.png")
    data = open_dataset(str(tmp_path))
    assert align(data, ("dog", "bee", "cat", "ant")).labels.tolist() == [3, 2, 0]
    assert align(data, ("x", "y", "z")).labels.tolist() == [0, 1, 2]
    assert align(data, ()).labels.tolist() == [0, 1, 2]
    for labels in (("dog", "cat", "bee"), ("x", "y")):
        with pytest.raises(UsageError):
            align(data, labels)


def test_choice_is_stratified_seeded_and_without_repeats() -> None:
    """Every class within one image of its share, also in prefixes; the seed decides which."""
    data = open_dataset("digits", split="train")
    chosen = choose(data, 300, 0)
    assert len(set(chosen.ids)) == 300
    for count in (300, 100, 57):
        share = count * np.bincount(data.labels) / len(data)
        assert np.abs(np.bincount(chosen.labels[:count], minlength=10) - share).max() <= 2
    assert chosen.ids == choose(data, 300, 0).ids
    assert chosen.ids != choose(data, 300, 1).ids
    assert len(choose(data, 10**6, 0)) == len(data)


def test_the_signature_changes_with_files_and_labels(tmp_path: Path) -> None:
    """Another content of a file, another file, another subset; not a file that was only touched."""
    picture(tmp_path / "a/1.png")
    picture(tmp_path / "b/1.png")
    content = (tmp_path / "a/1.png").read_bytes()
    before = open_dataset(str(tmp_path)).signature()
    assert before == open_dataset(str(tmp_path)).signature()
    assert before != open_dataset(str(tmp_path)).subset([1]).signature()
    os.utime(tmp_path / "a/1.png", ns=(1, 1))
    assert before == open_dataset(str(tmp_path)).signature()
    (tmp_path / "a/1.png").write_bytes(content + b"!")
    changed = open_dataset(str(tmp_path)).signature()
    assert before != changed
    (tmp_path / "a/1.png").write_bytes(content)
    assert before == open_dataset(str(tmp_path)).signature()
    picture(tmp_path / "b/2.png")
    assert changed != open_dataset(str(tmp_path)).signature()
    digits = open_dataset("digits")
    assert digits.signature() == open_dataset("digits").signature() != digits.subset(range(9)).signature()


def test_the_fingerprint_covers_names_labels_and_contents() -> None:
    """Each of the three changes it."""
    labels = np.array([0, 1])
    base = datasets.fingerprint(["a", "b"], labels, ["0", "1"])
    assert base == datasets.fingerprint(("a", "b"), labels.copy(), ("0", "1"))
    assert len({base, datasets.fingerprint(["a", "c"], labels, ["0", "1"])}) == 2
    assert len({base, datasets.fingerprint(["a", "b"], labels[::-1], ["0", "1"])}) == 2
    assert len({base, datasets.fingerprint(["a", "b"], labels, ["0", "2"])}) == 2
