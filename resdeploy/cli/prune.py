"""`resdeploy prune`: its options, and a network with fewer residual blocks."""

from pathlib import Path
from typing import Annotated

import typer

from resdeploy import vocabulary
from resdeploy.cli import console, live_view, options
from resdeploy.cli.gate import EXIT
from resdeploy.errors import refuse


def prune(
    model: options.Model,
    data: Annotated[str, typer.Option(help="Images: half to choose on, half to judge on.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx or .safetensors file to write.")],
    max_drop: Annotated[float, typer.Option(min=0, max=99.99, help="Points of top-1 that may be lost.")] = 2.0,
    confidence: options.Confidence = 0.95,
    blocks: Annotated[int | None, typer.Option(min=1, help="Remove so many, whatever they cost.")] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Fine-tune so long afterwards.")] = 0,
    lr: Annotated[
        float, typer.Option(min=1e-9, help="Peak learning rate of the fine-tuning.")
    ] = vocabulary.ADAPTING_LR,
    train_data: Annotated[
        str | None, typer.Option(help="Images to fine-tune on; default: the training split of --data.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Folder for both files of answers, as gate reads them.")
    ] = None,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    duration: Annotated[float, typer.Option(min=0.1, help="Seconds to time each network, at least.")] = 3.0,
    max_time: options.MaxTime = vocabulary.MAX_TIME_S,
    weights: options.Weights = "random",
    classes: options.Classes = None,
    img_size: options.ImgSize = None,
    resize: options.Resize = None,
    interpolation: options.Interpolation = None,
    mean: options.Mean = None,
    std: options.Std = None,
    channels: options.Channels = None,
    labels: options.Labels = None,
    seed: options.Seed = 0,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Drop the residual blocks that cost least; exit 0 pass, 1 fail, 3 inconclusive, as gate does; 8 none may go.

    Examples: resdeploy prune resnet56 --weights r56.th --data cifar10/test --max-drop 2 -o r56-pruned.onnx ·
    resdeploy prune r56.onnx --data cifar10 --max-drop 1 -o r56-pruned.onnx
    """
    from resdeploy.measure import environment
    from resdeploy.report import pruning
    from resdeploy.verbs import prune
    from resdeploy.verbs.block_search import Budget

    refuse(
        (train_data is not None and not epochs, "--train-data are images to fine-tune on", "Add --epochs 1"),
        (lr != vocabulary.ADAPTING_LR and not epochs, "--lr is that of the fine-tuning", "Add --epochs 1"),
    )
    override = options.preprocessing_override(img_size, resize, interpolation, mean, std, channels, labels)
    request = options.request(model, override, weights=weights, classes=classes, seed=seed)
    plan = prune.PrunePlan(
        data=data,
        budget=Budget(max_drop_pp=max_drop, confidence=confidence, blocks=blocks),
        training=prune.fine_tuning_plan(epochs, lr, seed),
        train_data=train_data,
        backend=backend,
        threads=threads,
        duration_s=duration,
        max_time_s=max_time,
        seed=seed,
        predictions=predictions,
    )
    with live_view.progress(quiet=quiet) as progress:
        outcome = prune.prune(request, plan, output, progress=progress)
    console.tell_preprocessing([request], [outcome.artifact.model], quiet=quiet)
    console.announce(outcome.artifact, quiet=quiet)
    console.wrote(outcome.artifact, quiet=quiet)
    console.emit(pruning.prune_document(outcome, environment.capture()), fmt)
    raise typer.Exit(EXIT[outcome.verdict.state])
