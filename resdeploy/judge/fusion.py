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
from collections.abc import Mapping, Sequence, Set
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
        asked = _infer_precision(layers)
        notes.append(f"asked for: taken to be {asked} from what most convolutions run in; --precision says otherwise")
    graphless = intent is None
    if intent is None:
        layers = engine_blocks.name_sums(layers)
        intent = engine_blocks.intent_of(layers)
    layers = [_recognise_quantizer(layer, intent) for layer in layers]
    view = _View(layers, intent, asked, target)
    if not graphless:
        view.refuse_another_graph(subject)
    blocks = tuple(view.audit(block) for block in intent.blocks)
    superfluous = tuple(layer for layer in layers if layer.role == "qdq" and not _at_edge(layer, intent, bindings))
    notes += view.doubts()
    if not blocks:
        notes.append("no residual add was recognised" if graphless else "this network has no residual adds to judge")
    checks = [*_block_checks(blocks, asked), *view.convolution_checks(superfluous)]
    if graphless:  # against a graph, what such layers hide is missing by name
        checks += _check_obscure(layers, {block.add for block in intent.blocks})
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


def _recognise_quantizer(layer: Layer, intent: Intent) -> Layer:
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
        self.nodes: list[tuple[str, ...]] = [self._nodes_of(layer, before) for layer in layers]
        self.homes: dict[str, list[int]] = {}
        for i, nodes in enumerate(self.nodes):
            for node in nodes:
                self.homes.setdefault(node, []).append(i)
        self._place_unnamed_sums()
        self.unattributed = [
            layer for layer, nodes in zip(layers, self.nodes, strict=True) if layer.role == "compute" and not nodes
        ]

    def _nodes_of(self, layer: Layer, before: Mapping[str, str]) -> tuple[str, ...]:
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

    def refuse_another_graph(self, subject: str) -> None:
        """Refuses a graph of which no kernel runs any node."""
        if self.unattributed and not self.homes:
            raise MalformedInput(
                f"{subject} was not made from the graph given: no kernel names a node of it",
                cause=f"Its kernels are called {self._unattributed_names()}",
                fix="Name the ONNX file that it was made from, or leave --against out",
            )

    def doubts(self) -> list[str]:
        """What the runtime does not tell about its kernels, or tells wrongly."""
        notes = []
        if self.unattributed:
            count = len(self.unattributed)
            notes.append(f"{count} kernels name none of the graph's nodes: {self._unattributed_names()}")
        doubtful = [f"{x.name} ({x.doubt})" for x in self.layers if x.doubt and x.role == "compute"]
        if doubtful:
            notes.append(f"kernels that run in another type than the runtime reports: {_list_first(doubtful)}")
        return notes

    def _unattributed_names(self) -> str:
        return ", ".join(layer.name for layer in self.unattributed[:3])

    def home(self, node: str | None) -> Layer | None:
        """The layer that runs a node, where exactly one does."""
        places = self.homes.get(node or "", [])
        return self.layers[places[0]] if len(places) == 1 else None

    def is_absorbed(self, node: str, into: Layer) -> bool | None:
        """Whether a follower (activation, batch normalisation) ran inside `into`; None where it cannot be told.

        A layer of its own would be listed. Where every kernel is accounted for, one that is not listed ran inside.
        """
        if home := self.home(node):
            return home is into
        if into.activation:
            return True
        return None if self.unattributed else True

    def audit(self, block: ResidualBlock) -> BlockAudit:
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
            executed_as=tuple(self._describe(layer) for layer in members),
            reformats=tuple(layer.name for layer in self._conversions_around(members)),
            time_s=_total_time(members),
        )
        return dataclasses.replace(result, **self._finding(block, adder, dict(convs), result))

    def _members(self, block: ResidualBlock) -> list[Layer]:
        names = [*block.convs, block.projection, block.add, block.relu]
        for conv in (*block.convs, block.projection):
            names += self.intent.followers.get(conv or "", ())
        places = {i for name in names if name for i in self.homes.get(name, ())}
        return [self.layers[i] for i in sorted(places)]

    def _describe(self, layer: Layer) -> str:
        nodes = self.nodes[next(i for i, other in enumerate(self.layers) if other is layer)]
        names = [node for node in nodes if not engine_blocks.WEIGHT.match(node) and "QuantizeLinear" not in node]
        return f"{' + '.join(names) or layer.name} [{layer.precision}]"

    def _conversions_around(self, members: Sequence[Layer]) -> list[Layer]:
        """The conversions that only serve these layers: they read what these write, or write what these read."""
        inputs = {port.name for layer in members for port in layer.inputs if port.name}
        outputs = {port.name for layer in members for port in layer.outputs if port.name}
        return [
            layer
            for layer in self.layers
            if layer.role in ("qdq", "reformat")
            and ({p.name for p in layer.outputs} & inputs or {p.name for p in layer.inputs} & outputs)
        ]

    def _finding(
        self, block: ResidualBlock, adder: Layer | None, convs: dict[str, Layer | None], audit: BlockAudit
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
            return {"fused": False, **self._explain_unfused(block, adder)}
        followers = [(node, home) for conv, home in convs.items() for node in self.intent.followers.get(conv, ())]
        followers += [(block.relu, adder)] if block.relu else []
        states = {node: self.is_absorbed(node, home) for node, home in followers if home is not None}
        apart = [node for node, state in states.items() if state is False]
        if apart:
            return {
                "fused": False,
                "reason": f"{', '.join(apart)} runs as a kernel of its own",
                "remedy": "Look for another reader of the tensor before it: one output for two readers is not fused",
            }
        if unsure := [node for node, state in states.items() if state is None]:
            return {"reason": f"no kernel says that it computes {', '.join(unsure)}"}
        return {"fused": True, **self._explain_width(adder, audit)}

    def _explain_unfused(self, block: ResidualBlock, adder: Layer) -> dict[str, Any]:
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

    def _explain_width(self, adder: Layer, audit: BlockAudit) -> dict[str, Any]:
        """Why a fused sum ran in another precision than asked."""
        if audit.precision in (audit.asked, UNKNOWN):
            return {}
        if adder.precision == audit.precision:
            reason = f"its kernel computes in {adder.precision}"
        else:
            words = [f"its kernel multiplies in {adder.precision}"]
            for port in (p for p in adder.inputs[1:] if widest([p.precision]) == audit.precision):
                makers = [x.name for x in self.layers if x.role == "qdq" and port.name in {p.name for p in x.outputs}]
                words.append(f"reads its skip in {audit.precision}{f' from {makers[0]}' if makers else ''}")
            for port in adder.outputs:
                if widest([port.precision]) == audit.precision:
                    readers = [x.name for x in self.layers if port.name and port.name in {p.name for p in x.inputs}]
                    words.append(f"writes its sum in {audit.precision}{f' for {readers[0]}' if readers else ''}")
            reason = ", ".join(words)
        if audit.asked == "int8":
            return {"reason": reason, "remedy": f"Quantize the skip branch and what reads the sum: {self.quantize}"}
        if self.target in ("openvino", "onnxruntime"):
            return {
                "reason": reason,
                "remedy": f"This runtime computes no {audit.asked} on this machine: ask for fp32 or int8",
            }
        return {
            "reason": reason,
            "remedy": f"Cast the graph itself: resdeploy quantize F.onnx --precision {audit.asked}",
        }

    def convolution_checks(self, superfluous: Sequence[Layer]) -> list[Check]:
        """Whether each convolution ran in the precision asked for, took its activation in, and needs no Q/DQ kernel."""
        precisions = self._precisions_asked()
        homes = {name: self.home(name) for name in precisions}
        checks = [self._check_precisions(precisions, homes)]
        if self.asked == "int8":
            checks.append(self._check_int8_outputs([home for home in homes.values() if home is not None]))
            checks.append(_check_superfluous(superfluous, [layer for layer in self.layers if layer.kind]))
        return [*checks, *self._check_followers(homes)]

    def _precisions_asked(self) -> dict[str, str]:
        """What each convolution was to run in."""
        if self.intent.asked:
            adds = {block.add for block in self.intent.blocks}
            return {name: asked for name, asked in self.intent.asked.items() if name not in adds}
        return {engine_blocks.conv_name(x): self.asked for x in self.layers if is_convolution(x)}

    def _check_precisions(self, precisions: Mapping[str, str], homes: Mapping[str, Layer | None]) -> Check:
        unsure = [name for name, home in homes.items() if home is None or home.precision == UNKNOWN]
        other = [
            (name, _precision_words(home))
            for name, home in homes.items()
            if home is not None and home.precision not in (precisions[name], UNKNOWN)
        ]
        if self.asked not in precisions.values():  # all may run as the graph has it, and nothing as was asked
            other = [(name, f"the graph asks for {asked}, not {self.asked}") for name, asked in precisions.items()]
            unsure = []
        nothing = "the graph has no convolution, and an audit judges these; bench and eval judge the network"
        if not self.intent.producers:  # known from the layers alone
            nothing = "no convolution or residual block was recognised; add --against F.onnx"
        name = "convolutions in the precision asked for"
        return _check_all(name, len(precisions), other, unsure, "convolutions", nothing=nothing)

    def _check_followers(self, homes: Mapping[str, Layer | None]) -> list[Check]:
        """Whether activations ran inside their convolution; no check where there are none."""
        states = {
            node: self.is_absorbed(node, home)
            for conv, home in homes.items()
            if home is not None
            for node in self.intent.followers.get(conv, ())
        }
        if not states:
            return []
        apart = [(node, "a kernel of its own") for node, state in states.items() if state is False]
        unsure = [node for node, state in states.items() if state is None]
        return [_check_all("activations inside their convolution", len(states), apart, unsure, "activations")]

    def _check_int8_outputs(self, convolutions: Sequence[Layer]) -> Check:
        """INT8 convolutions that write floats: what reads them moves two or four times the bytes."""
        quantized = [layer for layer in convolutions if layer.precision == "int8"]
        words: list[tuple[str, str]] = []
        for layer in quantized:
            wide = [p for p in layer.outputs if widest([p.precision]) not in ("int8", UNKNOWN)]
            readers = [x.name for x in self.layers for p in wide if p.name and p.name in {q.name for q in x.inputs}]
            if wide:
                words.append(
                    (f"{layer.name}{f' (for {readers[0]})' if readers else ''}", f"writes {wide[0].precision}")
                )
        unsure = [x.name for x in quantized if not x.outputs or any(p.precision == UNKNOWN for p in x.outputs)]
        nothing = f"no convolution is known to run in INT8; quantize for this runtime: {self.quantize}"
        return _check_all(
            "INT8 convolutions that write INT8", len(quantized), words, unsure, "convolutions", nothing=nothing
        )


def _block_checks(blocks: Sequence[BlockAudit], asked: str) -> list[Check]:
    if not blocks:
        return []
    unfused = [(b.name, b.reason) for b in blocks if b.fused is False]
    unsure = [b.name for b in blocks if b.fused is None]
    known = [b for b in blocks if b.precision != UNKNOWN]
    target = asked if all(b.asked == asked for b in blocks) else "the precision asked for"
    other = [(b.name, f"in {b.precision}") for b in known if b.precision != b.asked]
    silent = [b.name for b in blocks if b.precision == UNKNOWN]
    return [
        _check_all("residual blocks fused", len(blocks), unfused, unsure, "blocks"),
        _check_all(f"residual adds in {target}", len(blocks), other, silent, "adds"),
    ]


def _check_obscure(layers: Sequence[Layer], adds: Set[str]) -> list[Check]:
    """Layers that may do more than they tell: such as may add, and regions that do not show their kernels."""
    maybe = [layer.name for layer in engine_blocks.possible_sums(layers, adds)]
    hidden = [layer.name for layer in layers if "ForeignNode[" in layer.name]
    checks = []
    if maybe:
        checks.append(_check_all("kernels known not to add", len(maybe), [], maybe, "kernels"))
    if hidden:
        checks.append(_check_all("regions that show their kernels", len(hidden), [], hidden, "regions"))
    return checks


def _state(total: int, wrong: int, unsure: int = 0) -> State:
    """The rule of every check: nothing looked at is nothing passed."""
    return "fail" if wrong else "inconclusive" if unsure or not total else "pass"


def _check_all(
    name: str, total: int, wrong: Sequence[tuple[str, str]], unsure: Sequence[str], unit: str, *, nothing: str = ""
) -> Check:
    """All of `total` must hold: one that does not, (who, why), fails; one that is not known leaves it open.

    `nothing` says why there may be none, and what to do then.
    """
    words = [
        f"{why}: {_list_first([who for who, other in wrong if other == why])}"
        for why in dict.fromkeys(w for _, w in wrong)
    ]
    words += [f"not known: {_list_first(unsure)}"] if unsure else []
    words += [] if total else [nothing]
    right = float(total - len(wrong) - len(unsure))
    return Check(
        name=name, limit=float(total), observed=right, interval=None, state=_state(total, len(wrong), len(unsure)),
        unit=unit, note="; ".join(words),
    )  # fmt: skip


def _check_superfluous(layers: Sequence[Layer], with_kind: Sequence[Layer]) -> Check:
    """None of the layers whose kind the runtime tells may only quantize."""
    time_s = _total_time(layers)
    took = f", {time_s * 1e3:.3g} ms" if time_s else ""
    note = f"{_list_first([layer.name for layer in layers])} run as kernels{took}" if layers else ""
    nothing = "" if with_kind else "no kernel says what it does; build with resdeploy build, which asks for it"
    return Check(
        name="Q/DQ left over as kernels", limit=0.0, observed=float(len(layers)), interval=None,
        state=_state(len(with_kind), len(layers)), unit="kernels", note=note or nothing,
    )  # fmt: skip


def _list_first(words: Sequence[str], most: int = 6) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def _at_edge(layer: Layer, intent: Intent, bindings: Sequence[str]) -> bool:
    touched = {port.name for port in (*layer.inputs, *layer.outputs)}
    return bool(touched & set(bindings)) or bool({*layer.sources, layer.name} & intent.edges)


def _precision_words(layer: Layer) -> str:
    return f"in {layer.precision}{f' ({layer.doubt})' if layer.doubt else ''}"


def _sum_precision(adder: Layer) -> str:
    ports = [port.precision for port in (*adder.inputs, *adder.outputs)]
    ports += [adder.precision] if adder.doubt else []  # computed wider than what it reads and writes
    return widest(ports) if ports else widest([adder.precision])


def _total_time(layers: Sequence[Layer]) -> float | None:
    times = [layer.time_s for layer in layers if layer.time_s is not None]
    return sum(times) if times else None


def _infer_precision(layers: Sequence[Layer]) -> Precision:
    precisions = [
        layer.precision
        for layer in layers
        if is_convolution(layer) and layer.precision in ("fp32", "fp16", "bf16", "int8")
    ]
    if "int8" in precisions or not precisions:
        return "int8" if precisions else "fp32"
    return cast("Precision", max(dict.fromkeys(precisions), key=precisions.count))
