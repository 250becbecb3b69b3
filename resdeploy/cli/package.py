"""`resdeploy package`: its options, and a folder that is served without resdeploy."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from resdeploy.cli import console, live_view, options


def package(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="An ONNX file; with --verify the one that was packaged.")
    ] = None,
    kind: Annotated[Literal["python", "triton"] | None, typer.Option("--for", help="What is to serve it.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to write; a new one.")
    ] = None,
    backend: Annotated[
        Literal["auto", "openvino", "onnxruntime"], typer.Option(help="The runtime that serves it.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per query.")] = 1,
    threads: options.Threads = None,
    gate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The verdict to put in: what `gate --format json` wrote.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Compare a packaged folder with its source: exit 0 or 5.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="With --verify: images to replay, as of eval; default: made ones.")
    ] = None,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Write a folder that answers as `eval` does, without resdeploy; or verify one that was written.

    Examples: resdeploy package r56.onnx --for python -o served · resdeploy package r56.onnx --for triton -b 8 -o repo
    · resdeploy package --verify served --data cifar10/test
    """
    from resdeploy.errors import refuse
    from resdeploy.measure import environment
    from resdeploy.report import packaged_folder

    making = (kind, folder, gate, threads) != (None,) * 4 or batch_size != 1 or backend != "auto"
    refuse(
        (verify is not None and making, "--verify only reads a package", "Give --verify DIR, MODEL and --data alone"),
        (verify is None and data is not None, "--data are images for --verify", "Add --verify DIR"),
        *(
            (
                verify is None and value is None,
                f"{name} is missing",
                "Write `resdeploy package F.onnx --for python -o DIR`, or triton",
            )
            for name, value in (("MODEL", model), ("--for", kind), ("-o", folder))
        ),
    )
    if verify is not None:
        from resdeploy.verbs import verify_package

        with live_view.progress(quiet=quiet) as progress:
            found = verify_package.verify(verify, model, data, progress=progress)
        console.emit(packaged_folder.verified(found, str(verify), environment.capture()), fmt, quiet=quiet)
        raise typer.Exit(5 if found.faults else 0)
    from resdeploy.deploy.model_string import Request
    from resdeploy.verbs import package

    assert model is not None
    assert kind is not None
    assert folder is not None
    plan = package.PackagePlan(kind=kind, backend=backend, batch_size=batch_size, threads=threads, gate=gate)
    with live_view.progress(quiet=quiet) as progress:
        made = package.package(Request(model=model), plan, folder, progress=progress)
    console.emit(packaged_folder.written(made, str(folder), environment.capture()), fmt, quiet=quiet)
