"""A model repository of Triton: the network, its preprocessing in the python backend, and the ensemble of both.

What stands in `config.pbtxt` is the ModelConfig message of Triton's model_config.proto; the parameters are those that
the READMEs of its onnxruntime and openvino backends list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from resdeploy import store
from resdeploy.errors import refuse
from resdeploy.graph import files, index
from resdeploy.records import Runtime

ROOT = "models"
LABELS = "labels.txt"
TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8", 10: "TYPE_FP16"}  # of ONNX's TensorProto


def name_of(source: Path) -> str:
    """Of the ensemble: the file's stem, with nothing in it that a folder or an address could not have."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", source.stem)


def network_config(source: Path, runtime: Runtime, *, classes: int, batch_size: int, threads: int | None) -> str:
    """The configuration of the network alone: batching, one instance on the CPU, warm-up, labels, threads.

    Raises:
        UsageError: the file fixes its batch size or leaves that of its images open, or has other types than `TYPES`.
    """
    graph = files.load_model(source).graph
    image, logits = index.image_input(graph), graph.output[0]
    batch, *dims = (dim.dim_value for dim in image.type.tensor_type.shape.dim)
    types = [TYPES.get(value.type.tensor_type.elem_type) for value in (image, logits)]
    refuse(
        (
            batch,
            f"{source} fixes its batch to {batch}, and Triton puts the images of several requests into one",
            f"Write it with a free batch: resdeploy export {source} -o F.onnx",
        ),
        (
            0 in dims,
            f"{source} leaves the size of its images open",
            f"Write it for one size: resdeploy export {source} --img-size H,W -o F.onnx",
        ),
        (
            None in types,
            f"{source} takes or gives other types than FP32, FP16 and uint8",
            "Package the FP32, FP16 or INT8 file of the same network",
        ),
    )
    shape = f"[ {', '.join(map(str, dims))} ]"
    platform = 'platform: "onnxruntime_onnx"'
    if runtime == "openvino":
        platform = 'backend: "openvino"\ndefault_model_filename: "model.onnx"'
    batching = "dynamic_batching { }\n" if batch_size > 1 else ""
    return f"""name: "{name_of(source)}_network"
{platform}
max_batch_size: {batch_size}
{_tensor("input", image.name, types[0], shape)}
{_tensor("output", logits.name, types[1], f"[ {classes} ]", labelled=True)}
{batching}instance_group [ {{ count: 1 kind: KIND_CPU }} ]
model_warmup [
  {{
    name: "first"
    batch_size: {batch_size}
    inputs {{ key: {_quoted(image.name)} value {{ data_type: {types[0]} dims: {shape} random_data: true }} }}
  }}
]
{_parameters(runtime, batch_size, threads)}"""


def _parameters(runtime: Runtime, batch_size: int, threads: int | None) -> str:
    if runtime == "onnxruntime":
        settings = {"intra_op_thread_count": str(threads or 0), "inter_op_thread_count": "1"}  # 0: all cores
    else:
        settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        settings |= {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
        settings |= {"ENABLE_BATCH_PADDING": "YES"} if batch_size > 1 else {}  # else a smaller batch is an error
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in settings.items()
    )


def preprocess_config(source: Path, *, batch_size: int) -> str:
    """The configuration of the python backend, which gives the network what it takes.

    Raises:
        UsageError: as `network_config`.
    """
    image = index.image_input(files.load_model(source).graph)
    dims = ", ".join(str(dim.dim_value) for dim in list(image.type.tensor_type.shape.dim)[1:])
    return f"""name: "{name_of(source)}_preprocess"
backend: "python"
max_batch_size: {batch_size}
{_tensor("input", "IMAGE", "TYPE_STRING", "[ 1 ]")}
{_tensor("output", "PIXELS", TYPES[image.type.tensor_type.elem_type], f"[ {dims} ]")}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""


def ensemble_config(source: Path, *, classes: int, batch_size: int) -> str:
    """The configuration of what clients ask: bytes of images in, logits out."""
    graph, name = files.load_model(source).graph, name_of(source)
    image, logits = _quoted(index.image_input(graph).name), graph.output[0]
    kind = TYPES[logits.type.tensor_type.elem_type]
    return f"""name: "{name}"
platform: "ensemble"
max_batch_size: {batch_size}
{_tensor("input", "IMAGE", "TYPE_STRING", "[ 1 ]")}
{_tensor("output", "LOGITS", kind, f"[ {classes} ]", labelled=True)}
ensemble_scheduling {{
  step [
    {{
      model_name: "{name}_preprocess"
      model_version: -1
      input_map {{ key: "IMAGE" value: "IMAGE" }}
      output_map {{ key: "PIXELS" value: "PIXELS" }}
    }},
    {{
      model_name: "{name}_network"
      model_version: -1
      input_map {{ key: {image} value: "PIXELS" }}
      output_map {{ key: {_quoted(logits.name)} value: "LOGITS" }}
    }}
  ]
}}
"""


def _tensor(side: str, name: str, kind: str | None, dims: str, *, labelled: bool = False) -> str:
    labels = f' label_filename: "{LABELS}"' if labelled else ""
    return f"{side} [ {{ name: {_quoted(name)} data_type: {kind} dims: {dims}{labels} }} ]"


def _quoted(name: str) -> str:
    """A string of protobuf's text format; every byte that is not plain is an octal escape."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in name.encode())
    return f'"{"".join(plain)}"'


def repository(
    source: Path,
    runtime: Runtime,
    labels: tuple[str, ...],
    modules: Mapping[str, bytes | Path],
    *,
    batch_size: int,
    threads: int | None,
) -> dict[str, bytes | Path]:
    """The files of the repository, by their paths in the package.

    Args:
        source: the ONNX file.
        runtime: whose backend runs it.
        labels: a name for each class.
        modules: what the python backend needs, by file name.
        batch_size: the largest batch.
        threads: of the network; None: all cores.

    Raises:
        UsageError: as `network_config`.
    """
    ensemble = f"{ROOT}/{name_of(source)}"
    names = "".join(f"{label}\n" for label in (" ".join(label.split()) for label in labels)).encode()
    network = network_config(source, runtime, classes=len(labels), batch_size=batch_size, threads=threads)
    together = ensemble_config(source, classes=len(labels), batch_size=batch_size)
    before = preprocess_config(source, batch_size=batch_size)
    return {
        f"{ensemble}/config.pbtxt": together.encode(),
        f"{ensemble}/{LABELS}": names,
        f"{ensemble}/1/README": b"Triton wants a folder for each version; an ensemble has nothing in it.\n",
        f"{ensemble}_network/config.pbtxt": network.encode(),
        f"{ensemble}_network/{LABELS}": names,
        f"{ensemble}_network/1/model.onnx": source,
        **{f"{ensemble}_network/1/{part.name}": part for part in store.companions(source)},
        f"{ensemble}_preprocess/config.pbtxt": before.encode(),
        **{f"{ensemble}_preprocess/1/{name}": content for name, content in modules.items()},
    }
