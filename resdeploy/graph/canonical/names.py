"""Readable, stable names: `layer1.0.conv2`, its output `layer1.0.conv2.out`, its weights `layer1.0.conv2.weight`.

A node's scope (the path of the module that made it) comes from, in this order: its weight's name, the dynamo
exporter's `name_scopes`, the TorchScript exporter's slashed node names, the node's own name. Functional calls
and modules used several times are numbered within their block in execution order: `layer1.0.relu1`, `relu2`.
"""

from __future__ import annotations

import collections
import re

import onnx
import onnx_ir as ir

from resdeploy.graph.canonical.opset import OPSET

_READABLE = re.compile(r"[A-Za-z_][\w.]*\.weight$")
# A list of strings as Python prints it. Read so and not as Python: the file may be a stranger's.
_SCOPES = re.compile(r"\[(?:'[^'\\]*'(?:, '[^'\\]*')*)?\]")
# In the words that PyTorch users know; other operators' inputs are named as their ONNX schema does.
_PARAMETERS = {
    "Conv": ["input", "weight", "bias"],
    "ConvTranspose": ["input", "weight", "bias"],
    "Gemm": ["input", "weight", "bias"],
    "MatMul": ["input", "weight"],
    "BatchNormalization": ["input", "weight", "bias", "running_mean", "running_var"],
}
_SHORT = {"GlobalAveragePool": "avgpool", "MaxPool": "maxpool", "BatchNormalization": "bn", "Gemm": "fc"}


def rename(graph: ir.Graph) -> None:
    """Gives every node, value and initialiser its final name, in place; drops unused initialisers."""
    scopes = _merge_repeats([_scope(node) for node in graph])
    bases = _bases(list(graph), scopes)
    totals = collections.Counter(bases)
    numbers: collections.Counter[str] = collections.Counter()
    taken = {base for base, count in totals.items() if count == 1}
    for node, base in zip(graph, bases, strict=True):
        name = base
        while totals[base] > 1 and (name == base or name in taken):
            numbers[base] += 1
            name = f"{base}{'_' if base[-1].isdigit() else ''}{numbers[base]}"
        taken.add(name)
        node.name = name
    _rename_values(graph)


def _scope(node: ir.Node) -> tuple[str, bool]:
    """(path, final): a final path names this very node, another one the module that it was called in."""
    weight = node.inputs[1] if node.op_type in _PARAMETERS and len(node.inputs) > 1 else None
    if weight is not None and _READABLE.match(weight.name or ""):
        return str(weight.name).removesuffix(".weight"), True
    if _SCOPES.fullmatch(recorded := node.metadata_props.get("pkg.torch.onnx.name_scopes", "")):
        scopes = re.findall(r"'([^']*)'", recorded)
        return (scopes[-2] if len(scopes) > 1 else ""), False
    name = node.name or ""
    if name.startswith("/"):
        return module_path(name), False
    return (re.sub(r"[^\w.]+", ".", name).strip(".") or node.op_type.lower()), True


def _merge_repeats(scopes: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """TorchScript calls the second use of a module `relu` `relu_1`: both are uses of `relu`."""
    paths = {path for path, _ in scopes}
    merged = []
    for path, final in scopes:
        first = re.sub(r"_\d+$", "", path)
        merged.append((first if not final and first in paths else path, final))
    return merged


def module_path(name: str) -> str:
    """`/layer1/layer1.0/downsample/downsample.0/Conv` -> `layer1.0.downsample.0` (TorchScript's node names)."""
    parts: list[str] = []
    for part in name.strip("/").split("/")[:-1]:
        if parts and part.startswith(parts[-1] + "."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)


def _bases(nodes: list[ir.Node], scopes: list[tuple[str, bool]]) -> list[str]:
    """A name for each node, not yet unique."""
    containers = {""}
    for path, _ in scopes:
        parts = path.split(".")
        containers.update(".".join(parts[:k]) for k in range(1, len(parts)))
    kinds: dict[str, set[str]] = {}
    for node, (path, _) in zip(nodes, scopes, strict=True):
        kinds.setdefault(path, set()).add(node.op_type)
    bases = []
    for node, (path, final) in zip(nodes, scopes, strict=True):
        if final or (path not in containers and len(kinds[path]) == 1):
            bases.append(path)
        else:
            bases.append(f"{path}.{_short(node)}".lstrip("."))
    return bases


def _short(node: ir.Node) -> str:
    return _SHORT.get(node.op_type, node.op_type.lower())


def _rename_values(graph: ir.Graph) -> None:
    """Values after their nodes, initialisers after their first user and its formal parameter."""
    names: dict[ir.Value, str] = {graph.inputs[0]: "input", graph.outputs[0]: "logits"}
    constants: dict[ir.Value, str] = {}
    taken: set[str] = set()
    for node in graph:
        formal = _formal_names(node)
        for k, value in enumerate(node.inputs):
            if value is None or not value.is_initializer() or value in constants:
                continue
            base = f"{node.name}.{formal[min(k, len(formal) - 1)]}"
            name, n = base, 0
            while name in taken:
                n += 1
                name = f"{base}{n}"
            taken.add(name)
            constants[value] = name
        for k, output in enumerate(node.outputs):
            names.setdefault(output, f"{node.name}.out{k or ''}")
    # Two passes, since a final name may still be another value's present one.
    graph.initializers.clear()
    for k, value in enumerate((*names, *constants)):
        value.name = f".{k}"
    for value, name in names.items():
        value.name = name
    for value, name in constants.items():
        value.name = name
        graph.register_initializer(value)


def _formal_names(node: ir.Node) -> list[str]:
    if node.domain or not onnx.defs.has(node.op_type):
        return ["constant"]
    return _PARAMETERS.get(node.op_type) or [p.name for p in onnx.defs.get_schema(node.op_type, OPSET).inputs]
