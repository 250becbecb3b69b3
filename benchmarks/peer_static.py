"""ONNX Runtime's quantize_static as its documentation advises for CNNs: QDQ, per channel, after quant_pre_process."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


def quantize_static(
    fp32: Path,
    batches: Iterable[dict[str, NDArray[Any]]],
    out: Path,
    *,
    method: str = "MinMax",
    activations: str = "QUInt8",
    weights: str = "QInt8",
    reduce_range: bool = False,
    symmetric: bool = False,
    prepared: bool = True,
) -> None:
    """Writes the INT8 file.

    Args:
        fp32: the ONNX file.
        batches: what its inputs are given, read once.
        out: where to write; with `prepared`, the preprocessed FP32 file lies beside it.
        method: MinMax, Percentile or Entropy.
        activations: type of the activations.
        weights: type of the weights.
        reduce_range: weights in 7 bits.
        symmetric: zero points of 0 everywhere.
        prepared: run quant_pre_process first; False: the file is what every other candidate quantizes.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.left, None)

    source = out.with_name("prepared.onnx") if prepared else fp32
    if prepared:
        quant_pre_process(str(fp32), str(source))
    quantization.quantize_static(
        str(source),
        str(out),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=getattr(quantization.QuantType, activations),
        weight_type=getattr(quantization.QuantType, weights),
        calibrate_method=getattr(quantization.CalibrationMethod, method),
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True} if symmetric else {},
    )
