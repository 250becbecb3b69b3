"""How often the claims of `bench` and `gate` are right and made, on machines as they are: real turns, played again.

    python benchmarks/verdicts.py results/traces/*.json            # writes results/verdicts.json
    python benchmarks/verdicts.py --runs 40 results/traces/*.json  # a quick look

`traces.py` has recorded what a machine does to the times of real networks. Here they are played to `interleaved.run`
itself: a lane that is opened takes as long as one of the recorded, and its turns are those of a process pair drawn at
random, of the length that the run asks for. So what is judged is the program and not a model of it: pilot, quiet turns,
looks, the end of the time, the verdict.

The truth of a pair of lanes is the ratio of all of its recorded process pairs. An oracle knows how pairs scatter and
takes 1.96 of their standard errors: what the rule's 95 % interval is compared with.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing_properties import QUIET, SyntheticLane, bare_candidates
from resdeploy import stats, store
from resdeploy.backends.lane import Opened
from resdeploy.judge import speed
from resdeploy.measure import interleaved, summary
from resdeploy.measure.quiet import WAITED_LIMIT
from resdeploy.records import Artifact, Block, Comparison, Execution, Measurement, Replay

RESULT = Path(__file__).parent / "results" / "verdicts.json"
TIMES_S = (30.0, 120.0, 300.0)
SLOWER = 1.1  # times as slow as it was: what `gate --max-slowdown 5` must fail


@dataclasses.dataclass(frozen=True)
class Pool:
    """The recorded process pairs of two lanes, by the length of their turns; `factor` makes the second slower."""

    generations: dict[float, list[dict[str, Any]]]
    names: tuple[str, str]
    factor: float = 1.0

    @property
    def truth(self) -> float:
        """The ratio of the times of the second to the first, over all recorded pairs."""
        pairs = [self._pair(one) for of_length in self.generations.values() for one in of_length]
        return stats.ratio_of_pairs([pair for pair in pairs if pair[0]]).value

    def _pair(self, generation: dict[str, Any]) -> tuple[list[Any], list[Any]]:
        first, second = (generation["rows"][name] for name in self.names)
        kept = [
            k
            for k, waits in enumerate(zip(first["waited_ms"], second["waited_ms"], strict=True))
            if all(wait is None or wait <= 1e3 * WAITED_LIMIT for wait in waits)
        ]
        above = [[self.factor * second["query_us"][k]] for k in kept]
        return above, [[first["query_us"][k]] for k in kept]


def pool(document: dict[str, Any], names: tuple[str, str], factor: float = 1.0) -> Pool:
    """The pairs of two lanes that took turns; duets are left out."""
    generations: dict[float, list[dict[str, Any]]] = {}
    for one in document["generations"]:
        if one["kind"] == "turns":
            generations.setdefault(one["length_s"], []).append(one)
    return Pool(generations, names, factor)


class Machine:
    """Plays a pool: every pair of processes is one that was recorded."""

    def __init__(self, played: Pool, seed: int) -> None:
        self.pool, self.rng = played, random.Random(seed)
        self.now = 0.0
        self.opened = 0
        self.generation: dict[str, Any] | None = None

    def lane(self, _backend: str) -> Any:
        if self.opened % 2 == 0:
            self.generation = None
        self.opened += 1
        return PlayedLane(self)

    def draw(self, length_s: float) -> dict[str, Any]:
        """The pair of the two lanes that are open, drawn when the length of their turns is known."""
        if self.generation is None:
            nearest = min(self.pool.generations, key=lambda known: abs(math.log(known / length_s)))
            self.generation = self.rng.choice(self.pool.generations[nearest])
        return self.generation


class PlayedLane(SyntheticLane):
    """One lane of a recorded pair of processes."""

    def __init__(self, machine: Machine) -> None:
        self.played, self.turn = machine, 0

    def open(self, artifact: Artifact, execution: Execution, trace: bool = False) -> Opened:
        assert artifact.model is not None
        self.side = int(artifact.model.name)
        any_pair = next(iter(self.played.pool.generations.values()))[0]
        self.played.now += any_pair["open_s"][self.played.pool.names[self.side]]
        return Opened(load_s=0.0, first_s=0.0, inputs={}, outputs={}, settings={})

    def block(self, queries: int = 1, *, warmup: int = 0, seconds: float = 0.0) -> Block:
        if not warmup:  # of the warm-up, whose time is in that of opening
            return Block(put_s=(0.0,), run_s=(0.01,), get_s=(0.0,), started_s=self.played.now, wall_s=0.01)
        generation = self.played.draw(seconds)
        row = generation["rows"][self.played.pool.names[self.side]]
        turns = len(row["query_us"])
        k = self.turn % turns
        self.turn += 1
        times = sorted(itertools.chain.from_iterable(one["started_ms"] for one in generation["rows"].values()))
        self.played.now += (times[-1] - times[0]) / 1e3 / max(len(times) - 1, 1)
        query_s = 1e-6 * row["query_us"][k] * (self.played.pool.factor if self.side else 1.0)
        waited = row["waited_ms"][k]
        return Block(
            put_s=(0.0,), run_s=(query_s,), get_s=(0.0,), started_s=self.played.now, wall_s=generation["length_s"],
            cpu_s=1e-6 * row["cpu_us"][k], waited=None if waited is None else waited / 1e3,
        )  # fmt: skip

    def replay(self, queries: int, seconds: float) -> Replay:
        return Replay(fresh_s=(0.01,) * queries, replayed_s=(0.01,) * queries)


def play(file: Path, played: Pool, seed: int, max_time_s: float, **question: Any) -> tuple[Measurement, Measurement]:
    """One run of the program on that machine."""
    machine = Machine(played, seed)
    first, second = interleaved.run(
        bare_candidates(file, ("0", "1")),
        interleaved.Schedule(max_time_s=max_time_s, seed=seed),
        questions=[interleaved.Question(baseline="0", candidate="1", **question)],
        open_lane=machine.lane,
        look=lambda: QUIET,
        clock=lambda: machine.now,
    )
    assert isinstance(first, Measurement)
    assert isinstance(second, Measurement)
    return first, second


def oracle_width(played: Pool, comparison: Comparison, sides: tuple[Measurement, Measurement]) -> float:
    """That of 1.96 standard errors, where the scatter of pairs with so many turns is known."""
    turns = max(1, round(np.mean([len(pair[0]) for pair in summary.process_pairs(*sides)])))
    values = []
    for of_length in played.generations.values():
        for one in of_length:
            above, below = played._pair(one)
            logs = stats.log_ratios(above, below)
            values += [float(np.median(logs[k : k + turns])) for k in range(0, len(logs) - turns + 1, turns)][:1]
    return 2 * 1.96 * float(np.std(values, ddof=1)) / math.sqrt(comparison.pairs)


def curve(file: Path, document: dict[str, Any], runs: int) -> dict[str, Any]:
    """How the rules do on one trace."""
    result: dict[str, Any] = {}
    for what, names, factor in (
        ("copies", ("a", "copy"), 1.0),
        ("smaller", ("smaller", "a"), 1.0),
        ("slower by 5 %", ("a", "copy"), 1.05),
        ("slower by 20 %", ("a", "copy"), 1.2),
    ):
        played = pool(document, names, factor)
        truth = played.truth
        row: dict[str, Any] = {"truth": truth, "process_pairs": sum(map(len, played.generations.values()))}
        for max_time_s in TIMES_S:
            verdicts: Counter[str] = Counter()
            seconds, covered, covered95, widths = [], 0, 0, []
            for seed in range(runs):
                sides = play(file, played, seed, max_time_s)
                comparison = summary.compare(*sides)
                verdicts[comparison.verdict] += 1
                seconds.append(summary.span_s(*sides))
                for name, interval in (("99", comparison.speedup_ci99), ("95", comparison.speedup_ci95)):
                    low, high = interval or (0.0, math.inf)
                    held = low <= 1 / truth <= high
                    covered, covered95 = (covered + held, covered95) if name == "99" else (covered, covered95 + held)
                if comparison.speedup_ci95:
                    low, high = comparison.speedup_ci95
                    widths.append(math.log(high / low) / oracle_width(played, comparison, sides))
            row[f"{max_time_s:g} s"] = {
                "runs": runs,
                "verdicts": dict(verdicts),
                "covered_by_99": covered / runs,
                "covered_by_95": covered95 / runs,
                "width_over_oracle": float(np.median(widths)),
                "median_s": float(np.median(seconds)),
            }
        result[what] = row
    result["gate"] = {what: gated(file, pool(document, ("a", "copy"), factor), runs) for what, factor in GATED}
    return result


GATED = (("equal", 1.0), ("slower by 10 %", SLOWER))


def gated(file: Path, played: Pool, runs: int) -> dict[str, int]:
    """`gate --max-slowdown 5`, of 120 s."""
    states: Counter[str] = Counter()
    for seed in range(runs):
        baseline, candidate = play(file, played, seed, 120.0, limit=1.05, equal_within=None, error=0.1)
        pairs = summary.process_pairs(baseline, candidate)
        states[speed.judge(speed.InTurns(pairs=pairs), max_slowdown_pct=5).state] += 1
    return dict(states)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--runs", type=int, default=1000, help="of each comparison and time")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"command": "python benchmarks/verdicts.py results/traces/*.json", "cells": {}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.onnx"
        file.write_bytes(b"x")
        for path in options.traces:
            document = store.parse_json(path.read_bytes(), str(path))
            result["environment"] = document["environment"]
            result["cells"][path.stem] = curve(file, document, options.runs)
            store.write_json(options.output, result)
            sys.stderr.write(f"{path.stem}\n")


if __name__ == "__main__":
    main()
