"""Resumes a run: a file in its folder is made again only when something that it was made from has changed.

A run's folder travels (a CI cache, a shared disk), and whoever can write there can plant results. So what is remembered
of a file is signed with the user's own key, its digest with it (`signing`), and a model's record too
(`store.load_own`). What does not verify is made again, with a warning, as in the cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from resdeploy import places, signing, store
from resdeploy.errors import IntegrityError, MalformedInput, MissingInput, UnsafeInput
from resdeploy.records import Artifact
from resdeploy.vocabulary import Step

T = TypeVar("T")
Note = Callable[[str], None]
CheckDigest = Callable[[str], None]  # raises unless this user made a file of that digest there


class Steps:
    """Remembers, in a folder's `steps.json`, what each of its files was made from."""

    def __init__(self, folder: Path, note: Note, again: Collection[Step] = ()) -> None:
        """`again`: steps whose files are made anew although nothing has changed."""
        self._folder, self._note, self._file = folder, note, folder / "steps.json"
        self._again = frozenset(again)
        self._keys: dict[str, str] = {}
        self._said: set[str] = set()  # files that several rows share are named once
        with contextlib.suppress(MissingInput):
            try:
                self._keys = store.read(dict[str, str], self._file)
            except MalformedInput:
                places.log.warning("%s is damaged: all files that it spoke of are made again", self._file)

    def artifact(self, of: Step, name: str, key: Any, make_it: Callable[[Path], Artifact]) -> Artifact:
        """The model file `name`: as it is there if it was made from the same `key` and is intact, else made."""

        def load(path: Path, check: CheckDigest) -> Artifact:
            artifact = store.load_own(path)
            check(artifact.sha256)
            return artifact

        return self._load_or_make(of, name, key, load, make_it)

    def step(self, of: Step, name: str, key: Any, load: Callable[[Path], T], make_it: Callable[[Path], T]) -> T:
        """As `artifact`, for a file of any kind: what `load` reads from it."""

        def load_verified(path: Path, check: CheckDigest) -> T:
            check(store.digest(path))
            return load(path)

        return self._load_or_make(of, name, key, load_verified, make_it)

    def _load_or_make(
        self, of: Step, name: str, key: Any, load: Callable[[Path, CheckDigest], T], make_it: Callable[[Path], T]
    ) -> T:
        path, fingerprint = self._folder / name, store.fingerprint(key)
        made_from, signature = self._look_up(name)

        def check(sha256: str) -> None:
            if not signing.good(signature, "step", name, fingerprint, sha256):
                raise IntegrityError(f"{path} is not what you made there")

        # What several rows share is made once.
        if made_from == fingerprint and (of not in self._again or name in self._said):
            try:
                value = load(path, check)
            except MissingInput:
                pass
            except (UnsafeInput, IntegrityError) as e:
                places.log.warning("%s: it is made again", e.what)
            else:
                self._say("unchanged", name)
                return value
        self._say("making", name)
        new = make_it(path)
        self.remember(name, key, new.sha256 if isinstance(new, Artifact) else store.digest(path))
        return new

    def remember(self, name: str, key: Any, sha256: str = "") -> None:
        """Keeps what `name` is made from, and the file's digest where there is one."""
        made_from = store.fingerprint(key)
        self._keys[name] = f"{made_from} {signing.mac('step', name, made_from, sha256)}"
        store.write_json(self._file, self._keys)

    def forget(self, name: str) -> None:
        """Forgets what `name` was made from, so that it is made again the next time."""
        self._keys.pop(name, None)
        store.write_json(self._file, self._keys)

    def recalls(self, name: str, key: Any) -> bool:
        """Whether `name` was made from the same key."""
        made_from, signature = self._look_up(name)
        return made_from == store.fingerprint(key) and signing.good(signature, "step", name, made_from, "")

    def _look_up(self, name: str) -> tuple[str, str]:
        """What `name` was made from, and the signature of that."""
        made_from, _, signature = str(self._keys.get(name, "")).partition(" ")
        return made_from, signature

    def _say(self, what: str, name: str) -> None:
        if name not in self._said:
            self._note(f"{what:<10} {name}")
        self._said.add(name)
