"""ONNX Runtime on the CPU.

`build` fixes the batch size and leaves the optimising to `open`: the file stays portable, and what ORT_ENABLE_ALL
would save offline is tied to the instruction set and buys only load time (figures in docs/backends.md).

Streams get a session each, the threads shared out: one session's thread pool serialises the calls of several threads.
"""

from __future__ import annotations

import contextlib
