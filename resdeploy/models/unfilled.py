"""Networks whose weights take no memory and no time to draw, for graphs that are counted and never run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_LARGE = 64  # elements; smaller tensors, and all vectors, are filled as their module fills them
_NUMBER = 2.0**-6


class Unfilled(TorchFunctionMode):
    """While it holds, matrices and filters that are made are one number, expanded; what would fill them is skipped.

    Unlike torch's meta device it needs no formula for every operator that an initialisation calls, and vectors (the
    parameters of batch norms, which decide what is folded) have the values that they always have.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named: Mapping[str, Any] = kwargs or {}
        if func is torch.empty and (shape := _shape(args, named)) is not None:
            return torch.full((), _NUMBER, dtype=named.get("dtype")).expand(shape)
        name = getattr(func, "__name__", "")
        filled = args[0] if args else named.get("tensor")
        if name.endswith("_") and not name.startswith("_") and name != "requires_grad_" and _is_expanded(filled):
            return filled
        return func(*args, **named)


def _shape(args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape that is asked of `torch.empty`, where it is of a large matrix or filter of floats."""
    shape = tuple(args) if args and all(isinstance(a, int) for a in args) else tuple(args[0] if args else ())
    dtype = named.get("dtype") or torch.get_default_dtype()
    return shape if len(shape) > 1 and math.prod(shape) > _LARGE and dtype.is_floating_point else None


def _is_expanded(tensor: object) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.numel() > _LARGE and not any(tensor.stride())
