"""`resdeploy train`: its options, and a trained checkpoint or INT8 file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from resdeploy import interrupts, vocabulary
from resdeploy.cli import console, live_view, options

if TYPE_CHECKING:
    from resdeploy.records import ModelSpec

HOW = "How to train"
QAT = "Quantization-aware training"


def train(
    model: options.Model,
    data: Annotated[str, typer.Option(help="digits, cifar10:DIR, or a folder with train/ and val/ or test/.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors to write; with --qat the .onnx.")],
    recipe: Annotated[
        Literal["fast", "paper"], typer.Option(help="fast: one cycle; paper: He et al. 2015.", rich_help_panel=HOW)
    ] = "fast",
    lr: Annotated[
        float | None,
        typer.Option(
            min=1e-9,
            help=f"Peak learning rate; default {vocabulary.LR:g}, from trained weights {vocabulary.FINE_TUNING_LR:g} "
            f"(with a new last layer {vocabulary.ADAPTING_LR:g}), with --qat {vocabulary.QAT_LR:g}.",
            rich_help_panel=HOW,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", min=2, help="Images per step.", rich_help_panel=HOW)
    ] = 64,
    accumulate: Annotated[int, typer.Option(min=1, help="Forward passes per step.", rich_help_panel=HOW)] = 1,
    hold_out: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Share of the training images that judges epochs.", rich_help_panel=HOW),
    ] = 0.0,
    augmentation: Annotated[
        Literal["shift", "shift-only", "crop", "none"] | None,
        typer.Option(help="Default: what fits the data.", show_default=False, rich_help_panel=HOW),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16"] | None,
        typer.Option(help="Default: bf16 where the machine computes in it.", show_default=False, rich_help_panel=HOW),
    ] = None,
    threads: options.Threads = None,
    weights: options.Weights = "random",
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit 1 if top-1 fell, 3 behind a new last layer; not with random weights.",
        ),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last state.")] = False,
    qat: Annotated[
        bool, typer.Option("--qat", help="Train an INT8 file to answer as the FP32 network does.", rich_help_panel=QAT)
    ] = False,
    target: Annotated[
        Literal["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"] | None,
        typer.Option(
            help="Whose fusion rules Q/DQ follows; default: openvino.", show_default=False, rich_help_panel=QAT
        ),
    ] = None,
    portable: options.Portable = None,
    effort: options.EffortLevel = "normal",
    img_size: options.ImgSize = None,
    resize: options.Resize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Train a network from scratch or from weights; under torchrun, on several processes.

    Examples: resdeploy train resnet20 --data digits --epochs 12 -o r20.safetensors ·
    resdeploy train resnet20 --weights r20.th --data cifar10 --qat --epochs 2 -o r20.int8.onnx ·
    torchrun --nproc-per-node 2 -m resdeploy train resnet20 --data cifar10 --epochs 30 -o r20.safetensors
    """
    from resdeploy.verbs import train

    override = options.preprocessing_override(img_size, resize, None, mean, std)
    request = options.request(model, override, weights=weights, seed=seed)
    how = train.TrainOptions(
        data=data, epochs=epochs, recipe=recipe, lr=lr, batch_size=batch_size, accumulate=accumulate,
        hold_out=hold_out, augmentation=augmentation, precision=precision, threads=threads, resume=resume,
        qat=qat, target=target, portable=portable, effort=effort, strict=strict,
    )  # fmt: skip
    epochs = 0

    def sees(spec: "ModelSpec") -> None:
        console.tell_preprocessing([request], [spec], "--img-size, --resize, --mean or --std", quiet=quiet)

    def watch(line: str) -> None:
        nonlocal epochs
        epochs += 1
        console.note(line, quiet=quiet)

    try:
        with live_view.progress(quiet=quiet) as progress:
            artifact = train.train(request, how, output, progress=progress, watch=watch, sees=sees)
    except interrupts.Interrupted:
        if epochs and (kept := train.unfinished_state(output)) is not None:
            console.note(f"kept {kept}: the same command with --resume goes on from it", quiet=quiet)
        raise
    if artifact.sha256:  # else another process of torchrun's has written it
        console.announce(artifact, quiet=quiet)
        console.wrote(artifact, quiet=quiet)
        if (outcome := train.outcome_of(artifact)) is not None:
            console.note(outcome.note(how.lr), quiet=quiet)
            if strict and (outcome.before is None or outcome.fell):
                raise typer.Exit(1 if outcome.fell else 3)
