"""`resdeploy train`."""

from pathlib import Path
from typing import Annotated

import typer

from resdeploy.cli import console, options


def train(
    model: options.Model,
    data: Annotated[str, typer.Option(help="digits, cifar10:DIR, or a folder with train/ and val/.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint (.safetensors) to write.")],
    lr: Annotated[float, typer.Option(min=1e-9, help="Peak learning rate.")] = 0.1,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=2, help="Images a step.")] = 64,
    weights: options.Weights = "random",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    img_size: options.ImgSize = None,
    resize: options.Resize = None,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Train a network from scratch or from weights.

    Example: resdeploy train resnet20 --data digits --epochs 12 -o r20.safetensors
    """
    from resdeploy.pipeline import make

    sight = options.sight(img_size, resize)
    request = options.request(model, sight, weights=weights, seed=seed)
    with console.progress(quiet=quiet) as progress:
        artifact = make.trained(
            request, data, epochs=epochs, lr=lr, batch_size=batch_size, resume=resume, out=output, progress=progress
        )
    console.announce(artifact, quiet=quiet)
    console.wrote(artifact, quiet=quiet)
