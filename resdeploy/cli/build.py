"""`resdeploy build`: its options, and what a backend runs written to a file."""

import dataclasses
from typing import Annotated

import typer

from resdeploy.cli import console, engine, live_view, options


def build(
    model: options.Model,
    backend: options.Backend = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per query.")] = 1,
    threads: options.Threads = None,
    img_size: options.ImgSize = None,
    min_batch: engine.MinBatch = None,
    max_batch: engine.MaxBatch = None,
    workspace: engine.Workspace = None,
    opt_level: engine.OptLevel = None,
    tactics: engine.Tactics = "",
    version_compatible: engine.VersionCompatible = False,
    hardware_compatible: engine.HardwareCompatible = "none",
    refit: engine.Refit = False,
    strip_weights: engine.Strip = False,
    refit_from: engine.RefitFrom = None,
    timing_cache: engine.TimingCache = True,
    targets: engine.Targets = "",
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Make what a backend runs: an engine, OpenVINO's IR, or an optimised ONNX file.

    Examples: resdeploy build r50.int8.onnx --backend openvino -o r50.xml
    · resdeploy build r50.int8.onnx --backend tensorrt -b 128 --max-batch 256
    · resdeploy build r50.fp16.onnx --backend tensorrt-rtx --targets sm86,sm89,sm120
    """
    from resdeploy.backends import choose

    built_with = engine.options(
        batch_size, min_batch, max_batch, workspace, opt_level, tactics, version_compatible, hardware_compatible, refit,
        strip_weights, refit_from, timing_cache, targets,
    )  # fmt: skip
    if backend != "auto":  # what cannot run here is said before long work, and before its imports
        engine.refuse_ignored(built_with, choose.pick(backend, "fp32", running=False)[0])
    from resdeploy.deploy import build, candidates, export, model_string

    with live_view.progress(quiet=quiet) as progress:
        source = export.to_onnx(options.request(model, options.preprocessing_override(img_size)), progress=progress)
        name, why = choose.pick(backend, source.precision, running=False)
        if backend == "auto":
            console.tell_choice(name, why, quiet=quiet)
        engine.refuse_ignored(built_with, name)
        execution = candidates.execution_for(source, batch_size=batch_size, threads=threads)
        execution = dataclasses.replace(execution, engine=built_with)
        out = output or model_string.beside(model, f".{name}{build.suffix_of(name)}")
        artifact = build.build(source, name, execution, out, progress=progress)
    console.announce(artifact, quiet=quiet)
    console.wrote(artifact, quiet=quiet)
