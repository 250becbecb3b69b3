"""Backends: the protocol that a backend's module satisfies; `registered_backends.py` lists them.

A module, not a class, satisfies `Backend`: some constants, all that is to be known of a backend, and five functions.
There is no base class, and nobody else asks which backend it is. Adding one is one file here, which is named after it,
and one line in `registered_backends.BackendName` (docs/extending.md).

A backend is handed an `Execution`, not the whole profile: it can then depend on nothing but what decides
how a model runs, and the same record is part of every `Measurement`.

Everything that runs a model (build, bench, eval, calibration) does so in a child process, a *lane*
(`lane.py` in the parent, `worker.py` in the child), so that a vendor's crash, hang or out-of-memory kill is
a result to report and not the end of the program.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from resdeploy.errors import BackendMissing, UnknownName, UsageError
from resdeploy.records import (
    Artifact,
    Availability,
    BackendName,
    Execution,
    Format,
    Layer,
    Precision,
    Progress,
    Target,
)
from resdeploy.registered_backends import BACKENDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """What an opened model takes or gives; all sizes are known by then."""

    shape: tuple[int, ...]
    dtype: str  # numpy's name


class Session(Protocol):
    """One independent stream of queries. Every call is finished on return."""

    def put(self, inputs: Arrays) -> None:
        """Copies the inputs to the device."""

    def run(self) -> None:
        """Computes."""

    def get(self) -> Arrays:
        """Copies the outputs to the host. The arrays stay valid until the next `run`."""

    def device_time_s(self) -> float | None:
        """Device time of the last run by device events; None where the device has none."""


class Loaded(Protocol):
    """An opened model."""

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """What it takes, by name, the batch first."""

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        """What it gives, by name; the logits are the first."""

    @property
    def settings(self) -> Mapping[str, str]:
        """The vendor's settings in force, as it reports them itself."""

    def session(self) -> Session:
        """A session independent of all others: one per stream or thread."""

    def layers(self) -> Sequence[Layer]:
        """The executed layers; needs `trace=True` when opening."""


class Backend(Protocol):
    """What `backends/<name>.py` provides at module level."""

    # The package that it imports, inside functions alone; "" for none. A lane loads it before anything is timed.
    VENDOR: str
    # The distributions whose versions decide what it computes and how fast: every result records them.
    PACKAGES: tuple[str, ...]
    # What `build` takes.
    SOURCE: Format
    # What `build` makes: SOURCE again, or a compiled form, which no other backend runs.
    FORMAT: Format
    # How files in FORMAT end; `build` writes the first.
    SUFFIXES: tuple[str, ...]
    # How such a file begins, where other backends' files end alike; b"" for most.
    TAG: bytes
    # Whether a file in FORMAT is a program: one that was downloaded runs only where the user says that it may.
    PROGRAM: bool
    # Whether other tools make compiled files that it runs: what such a file does not tell, the command line asks for.
    FOREIGN: bool
    # The precisions that a model may be in.
    ACCEPTS: frozenset[Precision]
    # Whose fusion rules INT8 follows, and whose remedies an audit names; None: it runs no Q/DQ graph of ours.
    TARGET: Target | None
    # Those fields of `Execution` (`provider`, `compiled`, `memory_pattern`) and of its `engine` that not all backends
    # know and it does.
    HEEDS: frozenset[str]

    def available(self) -> Availability:
        """Whether this machine can run it; never raises, never imports more than it must."""

    def check(self, path: Path) -> None:
        """Looks at a file in FORMAT that a user names, before the vendor's own parser does; often `no_check`.

        Raises:
            MalformedInput: the parser would not survive it.
        """

    def prepare(self, source: Artifact, execution: Execution) -> AbstractContextManager[tuple[Artifact, Execution]]:
        """What `build` is to be given in place of these, as long as the context is open; often `no_preparation`.

        Here, and not in `build`, is done what needs more than the vendor's package, for this runs in the parent.
        What the build raises passes through the context, which may put it into words of `source`.
        """

    def build(self, source: Artifact, execution: Execution, out: Path) -> Artifact:
        """Makes the runnable file at `out` and returns its record, sidecar not yet written.

        `out` lies in a folder of the lane's, which moves the finished file into place: nothing here need be atomic.

        Raises:
            BackendMissing: the vendor package or device is not there.
            MalformedInput: the vendor refuses the file.
        """

    def open(self, built: Artifact, execution: Execution, *, trace: bool = False) -> AbstractContextManager[Loaded]:
        """Loads a built file for running."""


# Who is told of progress inside a backend's call: the worker sets it, the parent's progress bar shows it.
listener: Progress | None = None


def report(what: str, done: int, total: int) -> None:
    """Says how far a long call has come; heard by nobody outside a lane."""
    if listener is not None:
        listener(what, done, total)


def load(name: str) -> Backend:
    """The backend's module. Importing it imports no vendor package.

    Raises:
        UnknownName: no such backend.
    """
    if name not in BACKENDS:
        raise UnknownName(f"there is no backend {name!r}", fix=f"Choose one of: auto, {', '.join(BACKENDS)}")
    module: Any = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return cast("Backend", module)


def compiler_of(form: Format | None) -> BackendName | None:
    """The one backend that makes and runs compiled files in this format; None where it is not a compiled one."""
    for name in BACKENDS:
        module = load(name)
        if module.SOURCE != module.FORMAT == form:
            return name
    return None


def no_check(_path: Path) -> None:
    """`check` of a backend whose vendor's parser need not be spared anything."""


def no_preparation(source: Artifact, execution: Execution) -> AbstractContextManager[tuple[Artifact, Execution]]:
    """`prepare` of a backend that builds from what it is given."""
    return contextlib.nullcontext((source, execution))


def installed_version(package: str, *distributions: str) -> str | None:
    """The version of an importable package, found without importing it; None where it is not installed.

    Args:
        package: the name that is imported.
        distributions: the names it is distributed under, if others; the first one installed counts.
    """
    if importlib.util.find_spec(package) is None:
        return None
    from importlib import metadata  # 50 ms, which a worker has no use for

    for name in distributions or (package,):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def input_shape(declared: Sequence[int | str | None], artifact: Artifact, execution: Execution) -> tuple[int, ...]:
    """The shape (N, C, H, W) to run with, from what the file declares: a number, or a name or None where it is free.

    A 0 in the execution's or the model's input shape means unknown (`graph.metadata.spec_of`).

    Raises:
        UsageError: the file is fixed to another size than asked for, or nothing says the image's size.
    """
    have = tuple(size if isinstance(size, int) else 0 for size in declared)
    image = execution.input_shape or (artifact.model.input_shape if artifact.model else have[1:])
    want = (execution.batch_size, *image)
    if len(want) != len(have) or any(0 not in (h, w) and h != w for h, w in zip(have, want, strict=True)):
        takes, asked_for = (" x ".join(str(n) if n else "?" for n in shape) for shape in (declared, want))
        raise UsageError(
            f"{artifact.path} takes {takes}, not {asked_for}",
            cause="The first number is the batch size, then channels, height and width",
            fix="Ask for that size with -b and --img-size, or export or build the model for this one",
        )
    sizes = tuple(w or h for h, w in zip(have, want, strict=True))
    if 0 in sizes:
        raise UsageError(f"{artifact.path} takes images of any size, and nothing says which", fix="Add --img-size")
    return sizes


def require(availability: Availability, name: str, *, running: bool = True) -> None:
    """Nothing where the backend is available; without `running`, where it builds although it cannot run.

    Raises:
        BackendMissing: with the reason and the command that would change it.
    """
    if not (availability.ok or (availability.builds and not running)):
        remedy = availability.install  # a command, or a sentence on drivers
        remedy = f"Run `{remedy}`" if "pip install " in remedy else remedy
        raise BackendMissing(f"backend {name} cannot run here: {availability.reason}", fix=remedy)
