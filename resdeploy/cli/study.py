"""`resdeploy study`: the experiments behind residual networks."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from resdeploy import vocabulary
from resdeploy.cli import console, live_view, options
from resdeploy.cli.help_text import App

app = App(
    help="The experiments behind residual networks.\n\n"
    "Examples: resdeploy study degradation · resdeploy study lesion resnet56 --weights r56.th --data cifar10/test",
    no_args_is_help=True,
)


@app.command()
def degradation(
    data: Annotated[
        str, typer.Option(help="digits, cifar10:DIR, or a folder with train/ and val/ or test/.")
    ] = "digits",
    depths: Annotated[str, typer.Option(help="Two or more of 20, 32, 44, 56, 110.")] = "20,56",
    seeds: Annotated[int, typer.Option(min=2, help="Trainings of each network.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 10,
    lr: Annotated[float, typer.Option(min=1e-9, help="Peak learning rate.")] = vocabulary.LR,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=2, help="Images per step.")] = 64,
    recipe: Annotated[Literal["fast", "paper"], typer.Option(help="As of train.")] = "paper",
    img_size: options.ImgSize = "8",
    full: Annotated[
        bool, typer.Option("--full", help="He et al.'s setting: depths, epochs, batch; for a GPU.")
    ] = False,
    folder: Annotated[Path, typer.Option("--folder", help="Where checkpoints, chart and JSON go.")] = Path(
        "degradation"
    ),
    threads: options.Threads = None,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Plain against residual networks of growing depth: what depth does to the training loss.

    Examples: resdeploy study degradation · resdeploy study degradation --data cifar10 --full
    """
    from resdeploy import store
    from resdeploy.measure import environment
    from resdeploy.report import study_charts
    from resdeploy.study import degradation
    from resdeploy.train.loop import Plan

    numbers = options.positive_integers(depths, "--depths")
    training = Plan(epochs=epochs, lr=lr, batch_size=batch_size, recipe=recipe, threads=threads)
    plan = degradation.DegradationPlan(
        data=data, depths=numbers, seeds=seeds, training=training, img_size=options.size(img_size)
    )
    with live_view.progress(quiet=quiet) as progress:
        report = degradation.study_depths(
            degradation.papers_plan(data) if full else plan, folder, progress=progress,
            watch=lambda t: console.note(f"{t.name} seed {t.seed}: loss {t.history[-1].train_loss:.4f}", quiet=quiet),
        )  # fmt: skip
    document = degradation.degradation_document(report, environment.capture())
    store.write_bytes(folder / "degradation.svg", study_charts.degradation(document)["loss"].encode())
    store.write_json(folder / "degradation.json", document)
    console.note(f"wrote {folder}/degradation.svg and .json", quiet=quiet)
    console.emit(document, fmt)


@app.command()
def lesion(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Zoo names or .safetensors files.")],
    data: Annotated[str, typer.Option(help="Images to judge on: their test split.")],
    images: Annotated[int, typer.Option(min=1, help="How many of them.")] = 500,
    repeats: Annotated[int, typer.Option(min=1, help="Random choices for each number of blocks.")] = 3,
    weights: options.Weights = "random",
    img_size: options.ImgSize = None,
    seed: options.Seed = 0,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Delete blocks of a trained network, one, several, and shuffle them; with -o also three charts.

    Examples: resdeploy study lesion resnet56 --weights r56.th --data cifar10/test -o lesion.json ·
    resdeploy study lesion resnet20.safetensors plain20.safetensors --data digits
    """
    from resdeploy import store
    from resdeploy.measure import environment
    from resdeploy.report import study_charts
    from resdeploy.study import lesion

    requests = [
        options.request(name, options.preprocessing_override(img_size), weights=weights, seed=seed) for name in models
    ]
    plan = lesion.LesionPlan(data=data, images=images, repeats=repeats, seed=seed)
    with live_view.progress(quiet=quiet) as progress:
        report = lesion.study_lesions(requests, plan, progress=progress)
    document = lesion.lesion_document(report, environment.capture())
    if output is not None:
        store.write_json(output, document)
        for kind, drawn in study_charts.lesion(document).items():
            store.write_bytes(output.with_name(f"{output.stem}.{kind}.svg"), drawn.encode())
    console.emit(document, fmt)
