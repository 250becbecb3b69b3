"""The layer list that TensorRT-RTX's compiler tells its log, as the JSON that TensorRT's inspector prints.

A build with DETAILED profiling verbosity tells a VERBOSE log, once a network:

    Layers:
    Name: conv1_myl0_1, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [1,3,8,8], ..., Datatype: Half, ... }],
        Constants: [...], Outputs: [...], TacticName: ..., StreamId: 0, Metadata: [ONNX Layer: conv1]
    (one line a layer, then an empty one)
    I/O Tensors:
     Name: x, IOMode: Input, DataType: Float, Dimensions: [1,3,8,8], ...

1.4 has no `Constants`, `Format/Datatype` in place of `Datatype`, and `Bindings:` with bare names. Both are the forms of
the inspector of TensorRT 10 and 11 (seen in what 1.4.0.76 and 1.7.1.116 print). Names may hold commas and brackets:
each value ends where the next key begins.
"""

from __future__ import annotations

import json
import re
from typing import Any

from resdeploy.errors import BackendCrash

TRIED = "1.7.1.116"
LAYERS = re.compile(r"^(?:[^\n]* )?Layers:\n(.*?)(?=^[ \t]*$|^Bindings:|\Z)", re.DOTALL | re.MULTILINE)
SIDES = ("Inputs", "Constants", "Outputs")
ONE_SIDE = r"%s: \[(?P<%s>| \{ Name: .*? \})\]"
LAYER = re.compile(
    r"Name: (?P<Name>.*?), LayerType: (?P<LayerType>\w+), {}(?:, {})?, {}, (?P<rest>.*)".format(
        *(ONE_SIDE % (side, side) for side in SIDES)
    ),
    re.DOTALL,
)
TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([-\d, ]*)\](.*?) \}(?=, \{|$)", re.DOTALL)
TYPE = re.compile(r", ((?:Format/)?Datatype): (.*?)(?=, \w+: |$)", re.IGNORECASE)
TACTIC = re.compile(r"TacticName: (.*?), \w+: ")
METADATA = re.compile(r"Metadata: (.*)", re.DOTALL)
TENSORS = re.compile(r"^I/O Tensors:\n((?: .*\n?)*)", re.MULTILINE)
IO = re.compile(r"^ Name: (.*?), IOMode: (\w+), DataType: (\w+), Dimensions: \[([-\d, ]*)\]", re.MULTILINE)
BINDINGS = re.compile(r"^Bindings:\n((?:(?!\[).+\n?)*)", re.MULTILINE)


def read(text: str) -> str:
    """What `inspector.parse` takes, from all that a build told its log.

    Args:
        text: the messages, one or more lines each, joined by line feeds. Of several lists the last is the engine's.

    Raises:
        BackendCrash: there is no list, or a line of it cannot be read.
    """
    lists = list(LAYERS.finditer(text))
    if not lists:
        raise _unreadable("the compiler's log has no list of layers", "It is told in detail at the level VERBOSE alone")
    # A record begins with its name; a node's name may hold a line feed.
    records = [record for record in re.split(r"^(?=Name: )", lists[-1][1], flags=re.MULTILINE) if record.strip()]
    layers = [_layer(record.rstrip("\n")) for record in records]
    if not layers:
        raise _unreadable("the compiler's list of layers is empty", "Nothing of the graph is left to compute")
    return json.dumps({"Layers": layers, **_bindings(text[lists[-1].end() :])})


def _layer(record: str) -> dict[str, Any]:
    match = LAYER.fullmatch(record)
    if match is None:
        raise _unreadable(f"a line of the compiler's list of layers cannot be read: {record[:120]!r}")
    tactic, metadata = TACTIC.search(match["rest"]), METADATA.search(match["rest"])
    return {
        "Name": match["Name"],
        "LayerType": match["LayerType"],
        **{side: _tensors(match[side] or "", match["Name"]) for side in SIDES},
        "TacticName": tactic[1] if tactic else "",
        "Metadata": metadata[1] if metadata else "",
    }


def _tensors(section: str, layer: str) -> list[dict[str, Any]]:
    found = [
        {"Name": name, "Dimensions": _sizes(sizes), **dict(TYPE.findall(rest))}
        for name, sizes, rest in TENSOR.findall(section.strip())
    ]
    if len(found) != section.count("{ Name: ") or not all(len(tensor) == 3 for tensor in found):
        raise _unreadable(f"the tensors of layer {layer} in the compiler's list cannot be read: {section[:120]!r}")
    return found


def _bindings(text: str) -> dict[str, Any]:
    """The engine's inputs and outputs, in the form of the list that has them."""
    if records := TENSORS.search(text):
        return {
            "I/O Tensors": [
                {"Name": name, "IOMode": mode, "DataType": kind, "Dimensions": _sizes(sizes)}
                for name, mode, kind, sizes in IO.findall(records[1])
            ]
        }
    names = BINDINGS.search(text)
    return {"Bindings": names[1].split("\n")[:-1] if names else []}


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size.strip()]


def _unreadable(what: str, cause: str = "This version writes it in another form") -> BackendCrash:
    packages = " ".join(f"tensorrt-rtx-cu13-{part}=={TRIED}" for part in ("libs", "bindings"))
    return BackendCrash(what, cause=cause, fix=f"Use the version that it was tried with: pip install {packages}")
