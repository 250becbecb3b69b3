"""From observed values to scales and zero points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.graph.qdq_placement import BIAS_LIMIT, NVIDIA, Activation, Weight
from resdeploy.records import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Symmetric weights leave out -128 (Krishnamoorthi 2018, arXiv:1806.08342, section 2.2; TensorRT's and oneDNN's rule).
FULL_RANGE = 127
# Without VNNI, `vpmaddubsw` adds two products of u8 and s8 in 16 bits and saturates; 2 x 255 x 64 = 32,640 fits.
REDUCED_RANGE = 64
# Smallest scale: a constant-zero tensor still needs a positive one, and its products must stay normal numbers.
MIN_SCALE = 1e-9
# Likewise where scales are FP16: its smallest number with half of its bits.
MIN_HALF_SCALE = 2.0**-17
# Room for bias correction: it moves an int32 bias by some 127 steps for each weight of the channel at most.
BIAS_SLACK = 1.01


@dataclass(frozen=True, kw_only=True)
class Range:
    """The interval of real values that a tensor's integers must cover."""

    lo: float
    hi: float


def weight_limit(target: Target, *, portable: bool) -> int:
    """The largest integer magnitude of weights; TensorRT never saturates."""
    return REDUCED_RANGE if portable and target not in NVIDIA else FULL_RANGE


def activation(covered: Range, target: Target, *, centred: bool = False) -> Activation:
    """Per-tensor parameters for `target`: S8 symmetric for TensorRT, U8 else.

    Zero is always exact (padding is made of it): the range is widened to hold it, and with `centred` to have it in its
    middle. U8 after a ReLU gets zero point 0 and the whole resolution. TensorRT-RTX gets the same levels in another
    form (`graph.zero_points`), its scales numbers of FP16.
    """
    lo, hi = min(covered.lo, 0.0), max(covered.hi, 0.0)
    if centred:
        lo, hi = min(lo, -hi), max(hi, -lo)
    if target == "tensorrt":
        return Activation(scale=max(max(-lo, hi) / 127, MIN_SCALE), zero_point=0, signed=True)
    scale = (hi - lo) / 255
    scale = in_half(scale) if target == "tensorrt-rtx" else max(scale, MIN_SCALE)
    return Activation(scale=scale, zero_point=round(-lo / scale), signed=False)


def in_half(scale: float) -> float:
    """The scale as FP16 holds it: rounded before anything is divided by it, so that nothing is lost."""
    return float(np.float16(max(scale, MIN_HALF_SCALE)))


def weight(
    values: NDArray[np.float32],
    axis: int,
    *,
    limit: int = FULL_RANGE,
    bias: NDArray[np.float32] | None = None,
    input_scale: float = 1.0,
    one_scale: bool = False,
) -> Weight:
    """Symmetric weights, the largest magnitude of a channel at `limit`.

    Args:
        values: the weights, any shape.
        axis: the axis of output channels.
        limit: largest integer magnitude.
        bias: (channels,) if it is to be stored as int32 on the scale `input_scale * scale`: a channel of tiny
            weights then gets a larger scale, so that its bias fits.
        input_scale: scale of the activation that the weights are applied to.
        one_scale: all channels have the scale of the largest, a number of FP16.
    """
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = np.abs(values).max(axis=others) / limit
    floor = np.full_like(scale, MIN_SCALE)
    if bias is not None:
        floor = np.maximum(floor, np.abs(bias) / (input_scale * BIAS_LIMIT) * BIAS_SLACK)
    scale = np.maximum(scale, floor).astype(np.float32)
    if one_scale:
        scale = np.full_like(scale, in_half(float(scale.max())))
    shape = [1] * values.ndim
    shape[axis] = -1
    integers = np.clip(np.rint(values / scale.reshape(shape)), -limit, limit).astype(np.int8)
    return Weight(values=integers, scale=scale)
