"""The layer list that TensorRT-RTX's compiler tells its log, read. The text is ours, in the compiler's form."""

from __future__ import annotations

import pytest

from resdeploy.backends import inspector, rtx_layers
from resdeploy.errors import BackendCrash
from resdeploy.records import Layer, Port

TWO_LAYERS = """\
Trying to load shared library
Layers:
Name: stem, a [1]_0, LayerType: correlation, Inputs: [ { Name: in, put, Dimensions: [2,5,6,6], Strides: [180,36,6,1], StrideOrder: [3,2,1,0], Datatype: Half, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: [7,5,3,3], Strides: [45,9,3,1], StrideOrder: [3,2,1,0], Datatype: Half, Format: (NHWC) Channel major format }, { Name: b, Dimensions: [7], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: t, Dimensions: [2,7,6,6], Strides: [252,36,6,1], StrideOrder: [3,2,1,0], Datatype: Half, Format: (NHWC) Channel major format }], TacticName: stub, StreamId: 0, Metadata: [ONNX Layer: stem, a [1]]\x1f[ONNX Layer: act]
Name: event_1, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 1, EventId: 3, Metadata: 

I/O Tensors:
 Name: in, put, IOMode: Input, DataType: Float, Dimensions: [2,5,6,6], Location: Device, IsShapeInferenceIO: false
 Name: t, IOMode: Output, DataType: Half, Dimensions: [2,7,6,6], Location: Device, IsShapeInferenceIO: false

Engine Metadata:
 Anything: else
Layers are done
"""  # noqa: E501, W291

OLDER = """\
Layers:
Name: stem_0, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [], Format/Datatype: Int8 }], Outputs: [ { Name: y, Dimensions: [-1,4], Format/Datatype: Float }], TacticName: stub, StreamId: 0, Metadata: [ONNX Layer: stem]

Bindings:
x
y
[MemUsageStats] Peak memory usage
"""  # noqa: E501


def test_a_layer_is_read_whole_whatever_its_names_hold() -> None:
    found = inspector.parse(rtx_layers.read(TWO_LAYERS), "log")
    assert found.bindings == ("in, put", "t")
    conv, event = found.layers
    assert (conv.name, conv.kind, conv.precision, conv.role) == ("stem, a [1]_0", "correlation", "fp16", "compute")
    assert conv.sources == ("stem, a [1]", "act")
    assert conv.inputs == (Port(name="in, put", precision="fp16", shape=(2, 5, 6, 6)),)
    assert conv.others == (
        Port(name="w", precision="fp16", shape=(7, 5, 3, 3)), Port(name="b", precision="fp32", shape=(7,)),
    )  # fmt: skip
    assert conv.outputs == (Port(name="t", precision="fp16", shape=(2, 7, 6, 6)),)
    assert event == Layer(name="event_1", kind="signal", precision="unknown", role="free")


def test_the_older_form_says_the_same() -> None:
    found = inspector.parse(rtx_layers.read(OLDER), "log")
    assert found.bindings == ("x", "y")
    (layer,) = found.layers
    assert (layer.sources, layer.precision) == (("stem",), "int8")
    assert layer.outputs == (Port(name="y", precision="fp32", shape=(-1, 4)),)


def test_of_several_lists_the_last_is_the_engines() -> None:
    assert rtx_layers.read(OLDER + TWO_LAYERS) == rtx_layers.read(TWO_LAYERS)
    assert rtx_layers.read(TWO_LAYERS.replace("\nLayers:", "\n[V] Layers:")) == rtx_layers.read(TWO_LAYERS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no list of layers"),
        ("Layers are done\nEngine Metadata:\n", "has no list of layers"),
        ("Layers:\n\nI/O Tensors:\n", "list of layers is empty"),
        ("Layers:\nName: a, LayerType: kgen\n\n", "cannot be read: 'Name: a, LayerType: kgen'"),
        ("Layers:\nsomething else\n\n", "cannot be read: 'something else'"),
        (TWO_LAYERS.replace("Datatype", "Kind"), "tensors of layer stem, a .* cannot be read"),
        (TWO_LAYERS.replace("[2,5,6,6], Strides", "[2x5], Strides"), "tensors of layer stem, a .* cannot be read"),
    ],
)
def test_what_cannot_be_read_is_an_error_and_never_an_empty_list(text: str, words: str) -> None:
    with pytest.raises(BackendCrash, match=words) as raised:
        rtx_layers.read(text)
    assert "pip install tensorrt-rtx" in raised.value.fix
