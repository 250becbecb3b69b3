"""Every backend's name: one is registered by its line here."""

from __future__ import annotations

from typing import Literal, get_args

# In the order in which `--backend auto` looks. A new one is the file `backends/NAME.py`
# (hyphens there are underscores) and a line here.
BackendName = Literal[
    "tensorrt",
    "openvino",
    "onnxruntime",
    "torch",
    "tensorrt-rtx",  # the last: nobody here has run what it builds
    "null",  # for tests, never chosen
]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
PREFERENCE: tuple[BackendName, ...] = tuple(name for name in BACKENDS if name != "null")
