"""A run's folder travels: what somebody else put there is made again, whatever its record says."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from resdeploy import store
from resdeploy.deploy.resume import Steps
from resdeploy.records import Artifact

KEY = ["what it is made from"]


def write(words: str, path: Path) -> Artifact:
    path.write_bytes(words.encode())
    tools = {"version_compatible": "yes"}  # an engine with code for the host, which TensorRT would be told to load
    return Artifact(path=str(path), format="engine", precision="fp32", sha256=store.digest(path), tools=tools)


def step(folder: Path, name: str, words: str, key: object = KEY) -> tuple[str, list[str]]:
    """What the file holds in the end, and the words that were said."""
    said: list[str] = []
    steps = Steps(folder, said.append)
    if name.endswith(".engine"):
        steps.artifact("export", name, key, lambda path: store.publish(path, lambda staged: write(words, staged)))
    else:
        steps.step("eval", name, key, Path.read_text, lambda path: store.write_bytes(path, words.encode()))
    return (folder / name).read_text(), said


def planted(folder: Path, name: str) -> None:
    """With a record and a memory that fit, as far as anybody can write them who has no key."""
    made = write("planted", folder / name)
    if name.endswith(".engine"):
        document = dataclasses.asdict(made) | {"path": name}
        seal = {"sha256": store.fingerprint(document), "signature": "0" * 64}
        (folder / f"{name}.json").write_text(json.dumps(document | {"seal": seal}))


def of_another_folder(folder: Path, name: str) -> None:
    """Made and signed by the user under that name, elsewhere and from something else."""
    other = folder.with_name("other")
    step(other, name, "other", ["something else"])
    for path in other.glob(f"{name}*"):
        shutil.copy(path, folder)


def remembered(folder: Path, name: str) -> None:
    """The file is right and was made from something else: the memory alone is changed."""
    step(folder, name, "stale", ["something else"])
    memory = json.loads((folder / "steps.json").read_text())
    memory[name] = store.fingerprint(KEY) + memory[name][64:]
    (folder / "steps.json").write_text(json.dumps(memory))


def as_versions_before_did(folder: Path, name: str) -> None:
    write("unsigned", folder / name)
    (folder / "steps.json").write_text(json.dumps({name: store.fingerprint(KEY)}))


@pytest.mark.parametrize("name", ["openvino.int8.engine", "predictions.npz"])
@pytest.mark.parametrize("spoil", [planted, of_another_folder, remembered, as_versions_before_did])
def test_a_file_that_the_user_did_not_make_there_is_made_again_and_it_is_said(
    tmp_path: Path, name: str, spoil: Callable[[Path, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The warning is that of the cache."""
    folder = tmp_path / "run"
    assert step(folder, name, "mine") == ("mine", [f"making     {name}"])
    assert step(folder, name, "unused") == ("mine", [f"unchanged  {name}"])
    spoil(folder, name)
    assert step(folder, name, "mine again") == ("mine again", [f"making     {name}"])
    (why,) = caplog.messages
    assert name in why
    assert why.endswith("it is made again")
    assert step(folder, name, "unused") == ("mine again", [f"unchanged  {name}"])


def test_what_was_begun_is_recalled_where_the_user_began_it(tmp_path: Path) -> None:
    Steps(tmp_path, print).remember("model (begun)", KEY)
    assert Steps(tmp_path, print).recalls("model (begun)", KEY)
    assert not Steps(tmp_path, print).recalls("model (begun)", "another")
    memory = {"model (begun)": f"{store.fingerprint('planted')} {'0' * 64}"}
    (tmp_path / "steps.json").write_text(json.dumps(memory))
    assert not Steps(tmp_path, print).recalls("model (begun)", "planted")
