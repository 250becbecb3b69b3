"""Reads records from JSON and TOML: strict, with every problem reported at once; hashes keys of cached work."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import sys
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from resdeploy import places
from resdeploy.errors import MalformedInput, MissingInput, ProfileError
from resdeploy.records import Profile

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import ErrorDetails

T = TypeVar("T")
UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")  # as pydantic calls it
PROFILE_BYTES, PROFILE_DOTS = 1 << 16, 100  # of a file and of a line; tomllib takes a minute for keys of many parts


def fingerprint(document: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form: the key of cached work."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    msg = f"cannot fingerprint {type(value).__name__}"
    raise TypeError(msg)


def parse_json(text: str | bytes, origin: str, *, fix: str = "Write it again") -> Any:
    """Any JSON document, as plain Python values.

    Raises:
        MalformedInput: not JSON, or nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except RecursionError as e:
        raise MalformedInput(f"{origin} is not JSON of ours: it is nested too deeply", fix=fix) from e
    except ValueError as e:  # text that is not UTF-8, too
        raise MalformedInput(f"{origin} is not JSON: {e}", fix=fix) from e


def parse(kind: type[T], text: str | bytes, origin: str) -> T:
    """A record from JSON text, unknown keys refused.

    Raises:
        MalformedInput: with every problem found, not only the first.
    """
    from pydantic import ValidationError

    try:
        record: T = _adapter(cast("Hashable", kind)).validate_json(text)
        return record
    except ValidationError as e:
        raise MalformedInput(f"{origin} is not a valid {kind.__name__}: {_problems(e)}") from e


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """The validator of a type, kept: making one takes ten times as long as reading a sidecar."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def read(kind: type[T], path: Path) -> T:
    """A record from a JSON file, unknown keys refused.

    Raises:
        MissingInput: no such file.
        MalformedInput: with every problem found.
    """
    try:
        return parse(kind, path.read_bytes(), str(path))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        raise MissingInput(f"there is no file {path}", fix="Check the path") from e


def find_profile(named: str) -> Path:
    """The file of a profile: the one of this path, or the one of this name that comes with resdeploy."""
    path = Path(named)
    own = places.profiles_dir() / f"{named}.toml"
    return own if not path.is_file() and path.name == named and own.is_file() else path


def read_profile(path: Path) -> Profile:
    """A deployment profile from TOML, unknown keys refused.

    Raises:
        MissingInput: no such file.
        ProfileError: with every problem found, not only the first; a file that is too large or nested too deeply.
    """
    from pydantic import TypeAdapter, ValidationError

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        if (size := path.stat().st_size) > PROFILE_BYTES:
            raise ProfileError(f"{path} has {size:,} bytes, more than any profile needs", fix="Name a profile")
        text = path.read_text(encoding="utf-8")
        if max(line.count(".") for line in text.split("\n")) > PROFILE_DOTS:
            raise RecursionError
        # As JSON, in which arrays may be tuples; it has no NaN, and no number that Python's own limit refuses.
        document = json.dumps(tomllib.loads(text), default=str, allow_nan=False)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        names = sorted(own.stem for own in places.profiles_dir().glob("*.toml"))
        raise MissingInput(
            f"there is no profile {path}",
            fix="`resdeploy init MODEL --data D > mine.toml` writes one; these come along: " + ", ".join(names),
        ) from e
    except RecursionError as e:
        raise ProfileError(f"{path} is nested too deeply", fix="A profile is a flat list of keys") from e
    except ValueError as e:  # TOML's own error, text that is not UTF-8, and numbers too large
        raise ProfileError(f"{path} is not valid TOML: {e}", fix="Correct the line named") from e
    if "\\u0000" in document:
        raise ProfileError(f"{path} holds a zero byte", cause="No path or name can", fix="Take it out")
    try:
        # Strict: a number in quotes is a mistake to report, not to convert.
        return TypeAdapter(Profile).validate_json(document, strict=True)
    except ValidationError as e:
        keys = [field.name for field in dataclasses.fields(Profile)]
        unknown = any(problem["type"] in UNKNOWN_KEY for problem in e.errors(include_url=False))
        help_with_values = "`resdeploy init MODEL --data D` writes every key with what it takes"
        fix = f"Known keys: {', '.join(keys)}" if unknown else help_with_values
        raise ProfileError(f"{path}: {_problems(e, keys)}", fix=fix) from e


def _problems(error: ValidationError, keys: Collection[str] = ()) -> str:
    return "; ".join(_problem(p, keys) for p in error.errors(include_url=False))


def _problem(details: ErrorDetails, keys: Collection[str]) -> str:
    where = ".".join(map(str, details["loc"])) or "document"
    if details["type"] not in UNKNOWN_KEY:
        said = details["msg"].replace("Input should be", "it should be", 1)
        given = details["input"]
        return f"{where}: {said}" + (f", not {given!r}" if isinstance(given, (str, int, float)) else "")
    near = difflib.get_close_matches(where, keys, 1)
    return f"{where}: there is no such key" + (f", perhaps {near[0]}" if near else "")
