"""Backends: modules behind one small protocol, and one literal table.

A module, not a class, satisfies `Backend`: three functions and two constants. There is no base class and
no registration; adding a backend is one file and one line in `MODULES`.

A backend is handed an `Execution`, not the whole profile: it can then depend on nothing but what decides
how a model runs, and the same record is part of every `Measurement`.

Everything that runs a model (build, bench, eval, calibration) does so in a child process, a *lane*
(`lane.py` in the parent, `worker.py` in the child), so that a vendor's crash, hang or out-of-memory kill is
a result to report and not the end of the program.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from resdeploy.errors import UnknownName
from resdeploy.records import Artifact, Availability, BackendName, Execution, Format, Layer, Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

MODULES: Mapping[BackendName, str] = {
    "tensorrt": "resdeploy.backends.tensorrt",
    "openvino": "resdeploy.backends.openvino",
    "onnxruntime": "resdeploy.backends.onnxruntime",
    "torch": "resdeploy.backends.torch",
    "null": "resdeploy.backends.null",
}

# The order in which `--backend auto` looks; null is for tests and never chosen.
PREFERENCE: tuple[BackendName, ...] = ("tensorrt", "openvino", "onnxruntime", "torch")


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

    def session(self) -> Session:
        """A session independent of all others: one per stream or thread."""

    def layers(self) -> Sequence[Layer]:
        """The executed layers; needs `trace=True` when opening."""


class Backend(Protocol):
    """What `backends/<name>.py` provides at module level."""

    SOURCE: Format  # what build() takes
    ACCEPTS: frozenset[Precision]

    def available(self) -> Availability:
        """Whether this machine can run it; never raises, never imports more than it must."""

    def build(self, source: Artifact, execution: Execution, out: Path) -> Artifact:
        """Makes the runnable file at `out` (written atomically) and returns its record, sidecar not yet written.

        Raises:
            BackendMissing: the vendor package or device is not there.
            MalformedInput: the vendor refuses the file.
        """

    def open(self, built: Artifact, execution: Execution, *, trace: bool = False) -> AbstractContextManager[Loaded]:
        """Loads a built file for running."""


def load(name: str) -> Backend:
    """The backend's module. Importing it imports no vendor package.

    Raises:
        UnknownName: no such backend.
    """
    if name not in MODULES:
        raise UnknownName(f"there is no backend {name!r}", fix=f"Choose one of: auto, {', '.join(MODULES)}")
    module: Any = importlib.import_module(MODULES[cast("BackendName", name)])
    return cast("Backend", module)
