"""The interleaved run: order, failures, partial results, extension; on synthetic lanes and on real ones."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import platform
from pathlib import Path

import numpy as np
import pytest

from resdeploy import store
from resdeploy.backends.lane import Lane, Opened
from resdeploy.errors import BackendCrash, BackendMissing, EnvironmentFailure, IntegrityError, OutOfMemory, UsageError
from resdeploy.graph import cast
from resdeploy.measure import entrant, environment, interleaved, pilot, summary
from resdeploy.records import (
    Artifact,
    BackendName,
    Block,
    Calibration,
    Execution,
    Failure,
    Layer,
    Measurement,
    ModelSpec,
    Port,
    Replay,
    Weights,
)


class Machine:
    """A synthetic clock and a log of what ran when; makes lanes whose queries take what `times` says."""

    def __init__(self, times, faults=None):
        self.times, self.faults = times, faults or {}
        self.now = 0.0
        self.log = []  # (event, model, lane number)
        self.numbers = itertools.count()
        self.open_lanes = set()
        self.layers = []
        self.cpu_s = {}  # by model, a query's

    def __call__(self, backend):
        return FakeLane(self)

    @property
    def timed(self):
        """Models in the order of their timed blocks (those with a warm-up before them)."""
        return [model for event, model, _ in self.log if event == "block"]


class FakeLane:
    def __init__(self, machine):
        self.machine, self.number, self.queries = machine, next(machine.numbers), 0

    def __enter__(self):
        self.machine.open_lanes.add(self.number)
        return self

    def __exit__(self, *exc):
        self.machine.open_lanes.discard(self.number)

    def start(self, artifact, execution):
        self.machine.log.append(("start", artifact.model.name, self.number))

    def open(self, artifact, execution, trace=False):
        self.model, self.streams = artifact.model.name, execution.streams
        self.machine.log.append(("open", self.model, self.number))
        self._fail("open")
        if trace:
            self.machine.log.append(("trace", self.model, self.number))
            self._fail("trace")
        return Opened(load_s=0.5, first_s=0.1, inputs={}, outputs={}, settings={"HINT": "LATENCY"})

    def block(self, queries=1, *, warmup=0, seconds=0.0):
        self.machine.log.append(("block" if warmup else "warm", self.model, self.number))
        self._fail("block")
        began, run = self.machine.now, []
        for n in itertools.count():
            query_s = self.machine.times[self.model](self.queries)
            self.queries += 1
            self.machine.now += query_s
            if n >= warmup:
                run.append(query_s)
            else:
                began = self.machine.now
            if len(run) >= queries and self.machine.now - began >= seconds:
                break
        wall_s = (self.machine.now - began) / self.streams
        none = (0.0,) * len(run)
        cpu_s = sum(self.machine.cpu_s[self.model](n) for n in range(len(run))) if self.machine.cpu_s else 0.0
        return Block(put_s=none, run_s=tuple(run), get_s=none, started_s=began, wall_s=wall_s, cpu_s=cpu_s)

    def replay(self, queries, seconds):
        half = (0.01,) * queries
        return Replay(fresh_s=half, replayed_s=half)

    def layers(self):
        return self.machine.layers

    def peak_rss_bytes(self):
        return 1000 + self.number

    def _fail(self, event):
        wanted = self.machine.faults.get(self.model)
        if wanted and wanted[0] == event and wanted[1] <= self.machine.log.count((event, self.model, self.number)):
            raise wanted[2]


def steady(query_s, noise=0.002, seed=0):
    rng = np.random.default_rng(seed)
    draws = itertools.cycle(rng.normal(1, noise, 4001).tolist())
    return lambda _n: query_s * next(draws)


@pytest.fixture
def artifact(tmp_path):
    def make(name="m", **fields):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(b"x" * 1234)
        spec = ModelSpec(name=name, family="f", classes=10, input_shape=(3, 8, 8), params=7)
        return Artifact(
            path=str(path), format="onnx", precision="fp32", sha256=store.digest(path), model=spec, **fields
        )

    return make


@pytest.fixture
def candidates(artifact):
    def make(*names, **execution):
        return [
            interleaved.Candidate(label=name, backend="null", artifact=artifact(name), execution=Execution(**execution))
            for name in names
        ]

    return make


def test_blocks_alternate_in_a_random_order_that_the_seed_decides(candidates):
    """Every round has each candidate once, rounds differ in their order, and equal seeds give equal orders."""

    def order(seed):
        machine = Machine({name: steady(0.01) for name in "abc"})
        interleaved.run(candidates("a", "b", "c"), interleaved.Schedule(duration_s=1, seed=seed), open_lane=machine)
        return machine.timed

    first = order(1)
    rounds = [tuple(first[i : i + 3]) for i in range(0, len(first), 3)]
    assert len(rounds) == interleaved.BLOCKS
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 2
    assert order(1) == first
    assert order(2) != first


def test_every_candidate_gets_fresh_processes_and_all_are_closed(candidates):
    """Two lanes per candidate over a clean run, none left open."""
    machine = Machine({"a": steady(0.01), "b": steady(0.02)})
    results = interleaved.run(candidates("a", "b"), interleaved.Schedule(duration_s=2), open_lane=machine)
    assert not machine.open_lanes
    lanes = {name: {n for event, m, n in machine.log if m == name and event == "block"} for name in "ab"}
    assert all(len(numbers) >= interleaved.PROCESSES for numbers in lanes.values())
    measured = [m for m in results if isinstance(m, Measurement)]
    assert [m.peak_rss_bytes for m in measured] == [1000 + max(lanes["a"]), 1000 + max(lanes["b"])]


def test_raw_times_of_at_least_the_duration_are_kept(candidates):
    """The sum of timed queries reaches the floor; warm-up queries are not among them."""
    slow_at_first = {"a": lambda n: 0.5 if n < 3 else 0.010}
    (result,) = interleaved.run(candidates("a"), interleaved.Schedule(duration_s=2), open_lane=Machine(slow_at_first))
    assert isinstance(result, Measurement)
    times = [t for block in result.blocks for t in block.run_s]
    assert sum(times) >= 2
    assert set(times) == {0.010}
    assert result.size_bytes == 1234
    assert result.params == 7
    assert result.load_s == 0.5
    assert result.settings == {"HINT": "LATENCY"}


def test_warm_up_lasts_until_queries_get_no_faster(candidates):
    """A model that takes 60 queries to reach its speed shows none of them in its samples."""
    warming = {"a": lambda n: 0.01 * (1 + max(0, 60 - n) / 60)}
    (result,) = interleaved.run(candidates("a"), interleaved.Schedule(duration_s=1), open_lane=Machine(warming))
    assert isinstance(result, Measurement)
    assert max(t for block in result.blocks for t in block.run_s) == pytest.approx(0.01, rel=0.02)


def test_warm_up_is_bounded_for_a_model_that_never_settles(candidates):
    """A clock that gets faster for ever ends the warm-up all the same."""
    machine = Machine({"a": lambda n: 0.05 * 0.98**n + 1e-5})
    lane = machine("null")
    lane.open(candidates("a")[0].artifact, Execution())
    assert entrant.warm_up(lane) > 0
    assert machine.now < 2 * entrant.WARM_LIMIT_S


def test_a_crash_in_the_middle_is_a_row_and_the_others_finish(candidates):
    """The failed candidate has its code and message and is not asked again; the other has all its blocks."""
    crash = BackendCrash("it died of SIGSEGV", cause="A bug", fix="Try another --backend")
    machine = Machine({"a": steady(0.01), "b": steady(0.01)}, {"a": ("block", 3, crash)})
    failed, fine = interleaved.run(candidates("a", "b"), interleaved.Schedule(duration_s=1), open_lane=machine)
    assert failed == Failure(
        label="a",
        model="a",
        backend="null",
        precision="fp32",
        batch_size=1,
        error_code="E-BACKEND-CRASH",
        exit_status=7,
        message="it died of SIGSEGV. A bug. Try another --backend.",
    )
    assert isinstance(fine, Measurement)
    assert len(fine.blocks) == interleaved.BLOCKS
    assert machine.timed.count("a") == 3
    assert not machine.open_lanes


@pytest.mark.parametrize(
    "error",
    [
        IntegrityError("it is not signed by you", fix="Build it again", code="E-UNSIGNED"),
        EnvironmentFailure("onnx cannot be imported", cause="It raised ImportError: x", code="E-BROKEN-PACKAGE"),
        OutOfMemory("too large"),
    ],
)
def test_a_row_that_cannot_be_done_without_is_the_error_that_it_was(candidates, error):
    """Its code, its exit status and its words, the finer codes too."""
    machine = Machine({"a": steady(0.01), "b": steady(0.01)}, {"a": ("open", 1, error)})
    failed, _ = interleaved.run(candidates("a", "b"), interleaved.Schedule(duration_s=1), open_lane=machine)
    with pytest.raises(type(error)) as caught:
        interleaved.measurement_or_raise(failed)
    assert (caught.value.code, caught.value.exit_status) == (error.code, error.exit_status)
    assert str(caught.value) == str(error)


def test_when_all_fail_the_error_is_raised_with_every_reason(candidates):
    """Nothing measured is no result: the first one's class, all labels in the message."""
    faults = {"a": ("open", 1, OutOfMemory("too large")), "b": ("open", 1, BackendMissing("not here"))}
    machine = Machine({"a": steady(1), "b": steady(1)}, faults)
    with pytest.raises(OutOfMemory, match="a: too large; b: not here"):
        interleaved.run(candidates("a", "b"), open_lane=machine)
    with pytest.raises(BackendMissing, match=r"^error\[E-BACKEND-MISSING\]: not here\.$"):
        interleaved.run(candidates("b"), open_lane=machine)


@pytest.mark.parametrize(
    ("precision", "layers", "said"),
    [
        ("fp16", ("fp32", "fp32"), "stored in FP16, computed in FP32 by null on this machine (2 of 2 convolutions)"),
        ("fp16", ("fp16", "fp32"), "stored in FP16, computed in FP32 by null on this machine (1 of 2 convolutions)"),
        ("fp16", ("fp16", "fp16"), None),
        ("fp32", ("fp32", "fp32"), None),
        ("int8", ("int8", "fp32"), "1 of 2 convolutions in INT8 by null on this machine"),
        ("int8", ("int8", "int8"), None),
    ],
)
def test_a_low_precision_that_is_computed_in_full_is_said(candidates, precision, layers, said):
    """From the kernels that a traced lane executed after the timed run; only convolutions count."""
    (candidate,) = candidates("a")
    candidate = dataclasses.replace(candidate, artifact=dataclasses.replace(candidate.artifact, precision=precision))
    machine = Machine({"a": steady(0.01)})
    machine.layers = [Layer(name=str(n), kind="Conv", precision=p) for n, p in enumerate(layers)]
    machine.layers.append(Layer(name="out", kind="Cast", precision="fp32"))
    (result,) = interleaved.run([candidate], interleaved.Schedule(duration_s=1), open_lane=machine)
    assert isinstance(result, Measurement)
    assert result.notes == ((said,) if said else ())
    assert not machine.open_lanes


def test_a_trace_that_fails_costs_no_measurement(candidates):
    """The times stand; the note says what could not be seen."""
    (candidate,) = candidates("a")
    candidate = dataclasses.replace(candidate, artifact=dataclasses.replace(candidate.artifact, precision="fp16"))
    machine = Machine({"a": steady(0.01)}, {"a": ("trace", 1, BackendCrash("it died"))})
    (result,) = interleaved.run([candidate], interleaved.Schedule(duration_s=1), open_lane=machine)
    assert isinstance(result, Measurement)
    assert len(result.blocks) == interleaved.BLOCKS
    assert result.notes == ("in which precision it computes could not be seen: it died",)


def test_real_runtimes_that_widen_fp16_are_found_out(tmp_path):
    """On x86 ONNX Runtime runs an FP16 convolution in FP32, OpenVINO without FP16 in BF16 or FP32, silently."""
    onnx = pytest.importorskip("onnx")
    openvino = pytest.importorskip("openvino")
    if platform.machine() != "x86_64":
        pytest.skip("of x86 alone: which kernels have FP16 on other CPUs, no test of ours has seen")
    conv = onnx.helper.make_node("Conv", ["x", "w"], ["c"], name="c")
    pool = onnx.helper.make_node("ReduceMean", ["c"], ["y"], name="p", axes=[2, 3], keepdims=0)
    weights = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    ends = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("x", (1, 3, 16, 16)), ("y", (1, 4)))]
    graph = onnx.helper.make_graph([conv, pool], "g", ends[:1], ends[1:], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(cast.to_half(model, "fp16"), tmp_path / "m.onnx")
    source = Artifact(
        path=str(tmp_path / "m.onnx"), format="onnx", precision="fp16", sha256=store.digest(tmp_path / "m.onnx")
    )
    execution = Execution(precision="fp16")
    rows = []
    runtimes: tuple[tuple[BackendName, str], ...] = (("onnxruntime", "b.onnx"), ("openvino", "b.xml"))
    for name, file in runtimes:
        pytest.importorskip(name)
        with Lane(name) as lane:
            built = lane.build(source, execution, tmp_path / file)
        rows.append(interleaved.Candidate(label=name, backend=name, artifact=built, execution=execution))
    for result in interleaved.run(rows, interleaved.Schedule(duration_s=0.1, blocks=2, processes=1)):
        has = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") if result.backend == "openvino" else ()
        computed = next((precision for precision in ("FP16", "BF16") if precision in has), "FP32")
        told = f"stored in FP16, computed in {computed} by {result.backend} on this machine (1 of 1 convolutions)"
        assert isinstance(result, Measurement)
        assert result.notes == (() if computed == "FP16" else (told,))


def test_where_weights_and_calibration_come_from_is_kept(candidates):
    """Times of random weights or synthetic ranges can be told from real ones."""
    (plain,) = candidates("a")
    (result,) = interleaved.run([plain], interleaved.Schedule(duration_s=1), open_lane=Machine({"a": steady(0.01)}))
    assert isinstance(result, Measurement)
    assert (result.weights, result.calibration) == (None, None)
    calibration = Calibration(data="synthetic", count=16, seed=0, method="minmax")
    artifact = dataclasses.replace(
        plain.artifact, weights=Weights(source="random", seed=0), calibration=calibration, precision="int8"
    )
    rows = [dataclasses.replace(plain, artifact=artifact)]
    (result,) = interleaved.run(rows, interleaved.Schedule(duration_s=1), open_lane=Machine({"a": steady(0.01)}))
    assert isinstance(result, Measurement)
    assert (result.weights, result.calibration) == ("random", "synthetic")


def restless(query_s, restart, seed):
    """A clock on which every process settles at a speed of its own."""
    rng = np.random.default_rng(seed)
    settled = [1.0]

    def time_s(number):
        if number == 0:
            settled[0] = np.exp(rng.normal(0, restart))
        return query_s * settled[0] * rng.normal(1, 0.002)

    return time_s


def ask(candidates, machine, *, max_time_s=1000.0, seen=None, **question):
    labels = sorted(machine.times)
    return interleaved.run(
        candidates(*labels),
        interleaved.Schedule(duration_s=1, max_time_s=max_time_s),
        interleaved.Listener(progress=None if seen is None else lambda *a: seen.append(a)),
        questions=[interleaved.Question(baseline="a", candidate=label, **question) for label in labels[1:]],
        open_lane=machine,
        clock=lambda: machine.now,
    )


def processes(measurement):
    return len({block.process for block in measurement.blocks})


def test_a_question_is_asked_of_pairs_of_processes_until_it_is_answered(candidates):
    """Twice as slow is sure after eight pairs; 3 % among restarts of 2 % takes more, and is found."""
    clear = ask(candidates, Machine({"a": restless(0.01, 0.01, 1), "b": restless(0.02, 0.01, 2)}))
    assert [processes(m) for m in clear] == [8, 8]
    assert summary.compare(*clear).verdict == "slower"
    close = ask(candidates, Machine({"a": restless(0.01, 0.02, 3), "b": restless(0.0103, 0.02, 4)}))
    assert processes(close[0]) in (12, 18, 27, 40, 60)
    assert summary.compare(*close).verdict == "slower"
    equal = ask(candidates, Machine({"a": restless(0.01, 0.003, 1), "b": restless(0.01, 0.003, 2)}))
    assert [processes(m) for m in equal] == [8, 8]
    assert summary.compare(*equal).verdict == "equal"


def test_a_limit_is_asked_for_instead_of_a_difference(candidates):
    """5 % slower is sure at once; whether it is more than 4 % takes longer; equality is no answer to that."""
    machine = Machine({"a": restless(0.01, 0.01, 1), "b": restless(0.0105, 0.01, 2)})
    assert processes(ask(candidates, machine)[0]) == 8
    limited = ask(candidates, Machine({"a": restless(0.01, 0.01, 1), "b": restless(0.0105, 0.01, 2)}), limit=1.04)
    assert processes(limited[0]) > 8


def test_the_run_goes_on_until_the_question_of_cpu_time_is_answered_too(candidates):
    """Twice as slow by the clock is sure after eight pairs; 5 % more CPU time than allowed takes more of them."""
    of_time = interleaved.Question(baseline="a", candidate="b", limit=1.05, equal_within=None)
    of_cpu = dataclasses.replace(of_time, of="cpu")
    found = []
    for questions in ([of_time], [of_time, of_cpu]):
        machine = Machine({"a": restless(0.01, 0.01, 1), "b": restless(0.02, 0.01, 2)})
        machine.cpu_s = {"a": steady(0.02, 0.2, 1), "b": steady(0.022, 0.2, 2)}
        baseline, candidate = interleaved.run(
            candidates("a", "b"),
            interleaved.Schedule(duration_s=1, max_time_s=1000),
            questions=questions,
            open_lane=machine,
            clock=functools.partial(getattr, machine, "now"),
        )
        assert isinstance(baseline, Measurement)
        assert isinstance(candidate, Measurement)
        found.append((baseline, candidate))
    assert processes(found[0][0]) == 8
    assert not of_cpu.answered(*found[0])
    assert 8 < processes(found[1][0]) < 60
    assert of_cpu.answered(*found[1])


def test_two_questions_of_one_pair_share_its_time(candidates):
    """Restarts of 5 % leave both undecided, within the time of one comparison."""
    machine = Machine({"a": restless(0.01, 0.05, 1), "b": restless(0.01, 0.05, 2)})
    one = interleaved.Question(baseline="a", candidate="b")
    interleaved.run(
        candidates("a", "b"),
        interleaved.Schedule(duration_s=1, max_time_s=40),
        questions=[one, dataclasses.replace(one, of="cpu")],
        open_lane=machine,
        clock=lambda: machine.now,
    )
    assert machine.now <= 40


def test_a_candidate_leaves_the_run_with_its_last_question(candidates):
    """Of two rivals the one that is clearly slower is measured no further."""
    machine = Machine({"a": restless(0.01, 0.01, 1), "b": restless(0.02, 0.01, 2), "c": restless(0.0101, 0.01, 3)})
    base, slow, close = ask(candidates, machine)
    assert processes(slow) == 8
    assert processes(close) == processes(base) > 8
    assert summary.compare(base, slow).pairs == 8


def test_a_comparison_ends_with_its_time_and_says_what_it_lacks(candidates):
    """Restarts of 5 %: undecided within the time, which is not passed by more than a process."""
    machine = Machine({"a": restless(0.01, 0.05, 1), "b": restless(0.01, 0.05, 2)})
    sides = ask(candidates, machine, max_time_s=40)
    assert machine.now <= 40
    assert 8 <= processes(sides[0]) < 60
    found = summary.compare(*sides)
    assert found.verdict == "undecided"
    assert found.needed_s is None or found.needed_s > 40


def test_a_rival_that_dies_takes_its_question_with_it(candidates):
    """The other question is still answered."""
    machine = Machine(
        {"a": restless(0.01, 0.01, 1), "b": restless(0.02, 0.01, 2), "c": restless(0.02, 0.01, 3)},
        {"b": ("block", 3, BackendCrash("it died"))},
    )
    base, failed, slow = ask(candidates, machine)
    assert isinstance(failed, Failure)
    assert summary.compare(base, slow).verdict == "slower"


def test_a_candidate_whose_rivals_have_all_failed_is_timed_for_itself(candidates):
    """Two processes and as many blocks as without a question; so is one whose baseline was never there."""
    machine = Machine({"a": steady(0.01), "b": steady(0.02)}, {"b": ("open", 1, BackendCrash("it died"))})
    alone, failed = ask(candidates, machine)
    assert isinstance(failed, Failure)
    assert processes(alone) == interleaved.PROCESSES
    assert len(alone.blocks) >= interleaved.BLOCKS
    (lonely,) = interleaved.run(
        candidates("a"),
        interleaved.Schedule(duration_s=1),
        questions=[interleaved.Question(baseline="gone", candidate="a")],
        open_lane=Machine({"a": steady(0.01)}),
    )
    assert isinstance(lonely, Measurement)
    assert len(lonely.blocks) == interleaved.BLOCKS


def test_queries_of_seconds_do_not_overrun_the_time(candidates):
    """1 s a query, 120 s: the first process makes the fewest turns, and no process begins that would end too late."""
    machine = Machine({"a": steady(1.0), "b": steady(1.1)})
    sides = ask(candidates, machine, max_time_s=120)
    assert machine.now <= 1.1 * 120  # a process may take longer than those before it
    found = summary.compare(*sides)
    assert found.verdict == "undecided"
    assert not found.invalid  # few turns are no fault where the time allowed no more


def test_progress_of_a_question_counts_up_to_the_next_look(candidates):
    """Never more than what is told as the whole, never backwards."""
    seen: list[tuple[str, int, int]] = []
    ask(candidates, Machine({"a": restless(0.01, 0.01, 1), "b": restless(0.0101, 0.01, 2)}), seen=seen)
    assert all(done <= total for _, done, total in seen)
    dones = [done for _, done, _ in seen]
    assert dones == sorted(dones)


def test_orders_are_random_and_then_the_same_backwards(candidates):
    """So a machine that gets slower all the time is as slow for each in the mean."""
    machine = Machine({name: steady(0.01) for name in "abc"})
    interleaved.run(candidates("a", "b", "c"), interleaved.Schedule(duration_s=1), open_lane=machine)
    rounds = [machine.timed[k : k + 3] for k in range(0, len(machine.timed), 3)]
    assert all(after == before[::-1] for before, after in zip(rounds[::2], rounds[1::2], strict=True))
    assert len({tuple(one) for one in rounds[::2]}) > 2


def test_each_is_opened_first_as_often_as_last(candidates):
    """Of two copies the one that is opened later was found faster by 1 %: in pairs of processes that cancels."""
    machine = Machine({"a": restless(0.01, 0.01, 1), "b": restless(0.02, 0.01, 2)})
    ask(candidates, machine)
    opened = [model for event, model, _ in machine.log if event == "open"]
    firsts = opened[:16:2]  # then those of the traced looks
    assert firsts.count("a") == firsts.count("b") == 4
    assert all({one, other} == {"a", "b"} for one, other in zip(firsts[::2], firsts[1::2], strict=True))
    events = [event for event, _, _ in machine.log if event in ("start", "open")]
    assert events[:4] == ["start", "start", "open", "open"]  # interpreters side by side, models one after the other


def test_turns_are_repeated_where_threads_waited_and_not_in_vain(candidates, monkeypatch):
    """Every other turn waits: twice as many are made. All but the first: no more than planned."""
    for wait, factor in ((lambda n: 0.5 if n % 4 < 2 else 0.0, 2), (lambda n: 0.5 if n > 1 else 0.0, 1)):
        numbers = itertools.count()
        machine = Machine({"a": steady(0.01), "b": steady(0.02)})
        block = FakeLane.block

        def waiting(lane, *args, warmup=0, block=block, wait=wait, numbers=numbers, **options):
            made = block(lane, *args, warmup=warmup, **options)
            return dataclasses.replace(made, waited=wait(next(numbers))) if warmup else made

        with monkeypatch.context() as patch:
            patch.setattr(FakeLane, "block", waiting)
            sides = ask(candidates, machine, max_time_s=1e6)
        of_last = [block for block in sides[0].blocks if block.process == 7]
        assert abs(len(of_last) - factor * interleaved.TURNS) <= 2, (factor, len(of_last))


def test_several_streams_are_the_offline_scenario(candidates):
    """Throughput counts the images of all sessions over the wall time."""
    (result,) = interleaved.run(
        candidates("a", streams=2, batch_size=4),
        interleaved.Schedule(duration_s=2),
        open_lane=Machine({"a": lambda _n: 0.01}),
    )
    assert isinstance(result, Measurement)
    assert result.scenario == "offline"
    assert min(len(block.run_s) for block in result.blocks) >= 2 * entrant.QUERIES_PER_STREAM
    assert summary.summarise(result).throughput_ips == pytest.approx(2 * 4 / 0.01)


def test_progress_counts_to_its_total(candidates):
    """The last report of a generation says that all is done."""
    seen = []
    machine = Machine({"a": steady(0.01), "b": steady(0.01)})
    interleaved.run(
        candidates("a", "b"),
        interleaved.Schedule(duration_s=1),
        interleaved.Listener(progress=lambda *a: seen.append(a)),
        open_lane=machine,
    )
    assert seen[-1] == ("timing", 2 * interleaved.BLOCKS, 2 * interleaved.BLOCKS)
    done = [done for _, done, _ in seen]
    assert done == sorted(done)


def test_every_block_is_told_as_soon_as_it_is_timed(candidates):
    """The watcher sees each row grow by one block, and a failure once."""
    seen = []
    machine = Machine({"a": steady(0.01), "b": steady(0.01)}, {"b": ("block", 2, BackendCrash("it died"))})
    (whole, failed) = interleaved.run(
        candidates("a", "b"),
        interleaved.Schedule(duration_s=1),
        interleaved.Listener(watch=lambda o, *_: seen.append(o)),
        open_lane=machine,
    )
    sizes = [len(o.blocks) for o in seen if isinstance(o, Measurement) and o.label == "a"]
    assert sorted(set(sizes)) == list(range(interleaved.BLOCKS + 1))
    assert isinstance(whole, Measurement)
    assert [o.blocks for o in seen if o.label == "a"][-1] == whole.blocks
    assert [o for o in seen if isinstance(o, Failure)] == [failed]


def test_every_row_is_named_before_it_runs(candidates):
    """The label is told before the lane is opened and before each block: with the machine's log in step."""
    machine = Machine({"a": steady(0.01), "b": steady(0.02)})
    told: list[str] = []
    interleaved.run(
        candidates("a", "b"),
        interleaved.Schedule(),
        interleaved.Listener(starting=told.append),
        open_lane=machine,
    )
    assert told.count("a") == told.count("b") == interleaved.BLOCKS + interleaved.PROCESSES
    assert sorted(told[:2]) == ["a", "b"]
    half = interleaved.BLOCKS // interleaved.PROCESSES * 2
    blocks = [*told[2 : 2 + half], *told[4 + half :]]
    assert blocks == machine.timed


def test_a_disturbed_machine_makes_the_row_unsteady_and_the_run_no_longer(candidates):
    """Other programs took 40 % of two cores meanwhile: measuring on would not remove them."""
    quiet = environment.Snapshot(clock_s=0, cores=2, busy_s=0, own_s=0, stolen_s=0, throttled=0, throttled_s=0)
    looks = iter([quiet, *(dataclasses.replace(quiet, clock_s=n, busy_s=0.8 * n) for n in range(1, 9))])
    machine = Machine({"a": steady(0.01)})
    (result,) = interleaved.run(
        candidates("a"), interleaved.Schedule(duration_s=2), open_lane=machine, look=lambda: next(looks)
    )
    assert isinstance(result, Measurement)
    assert len(result.blocks) == interleaved.BLOCKS
    assert result.disturbances[0].startswith("other processes took 40%")
    assert summary.summarise(result).unsteady == result.disturbances


def test_labels_must_differ(candidates):
    """Two rows of one name, or none at all, cannot be told apart."""
    one = candidates("a")
    with pytest.raises(UsageError):
        interleaved.run([*one, *one], open_lane=Machine({}))
    with pytest.raises(UsageError):
        interleaved.run([], open_lane=Machine({}))


def test_a_known_sleep_is_measured_through_a_real_lane(candidates, monkeypatch):
    """A backend that sleeps 10 ms is never found faster, in any sample."""
    monkeypatch.setenv("RESDEPLOY_NULL_SLEEP_S", "0.01")
    (result,) = interleaved.run(candidates("a"), interleaved.Schedule(duration_s=0.4))
    assert isinstance(result, Measurement)
    found = summary.summarise(result)
    assert found.latency_s["min"] is not None
    assert found.latency_s["p50"] is not None
    assert found.latency_s["min"] >= 0.01
    assert found.end_to_end_p50_s is not None
    assert found.latency_s["p50"] <= found.end_to_end_p50_s
    assert len(result.blocks) == interleaved.BLOCKS
    assert result.peak_rss_bytes > 1_000_000
    assert result.first_s >= 0.01


@pytest.mark.acceptance
def test_a_question_is_answered_through_real_lanes(candidates, monkeypatch):
    """Three known milliseconds on both sides: eight processes each, fresh ones, with what Linux counts of each turn."""
    monkeypatch.setenv("RESDEPLOY_NULL_SLEEP_S", "0.003")
    monkeypatch.setattr(interleaved, "LOOKS", (8,))
    monkeypatch.setattr(interleaved, "TURN_S", 0.02)
    monkeypatch.setattr(pilot, "TURNS_S", ())
    sides = interleaved.run(
        candidates("a", "b"),
        interleaved.Schedule(duration_s=0.2),
        questions=[interleaved.Question(baseline="a", candidate="b")],
    )
    baseline, candidate = sides
    assert isinstance(baseline, Measurement)
    assert isinstance(candidate, Measurement)
    assert [processes(m) for m in sides] == [8, 8]
    assert all(block.waited is not None and block.others is not None for block in baseline.blocks)
    found = summary.compare(baseline, candidate)
    assert found.verdict in ("equal", "undecided")
    assert found.cpu_ratio is not None
    assert found.speedup_ci99 is not None
    assert found.speedup_ci99[0] <= 1 <= found.speedup_ci99[1]


def test_a_real_crash_leaves_the_other_lane_running(candidates, monkeypatch):
    """One process reads a foreign address; its neighbour in the same run is measured."""
    real = Lane

    def one_that_crashes(backend):
        lane = real(backend)
        started = lane.start

        def start(artifact, execution):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("RESDEPLOY_NULL_FAULT", "crash" if artifact.model.name == "a" else "")
                started(artifact, execution)

        lane.start = start  # type: ignore[method-assign]
        return lane

    failed, fine = interleaved.run(
        candidates("a", "b"), interleaved.Schedule(duration_s=0.2), open_lane=one_that_crashes
    )
    assert isinstance(failed, Failure)
    assert failed.exit_status == 7
    assert "SIGSEGV" in failed.message
    assert isinstance(fine, Measurement)


def test_a_foreign_file_is_named_by_its_stem(artifact):
    """Without a description the file's stem is the model's name."""
    bare = dataclasses.replace(artifact("thing"), model=None)
    candidate = interleaved.Candidate(label="x", backend="null", artifact=bare, execution=Execution())
    assert candidate.model == Path(bare.path).stem


def traced(machine):
    return [model for event, model, _ in machine.log if event == "trace"]


@pytest.fixture
def layered():
    """Machines whose rows execute one convolution each."""
    image = (Port(name="", precision="fp32", shape=(1, 8, 8, 8)),)

    def make(**times):
        machine = Machine({name: steady(query_s, seed=ord(name)) for name, query_s in times.items()})
        machine.layers = [Layer(name="c", kind="Conv", precision="fp32", inputs=image, outputs=image)]
        return machine

    return make


def test_kernels_are_looked_at_once_for_each_row_that_is_compared(candidates, layered):
    """Also where two questions name a row, and two rows one file; in no lane before or beside a timed one."""
    machine = layered(a=0.01, b=0.02, c=0.03)
    base, slow, other = ask(candidates, machine)
    assert sorted(traced(machine)) == ["a", "b", "c"]
    first = [event for event, _, _ in machine.log].index("trace")
    assert "block" not in [event for event, _, _ in machine.log[first:]]
    assert summary.compare(base, slow).kernels == summary.compare(base, other).kernels == "same"


def test_kernels_are_not_looked_at_where_nothing_is_compared_or_the_schedule_says_no(candidates, layered):
    machine = layered(a=0.01, b=0.02)
    rows = candidates("a", "b")
    results = interleaved.run(rows, interleaved.Schedule(duration_s=1), open_lane=machine)
    question = interleaved.Question(baseline="a", candidate="b")
    schedule = interleaved.Schedule(duration_s=1, kernels=False)
    results += interleaved.run(rows, schedule, questions=[question], open_lane=machine)
    elsewhere = [rows[0], dataclasses.replace(rows[1], backend="openvino")]
    results += interleaved.run(elsewhere, interleaved.Schedule(duration_s=1), questions=[question], open_lane=machine)
    assert traced(machine) == []
    assert [result.kernels for result in results if isinstance(result, Measurement)] == [()] * 6


def test_a_trace_that_fails_leaves_kernels_unknown_and_the_times_as_they_are(candidates, layered):
    machine = layered(a=0.01, b=0.02)
    machine.faults = {"b": ("trace", 1, BackendCrash("it died"))}
    base, slow = ask(candidates, machine)
    found = summary.compare(base, slow)
    assert (found.kernels, found.verdict, slow.notes) == (None, "slower", ())


def test_a_half_precision_row_is_traced_once_for_its_arithmetic_and_its_kernels(candidates, layered):
    machine = layered(a=0.01, b=0.02)
    half = [
        dataclasses.replace(row, artifact=dataclasses.replace(row.artifact, precision="fp16"))
        for row in candidates("a", "b")
    ]
    base, slow = interleaved.run(
        half,
        interleaved.Schedule(duration_s=1),
        questions=[interleaved.Question(baseline="a", candidate="b")],
        open_lane=machine,
    )
    assert sorted(traced(machine)) == ["a", "b"]
    assert isinstance(base, Measurement)
    assert isinstance(slow, Measurement)
    assert (len(slow.notes), summary.compare(base, slow).kernels) == (1, "same")


def test_a_measurement_of_before_kernels_were_kept_is_still_read(candidates, layered):
    base, slow = ask(candidates, layered(a=0.01, b=0.02))
    old = dataclasses.asdict(base)
    del old["kernels"]
    read = store.parse(Measurement, json.dumps(old), "old")
    assert (read, summary.compare(read, slow).kernels) == (dataclasses.replace(base, kernels=()), None)
    assert store.parse(Measurement, json.dumps(dataclasses.asdict(slow)), "new") == slow
