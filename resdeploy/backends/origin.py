"""Where a compiled file came from: one that is a program is not run because it happens to lie here."""

from __future__ import annotations

import os
from pathlib import Path

from resdeploy.errors import IntegrityError

# Where browsers, curl --xattr and wget --xattr note what a file was fetched from.
ORIGIN_ATTRIBUTE = "user.xdg.origin.url"


def refuse_unknown(path: Path, *, trusted: bool) -> None:
    """An engine is a program: one that was downloaded runs only where the user says that it may.

    Raises:
        IntegrityError: it came from the net, and `--trust-engine` was not given.
    """
    try:
        origin = os.getxattr(path, ORIGIN_ATTRIBUTE).decode(errors="replace")
    except (OSError, AttributeError):  # none noted, a file system without attributes, or not Linux
        return
    if not trusted:
        raise IntegrityError(
            f"{path} was downloaded from {origin}",
            cause="An engine is a program, and loading it runs it",
            fix="Build it from its ONNX file; if you trust its origin, bench, eval, gate and audit take --trust-engine",
        )
