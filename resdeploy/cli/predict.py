"""`resdeploy predict`: its options, and what a model sees on images."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from resdeploy.cli import console, live_view, options


def predict(
    model: options.Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="JPEG or PNG files, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to show of each image.")] = 3,
    weights: options.Weights = "random",
    backend: options.Backend = "auto",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"] | None, typer.Option(help="Default: what the model is.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per query.")] = 1,
    threads: options.Threads = None,
    calib_data: options.CalibData = None,
    calib_samples: options.CalibSamples = 300,
    portable: options.Portable = None,
    classes: options.Classes = None,
    img_size: options.ImgSize = None,
    resize: options.Resize = None,
    interpolation: options.Interpolation = None,
    mean: options.Mean = None,
    std: options.Std = None,
    channels: options.Channels = None,
    labels: options.Labels = None,
    trust_engine: options.TrustEngine = False,
    seed: options.Seed = 0,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Name what a model sees on images, with probabilities, and how long an image takes from file to answer.

    Examples: resdeploy predict r50.onnx cat.jpg · resdeploy predict r50.int8.onnx photos/ --top 1 --format csv
    """
    from resdeploy.deploy.calibration import CalibrationPlan
    from resdeploy.measure import environment
    from resdeploy.report import documents
    from resdeploy.verbs import predict

    files = predict.paths_of(images)
    override = options.preprocessing_override(img_size, resize, interpolation, mean, std, channels, labels)
    request = options.request(model, override, weights=weights, classes=classes, seed=seed, trust_engine=trust_engine)
    plan = predict.PredictPlan(backend=backend, precision=precision, batch_size=batch_size, threads=threads)
    calibration = CalibrationPlan(data=calib_data, samples=calib_samples, portable=portable, seed=seed)
    with (
        live_view.progress(quiet=quiet) as progress,
        predict.open_predictor(request, plan, calibration, progress=progress) as predictor,
    ):
        answered = predictor.answer(files, top=top, progress=progress)
    console.emit(documents.predict(answered, environment.capture()), fmt, output, quiet=quiet)
