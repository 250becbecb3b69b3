"""The checks of the fusion audit: how many there are, which of them do not hold, which are not known."""

from __future__ import annotations

from collections.abc import Sequence, Set

from resdeploy.judge import engine_blocks
from resdeploy.records import Check, Layer, State


def check_obscure(layers: Sequence[Layer], adds: Set[str]) -> list[Check]:
    """Layers that may do more than they tell: such as may add, and regions that do not show their kernels."""
    maybe = [layer.name for layer in engine_blocks.possible_sums(layers, adds)]
    hidden = [layer.name for layer in layers if "ForeignNode[" in layer.name]
    checks = []
    if maybe:
        checks.append(check_all("kernels known not to add", len(maybe), [], maybe, "kernels"))
    if hidden:
        checks.append(check_all("regions that show their kernels", len(hidden), [], hidden, "regions"))
    return checks


def state_of(total: int, wrong: int, unsure: int = 0) -> State:
    """The rule of every check: nothing looked at is nothing passed."""
    return "fail" if wrong else "inconclusive" if unsure or not total else "pass"


def check_all(
    name: str, total: int, wrong: Sequence[tuple[str, str]], unsure: Sequence[str], unit: str, *, nothing: str = ""
) -> Check:
    """All of `total` must hold: one that does not, (who, why), fails; one that is not known leaves it open.

    `nothing` says why there may be none, and what to do then.
    """
    words = [
        f"{why}: {list_first([who for who, other in wrong if other == why])}"
        for why in dict.fromkeys(w for _, w in wrong)
    ]
    words += [f"not known: {list_first(unsure)}"] if unsure else []
    words += [] if total else [nothing]
    right = float(total - len(wrong) - len(unsure))
    return Check(
        name=name, limit=float(total), observed=right, interval=None, state=state_of(total, len(wrong), len(unsure)),
        unit=unit, note="; ".join(words),
    )  # fmt: skip


def check_superfluous(layers: Sequence[Layer], with_kind: Sequence[Layer], silent: Sequence[Layer]) -> Check:
    """None of the layers whose kind the runtime tells may only quantize; `silent` ones may."""
    time_s = total_time(layers)
    took = f", {time_s * 1e3:.3g} ms" if time_s else ""
    words = [f"{list_first([layer.name for layer in layers])} run as kernels{took}"] if layers else []
    words += [f"not known: {list_first([layer.name for layer in silent])}"] if silent else []
    words += [] if with_kind else ["no kernel says what it does; build with resdeploy build, which asks for it"]
    return Check(
        name="Q/DQ left over as kernels", limit=0.0, observed=float(len(layers)), interval=None,
        state=state_of(len(with_kind), len(layers), len(silent)), unit="kernels", note="; ".join(words),
    )  # fmt: skip


def list_first(words: Sequence[str], most: int = 6) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def total_time(layers: Sequence[Layer]) -> float | None:
    times = [layer.time_s for layer in layers if layer.time_s is not None]
    return sum(times) if times else None
