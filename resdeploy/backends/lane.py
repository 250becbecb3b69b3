"""The parent side of a lane: one child process that runs one backend.

A crash, a hang or an out-of-memory kill of a vendor is thereby an error to report and not the end of the program,
thread pools do not fight, and peak memory is per backend. `build` uses a child of its own, so that what it leaves in
memory is not counted as the model's.

Nothing stays behind: open a lane in a thread that outlives it, for the child dies with the thread that started it
(`backends.child`), and whatever goes wrong here kills and reaps it, a signal at any moment included.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy import errors, interrupts, store
from resdeploy.backends import Tensor, exchange, machine
from resdeploy.backends.child import Child
from resdeploy.backends.worker import FULL_FIX, FULL_WORDS, MEMORY_WORDS
from resdeploy.errors import BackendCrash, DiskFull, IntegrityError, OutOfMemory, ResdeployError
from resdeploy.models import foreign
from resdeploy.records import Artifact, BackendName, Block, Execution, Layer, Port, Preprocessing, Progress, Replay

if TYPE_CHECKING:
    from numpy.typing import NDArray

TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An opened model: how long that took and what the model takes and gives."""

    load_s: float  # without the import of the vendor's package
    first_s: float  # the first query, which many vendors still spend on set-up; 0: none was asked for
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    settings: Mapping[str, str]  # the vendor's settings in force, as it reports them
    uncounted: str = ""  # which of the processor's counters cannot be read, and why; "": all can


class Lane:
    """One child process for one backend; a context manager.

    Args:
        backend: its name.
        python: the interpreter to run it in, which needs numpy and the vendor's package only.
        timeout_s: longest that one operation may take (a timed block: beyond its own seconds).
        memory_limit_bytes: limit of the child's address space.

    Raises (every operation):
        BackendMissing: the vendor's package or device is not there.
        BackendCrash: the child died, hung (and was killed), or its vendor raised what we do not know.
        OutOfMemory: an allocation failed, or there is evidence that the kernel killed the child for its memory.
        ResdeployError: what the backend itself raised.
    """

    def __init__(
        self,
        backend: BackendName,
        *,
        python: str | Path = sys.executable,
        timeout_s: float = TIMEOUT_S,
        memory_limit_bytes: int | None = None,
    ) -> None:
        self.backend, self.python, self.timeout_s = backend, str(python), timeout_s
        self.memory_limit_bytes = memory_limit_bytes
        self._child: Child | None = None
        self._subject: Artifact | None = None
        self._path_in_child = ""  # of the subject, which may be a copy of it
        self._peak_rss_bytes = 0
        self._started: tuple[Artifact, Execution] | None = None  # by `start`, and not opened yet

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def build(self, source: Artifact, execution: Execution, out: Path, *, progress: Progress | None = None) -> Artifact:
        """Makes the runnable file, without a sidecar, in a place that nobody else reads or that goes with its maker.

        A child can be killed at any moment, so `out` lies where a half of it does no harm: in the folder of a
        publication (`store.publish`) or in a temporary one.

        Raises:
            NotWritable, DiskFull: what the operating system said of the place.
            IntegrityError: `source` is no longer what its record says; seen where it has external data.
            UnsafeInput, MalformedInput: as `files.load_model`, where it has external data.
        """
        with store.disk_errors(out):
            store.make_folder(out.parent)
        self._start(source, execution)
        try:
            whole = _in_one_file(source, self._running().folder / "source.onnx")
            self._path_in_child = str(Path(whole.path).absolute())
            self._running().progress = progress
            result = self._ask(
                "build",
                source=_plain(whole),
                execution=_plain(execution),
                out=str(out.absolute()),
                factories=foreign.permitted_factories(),
            )
        finally:
            self.close()
        artifact = store.parse(Artifact, json.dumps(result), f"the {self.backend} worker")
        return dataclasses.replace(artifact, path=str(out))

    def start(self, built: Artifact, execution: Execution) -> None:
        """Starts the child that `open` will load this model in, and does not wait for its imports.

        So the interpreters of several lanes start side by side; what one of them lacks is said by `open`.
        """
        self._start(built, execution)
        self._running().send(json.dumps({"op": "greet"}))
        self._started = (built, execution)

    def open(self, built: Artifact, execution: Execution, trace: bool = False, query: bool = True) -> Opened:
        """Loads the model in a fresh child, the one that was started for it or a new one, and runs it once.

        Args:
            built: the file.
            execution: how it runs.
            trace: keep what `layers` tells.
            query: run it once, which many vendors still spend on set-up.

        Raises:
            IntegrityError, UnsafeInput, MalformedInput: as `build`, of an ONNX file.
        """
        if self._child is not None and self._started == (built, execution):
            self._started = None
            self._await("greet")
        else:
            self._start(built, execution)
        whole = _in_one_file(built, self._running().folder / "opened.onnx")
        self._path_in_child = str(Path(whole.path).absolute())
        result = self._ask(
            "open",
            built=_plain(whole),
            execution=_plain(execution),
            trace=trace,
            query=query,
            factories=foreign.permitted_factories(),
        )
        tensors = {
            side: {name: Tensor(shape=tuple(t["shape"]), dtype=t["dtype"]) for name, t in result[side].items()}
            for side in ("inputs", "outputs")
        }
        return Opened(
            load_s=result["load_s"],
            first_s=result["first_s"],
            settings=result["settings"],
            uncounted=result["uncounted"],
            **tensors,
        )

    def block(self, queries: int = 1, *, warmup: int = 0, seconds: float | None = None) -> Block:
        """Times at least `queries` queries over at least `seconds`, after `warmup` untimed ones in every stream.

        Inputs are seeded random arrays in turn. With `Execution.streams` above 1 as many sessions run side by side
        in threads: the offline scenario, whose throughput is queries x batch size / `wall_s`.
        """
        if queries < 1 or warmup < 0:
            msg = f"block of {queries} queries, {warmup} to warm up"
            raise ValueError(msg)
        meter = self._ask("block", seconds or 0.0, queries=queries, seconds=seconds or 0.0, warmup=warmup)
        times = exchange.take(self._running().folder / "times.npy").astype(np.int64, copy=False)
        start, copied, computed, end, device = times.T
        return Block(
            put_s=_seconds(copied - start),
            run_s=_seconds(computed - copied),
            get_s=_seconds(end - computed),
            device_s=_seconds(device) if (device >= 0).all() else (),
            started_s=float(start[0]) / 1e9,  # CLOCK_MONOTONIC: the same for all lanes
            wall_s=float(end.max() - start[0]) / 1e9,
            **meter,
        )

    def replay(self, queries: int, seconds: float) -> Replay:
        """Compute times of inputs never seen before and of one input repeated, in turn, of one session."""
        times: dict[bool, list[float]] = {False: [], True: []}
        for repeated in (False, True, True, False):
            half = {"queries": (queries + 1) // 2, "seconds": seconds / 2, "replay": repeated}
            times[repeated] += self._ask("replay", seconds, **half)["run_s"]
        return Replay(fresh_s=tuple(times[False]), replayed_s=tuple(times[True]))

    def decode(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        """From now on a query's inputs are read, decoded and preprocessed from image files, as part of its `put_s`."""
        spec = dataclasses.asdict(preprocessing)
        self._ask("decode", paths=[str(path.absolute()) for path in paths], preprocessing=spec)

    def predict(self, inputs: NDArray[np.generic]) -> NDArray[np.generic]:
        """The logits, (N, classes), of any number N of inputs (N, C, H, W); see `predict_all`.

        A classifier that ends in its pooling gives (N, classes, 1, 1): the ones are left out here, for all readers.
        """
        logits = next(iter(self.predict_all(inputs).values()))
        return logits.reshape(logits.shape[:2]) if logits.shape[2:] == (1, 1) else logits

    def predict_all(self, inputs: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        """Every output by name for any number of inputs, run in the opened batch size, the last batch padded.

        Raises:
            UsageError: inputs of another shape or kind than the model takes.
        """
        folder = self._running().folder
        try:
            exchange.put(folder / "inputs.npy", inputs)
            names = self._ask("predict")["outputs"]
        finally:
            (folder / "inputs.npy").unlink(missing_ok=True)
        return {name: exchange.take(folder / f"output{number}.npy") for number, name in enumerate(names)}

    def layers(self) -> tuple[Layer, ...]:
        """The executed layers; open with `trace=True`."""
        return tuple(_layer(document) for document in self._ask("layers")["layers"])

    def peak_rss_bytes(self) -> int:
        """The most physical memory that the child has held up to its last answer (VmHWM), interpreter included."""
        return self._peak_rss_bytes

    def close(self) -> None:
        """Ends the child, at once; its last peak stays known."""
        with interrupts.hold():
            if self._child is not None:
                self._child.end()
                self._child = None

    def _start(self, subject: Artifact, execution: Execution) -> None:
        self.close()
        self._started = None
        self._subject = dataclasses.replace(subject, path=str(Path(subject.path).absolute()))
        self._path_in_child = self._subject.path
        threads = execution.threads or machine.usable_cores()
        with interrupts.hold():  # between its start and the line that remembers it
            self._child = Child(self.backend, self.python, threads, self.memory_limit_bytes or 0)

    def _running(self) -> Child:
        if self._child is None:
            msg = "open the lane first; after an error it is closed"
            raise RuntimeError(msg)
        return self._child

    def _ask(self, operation: str, extra_s: float = 0.0, **fields: Any) -> Any:
        """One request and its answer."""
        self._running().send(json.dumps({"op": operation, **fields}))
        return self._await(operation, extra_s)

    def _await(self, operation: str, extra_s: float = 0.0) -> Any:
        """The next answer; any failure but a refusal in the backend's own words ends the child."""
        child = self._running()
        try:
            reply = child.receive(self.timeout_s + extra_s)
            if reply is None:
                raise self._postmortem(operation, child)
        except BaseException:
            self.close()
            raise
        self._peak_rss_bytes = reply["peak_rss_bytes"]
        if "error" in reply:
            raise self._exception_from(reply["error"])
        return reply["result"]

    def _exception_from(self, document: dict[str, str]) -> ResdeployError:
        """The exception that the child described."""
        assert self._subject is not None
        kind: type[ResdeployError] = getattr(errors, document["class"])
        what, cause = (document[part].replace(self._path_in_child, self._subject.path) for part in ("what", "cause"))
        if issubclass(kind, OutOfMemory):
            what = f"{what} ({self._memory()})"
        if issubclass(kind, (BackendCrash, OutOfMemory)):
            what = f"{what} with {self._input()}"
        return kind(what, cause=cause, fix=document["fix"], code=document["code"])

    def _postmortem(self, operation: str, child: Child) -> ResdeployError:
        """Why the child no longer answers: it hung and lives, or it is dead."""
        where = f"the {self.backend} process, in {operation} with {self._input()}"
        if child.alive():
            return BackendCrash(
                f"{where}, did not answer within {self.timeout_s:g} s and was killed",
                cause=child.last_words(),
                fix="Try again with fewer --threads, or another --backend",
            )
        code = child.wait()
        ending = f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        crash_fix = "See `resdeploy doctor`, or try another --backend"
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            if machine.oom_kills() > child.oom_kills_before:
                return OutOfMemory(
                    f"{where}, was killed by the kernel for its memory ({self._memory()})",
                    fix="Use a smaller batch size, or give the container more memory",
                )
            return BackendCrash(
                f"{where}, {ending}",
                cause="Something else killed it: the kernel's count of out-of-memory kills here did not rise",
                fix=crash_fix,
            )
        if MEMORY_WORDS.search(child.noise_text()):
            return OutOfMemory(
                f"{where}, {ending} for want of memory ({self._memory()})",
                cause=child.last_words(),
                fix="Use a smaller batch size",
            )
        if FULL_WORDS.search(child.noise_text()):
            return DiskFull(f"{where}, {ending} for want of disk space", cause=child.last_words(), fix=FULL_FIX)
        return BackendCrash(f"{where}, {ending}", cause=child.last_words(), fix=crash_fix)

    def _memory(self) -> str:
        limit = f"limit {self.memory_limit_bytes / 2**20:.0f} MiB, " if self.memory_limit_bytes else ""
        return f"{limit}peak at its last answer {self._peak_rss_bytes / 2**20:.0f} MiB"

    def _input(self) -> str:
        assert self._subject is not None
        return f"{self._subject.path} (sha256 {self._subject.sha256})"


def _in_one_file(source: Artifact, whole: Path) -> Artifact:
    """`source`, or a copy at `whole` that holds its external data.

    Here, since this is the door to every vendor: what one makes of a file (a copy, weights of its own, an engine) has
    nothing beside it that could be lost or exchanged, none follows names out of a stranger's file or maps what its
    owner may overwrite, and all read the same bytes. They are those of the record: the digest is taken again after.
    """
    if source.format != "onnx" or not store.companions(Path(source.path)):
        return source
    from resdeploy.graph import files

    model = files.load_model(Path(source.path))
    if store.digest(Path(source.path)) != source.sha256:
        raise IntegrityError(
            f"{source.path} or its external data changed while it was being read", fix="Run the command again"
        )
    files.save_model(model, whole)
    return dataclasses.replace(source, path=str(whole))


def _layer(document: dict[str, Any]) -> Layer:
    ports = {
        side: tuple(Port(**port | {"shape": tuple(port["shape"])}) for port in document[side])
        for side in ("inputs", "outputs", "others")
    }
    return Layer(**document | ports | {"sources": tuple(document["sources"])})


def _plain(record: Artifact | Execution) -> dict[str, Any]:
    """A record as the child gets it: paths made absolute."""
    document = dataclasses.asdict(record)
    if "path" in document:
        document["path"] = str(Path(document["path"]).absolute())
    return document


def _seconds(nanoseconds: NDArray[np.int64]) -> tuple[float, ...]:
    return tuple((nanoseconds / 1e9).tolist())
