"""`resdeploy build`."""

from typing import Annotated

import typer

from resdeploy.cli import console, options


def build(
    model: options.Model,
    backend: options.Backend = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images a query.")] = 1,
    threads: options.Threads = None,
    img_size: options.ImgSize = None,
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Make what a backend runs: an engine, OpenVINO's IR, or an optimised ONNX file.

    Example: resdeploy build r50.int8.onnx --backend openvino -o r50.xml
    """
    from resdeploy.backends import choose
    from resdeploy.pipeline import bench, make

    with console.progress(quiet=quiet) as progress:
        source = make.onnx_fp32(options.request(model, options.sight(img_size)), progress=progress)
        name, why = choose.pick(backend, source.precision)
        console.note(f"{name}: {why}", quiet=quiet)
        execution = bench.execution_for(source, batch_size=batch_size, threads=threads)
        out = output or options.beside(model, f".{name}{make.suffix_of(name)}")
        artifact = make.built(source, name, execution, out)
    console.announce(artifact, quiet=quiet)
    console.wrote(artifact, quiet=quiet)
