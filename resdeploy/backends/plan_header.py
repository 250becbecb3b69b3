"""How a serialized engine begins: whose it is, and which version wrote it.

Its first four bytes are a tag. From version 10 on, and in TensorRT-RTX, the version follows, a byte a number
(NVIDIA's samples/common/sampleEngines.cpp; of TensorRT-RTX seen in 1.7.1.116). Nothing else of an engine is read.
"""

from __future__ import annotations

TENSORRT, TENSORRT_RTX = b"ftrt", b"vtrt"
_VERSION_AT = 24
_MAJORS = {TENSORRT: (10, 11), TENSORRT_RTX: (1,)}  # of 8.6 other numbers lie there
_NUMBERS = {TENSORRT: 3, TENSORRT_RTX: 4}


def version(plan: bytes) -> str:
    """The version that wrote an engine; "" where none is to be recognised."""
    tag = plan[:4]
    numbers = tuple(plan[_VERSION_AT : _VERSION_AT + _NUMBERS.get(tag, 0)])
    return ".".join(map(str, numbers)) if numbers and numbers[0] in _MAJORS[tag] else ""
