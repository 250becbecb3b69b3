"""External data: tensors that an ONNX file keeps in files beside it, found and opened safely.

They are as much the model as the file that names them, and the names come from whoever wrote that file. So one place
says which they are and opens them, for the digest and for the graph alike: plain files below the model's own folder.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from resdeploy.errors import MalformedInput, MissingInput, UnsafeInput

if TYPE_CHECKING:
    import onnx

MAX_BYTES = (1 << 31) - 1  # protobuf's limit for one message
CHUNK_BYTES = 1 << 20
KEY = "location"
WORD = KEY.encode()


def names(path: Path) -> tuple[str, ...]:
    """Where the ONNX file `path` says that its external data lie, sorted; none for a file that holds all its tensors.

    A file in which the word `location` does not occur has none: protobuf writes the key as it is. Looking for it takes
    60 ms for 100 MB; parsing them took 310 ms and 200 MiB, and onnx's import 240 ms more.

    Raises:
        MissingInput: no such file.
        MalformedInput: a file with that word in it that is no ONNX file, or is cut off.
    """
    if path.suffix.lower() != ".onnx" or not _mentions(path, WORD):
        return ()
    return tuple(sorted({str(Path(name)) for tensor in tensors(parse(path)) for name in locations(tensor, path)}))


def _mentions(path: Path, word: bytes) -> bool:
    """Whether the bytes occur in the file."""
    try:
        with path.open("rb") as file:
            before = b""
            while chunk := file.read(CHUNK_BYTES):
                if word in before + chunk:
                    return True
                before = chunk[1 - len(word) :]
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        raise MissingInput(f"there is no file {path}", fix="Check the path") from e
    return False


def parse(path: Path) -> onnx.ModelProto:
    """The message in an ONNX file as it is: nothing is checked, nothing else is opened.

    Raises:
        MissingInput: no such file.
        MalformedInput: not ONNX, cut off, or over 2 GB.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise MalformedInput(f"{path} has {size / 1e9:.1f} GB; an ONNX file holds 2 GB at most")
        model: onnx.ModelProto = onnx.ModelProto.FromString(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        raise MissingInput(f"there is no file {path}", fix="Check the path") from e
    except DecodeError as e:
        raise MalformedInput(f"{path} is not an ONNX file, or is cut off", fix="Export or copy it again") from e
    return model


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, wherever the format lets one be.

    Initialisers, attributes, the parts of sparse ones; of the graph, of subgraphs, of functions and of what training
    adds. Found by the messages' own description, so that none is forgotten.
    """
    import onnx
    from google.protobuf.message import Message

    pending = [model]
    while pending:
        message = pending.pop()
        if isinstance(message, onnx.TensorProto):
            yield message
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                pending.extend([value] if isinstance(value, Message) else value)


def locations(tensor: onnx.TensorProto, path: Path) -> tuple[str, ...]:
    """The files that a tensor of `path` names as the place of its values: one, where its writer means well.

    Raises:
        MalformedInput: a name that is no text, which protobuf gives as bytes.
    """
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return ()
    names = tuple(entry.value for entry in tensor.external_data if entry.key == KEY)
    if not all(isinstance(name, str) for name in names):
        raise MalformedInput(f"tensor {tensor.name!r} of {path} is in a file whose name is no text: {names[0]!r}")
    return names


def check(path: Path, name: str) -> Path:
    """The external file `name` of the ONNX file `path`, where it may be read; looked at, and not opened.

    Raises:
        MissingInput: there is none.
        UnsafeInput: `E-EXTDATA`: it is not a plain file below the folder of `path`, or has another name elsewhere.
    """
    return _place(path, name)[0]


def open_file(path: Path, name: str) -> BinaryIO:
    """The same file, opened: the one that was looked at, even where somebody swaps files in between.

    Raises:
        MissingInput, UnsafeInput: as `check`, and then nothing was opened.
    """
    file, looked_at = _place(path, name)
    # Should a link or a pipe have come into its place, it is neither followed nor waited for.
    try:
        handle = os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    except OSError as e:
        if e.errno != errno.ELOOP:
            raise
        raise refusal(path, name, "it is a link or not a plain file") from e
    opened = os.fstat(handle.fileno())
    if (opened.st_dev, opened.st_ino) != (looked_at.st_dev, looked_at.st_ino):
        handle.close()
        raise refusal(path, name, "it was exchanged while it was being opened")
    return handle


def _place(path: Path, name: str) -> tuple[Path, os.stat_result]:
    location = Path(name)
    if not name or "\0" in name or location.is_absolute() or ".." in location.parts:
        raise refusal(path, name, "it does not lie below the model's folder")
    file = path.parent / location
    try:
        status = file.lstat()
    except (FileNotFoundError, NotADirectoryError) as e:
        raise MissingInput(
            f"{path} keeps its weights in {name!r}, which is not beside it", fix="Copy that file there too"
        ) from e
    except OSError as e:  # a name too long, links in a circle
        raise refusal(path, name, str(e.strerror)) from e
    through_a_link = any(folder.is_symlink() for folder in file.parents[: len(location.parts) - 1])
    # A second name of the file may lie anywhere, so what it holds may be no weights.
    if through_a_link or not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise refusal(path, name, "it is a link or not a plain file")
    return file, status


def refusal(path: Path, name: str, why: str) -> UnsafeInput:
    """The error for external data that cannot be what it says."""
    return UnsafeInput(
        f"{path} keeps weights in {name!r}, which is not read: {why}",
        cause="External data must be a plain file in the model's own folder",
        fix="Save the model again with its weights inside",
        code="E-EXTDATA",
    )
