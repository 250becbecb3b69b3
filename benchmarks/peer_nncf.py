"""NNCF's post-training INT8 of an ONNX file, in an interpreter that has nncf and nothing of ours.

    python peer_nncf.py FP32.onnx IMAGES.npy OUT.onnx [OPTIONS as JSON]

IMAGES.npy holds network inputs (N, C, H, W), float32. Options: preset, target_device, per_tensor (of the weights); the
defaults are NNCF's own.
"""

from __future__ import annotations

import json
import sys


def main(source: str, images: str, out: str, options: str = "{}") -> None:
    import nncf
    import numpy as np
    import onnx
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

    inputs, asked, chosen = np.load(images), json.loads(options), {}
    model = onnx.load(source)
    name = model.graph.input[0].name
    data = nncf.Dataset([{name: inputs[k : k + 1]} for k in range(len(inputs))])
    if "preset" in asked:
        chosen["preset"] = nncf.QuantizationPreset[asked["preset"]]
    if "target_device" in asked:
        chosen["target_device"] = nncf.TargetDevice[asked["target_device"]]
    if asked.get("per_tensor"):
        weights = QuantizationParameters(per_channel=False)
        chosen["advanced_parameters"] = AdvancedQuantizationParameters(weights_quantization_params=weights)
    onnx.save(nncf.quantize(model, data, subset_size=len(inputs), **chosen), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
