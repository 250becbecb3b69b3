"""The fusion audit: the layers that a built model really executes, compared with what its graph asked for.

A residual block is fused where its additions, activations and batch normalisations took no kernel of their own: all
ran inside its convolutions. An addition's precision is the widest of the tensors that its kernel reads and writes: a
convolution that multiplies int8 but reads its skip in FP16 adds in FP16, and the Q/DQ around it become kernels
(NVIDIA's ResNet-18 with Q/DQ on the convolutions alone is slower in INT8 than in FP16 for this reason).

Nodes are found in layers by the runtime's own words (TensorRT's metadata, OpenVINO's original layer names), then by
name, then by structure: a convolution that reads a second tensor of its output's shape adds it. What none of these
tells is `unknown`, never fused, and makes the verdict inconclusive. So does a check that found nothing to look at: what
a network does not have (residual adds in a plain one) is left out and noted, what was asked for and is not there fails.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

from resdeploy.errors import MalformedInput
from resdeploy.graph.intent import Intent, computed_nodes, kernel_starts
from resdeploy.graph.residual import ResidualBlock
from resdeploy.judge import engine_blocks
from resdeploy.judge.engine_blocks import is_convolution
from resdeploy.records import Audit, BlockAudit, Check, Layer, Precision, State, Target, Verdict

WIDTH = {"int8": 1, "uint8": 1, "fp8": 1, "fp16": 2, "bf16": 2, "fp32": 4}
UNKNOWN = "unknown"


def judge(
    subject: str,
    layers: Sequence[Layer],
    *,
    intent: Intent | None = None,
    asked: Precision | None = None,
    bindings: Sequence[str] = (),
    target: Target | None = "tensorrt",
) -> Audit:
    """Audits executed layers.

    Args:
        subject: what was audited, for the reader.
        layers: as the runtime lists them, in order.
        intent: of the source graph; None: taken from the layers themselves.
        asked: the precision the model was to run in; None: INT8 where any convolution runs in it, else the commonest.
        bindings: the engine's inputs and outputs: a Q/DQ kernel there is no fault of the placement.
        target: whose fusion rules the runtime follows (`Backend.TARGET`): remedies differ.

    Raises:
        MalformedInput: the layers are not of that graph.
    """
    notes = []
    if asked is None:
        asked = _asked(layers)
        notes.append(f"asked for: taken to be {asked} from what most convolutions run in; --precision says otherwise")
    graphless = intent is None
    hidden = [layer for layer in layers if "ForeignNode[" in layer.name] if graphless else []
    if intent is None:
        layers = engine_blocks.named(layers)
        intent = engine_blocks.intent_of(layers)
    layers = [_quantizer(layer, intent) for layer in layers]
    view = _View(layers, intent, asked, target)
    blocks = tuple(view.audited(block) for block in intent.blocks)
    superfluous = tuple(layer for layer in layers if layer.role == "qdq" and not _at_edge(layer, intent, bindings))
    if view.unattributed:
        shown = ", ".join(layer.name for layer in view.unattributed[:3])
        if not graphless and not view.homes:
            raise MalformedInput(
                f"{subject} was not made from the graph given: no kernel names a node of it",
                cause=f"Its kernels are called {shown}",
                fix="Name the ONNX file that it was made from, or leave --against out",
            )
        notes.append(f"{len(view.unattributed)} kernels name none of the graph's nodes: {shown}")
    if doubted := [f"{layer.name} ({layer.doubt})" for layer in layers if layer.doubt and layer.role == "compute"]:
        notes.append(f"kernels that run in another type than the runtime reports: {_listed(doubted)}")
    if not blocks:
        notes.append("no residual add was recognised" if graphless else "this network has no residual adds to judge")
    checks = [*_block_checks(blocks, asked), *view.convolution_checks(superfluous)]
    if graphless and (maybe := engine_blocks.possible_sums(layers, {block.add for block in intent.blocks})):
        names = [layer.name for layer in maybe]
        checks.append(_counted("kernels known not to add", len(maybe), [], names, "kernels"))
    if hidden:  # against a graph, what they hide is missing by name
        names = [layer.name for layer in hidden]
        checks.append(_counted("regions that show their kernels", len(hidden), [], names, "regions"))
    return Audit(
        subject=subject,
        asked=asked,
        verdict=Verdict(checks=tuple(checks)),
        blocks=blocks,
        layers=tuple(layers),
        superfluous=superfluous,
        notes=tuple(notes),
    )


def widest(precisions: Sequence[str]) -> str:
    """The widest of these types; unknown where one is not a type that CNNs compute in, or there are none."""
    if not precisions or any(precision not in WIDTH for precision in precisions):
        return UNKNOWN
    return max(precisions, key=WIDTH.__getitem__).replace("uint8", "int8")


def _quantizer(layer: Layer, intent: Intent) -> Layer:
    """The layer, known for a Q/DQ kernel where all that it names are such nodes: not every runtime says so itself."""
    if layer.role == "compute" and layer.kind and layer.sources and intent.pairs.issuperset(layer.sources):
        return dataclasses.replace(layer, role="qdq")
    return layer


class _View:
    """Which layer runs which node."""

    def __init__(self, layers: Sequence[Layer], intent: Intent, asked: str, target: Target | None) -> None:
        self.layers, self.intent, self.asked, self.target = layers, intent, asked, target
        option = f" --target {target}" if target else ""
        self.quantize = f"resdeploy quantize F.onnx{option} --calib-data DIR"
        before = kernel_starts(intent)
        self.nodes: list[tuple[str, ...]] = [self._resolved(layer, before) for layer in layers]
        self.homes: dict[str, list[int]] = {}
        for i, nodes in enumerate(self.nodes):
            for node in nodes:
                self.homes.setdefault(node, []).append(i)
        self._place_unnamed_sums()
        self.unattributed = [
            layer for layer, nodes in zip(layers, self.nodes, strict=True) if layer.role == "compute" and not nodes
        ]

    def _resolved(self, layer: Layer, before: Mapping[str, str]) -> tuple[str, ...]:
        if layer.role != "compute":
            return ()
        return computed_nodes(layer.sources, self.intent, before, convolves=is_convolution(layer))

    def _place_unnamed_sums(self) -> None:
        """A sum that no layer names ran in the block's convolution that reads a second tensor of its output's shape."""
        for block in self.intent.blocks:
            if block.add in self.homes:
                continue
            for conv in (block.last_conv, block.projection):
                for i in self.homes.get(conv or "", ()):
                    layer = self.layers[i]
                    shapes = [port.shape for port in layer.inputs]
                    if len(shapes) == 2 and layer.outputs and shapes[1] and shapes[1] == layer.outputs[0].shape:
                        self.homes[block.add] = [i]
                        self.nodes[i] = (*self.nodes[i], block.add)

    def home(self, node: str | None) -> Layer | None:
        """The layer that runs a node, where exactly one does."""
        found = self.homes.get(node or "", [])
        return self.layers[found[0]] if len(found) == 1 else None

    def absorbed(self, node: str, into: Layer) -> bool | None:
        """Whether a follower (activation, batch normalisation) ran inside `into`; None where it cannot be told.

        A layer of its own would be listed. Where every kernel is accounted for, one that is not listed ran inside.
        """
        if home := self.home(node):
            return home is into
        if into.activation:
            return True
        return None if self.unattributed else True

    def audited(self, block: ResidualBlock) -> BlockAudit:
        adder = self.home(block.add)
        convs = [(conv, self.home(conv)) for conv in block.convs]
        if block.projection:
            convs.append((block.projection, self.home(block.projection)))
        members = self._members(block)
        result = BlockAudit(
            name=engine_blocks.block_name(block, members),
            fused=None,
            precision=UNKNOWN if adder is None else _sum_precision(adder),
            asked=self.intent.asked.get(block.add, self.asked),
            conv_precisions=tuple(home.precision if home else UNKNOWN for _, home in convs),
            executed_as=tuple(self._described(layer) for layer in members),
            reformats=tuple(layer.name for layer in self._around(members)),
            time_s=_total(members),
        )
        return dataclasses.replace(result, **self._finding(block, adder, dict(convs), result))

    def _members(self, block: ResidualBlock) -> list[Layer]:
        names = [*block.convs, block.projection, block.add, block.relu]
        for conv in (*block.convs, block.projection):
            names += self.intent.followers.get(conv or "", ())
        wanted = {i for name in names if name for i in self.homes.get(name, ())}
        return [self.layers[i] for i in sorted(wanted)]

    def _described(self, layer: Layer) -> str:
        nodes = self.nodes[next(i for i, other in enumerate(self.layers) if other is layer)]
        shown = [node for node in nodes if not engine_blocks.WEIGHT.match(node) and "QuantizeLinear" not in node]
        return f"{' + '.join(shown) or layer.name} [{layer.precision}]"

    def _around(self, members: Sequence[Layer]) -> list[Layer]:
        """The conversions that only serve these layers: they read what these write, or write what these read."""
        read = {port.name for layer in members for port in layer.inputs if port.name}
        written = {port.name for layer in members for port in layer.outputs if port.name}
        return [
            layer
            for layer in self.layers
            if layer.role in ("qdq", "reformat")
            and ({p.name for p in layer.outputs} & read or {p.name for p in layer.inputs} & written)
        ]

    def _finding(
        self, block: ResidualBlock, adder: Layer | None, convs: dict[str, Layer | None], seen: BlockAudit
    ) -> dict[str, Any]:
        """Whether the block is fused, else the reason and the remedy."""
        if adder is None:
            return {
                "reason": f"no kernel says that it computes {block.add}",
                "remedy": "Build with resdeploy build, which asks for detailed layer information; add --against F.onnx",
            }
        if missing := [name for name, home in convs.items() if home is None]:
            return {"reason": f"no single kernel says that it computes {', '.join(missing)}"}
        if not any(home is adder for home in convs.values()):
            return {"fused": False, **self._unfused_sum(block, adder)}
        followers = [(node, home) for conv, home in convs.items() for node in self.intent.followers.get(conv, ())]
        followers += [(block.relu, adder)] if block.relu else []
        states = {node: self.absorbed(node, home) for node, home in followers if home is not None}
        apart = [node for node, state in states.items() if state is False]
        if apart:
            return {
                "fused": False,
                "reason": f"{', '.join(apart)} runs as a kernel of its own",
                "remedy": "Look for another reader of the tensor before it: one output for two readers is not fused",
            }
        if unsure := [node for node, state in states.items() if state is None]:
            return {"reason": f"no kernel says that it computes {', '.join(unsure)}"}
        return {"fused": True, **self._too_wide(adder, seen)}

    def _unfused_sum(self, block: ResidualBlock, adder: Layer) -> dict[str, Any]:
        if self.target == "onnxruntime" and adder.kind == "QLinearAdd":
            return {
                "reason": "ONNX Runtime adds 8-bit tensors in a kernel of its own, QLinearAdd",
                "remedy": "OpenVINO and TensorRT have a fused one: --backend openvino or tensorrt",
            }
        if block.last_conv is None:
            return {"reason": "its main branch does not end in a convolution, which alone could take the sum in"}
        if all(port.precision == "int8" for port in adder.inputs) and adder.inputs and self.target == "tensorrt":
            return {
                "reason": "both operands are quantized, so that the convolution ends before the sum",
                "remedy": f"Q/DQ belongs on the skip branch alone: {self.quantize}",
            }
        return {
            "reason": f"its sum is a kernel of its own ({adder.kind or 'kind unknown'})",
            "remedy": f"Quantize it for this runtime: {self.quantize}"
            if self.asked == "int8"
            else "Another runtime may fuse it: compare with --backend",
        }

    def _too_wide(self, adder: Layer, seen: BlockAudit) -> dict[str, Any]:
        """Why a fused sum ran in another precision than asked."""
        if seen.precision in (seen.asked, UNKNOWN):
            return {}
        if adder.precision == seen.precision:
            reason = f"its kernel computes in {adder.precision}"
        else:
            words = [f"its kernel multiplies in {adder.precision}"]
            for port in (p for p in adder.inputs[1:] if widest([p.precision]) == seen.precision):
                makers = [x.name for x in self.layers if x.role == "qdq" and port.name in {p.name for p in x.outputs}]
                words.append(f"reads its skip in {seen.precision}{f' from {makers[0]}' if makers else ''}")
            for port in adder.outputs:
                if widest([port.precision]) == seen.precision:
                    readers = [x.name for x in self.layers if port.name and port.name in {p.name for p in x.inputs}]
                    words.append(f"writes its sum in {seen.precision}{f' for {readers[0]}' if readers else ''}")
            reason = ", ".join(words)
        if seen.asked == "int8":
            return {"reason": reason, "remedy": f"Quantize the skip branch and what reads the sum: {self.quantize}"}
        if self.target in ("openvino", "onnxruntime"):
            return {
                "reason": reason,
                "remedy": f"This runtime computes no {seen.asked} on this machine: ask for fp32 or int8",
            }
        return {
            "reason": reason,
            "remedy": f"Cast the graph itself: resdeploy quantize F.onnx --precision {seen.asked}",
        }

    def convolution_checks(self, superfluous: Sequence[Layer]) -> list[Check]:
        """Whether each convolution ran in the precision asked for, took its activation in, and needs no Q/DQ kernel."""
        if self.intent.asked:
            adds = {block.add for block in self.intent.blocks}
            wanted = {name: asked for name, asked in self.intent.asked.items() if name not in adds}
        else:
            wanted = {engine_blocks.conv_name(x): self.asked for x in self.layers if is_convolution(x)}
        homes = {name: self.home(name) for name in wanted}
        unsure = [name for name, home in homes.items() if home is None or home.precision == UNKNOWN]
        other = [
            (name, _ran(home))
            for name, home in homes.items()
            if home is not None and home.precision not in (wanted[name], UNKNOWN)
        ]
        if self.asked not in wanted.values():  # all may run as the graph has it, and nothing as was asked
            other = [(name, f"the graph asks for {asked}, not {self.asked}") for name, asked in wanted.items()]
            unsure = []
        followed = {
            node: self.absorbed(node, home)
            for conv, home in homes.items()
            if home is not None
            for node in self.intent.followers.get(conv, ())
        }
        nothing = "the graph has no convolution, and an audit judges these; bench and eval judge the network"
        if not self.intent.producers:  # known from the layers alone
            nothing = "no convolution or residual block was recognised; add --against F.onnx"
        checks = [
            _counted(
                "convolutions in the precision asked for", len(wanted), other, unsure, "convolutions", nothing=nothing
            )
        ]
        if self.asked == "int8":
            checks.append(self._floats_written([home for home in homes.values() if home is not None]))
            checks.append(_superfluous(superfluous, [layer for layer in self.layers if layer.kind]))
        if followed:
            apart = [(node, "a kernel of its own") for node, state in followed.items() if state is False]
            unsure = [node for node, state in followed.items() if state is None]
            checks.append(_counted("activations inside their convolution", len(followed), apart, unsure, "activations"))
        return checks

    def _floats_written(self, convolutions: Sequence[Layer]) -> Check:
        """INT8 convolutions that write floats: what reads them moves two or four times the bytes."""
        seen = [layer for layer in convolutions if layer.precision == "int8"]
        words: list[tuple[str, str]] = []
        for layer in seen:
            wide = [p for p in layer.outputs if widest([p.precision]) not in ("int8", UNKNOWN)]
            readers = [x.name for x in self.layers for p in wide if p.name and p.name in {q.name for q in x.inputs}]
            if wide:
                words.append(
                    (f"{layer.name}{f' (for {readers[0]})' if readers else ''}", f"writes {wide[0].precision}")
                )
        unsure = [x.name for x in seen if not x.outputs or any(p.precision == UNKNOWN for p in x.outputs)]
        nothing = f"no convolution is known to run in INT8; quantize for this runtime: {self.quantize}"
        return _counted("INT8 convolutions that write INT8", len(seen), words, unsure, "convolutions", nothing=nothing)


def _block_checks(blocks: Sequence[BlockAudit], asked: str) -> list[Check]:
    if not blocks:
        return []
    unfused = [(b.name, b.reason) for b in blocks if b.fused is False]
    unsure = [b.name for b in blocks if b.fused is None]
    known = [b for b in blocks if b.precision != UNKNOWN]
    wanted = asked if all(b.asked == asked for b in blocks) else "the precision asked for"
    other = [(b.name, f"in {b.precision}") for b in known if b.precision != b.asked]
    silent = [b.name for b in blocks if b.precision == UNKNOWN]
    return [
        _counted("residual blocks fused", len(blocks), unfused, unsure, "blocks"),
        _counted(f"residual adds in {wanted}", len(blocks), other, silent, "adds"),
    ]


def _state(seen: int, wrong: int, unsure: int = 0) -> State:
    """The rule of every check: nothing seen is nothing passed."""
    return "fail" if wrong else "inconclusive" if unsure or not seen else "pass"


def _counted(
    name: str, total: int, wrong: Sequence[tuple[str, str]], unsure: Sequence[str], unit: str, *, nothing: str = ""
) -> Check:
    """All of `total` must hold: one that does not, (who, why), fails; one that is not known leaves it open.

    `nothing` says why there may be none, and what to do then.
    """
    words = [
        f"{why}: {_listed([who for who, other in wrong if other == why])}" for why in dict.fromkeys(w for _, w in wrong)
    ]
    words += [f"not known: {_listed(unsure)}"] if unsure else []
    words += [] if total else [nothing]
    held = float(total - len(wrong) - len(unsure))
    return Check(
        name=name, limit=float(total), observed=held, interval=None, state=_state(total, len(wrong), len(unsure)),
        unit=unit, note="; ".join(words),
    )  # fmt: skip


def _superfluous(layers: Sequence[Layer], told: Sequence[Layer]) -> Check:
    """None of the layers whose kind the runtime tells may only quantize."""
    time_s = _total(layers)
    took = f", {time_s * 1e3:.3g} ms" if time_s else ""
    note = f"{_listed([layer.name for layer in layers])} run as kernels{took}" if layers else ""
    nothing = "" if told else "no kernel says what it does; build with resdeploy build, which asks for it"
    return Check(
        name="Q/DQ left over as kernels", limit=0.0, observed=float(len(layers)), interval=None,
        state=_state(len(told), len(layers)), unit="kernels", note=note or nothing,
    )  # fmt: skip


def _listed(words: Sequence[str], shown: int = 6) -> str:
    return ", ".join(words[:shown]) + (f" and {len(words) - shown} more" if len(words) > shown else "")


def _at_edge(layer: Layer, intent: Intent, bindings: Sequence[str]) -> bool:
    touched = {port.name for port in (*layer.inputs, *layer.outputs)}
    return bool(touched & set(bindings)) or bool({*layer.sources, layer.name} & intent.edges)


def _ran(layer: Layer) -> str:
    return f"in {layer.precision}{f' ({layer.doubt})' if layer.doubt else ''}"


def _sum_precision(adder: Layer) -> str:
    ports = [port.precision for port in (*adder.inputs, *adder.outputs)]
    ports += [adder.precision] if adder.doubt else []  # computed wider than what it reads and writes
    return widest(ports) if ports else widest([adder.precision])


def _total(layers: Sequence[Layer]) -> float | None:
    times = [layer.time_s for layer in layers if layer.time_s is not None]
    return sum(times) if times else None


def _asked(layers: Sequence[Layer]) -> Precision:
    seen = [
        layer.precision
        for layer in layers
        if is_convolution(layer) and layer.precision in ("fp32", "fp16", "bf16", "int8")
    ]
    if "int8" in seen or not seen:
        return "int8" if seen else "fp32"
    return cast("Precision", max(dict.fromkeys(seen), key=seen.count))
