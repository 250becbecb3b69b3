"""What TensorRT says: errors for our messages, warnings for the terminal, and, where asked, everything it tells."""

from __future__ import annotations

import sys
from typing import Any


def logger(trt: Any, product: str = "TensorRT", *, keep: bool = False) -> Any:
    """An `ILogger`.

    Args:
        trt: the module of TensorRT, or of TensorRT-RTX.
        product: how messages call it.
        keep: whether VERBOSE lines are kept, of which a build has up to some ten thousand.

    Returns:
        With `product`, `errors`, the texts of its errors, and `told`, its VERBOSE lines.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        """Errors and warnings go to stderr too, whose tail the parent keeps."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.product = product
            self.errors: list[str] = []
            self.told: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            serious = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
            if severity in serious:
                self.errors.append(" ".join(msg.split()))
            if severity in (*serious, trt.ILogger.WARNING):
                print(f"[{product}] {msg}", file=sys.stderr)  # noqa: T201
            elif keep and severity == trt.ILogger.VERBOSE:
                self.told.append(msg)

    return Log()
