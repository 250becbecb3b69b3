"""Options of the builders of TensorRT and TensorRT-RTX, for the commands that build engines."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

if TYPE_CHECKING:
    from resdeploy.records import BackendName, EngineOptions

_ENGINE = "TensorRT's builder"

MinBatch = Annotated[int | None, typer.Option(min=1, help="Smallest batch; default: -b.", rich_help_panel=_ENGINE)]
MaxBatch = Annotated[int | None, typer.Option(min=1, help="Largest batch; default: -b.", rich_help_panel=_ENGINE)]
Workspace = Annotated[
    int | None, typer.Option(min=1, metavar="MIB", help="Most GPU memory a kernel may borrow.", rich_help_panel=_ENGINE)
]
OptLevel = Annotated[
    int | None,
    typer.Option(min=0, max=5, help="Builder optimization level; default: TensorRT's, 3.", rich_help_panel=_ENGINE),
]
Tactics = Annotated[
    str, typer.Option(help="Tactic sources: a list such as cublas,cudnn,jit_convolutions.", rich_help_panel=_ENGINE)
]
VersionCompatible = Annotated[
    bool, typer.Option("--version-compatible", help="Loads in the next major version too.", rich_help_panel=_ENGINE)
]
HardwareCompatible = Annotated[
    Literal["none", "ampere-plus", "same-compute-capability"],
    typer.Option(help="Which other GPUs the engine is to run on.", rich_help_panel=_ENGINE),
]
Refit = Annotated[bool, typer.Option("--refit", help="Its weights can be replaced later.", rich_help_panel=_ENGINE)]
Strip = Annotated[
    bool, typer.Option("--strip-weights", help="Leave the weights out, to be refitted.", rich_help_panel=_ENGINE)
]
RefitFrom = Annotated[
    Path | None,
    typer.Option(
        metavar="ENGINE", help="Give this engine MODEL's weights, in place of a build.", rich_help_panel=_ENGINE
    ),
]
TimingCache = Annotated[
    bool,
    typer.Option(
        "--timing-cache/--no-timing-cache", help="Share kernel times between builds.", rich_help_panel=_ENGINE
    ),
]
Targets = Annotated[
    str,
    typer.Option(
        help="GPUs to compile for, of tensorrt-rtx: a list such as sm86,sm89,sm120; default: SM80 and later.",
        rich_help_panel=_ENGINE,
    ),
]
# What each of `EngineOptions` is called here.
_NAMES = {
    "batch_range": "--min-batch, --max-batch",
    "workspace_mib": "--workspace",
    "level": "--opt-level",
    "tactics": "--tactics",
    "version_compatible": "--version-compatible",
    "hardware_compatible": "--hardware-compatible",
    "refit": "--refit",
    "strip": "--strip-weights",
    "refit_from": "--refit-from",
    "timing_cache": "--no-timing-cache",
    "targets": "--targets",
}


def options(
    batch_size: int,
    min_batch: int | None,
    max_batch: int | None,
    workspace: int | None,
    opt_level: int | None,
    tactics: str,
    version_compatible: bool,
    hardware_compatible: Literal["none", "ampere-plus", "same-compute-capability"],
    refit: bool,
    strip_weights: bool,
    refit_from: Path | None,
    timing_cache: bool,
    targets: str,
) -> EngineOptions:
    """The `EngineOptions` that these options describe."""
    from resdeploy.records import EngineOptions

    return EngineOptions(
        batch_range=(min_batch or batch_size, max_batch or batch_size) if min_batch or max_batch else None,
        workspace_mib=workspace,
        level=opt_level,
        tactics=names_in(tactics),
        version_compatible=version_compatible,
        hardware_compatible=cast("Any", hardware_compatible.replace("-", "_")),
        refit=refit,
        strip=strip_weights,
        refit_from=None if refit_from is None else str(refit_from.absolute()),
        timing_cache=None if timing_cache else "",
        targets=names_in(targets),
    )


def names_in(text: str) -> tuple[str, ...]:
    """The names in a list with commas, lower case, each once."""
    return tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))


def refuse_ignored(options: EngineOptions, backend: BackendName) -> None:
    """Raises `UsageError` where these options, or some of them, would be passed over in silence."""
    from resdeploy import backends
    from resdeploy.errors import refuse
    from resdeploy.records import EngineOptions
    from resdeploy.registered_backends import PREFERENCE

    heeds, default = backends.load(backend).HEEDS, EngineOptions()
    others = dataclasses.replace(options, refit_from=None, timing_cache=None)
    given = [field for field in _NAMES if getattr(options, field) != getattr(default, field)]
    ignored = [_NAMES[field] for field in given if field not in heeds]
    able = [name for name in PREFERENCE if all(field in backends.load(name).HEEDS for field in given)]
    refuse(
        (
            ignored,
            f"{', '.join(ignored)}: without effect on backend {backend}",
            f"Leave out what has none{', or add --backend ' + able[0] if able else ''}",
        ),
        (
            options.refit_from is not None and others != EngineOptions(),
            "--refit-from builds nothing, so other options of the builder would have no effect",
            "Leave them out: the engine keeps those that it was built with",
        ),
    )
