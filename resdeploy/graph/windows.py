"""How many windows a pool has, and what they stand over."""

from __future__ import annotations


def end_of_last(size: int, kernel: int, stride: int, before: int, after: int) -> int:
    """How far the last window reaches behind the input along one axis where the number of windows is rounded up.

    A window that would start behind the input is dropped (onnx/reference/ops/op_pool_common.py, and torch).

    Args:
        size: of the input.
        kernel: from a window's first to its last element.
        stride: from window to window.
        before: padding at the beginning.
        after: padding at the end.

    Returns:
        Elements; negative where the input goes on behind the last window.
    """
    windows = -(-(before + size + after - kernel) // stride) + 1
    if (windows - 1) * stride >= before + size:
        windows -= 1
    return (windows - 1) * stride + kernel - before - size
