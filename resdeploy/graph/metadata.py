"""What a model file says about itself: `metadata_props`, and for foreign files what the graph tells."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path

import onnx

from resdeploy import store
from resdeploy.errors import MalformedInput
from resdeploy.graph.index import Index, image_input, input_name
from resdeploy.records import ModelSpec, Preprocessing

SPEC_KEY = "resdeploy.spec"
REMOVED_KEY = "resdeploy.removed"  # what the canonical form folded away, which other tools count (`conventions`)
LABELS_KEY = "resdeploy.labels"  # one class name a line: for people and viewers; SPEC_KEY is what we read
_BIASES = {"Conv": 2, "ConvTranspose": 2, "FusedConv": 2, "QLinearConv": 8}  # a convolution's input that is its bias


def attach(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Writes `spec` into the model's metadata, replacing one that is there."""
    props = {p.key: p.value for p in model.metadata_props if p.key not in (SPEC_KEY, LABELS_KEY)}
    props[SPEC_KEY] = json.dumps(dataclasses.asdict(spec), sort_keys=True, ensure_ascii=False)
    if spec.labels:
        props[LABELS_KEY] = "\n".join(spec.labels)
    onnx.helper.set_model_props(model, dict(sorted(props.items())))


def spec_of(model: onnx.ModelProto, path: Path) -> ModelSpec:
    """The spec in the file's metadata, or for a foreign file what its graph tells.

    A foreign file's `preprocessing` and `params` are None and its labels empty: a graph does not hold them. One that
    takes uint8 normalises by itself, and images of its own size are all it needs. A symbolic image size is given as 0
    (`Execution.input_shape` fixes it).

    Raises:
        MalformedInput: not an image classifier (N, C, H, W) -> (N, classes) or (N, classes, 1, 1), or metadata that
            cannot be read.
    """
    for prop in model.metadata_props:
        if prop.key == SPEC_KEY:
            return store.parse(ModelSpec, prop.value, f"the metadata of {path}")
    channels, height, width = _image(model, path)
    return ModelSpec(
        name=path.stem,
        family="foreign",
        classes=_classes(model, path),
        input_shape=(channels, height, width),
        preprocessing=_pixels(model, channels, height, width),
    )


def _pixels(model: onnx.ModelProto, channels: int, height: int, width: int) -> Preprocessing | None:
    """How a foreign file sees images, where its input type tells."""
    image = image_input(model.graph)
    if image.type.tensor_type.elem_type != onnx.TensorProto.UINT8 or not (height and width):
        return None
    return Preprocessing(
        size=(height, width),
        channels="L" if channels == 1 else "RGB",
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        dtype="uint8",
    )


def _dims(value: onnx.ValueInfoProto) -> list[int] | None:
    """Dimensions, 0 for a symbolic one; None without a shape."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else 0 for d in value.type.tensor_type.shape.dim]


def _shown(value: onnx.ValueInfoProto) -> str:
    """A value and its shape for people, symbolic dimensions by their names."""
    if not value.type.tensor_type.HasField("shape"):
        return f"{value.name} of unknown shape"
    dims = value.type.tensor_type.shape.dim
    sizes = (str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims)
    return f"{value.name} ({', '.join(sizes)})"


def _image(model: onnx.ModelProto, path: Path) -> tuple[int, int, int]:
    weights = {i.name for i in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in weights]
    dims = _dims(inputs[0]) if len(inputs) == 1 else None
    if dims is None or len(dims) != 4:
        listing = ", ".join(map(_shown, inputs))
        raise MalformedInput(
            f"{path} is not an image classifier: one input (N, C, H, W) is expected, found {listing or 'none'}",
            fix="Export the classifier alone",
        )
    _, channels, height, width = dims
    if channels not in (1, 3, 4):
        raise MalformedInput(
            f"{path} takes {_shown(inputs[0])}, and {channels or 'a symbolic number of'} channels are no image",
            cause="Its layout may be (N, H, W, C)" if width in (1, 3, 4) else "",
            fix="Export it with inputs (N, C, H, W) and a fixed number of channels",
        )
    return channels, height, width


def _classes(model: onnx.ModelProto, path: Path) -> int:
    outputs = list(model.graph.output)
    dims = _dims(outputs[0]) if len(outputs) == 1 else None
    if len(outputs) == 1 and (dims is None or 0 in dims[1:]):
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        dims = _dims(inferred.graph.output[0])
    if dims is None or len(dims) not in (2, 4) or dims[1] < 1 or dims[2:] not in ([], [1, 1]):
        listing = ", ".join(map(_shown, outputs))
        raise MalformedInput(
            f"{path} is not a classifier: one output (N, classes) or (N, classes, 1, 1) is expected, found {listing}",
            fix="Export the classifier alone, without auxiliary heads or a softmax over positions",
        )
    return dims[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Removed:
    """What the canonical form no longer shows of the network that it was made from, by node name."""

    norms: tuple[str, ...] = ()  # convolutions that a batch norm was folded into
    biased: tuple[str, ...] = ()  # those of them that had a bias of their own
    pools: tuple[str, ...] = ()  # nodes whose output was pooled over windows of one element


def read_removed(model: onnx.ModelProto) -> Removed | None:
    """What was removed; None: the file does not say.

    Raises:
        MalformedInput: the metadata cannot be read.
    """
    for prop in model.metadata_props:
        if prop.key == REMOVED_KEY:
            return store.parse(Removed, prop.value, "the file's metadata on what was folded")
    return None


def may_hide_norms(index: Index, known: Collection[str] = ()) -> bool:
    """Whether the bias of any convolution may be a batch norm that was folded: it is constant, and no norm follows.

    Args:
        index: of the graph.
        known: names of convolutions whose bias is known to be one.
    """
    return any(node.name not in known and _may_hide_norm(node, index) for node in index.nodes)


def _may_hide_norm(node: onnx.NodeProto, index: Index) -> bool:
    bias = input_name(node, _BIASES.get(node.op_type, len(node.input)))
    if not bias or bias not in index.constants:
        return False
    readers = (index.nodes[i] for name in node.output for i in index.readers.get(name, ()))
    return not any(reader.op_type == "BatchNormalization" for reader in readers)
