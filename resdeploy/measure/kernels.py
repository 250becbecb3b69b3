"""Whether two rows executed the same kernels, and if not, what differs: a change of speed then has a reason.

What is executed is compared, not what it is called: names of layers are the file's. Types and shapes of everything that
a kernel reads tell a 3x3 convolution from a 1x1 one. What a runtime does not tell is not guessed: without the shapes
that a kernel writes nothing is known.

OpenVINO's clock counts whole microseconds, and what takes none on average is listed as not executed. So kernels of
about that length come and go from one traced run to the next, and say nothing where they are a small part of the time.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Hashable, Iterable, Sequence

from resdeploy.records import Kernels, Layer, Port
from resdeploy.records.times import SAME_KERNELS

SHORT_S, SHORT_SHARE = 2e-6, 0.05  # a kernel so short, and all such together in the time of one side
MOST = 4  # differences that are named
EXAMPLES = 2  # layers named for other shapes


def of_layers(layers: Iterable[Layer]) -> tuple[Kernels, ...]:
    """The kernels of one row, those that do the same as one; (): the runtime tells too little to compare them."""
    executed = [layer for layer in layers if layer.role != "free"]
    if not all(layer.kind and layer.outputs for layer in executed):
        return ()
    table: dict[Kernels, list[Layer]] = {}
    for layer in executed:
        table.setdefault(_kernel_of(layer), []).append(layer)
    return tuple(
        dataclasses.replace(kernel, count=len(own), example=_example(own[0]), time_s=_time_s(own))
        for kernel, own in table.items()
    )


def _kernel_of(layer: Layer) -> Kernels:
    # Myelin's own kernels (__myl_...) are numbered by their place in the file.
    tactic = "" if layer.tactic.startswith("__") else layer.tactic
    return Kernels(
        kind=layer.kind,
        precision=layer.precision,
        reads=tuple(sorted(map(_spell_port, (*layer.inputs, *layer.others)))),
        writes=tuple(map(_spell_port, layer.outputs)),
        variant=" ".join(filter(None, (tactic, "activation" if layer.activation else ""))),
    )


def _spell_port(port: Port) -> str:
    return f"{port.precision} {'x'.join(map(str, port.shape))}".strip()


def _example(layer: Layer) -> str:
    return layer.sources[0] if layer.sources else layer.name


def _time_s(layers: Sequence[Layer]) -> float | None:
    times = [layer.time_s for layer in layers if layer.time_s is not None]
    return sum(times) if len(times) == len(layers) else None


def compare(before: Sequence[Kernels], after: Sequence[Kernels]) -> str | None:
    """`SAME_KERNELS`, or in a few words what `after` executes that `before` does not; None: not known.

    Convolutions come first, then what there is most of: by times the words would change from run to run.
    """
    if not before or not after:
        return None
    left, right = _only_in(before, after), _only_in(after, before)
    pairs: list[tuple[Kernels, Kernels]] = []
    for alike in (_on_shapes, _to_shapes, _in_precision, _operation):
        pairs += _take_pairs(left, right, alike)
    counts = collections.Counter(difference for pair in pairs for difference in _differences(*pair))
    for unpaired, word in ((right, "more"), (left, "fewer")):
        counts.update(f"{word} {_operation(kernel)}" for kernel in unpaired)
    words = [
        _in_words(one, counts[one]) for one in sorted(counts, key=lambda one: ("convolution" not in one, -counts[one]))
    ]
    shapes = list(dict.fromkeys(_name_of(other) for one, other in pairs if _have_other_shapes(one, other)))
    shown = words[: MOST - bool(shapes)]
    if shapes:
        more = f" and {len(shapes) - EXAMPLES} more" if len(shapes) > EXAMPLES else ""
        shown.append(f"other shapes: {', '.join(shapes[:EXAMPLES])}{more}")
    hidden = len(words) + bool(shapes) - len(shown)
    return "; ".join([*shown, *([f"and {hidden} more"] if hidden else [])]) or SAME_KERNELS


def _only_in(kernels: Sequence[Kernels], others: Sequence[Kernels]) -> list[Kernels]:
    """One by one those that `others` has not, or not as often; the short ones left out where they do not matter."""
    there = collections.Counter({_identity(kernel): kernel.count for kernel in others})
    found: list[Kernels] = []
    for kernel in kernels:
        each_s = None if kernel.time_s is None else kernel.time_s / kernel.count
        one = dataclasses.replace(kernel, count=1, time_s=each_s)
        found += [one] * (kernel.count - there[_identity(kernel)])
    short = [kernel for kernel in found if kernel.time_s is not None and kernel.time_s <= SHORT_S]
    if sum(kernel.time_s or 0 for kernel in short) > SHORT_SHARE * sum(kernel.time_s or 0 for kernel in kernels):
        return found
    return [kernel for kernel in found if kernel not in short]


def _identity(kernel: Kernels) -> Kernels:
    return dataclasses.replace(kernel, count=1, example="", time_s=None)


def _take_pairs(
    left: list[Kernels], right: list[Kernels], alike: Callable[[Kernels], Hashable]
) -> list[tuple[Kernels, Kernels]]:
    """Takes out of both lists, in their order, pairs that `alike` maps to one value."""
    waiting: dict[Hashable, list[Kernels]] = {}
    for kernel in left:
        waiting.setdefault(alike(kernel), []).append(kernel)
    pairs, alone = [], []
    for kernel in right:
        if partners := waiting.get(alike(kernel)):
            pairs.append((partners.pop(0), kernel))
        else:
            alone.append(kernel)
    right[:] = alone
    left[:] = [kernel for kernels in waiting.values() for kernel in kernels]
    return pairs


def convolutions(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers that convolve, by the runtime's word for what they do."""
    return tuple(layer for layer in layers if layer.role == "compute" and _convolves(layer.kind))


def _convolves(kind: str) -> bool:
    return re.search("conv(?!ert)", kind, re.IGNORECASE) is not None


def _operation(kernel: Kernels) -> str:
    """What it does, in the runtime's word without the code that does it; convolutions have many names."""
    if _convolves(kernel.kind):
        return "convolution"
    return kernel.kind.partition(":")[0]


def _in_precision(kernel: Kernels) -> Hashable:
    return _operation(kernel), kernel.precision


def _to_shapes(kernel: Kernels) -> Hashable:
    return _operation(kernel), _shapes(kernel.writes)


def _on_shapes(kernel: Kernels) -> Hashable:
    return _operation(kernel), kernel.precision, _shapes(kernel.reads), _shapes(kernel.writes)


def _shapes(told: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(each.partition(" ")[2] for each in told))


def _differences(one: Kernels, other: Kernels) -> list[str]:
    """What follows the number of kernels that it is true of; other shapes are told apart from these."""
    name = _operation(other)
    if one.precision != other.precision:
        return [f"{name} in {other.precision} instead of {one.precision}"]
    if len(one.reads) != len(other.reads):
        return [f"{name} with {'more' if len(other.reads) > len(one.reads) else 'fewer'} inputs"]
    if _have_other_shapes(one, other):
        return []
    if (one.kind, one.variant) != (other.kind, other.variant):
        return [f"{name} by another kernel"]
    return [f"{name} on other types"]


def _have_other_shapes(one: Kernels, other: Kernels) -> bool:
    """Of what is written; or read, where nothing else explains that: INT8 reads scales too."""
    if _shapes(one.writes) != _shapes(other.writes):
        return True
    comparable = one.precision == other.precision and len(one.reads) == len(other.reads)
    return comparable and _shapes(one.reads) != _shapes(other.reads)


def _in_words(difference: str, count: int) -> str:
    return f"{count} {difference.replace('convolution', 'convolutions', 1) if count > 1 else difference}"


def _name_of(kernel: Kernels) -> str:
    return kernel.example or kernel.kind
