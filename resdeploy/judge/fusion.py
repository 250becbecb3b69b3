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
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from resdeploy.errors import MalformedInput
from resdeploy.graph.intent import Intent, computed_nodes, kernel_starts
from resdeploy.graph.residual import ResidualBlock
from resdeploy.judge import engine_blocks, fusion_checks, generated, traffic
from resdeploy.judge.engine_blocks import is_convolution
from resdeploy.judge.remedies import UNKNOWN, Finding, Remedies, widest
from resdeploy.records import Audit, BlockAudit, Check, Layer, Precision, Target, Verdict


def judge(
    subject: str,
    layers: Sequence[Layer],
    *,
    intent: Intent | None = None,
    asked: Precision | None = None,
    bindings: Sequence[str] = (),
    target: Target | None = "tensorrt",
    placed_for: Target | None = None,
) -> Audit:
    """Audits executed layers.

    Args:
        subject: what was audited, for the reader.
        layers: as the runtime lists them, in order.
        intent: of the source graph; None: taken from the layers themselves.
        asked: the precision the model was to run in; None: INT8 where any convolution runs in it, else the commonest.
        bindings: the engine's inputs and outputs: a Q/DQ kernel there is no fault of the placement.
        target: whose fusion rules the runtime follows (`Backend.TARGET`): remedies differ.
        placed_for: the runtime for which the model's Q/DQ were placed; None: unknown, or it has none.

    Raises:
        MalformedInput: the layers are not of that graph.
    """
    notes = []
    if asked is None:
        asked = _infer_precision(layers)
        notes.append(f"asked for: taken to be {asked} from what most convolutions run in; --precision says otherwise")
    graphless = intent is None
    settled = _settle(layers, intent)
    if intent is None:
        settled = dataclasses.replace(settled, layers=engine_blocks.name_sums(settled.layers))
        intent = engine_blocks.intent_of(settled.layers)
    layers = [
        layer if i in settled.finishing else generated.recognise(layer, intent)
        for i, layer in enumerate(settled.layers)
    ]
    remedies = Remedies(layers=layers, asked=asked, target=target, placed_for=placed_for, against_graph=not graphless)
    view = _View(layers, settled, intent, remedies)
    if not graphless:
        view.refuse_another_graph(subject)
    blocks = tuple(view.audit(block) for block in intent.blocks)
    superfluous = tuple(layer for layer in layers if layer.role == "qdq" and not _at_edge(layer, intent, bindings))
    notes += view.doubts()
    if not blocks:
        notes.append("no residual add was recognised" if graphless else "this network has no residual adds to judge")
    if asked == "int8" and (gates := sorted(intent.gates & intent.asked.keys())):
        notes.append(
            f"{len(gates)} convolutions of squeeze-and-excitation gates may write floats: they see one value a channel"
        )
    if asked == "int8" and target == placed_for == "tensorrt-rtx":  # no form makes its convolutions write INT8
        notes.append(remedies.place_anew)
    checks = [*_block_checks(blocks, asked), *view.convolution_checks(superfluous)]
    if graphless:  # against a graph, what such layers hide is missing by name
        checks += fusion_checks.check_obscure(layers, {block.add for block in intent.blocks})
    return Audit(
        subject=subject,
        asked=asked,
        verdict=Verdict(checks=tuple(checks)),
        blocks=blocks,
        layers=tuple(layers),
        superfluous=superfluous,
        kernels=len(traffic.kernels(layers)),
        activation_bytes=traffic.activation_bytes(layers),
        notes=tuple(notes),
    )


def _settle(layers: Sequence[Layer], intent: Intent | None) -> generated.Settled:
    """Each layer with what it runs alone; without a graph what computes is known by its name."""
    if intent is not None:
        return generated.settle(layers, {*intent.followers}, intent.nodes)
    written = [layer for layer in layers if not generated.is_generated(layer)]
    convolutions = {engine_blocks.conv_name(layer) for layer in written if is_convolution(layer)}
    names = {part for layer in written for part in layer.sources}
    return generated.settle(layers, convolutions, {name for name in names if not engine_blocks.PAIR.search(name)})


class _View:
    """Which layer runs which node."""

    def __init__(self, layers: Sequence[Layer], settled: generated.Settled, intent: Intent, remedies: Remedies) -> None:
        self.layers, self.finishers, self.intent, self.remedies = layers, settled.finishers, intent, remedies
        self.asked = remedies.asked
        before = kernel_starts(intent)
        self.nodes: list[tuple[str, ...]] = [self._nodes_of(layer, before) for layer in layers]
        self.homes: dict[str, list[int]] = {}
        for i, nodes in enumerate(self.nodes):
            for node in nodes:
                self.homes.setdefault(node, []).append(i)
        self._place_unnamed_sums()
        self.elementwise = {node for nodes in intent.followers.values() for node in nodes}
        self.elementwise |= {node for block in intent.blocks for node in (block.add, block.relu) if node}
        self.quantizers: dict[str, list[int]] = {}
        for i, layer in enumerate(layers):
            for name in intent.pairs.intersection(layer.sources):
                self.quantizers.setdefault(name, []).append(i)
        self.unattributed = [
            layer
            for i, (layer, nodes) in enumerate(zip(layers, self.nodes, strict=True))
            if layer.role == "compute" and not nodes and i not in settled.finishing
        ]

    def _nodes_of(self, layer: Layer, before: Mapping[str, str]) -> tuple[str, ...]:
        if layer.role != "compute":
            return ()
        convolves = is_convolution(layer) and not generated.is_generated(layer)
        return computed_nodes(layer.sources, self.intent, before, convolves=convolves)

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
            notes.append(
                f"kernels that run in another type than the runtime reports: {fusion_checks.list_first(doubtful)}"
            )
        return notes

    def _unattributed_names(self) -> str:
        return ", ".join(layer.name for layer in self.unattributed[:3])

    def home(self, node: str | None) -> Layer | None:
        """The layer that runs a node, where exactly one does."""
        places = self.homes.get(node or "", [])
        return self.layers[places[0]] if len(places) == 1 else None

    def is_absorbed(self, node: str, into: Layer) -> bool | None:
        """Whether a follower (activation, batch normalisation) took no kernel of its own; None where it cannot be told.

        It then ran inside `into`, or with what reads it, such as a pooling. A layer of its own would be listed. Where
        every kernel is accounted for, one that is not listed ran inside.
        """
        if places := self.homes.get(node):
            if len(places) != 1:
                return None
            return self.layers[places[0]] is into or not self.elementwise.issuperset(self.nodes[places[0]])
        if into.activation:
            return True
        return None if self.unattributed else True

    def is_requantized(self, quantizer: str, into: Layer) -> bool | None:
        """Whether a quantizer ran inside `into`, by its name, else by what `into` writes; None where neither tells."""
        if places := self.quantizers.get(quantizer):
            return self.layers[places[0]] is into if len(places) == 1 else None
        written = widest([port.precision for port in into.outputs])
        return None if written == UNKNOWN else written == "int8"

    def audit(self, block: ResidualBlock) -> BlockAudit:
        adder = self.home(block.add)
        convs = {conv: self.home(conv) for conv in (*block.convs, block.projection) if conv}
        states = self._states_of_followers(block, adder, convs)
        members, run = self._members(block), self._kernels(block)
        result = BlockAudit(
            name=engine_blocks.block_name(block, members),
            fused=None,
            precision=UNKNOWN if adder is None else _sum_precision(adder),
            asked=self.intent.asked.get(block.add, self.asked),
            conv_precisions=tuple(home.precision if home else UNKNOWN for home in convs.values()),
            executed_as=tuple(self._describe(layer) for layer in members),
            reformats=tuple(layer.name for layer in self._conversions_around(members)),
            inside=self._inside(block, adder, convs, states),
            kernels=len(run),
            activation_bytes=traffic.activation_bytes(run),
            time_s=fusion_checks.total_time(members),
        )
        fused, finding = self._finding(block, adder, convs, states, result)
        return dataclasses.replace(result, fused=fused, reason=finding.reason, remedy=finding.remedy)

    def _states_of_followers(
        self, block: ResidualBlock, adder: Layer | None, convs: Mapping[str, Layer | None]
    ) -> dict[str, bool | None]:
        """Of each activation and batch normalisation of a block, whether it ran inside what it follows."""
        followers = [(node, home) for conv, home in convs.items() for node in self.intent.followers.get(conv, ())]
        followers += [(block.relu, adder)] if block.relu else []
        return {node: None if home is None else self.is_absorbed(node, home) for node, home in followers}

    def _inside(
        self,
        block: ResidualBlock,
        adder: Layer | None,
        convs: Mapping[str, Layer | None],
        states: Mapping[str, bool | None],
    ) -> dict[str, bool | None]:
        """Whether all that a block has of each kind ran inside its convolutions."""
        known = adder is not None and None not in convs.values()
        fused = any(home is adder for home in convs.values()) if known else None
        ends = {**convs, block.add: adder}
        requantized = [
            None if home is None else self.is_requantized(name, home) and (home is not adder or fused)
            for node, home in ends.items()
            for name in self.intent.requantizers.get(node, ())
        ]
        activations = [state if node != block.relu else state and fused for node, state in states.items()]
        return {
            "bias": _all([None if home is None else conv not in self.finishers for conv, home in convs.items()]),
            **({"activation": _all(activations)} if activations else {}),
            "sum": fused,
            **({"requantization": _all(requantized)} if requantized else {}),
        }

    def _places(self, block: ResidualBlock) -> set[int]:
        names = [*block.convs, block.projection, block.add, block.relu]
        for conv in (*block.convs, block.projection):
            names += self.intent.followers.get(conv or "", ())
        places = {i for name in names if name for i in self.homes.get(name, ())}
        return places | {i for name in names if name for i in self.finishers.get(name, ())}

    def _members(self, block: ResidualBlock) -> list[Layer]:
        return [self.layers[i] for i in sorted(self._places(block))]

    def _kernels(self, block: ResidualBlock) -> list[Layer]:
        """The members, and the kernels that do nothing but quantize what they give."""
        ends = (*block.convs, block.projection, block.add)
        quantizers = [name for end in ends for name in self.intent.requantizers.get(end or "", ())]
        apart = {i for name in quantizers for i in self.quantizers.get(name, ())}
        return [self.layers[i] for i in sorted(self._places(block) | apart)]

    def _describe(self, layer: Layer) -> str:
        nodes = self.nodes[next(i for i, other in enumerate(self.layers) if other is layer)]
        names = [node for node in nodes if not engine_blocks.WEIGHT.match(node) and "QuantizeLinear" not in node]
        written = widest([port.precision for port in layer.outputs])
        to = "" if written in (UNKNOWN, layer.precision) else f" -> {written}"
        return f"{' + '.join(names) or layer.name} [{layer.precision}{to}]"

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
        self,
        block: ResidualBlock,
        adder: Layer | None,
        convs: Mapping[str, Layer | None],
        states: Mapping[str, bool | None],
        audit: BlockAudit,
    ) -> tuple[bool | None, Finding]:
        """Whether the block is fused, and if it is not as asked, the reason and the remedy."""
        if adder is None:
            return None, self.remedies.for_silence(block.add)
        if missing := [name for name, home in convs.items() if home is None]:
            return None, Finding(reason=f"no single kernel says that it computes {', '.join(missing)}")
        if not any(home is adder for home in convs.values()):
            rounded = bool(self.intent.requantizers.get(block.last_conv or ""))
            return False, self.remedies.for_unfused_sum(block, adder, rounded=rounded)
        apart = [node for node, state in states.items() if state is False]
        unfinished = [conv for conv in convs if conv in self.finishers]
        if apart or unfinished:
            return False, self.remedies.for_parts_apart(apart, unfinished)
        if unsure := [node for node, state in states.items() if state is None]:
            return None, Finding(reason=f"no kernel says that it computes {', '.join(unsure)}")
        return True, self.remedies.for_width(adder, audit)

    def convolution_checks(self, superfluous: Sequence[Layer]) -> list[Check]:
        """Whether each convolution ran in the precision asked for, took its activation in, and needs no Q/DQ kernel."""
        precisions = self._precisions_asked()
        homes = {name: self.home(name) for name in precisions}
        checks = [self._check_precisions(precisions, homes)]
        if self.asked == "int8":
            # A gate is one value a channel: what reads it may be computed in floats, and no bytes are moved for it.
            whole = [home for name, home in homes.items() if home is not None and name not in self.intent.gates]
            checks.append(self._check_int8_outputs(whole))
            silent = [layer for layer in self.unattributed if generated.is_generated(layer)]
            checks.append(fusion_checks.check_superfluous(superfluous, [x for x in self.layers if x.kind], silent))
        return [*checks, *self._check_finished(homes), *self._check_followers(homes)]

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
        return fusion_checks.check_all(name, len(precisions), other, unsure, "convolutions", nothing=nothing)

    def _check_followers(self, homes: Mapping[str, Layer | None]) -> list[Check]:
        """Whether activations ran inside their convolution, each once whatever its nodes; no check where none are."""
        states = {
            nodes[-1]: _all([self.is_absorbed(node, home) for node in nodes])
            for conv, home in homes.items()
            if home is not None and (nodes := self.intent.followers.get(conv, ()))
        }
        if not states:
            return []
        apart = [(node, "a kernel of its own") for node, state in states.items() if state is False]
        unsure = [node for node, state in states.items() if state is None]
        return [
            fusion_checks.check_all("activations inside their convolution", len(states), apart, unsure, "activations")
        ]

    def _check_finished(self, homes: Mapping[str, Layer | None]) -> list[Check]:
        """Whether bias and scales ran inside their convolution, where the compiler may leave them to a later kernel."""
        if not self.intent.producers or not any(generated.is_generated(layer) for layer in self.layers):
            return []
        apart = [(conv, "a kernel of its own") for conv in homes if conv in self.finishers]
        unsure = [conv for conv, home in homes.items() if home is None]
        return [fusion_checks.check_all("biases inside their convolution", len(homes), apart, unsure, "convolutions")]

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
        nothing = f"no convolution is known to run in INT8. {self.remedies.place_anew}"
        return fusion_checks.check_all(
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
        fusion_checks.check_all("residual blocks fused", len(blocks), unfused, unsure, "blocks"),
        fusion_checks.check_all(f"residual adds in {target}", len(blocks), other, silent, "adds"),
    ]


def _all(states: Iterable[bool | None]) -> bool | None:
    """Whether all hold: one that does not decides, one that is not known leaves it open."""
    states_seen = set(states)
    return False if False in states_seen else None if None in states_seen else True


def _at_edge(layer: Layer, intent: Intent, bindings: Sequence[str]) -> bool:
    touched = {port.name for port in (*layer.inputs, *layer.outputs)}
    return bool(touched & set(bindings)) or bool({*layer.sources, layer.name} & intent.edges)


def _precision_words(layer: Layer) -> str:
    return f"in {layer.precision}{f' ({layer.doubt})' if layer.doubt else ''}"


def _sum_precision(adder: Layer) -> str:
    ports = [port.precision for port in (*adder.inputs, *adder.outputs)]
    ports += [adder.precision] if adder.doubt else []  # computed wider than what it reads and writes
    return widest(ports) if ports else widest([adder.precision])


def _infer_precision(layers: Sequence[Layer]) -> Precision:
    precisions = [
        layer.precision
        for layer in layers
        if is_convolution(layer) and layer.precision in ("fp32", "fp16", "bf16", "int8")
    ]
    if "int8" in precisions or not precisions:
        return "int8" if precisions else "fp32"
    return cast("Precision", max(dict.fromkeys(precisions), key=precisions.count))
