"""Files that are made once: what each was made from is remembered, and only a change makes it anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from resdeploy import store
from resdeploy.errors import IntegrityError, MalformedInput, MissingInput, UnsafeInput
from resdeploy.records import Artifact

T = TypeVar("T")
Note = Callable[[str], None]


class Steps:
    """Remembers, in a folder's `steps.json`, what each of its files was made from."""

    def __init__(self, folder: Path, note: Note) -> None:
        self._folder, self._note, self._file = folder, note, folder / "steps.json"
        self._keys: dict[str, str] = {}
        self._said: set[str] = set()  # files that several rows share are named once
        with contextlib.suppress(MissingInput):
            try:
                self._keys = store.read(dict[str, str], self._file)
            except MalformedInput:
                note(f"{self._file} is damaged, and what the files were made from is not known: all are made again")

    def artifact(self, name: str, key: Any, make_it: Callable[[Path], Artifact]) -> Artifact:
        """The model file `name`: as it is there if it was made from the same `key` and is intact, else made."""
        return self.step(name, key, _load_artifact, make_it)

    def step(self, name: str, key: Any, load: Callable[[Path], T], make_it: Callable[[Path], T]) -> T:
        """What the file `name` holds, likewise."""
        path, wanted = self._folder / name, store.fingerprint(key)
        if self._keys.get(name) == wanted:
            with contextlib.suppress(MissingInput, UnsafeInput, IntegrityError):
                found = load(path)
                self._say("unchanged", name)
                return found
        self._say("making", name)
        made = make_it(path)
        self.remember(name, key)
        return made

    def remember(self, name: str, key: Any) -> None:
        """Keeps what `name` is made from."""
        self._keys[name] = store.fingerprint(key)
        store.write_json(self._file, self._keys)

    def forget(self, name: str) -> None:
        """Has `name` made anew the next time."""
        self._keys.pop(name, None)
        store.write_json(self._file, self._keys)

    def recalls(self, name: str, key: Any) -> bool:
        """Whether `name` was made from the same key."""
        return self._keys.get(name) == store.fingerprint(key)

    def _say(self, what: str, name: str) -> None:
        if name not in self._said:
            self._note(f"{what:<10} {name}")
        self._said.add(name)


def _load_artifact(path: Path) -> Artifact:
    found = store.load(path)
    if found is None:
        raise MissingInput(f"{path} has lost its sidecar")
    return found
