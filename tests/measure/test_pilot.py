"""How long a turn should be and how many a process is worth, from clocks whose noise is known."""

import numpy as np
import pytest

from resdeploy.measure import pilot
from resdeploy.records import Block, Execution, Measurement


def sides(*, turn_s, within, between=0.0, pairs=3, turns=400, seed=0):
    """Two candidates in turns that take `turn_s(process)`, of noise `within(process)` and restarts `between`."""
    rng = np.random.default_rng(seed)
    blocks: tuple[list[Block], list[Block]] = ([], [])
    now = 0.0
    for process in range(pairs):
        settled = rng.normal(0, between)
        for _ in range(turns):
            for side in (0, 1):
                time_s = 0.01 * np.exp(side * (settled + rng.normal(0, within(process))))
                blocks[side].append(
                    Block(put_s=(0.0,), run_s=(time_s,), get_s=(0.0,), started_s=now, wall_s=time_s, process=process)
                )
                now += turn_s(process) / 2
    return tuple(
        Measurement(
            label=str(side), model="m", backend="null", precision="fp32", batch_size=1, scenario="single-stream",
            sha256="0" * 64, execution=Execution(), blocks=tuple(own),
        )
        for side, own in enumerate(blocks)
    )  # fmt: skip


def test_the_usual_turn_is_kept_unless_another_is_clearly_better():
    """Equal variance for the time keeps it, a third of it is taken; where nothing is asked, nothing changes."""
    seconds = dict(enumerate(pilot.TURNS_S))
    alike = sides(turn_s=lambda p: 3 * seconds[p], within=lambda p: 0.01 / seconds[p] ** 0.5)
    assert pilot.best_turn_s([alike], 0.1) == 0.1
    short = sides(turn_s=lambda p: 3 * seconds[p], within=lambda p: 0.01 if p else 0.008)
    assert pilot.best_turn_s([short], 0.1) == pilot.TURNS_S[0]
    long = sides(turn_s=lambda p: 3 * seconds[p], within=lambda p: 0.01 if p == 2 else 0.04)
    assert pilot.best_turn_s([long], 0.1) == pilot.TURNS_S[2]
    assert pilot.best_turn_s([], 0.1) == 0.1


@pytest.mark.parametrize(("within", "between", "setup_s"), [(0.04, 0.01, 2.0), (0.02, 0.01, 8.0), (0.05, 0.02, 1.0)])
def test_the_number_of_turns_is_the_one_that_makes_the_variance_smallest(within, between, setup_s):
    """Against trying every number: the variance for the time of the number chosen is within 10 % of the least."""
    turn_s, turns = 0.3, 50
    pair = sides(turn_s=lambda _: turn_s, within=lambda _: within, between=between, pairs=400, turns=turns)
    chosen = pilot.worthwhile_turns([pair], process_s=setup_s + turns * turn_s)

    def price(number):
        return (setup_s + number * turn_s) * (between**2 + within**2 / number)

    assert price(chosen) <= 1.1 * min(map(price, range(pilot.LEAST_TURNS, pilot.MOST_TURNS + 1)))


def test_where_restarts_change_nothing_a_process_makes_as_many_turns_as_it_may():
    """And where nothing is asked any more, no number is named."""
    pair = sides(turn_s=lambda _: 0.3, within=lambda _: 0.04, pairs=60, turns=10, seed=5)
    assert (pilot.worthwhile_turns([pair], process_s=6.0) or 0) >= 10
    assert pilot.worthwhile_turns([], process_s=6.0) is None


def test_the_first_look_comes_in_time_where_that_can_be():
    """40 s for eight processes: an equal share of what is planned for each, less after a slow one; afterwards all."""
    pace = pilot.Pace(40.0, 8)
    planned_s = 40 * pilot.PLANNED
    assert pace.allows_another()
    assert pace.share_s == pytest.approx(planned_s / 8)
    pace.note(12.0)
    assert pace.share_s == pytest.approx((planned_s - 12) / 7)
    for _ in range(6):
        pace.note(3.3)
    assert pace.share_s == pytest.approx(planned_s - 31.8)
    assert pace.allows_another()  # 4.5 s in the mean
    pace.note(3.3)
    assert pace.share_s == pytest.approx(40 - 35.1)
    pace.note(3.3)
    assert not pace.allows_another()
    assert pilot.Pace(0.1, 8).allows_another()  # one always may begin
