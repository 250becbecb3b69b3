"""TensorRT-RTX as far as a build needs it: the double of TensorRT 11, targets, another tag, and a list of layers told.

Written by hand after what 1.7.1.116 does: it builds for named GPUs without having one, and a build with DETAILED
verbosity tells the log, at VERBOSE, every layer in the words of TensorRT 11's inspector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.doubles import tensorrt_double
from tests.doubles.tensorrt_double import Double

VERSION = "1.7.1.116"
TARGETS = ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121")


class RtxDouble(Double):
    """One version; `gives_up` is what its builder says instead of building."""

    tag = b"vtrt"

    def __init__(self, gives_up: str = "") -> None:
        super().__init__("11.4.0")
        self.version = self.module.__dict__["__version__"] = VERSION
        self.gives_up = gives_up
        self.classes["ComputeCapability"] = tensorrt_double._enum(self, "ComputeCapability", list(TARGETS))
        config = self.classes["IBuilderConfig"]
        config._members["num_compute_capabilities"] = "rw"
        config._members["set_compute_capability"] = ["compute_capability", "idx"]
        method = tensorrt_double._method("IBuilderConfig", "set_compute_capability", ["compute_capability", "idx"])
        type.__setattr__(config, "set_compute_capability", method)

    def tell(self, layers: Sequence[Mapping[str, Any]]) -> str:
        return "\n".join(
            ("Layers:", *_lines(layers), "", "I/O Tensors:", " Name: input, IOMode: Input, DataType: Float")
        )


def _lines(layers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for layer in layers:
        inputs, outputs = (_list(layer[side]) for side in ("Inputs", "Outputs"))
        convolves = layer["LayerType"] == "CaskConvolution"
        weights = {"Name": "w", "Dimensions": [8, 8, 3, 3], "Format/Datatype": "FP16"}
        constants = _list([weights] if convolves else [])
        metadata = "\x1f".join(f"[ONNX Layer: {part}]" for part in layer["Name"].split(" + "))
        yield (
            f"Name: {layer['Name']}_myl0_0, LayerType: {'correlation' if convolves else 'kgen'}, "
            f"Inputs: {inputs}, Constants: {constants}, "
            f"Outputs: {outputs}, TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: {metadata}"
        )


def _list(tensors: Sequence[Mapping[str, Any]]) -> str:
    return f"[ {', '.join(map(_tensor, tensors))}]" if tensors else "[]"


def _tensor(tensor: Mapping[str, Any]) -> str:
    words = {"int8": "Int8", "fp16": "Half", "fp32": "Float"}
    kind = next(word for name, word in words.items() if name in tensor["Format/Datatype"].lower())
    dims = ",".join(map(str, tensor["Dimensions"]))
    return (
        f"{{ Name: {tensor['Name']}, Dimensions: [{dims}], Strides: [{dims}], StrideOrder: [3,0,2,1], "
        f"Datatype: {kind}, Format: (NHWC) Channel major format }}"
    )
