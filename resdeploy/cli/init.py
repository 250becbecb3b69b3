"""`resdeploy init`: a profile to begin with, on stdout."""

from typing import Annotated

import typer

from resdeploy.cli import console, options


def init(
    model: options.Model,
    data: Annotated[str, typer.Option(help="digits, cifar10:DIR, or a folder with train/ and val/ or test/.")],
    weights: options.Weights = "random",
    classes: options.Classes = None,
    verbose: options.Verbose = 0,
) -> None:
    """Write a profile for `resdeploy run` with every key explained: what is set here, and all else commented out.

    Example: resdeploy init resnet56 --weights resnet56.th --data cifar10 > mine.toml
    """
    from resdeploy.verbs import init

    request = options.request(model, options.preprocessing_override(None), weights=weights, classes=classes)
    console.print_text(init.init(request, data))
