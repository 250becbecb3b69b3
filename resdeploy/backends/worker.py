"""The child side of a lane: one process, one vendor, and the timed loop.

    python -c START BACKEND READ_FD WRITE_FD PARENT_PID FOLDER MEMORY_LIMIT    (START: `backends.child`)

Requests and replies are JSON lines on two private pipes, so that whatever a vendor prints cannot disturb them;
arrays travel as `.npy` files in FOLDER. Of other people's packages only numpy and the one vendor are imported: the
worker must start under another interpreter (`Lane(python=...)`) that has no more than that.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import faulthandler
import gc
import itertools
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy import backends, packages
from resdeploy.backends import Loaded, Session, Tensor, exchange, perf
from resdeploy.backends.meter import Meter
from resdeploy.errors import BackendCrash, DiskFull, MalformedInput, OutOfMemory, ResdeployError, UsageError
from resdeploy.models import foreign
from resdeploy.records import Artifact, Calibration, EngineOptions, Execution, ModelSpec, Preprocessing, Weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feed = dict[str, NDArray[np.generic]]

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Different inputs in turn, so that a backend which remembers its last answer gains nothing; never more than
# this much memory of them, since it counts towards the peak that is reported.
FEEDS, FEEDS_BYTES, SEED = 8, 64 << 20, 0
MEMORY_WORDS = re.compile(
    r"bad_alloc|bad allocation|out of memory|can(no|')t allocate|failed to allocate|MemoryError", re.IGNORECASE
)
# The last is what OpenVINO says of a weights file that it could not write whole.
FULL_WORDS = re.compile("no space left on device|disk quota exceeded|basic_ios::clear: iostream error", re.IGNORECASE)
FULL_FIX = "Free some space, or write elsewhere with -o, RESDEPLOY_CACHE and, for temporary files, TMPDIR"


def peak_rss_bytes() -> int:
    """The most physical memory this process ever held (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    # A sandbox may leave the line out; getrusage counts the same in kB, but inherits the parent's peak at exec.
    return 1024 * (int(match[1]) if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def random_feeds(inputs: Mapping[str, Tensor]) -> list[Feed]:
    """Seeded random inputs: standard normal for floats, all values for 8-bit integers."""
    rng = np.random.default_rng(SEED)

    def one(tensor: Tensor) -> NDArray[np.generic]:
        dtype = np.dtype(tensor.dtype)
        if dtype.kind == "f":
            return rng.standard_normal(tensor.shape, np.float32).astype(dtype, copy=False)
        bounds = np.iinfo(dtype)
        return rng.integers(max(bounds.min, -128), min(bounds.max, 255), tensor.shape, dtype, endpoint=True)

    size = sum(int(np.prod(t.shape)) * np.dtype(t.dtype).itemsize for t in inputs.values())
    count = max(2, min(FEEDS, FEEDS_BYTES // max(size, 1)))
    return [{name: one(tensor) for name, tensor in inputs.items()} for _ in range(count)]


def time_queries(
    session: Session, feeds: Iterable[Feed], more: Callable[[], bool], rows: list[tuple[int, ...]]
) -> None:
    """The timed loop: appends (start, copied in, computed, copied out, device time) in ns, device time -1 if none."""
    clock, put, run, get, device = time.perf_counter_ns, session.put, session.run, session.get, session.device_time_s
    for feed in feeds:
        if not more():
            return
        start = clock()
        put(feed)
        copied = clock()
        run()
        computed = clock()
        get()
        end = clock()
        seconds = device()
        rows.append((start, copied, computed, end, -1 if seconds is None else int(seconds * 1e9)))


def in_turn(feeds: Sequence[Feed], number: int) -> Iterable[Feed]:
    """The inputs of a stream, over and over; each stream begins with another one."""
    return itertools.cycle([*feeds[number % len(feeds) :], *feeds[: number % len(feeds)]])


def changing_inputs(feed: Feed, *, replay: bool) -> Iterable[Feed]:
    """Inputs that no query had before; for `replay` one and the same, at the same price of making it.

    Made between two queries, outside the timed part, in the same memory: the caches are left alike in both.
    """
    rng = np.random.default_rng(SEED + 1)
    buffers = {name: value.copy() for name, value in feed.items()}
    while True:
        for name, value in feed.items():
            shift = 0 if replay else int(rng.integers(1, max(2, value.size)))
            fresh, original = buffers[name].reshape(-1), value.reshape(-1)
            split = original.size - shift
            fresh[:shift], fresh[shift:] = original[split:], original[:split]
        yield buffers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stretch:
    """How much to time."""

    queries: int  # at least so many, of all streams together
    seconds: float = 0.0  # at least so long
    warmup: int = 0  # untimed queries of each stream before


def time_block(
    sessions: Sequence[Session], feeds: Callable[[int], Iterable[Feed]], stretch: Stretch, meter: Meter | None = None
) -> NDArray[np.int64]:
    """Times queries, shared by the sessions, which run side by side.

    Args:
        sessions: one for each stream.
        feeds: the inputs of each stream.
        stretch: how many, or how long.
        meter: reads what the timed part takes.

    Returns:
        (n, 5) int64 in order of their starts, columns as in `time_queries`.
    """
    meter = meter or Meter()
    rows: list[tuple[int, ...]] = []
    tickets = itertools.count()
    start_ns: list[int] = []

    def begin() -> None:
        meter.start()
        start_ns.append(time.perf_counter_ns())

    gate = threading.Barrier(len(sessions), action=begin)

    def more() -> bool:
        return next(tickets) < stretch.queries or time.perf_counter_ns() - start_ns[0] < stretch.seconds * 1e9

    def stream(number: int, session: Session) -> None:
        mine = feeds(number)
        time_queries(session, mine, iter([True] * stretch.warmup + [False]).__next__, [])
        gate.wait()
        time_queries(session, mine, more, rows)

    with _without_garbage_collection():
        _side_by_side(stream, sessions, gate)
        meter.stop()
    return np.array(sorted(rows), np.int64).reshape(-1, 5)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Python collects its garbage before, and not within."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _side_by_side(stream: Callable[[int, Session], None], sessions: Sequence[Session], gate: threading.Barrier) -> None:
    """Every stream in a thread of its own, the first one in this. Where one fails, so do those that wait for it."""
    failures: list[BaseException] = []

    def run_or_abort(number: int, session: Session) -> None:
        try:
            stream(number, session)
        except BaseException as e:  # raised below, in the caller's thread
            gate.abort()
            failures.append(e)

    others = [threading.Thread(target=run_or_abort, args=item) for item in enumerate(sessions)][1:]
    for thread in others:
        thread.start()
    run_or_abort(0, sessions[0])
    for thread in others:
        thread.join()
    for failure in failures:
        if not isinstance(failure, threading.BrokenBarrierError):
            raise failure


def answer(loaded: Loaded, sessions: Sequence[Session], inputs: NDArray[np.generic]) -> Feed:
    """All outputs for any number of inputs, run in the opened batch size; the last one padded with its last row.

    The sessions take batches as they come free, a thread each; results are in the order of the inputs.
    """
    ((name, tensor),) = loaded.inputs.items()
    if inputs.shape[1:] != tensor.shape[1:] or inputs.dtype.kind != np.dtype(tensor.dtype).kind or not len(inputs):
        raise UsageError(
            f"the model takes {tensor.dtype} of shape {list(tensor.shape[1:])} and was given "
            f"{inputs.dtype} of shape {list(inputs.shape[1:])}, {len(inputs)} of them",
            fix="Give images of that size with --img-size, or build the model for this size",
        )
    size = tensor.shape[0]
    starts = range(0, len(inputs), size)
    parts: dict[int, Feed] = {}
    next_starts = iter(starts)

    def stream(session: Session) -> None:
        for start in next_starts:
            chunk = inputs[start : start + size]
            missing = size - len(chunk)
            padded = np.concatenate([chunk, np.repeat(chunk[-1:], missing, 0)]) if missing else chunk
            session.put({name: padded.astype(tensor.dtype, copy=False)})
            session.run()
            parts[start] = {output: value[: len(chunk)].copy() for output, value in session.get().items()}

    if len(sessions) == 1:
        stream(sessions[0])
    else:
        with concurrent.futures.ThreadPoolExecutor(len(sessions)) as pool:
            list(pool.map(stream, sessions))
    return {output: np.concatenate([parts[start][output] for start in starts]) for output in loaded.outputs}


class _FromFiles:
    """A session whose inputs are names of image files: `put` reads, decodes, preprocesses and copies them."""

    def __init__(self, session: Session, name: str, tensor: Tensor, spec: Preprocessing) -> None:
        self.session, self.name, self.spec = session, name, spec
        self.buffer: NDArray[np.generic] = np.zeros(tensor.shape, tensor.dtype)
        self.run, self.get, self.device_time_s = session.run, session.get, session.device_time_s

    def put(self, inputs: Mapping[str, NDArray[np.generic]]) -> None:
        from resdeploy.data import loading, preprocess

        for row, path in zip(self.buffer, inputs[self.name].tolist(), strict=True):
            try:
                image = loading.decode(Path(path).read_bytes())
            except MalformedInput as e:
                raise MalformedInput(f"{path}: {e.what}", cause=e.cause, fix=e.fix) from e
            np.copyto(row, preprocess.apply(image, self.spec), casting="same_kind")
        self.session.put({self.name: self.buffer})


class Worker:
    """The operations. Each takes the request's fields and returns the reply's.

    `counters` are those of the processor, opened before there was any thread but this; None: nothing is counted.
    """

    def __init__(self, backend: str, folder: Path, counters: perf.Counters | None = None) -> None:
        self.counters = counters
        self.backend, self.folder = backends.load(backend), folder
        backends.require(self.backend.available(), backend, running=False)  # `open` asks for more
        if self.backend.VENDOR:
            # Now, so that its import is in no measured time.
            packages.load(self.backend.VENDOR)
        self.stack = contextlib.ExitStack()
        self.sessions: list[Session] = []
        self.feeds: list[Feed] = []

    def greet(self) -> dict[str, Any]:
        """Nothing more than what its answer shows: the imports are done."""
        return {}

    def build(
        self, source: dict[str, Any], execution: dict[str, Any], out: str, factories: Sequence[str] = ()
    ) -> dict[str, Any]:
        foreign.permit(*factories)
        return dataclasses.asdict(self.backend.build(_artifact(source), _execution(execution), Path(out)))

    def open(
        self,
        built: dict[str, Any],
        execution: dict[str, Any],
        trace: bool,
        query: bool,
        factories: Sequence[str] = (),
    ) -> dict[str, Any]:
        foreign.permit(*factories)
        self.close()
        settings = _execution(execution)
        start = time.perf_counter()
        self.loaded = self.stack.enter_context(self.backend.open(_artifact(built), settings, trace=trace))
        if not self.loaded.inputs or not self.loaded.outputs:
            raise MalformedInput(f"{built['path']} has no inputs or no outputs", fix="Build or export it again")
        self.sessions.append(self.loaded.session())
        loaded_at = time.perf_counter()
        self.feeds = random_feeds(self.loaded.inputs)
        first = time_block(self.sessions, self._inputs, Stretch(queries=1)) if query else None
        self.sessions += [self.loaded.session() for _ in range(settings.streams - 1)]
        return {
            "load_s": loaded_at - start,
            "first_s": float(first[0, 3] - first[0, 0]) / 1e9 if first is not None else 0.0,
            "inputs": {name: dataclasses.asdict(t) for name, t in self.loaded.inputs.items()},
            "outputs": {name: dataclasses.asdict(t) for name, t in self.loaded.outputs.items()},
            "settings": dict(self.loaded.settings),
            "uncounted": self.counters.missing if self.counters else "",
        }

    def _inputs(self, number: int) -> Iterable[Feed]:
        return in_turn(self.feeds, number)

    def decode(self, paths: list[str], preprocessing: dict[str, Any]) -> dict[str, Any]:
        """From now on the inputs of a query are read from image files, as part of `put`."""
        preprocessing["mean"], preprocessing["std"] = tuple(preprocessing["mean"]), tuple(preprocessing["std"])
        ((name, tensor),) = self.loaded.inputs.items()
        spec = Preprocessing(**preprocessing)
        self.sessions = [_FromFiles(session, name, tensor, spec) for session in self.sessions]
        size = tensor.shape[0]
        batches = [[paths[(k + i) % len(paths)] for i in range(size)] for k in range(0, max(len(paths), size), size)]
        self.feeds = [{name: np.array(batch)} for batch in batches]
        return {}

    def block(self, queries: int, seconds: float, warmup: int) -> dict[str, Any]:
        meter = Meter(counters=self.counters)
        times = time_block(self.sessions, self._inputs, Stretch(queries=queries, seconds=seconds, warmup=warmup), meter)
        if len(self.sessions) > 1:
            meter.waited = None  # the threads of the other streams have ended, and what they waited is not known
        exchange.put(self.folder / "times.npy", times)
        return dataclasses.asdict(meter)

    def replay(self, queries: int, seconds: float, replay: bool) -> dict[str, Any]:
        """Compute times of one session: of inputs never seen, or of the same one again and again; before `decode`."""
        feed = self.feeds[0]
        stretch = Stretch(queries=queries, seconds=seconds, warmup=1)
        times = time_block(self.sessions[:1], lambda _: changing_inputs(feed, replay=replay), stretch)
        return {"run_s": ((times[:, 2] - times[:, 1]) / 1e9).tolist()}

    def predict(self) -> dict[str, Any]:
        # Copy-on-write: torch warns of arrays that it may not write to.
        inputs = np.load(self.folder / "inputs.npy", mmap_mode="c", allow_pickle=False)
        outputs = answer(self.loaded, self.sessions, inputs)
        for number, value in enumerate(outputs.values()):
            exchange.put(self.folder / f"output{number}.npy", value)
        return {"outputs": list(outputs)}

    def layers(self) -> dict[str, Any]:
        return {"layers": [dataclasses.asdict(layer) for layer in self.loaded.layers()]}

    def close(self) -> dict[str, Any]:
        self.sessions.clear()
        self.stack.close()
        return {}


def _artifact(document: dict[str, Any]) -> Artifact:
    """An artifact from its JSON; lists stay lists, the parent validates what comes back."""
    model = document["model"]
    if model is not None:
        preprocessing = model["preprocessing"]
        model = ModelSpec(**model | {"preprocessing": preprocessing and Preprocessing(**preprocessing)})
    weights, calibration = document["weights"], document["calibration"]
    return Artifact(
        **document
        | {
            "model": model,
            "weights": weights and Weights(**weights),
            "calibration": calibration and Calibration(**calibration),
        }
    )


def _execution(document: dict[str, Any]) -> Execution:
    shape, engine = document["input_shape"], document["engine"]
    pair = engine["batch_range"]
    tuples = {"batch_range": pair and tuple(pair), "tactics": tuple(engine["tactics"])}
    options = EngineOptions(**engine | tuples | {"targets": tuple(engine["targets"])})
    return Execution(**document | {"input_shape": shape and tuple(shape), "engine": options})


def failure(error: BaseException, doing: str) -> dict[str, str]:
    """An exception as the parent is to raise it."""
    if not isinstance(error, ResdeployError):
        error = packages.failed_import(error) or error
    if not isinstance(error, ResdeployError):
        # First line only: a vendor's stack of C++ frames goes to stderr, whose tail the parent keeps.
        words = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
        if isinstance(error, MemoryError) or MEMORY_WORDS.search(str(error)):
            error = OutOfMemory(f"{doing} ran out of memory", cause=words, fix="Use a smaller batch size")
        elif FULL_WORDS.search(str(error)):
            error = DiskFull(f"{doing} found no space left to write to", cause=words, fix=FULL_FIX)
        else:
            error = BackendCrash(f"{doing} failed", cause=words, fix="See `resdeploy doctor`, or try another --backend")
    kind = {"class": type(error).__name__, "code": error.code}
    return kind | {"what": error.what, "cause": error.cause, "fix": error.fix}


def serve(backend: str, folder: Path, requests: Any, replies: Any, counters: perf.Counters) -> None:
    """Answers requests, one JSON line each, until the parent closes its end."""

    def reply(document: dict[str, Any]) -> None:
        replies.write(json.dumps(document | {"peak_rss_bytes": peak_rss_bytes()}) + "\n")
        replies.flush()

    def report(what: str, done: int, total: int) -> None:
        replies.write(json.dumps({"progress": [what, done, total]}) + "\n")
        replies.flush()

    backends.listener = report
    worker: Worker | None = None
    for line in requests:
        request = json.loads(line)
        operation = request.pop("op")
        try:
            worker = worker or Worker(backend, folder, counters)
            reply({"result": getattr(worker, operation)(**request)})
        except Exception as e:
            sys.excepthook(*sys.exc_info())
            reply({"error": failure(e, f"{operation} in {backend}")})


def main(backend: str, read_fd: str, write_fd: str, parent: str, folder: str, memory_limit: str) -> None:
    """Serves the parent, and dies with it."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it ends us
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before the line above
        return
    for fd in (int(read_fd), int(write_fd)):
        os.set_inheritable(fd, False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is reported, not dumped into the user's folder
    if int(memory_limit):
        resource.setrlimit(resource.RLIMIT_AS, (int(memory_limit), int(memory_limit)))
    with (
        os.fdopen(int(read_fd)) as requests,
        os.fdopen(int(write_fd), "w") as replies,
        perf.Counters(perf.EVENTS) as counters,
    ):
        serve(backend, Path(folder), requests, replies, counters)
