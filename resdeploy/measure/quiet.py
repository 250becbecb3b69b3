"""Which turns were quiet: those in which a candidate's threads had a core whenever they were ready to run.

Other load changes not only times but also ratios of times: a query that is done before the scheduler takes its core
away is slowed less than a longer one. Beside bursts of other load the turns between them tell what the machine does by
itself. They are chosen by how long threads waited for a core (Linux counts it), never by the times that are judged.
"""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.records import Block

# Seconds a second that the threads of a process waited more than in its quietest turn: some always wait for each other.
WAITED_LIMIT = 0.05
LEAST_TURNS = 3  # of a pair of processes, for its value to rest on quiet turns alone
MOST_ROUNDS = 3  # times as many turns as were planned, for as many of them to be quiet
HOPELESS = 1 / 6  # share of quiet turns below which waiting for more is in vain


def are_quiet(blocks: Sequence[Block]) -> list[bool]:
    """Of each block of one candidate whether it was quiet; where nothing can be read, all were."""
    waits = [block.waited for block in blocks if block.waited is not None]
    least = min(waits, default=0.0)
    return [block.waited is None or block.waited - least <= WAITED_LIMIT for block in blocks]


def turns_to_come(sides: Sequence[Sequence[Block]], planned: int) -> bool:
    """Whether a process should make another turn, beyond those planned, for want of quiet ones.

    Args:
        sides: the blocks of this process of every candidate.
        planned: how many quiet turns are wanted.
    """
    quiet = sum(map(all, zip(*map(are_quiet, sides), strict=False)))
    done = min(map(len, sides), default=0)
    return quiet < planned and done < MOST_ROUNDS * planned and quiet >= HOPELESS * done
