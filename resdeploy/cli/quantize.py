"""`resdeploy quantize`: its options, and an ONNX file in a lower precision."""

from typing import Annotated, Literal

import typer

from resdeploy import vocabulary
from resdeploy.cli import console, live_view, options


def quantize(
    model: options.Model,
    precision: Annotated[Literal["fp16", "bf16", "int8"], typer.Option(help="What to make.")] = "int8",
    target: Annotated[
        str,
        typer.Option(
            help="Whose fusion rules Q/DQ follows: tensorrt, tensorrt-rtx, openvino, onnxruntime; openvino,onnxruntime."
        ),
    ] = "openvino",
    calib_data: options.CalibData = None,
    calib_samples: options.CalibSamples = 300,
    calib_method: options.CalibMethod = "percentile",
    calib_precision: options.CalibPrecision = None,
    portable: options.Portable = None,
    sensitivity: options.Sensitivity = False,
    max_drop: options.MaxDrop = None,
    data: options.Data = None,
    confidence: options.Confidence = 0.95,
    effort: options.EffortLevel = "normal",
    weights: options.Weights = "random",
    classes: options.Classes = None,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    output: options.Output = None,
    input_type: options.Input = "float32",
    img_size: options.ImgSize = None,
    resize: options.Resize = None,
    interpolation: options.Interpolation = None,
    mean: options.Mean = None,
    std: options.Std = None,
    channels: options.Channels = None,
    labels: options.Labels = None,
    max_time: options.MaxTime = vocabulary.MAX_TIME_S,
    seed: options.Seed = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Write the file even if its output has nothing to do with the source's.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Write an FP16, BF16 or INT8 model, its precision explicit in the graph.

    Examples: resdeploy quantize r56.onnx --calib-data cifar10/train · resdeploy quantize r50.onnx --precision fp16 ·
    resdeploy quantize r56.onnx --calib-data cifar10/train --data cifar10/test --max-drop 0.3
    """
    from resdeploy.deploy import calibration, export, model_string, pixel_input
    from resdeploy.graph import qdq_placement
    from resdeploy.measure import environment
    from resdeploy.report import mixed
    from resdeploy.verbs import quantize

    override = options.preprocessing_override(img_size, resize, interpolation, mean, std, channels, labels)
    request = options.request(model, override, weights=weights, classes=classes, seed=seed)
    plan = calibration.CalibrationPlan(
        data=calib_data,
        samples=calib_samples,
        method=calib_method,
        arithmetic=calib_precision,
        portable=portable,
        effort=effort,
        seed=seed,
        force=force,
    )
    form = qdq_placement.form_for(options.targets(target))
    out = output or model_string.beside(model, f".{precision}.onnx")
    wanted = quantize.QuantizeGoal(
        sensitivity=sensitivity, max_drop_pp=max_drop, data=data, confidence=confidence, max_time_s=max_time
    )
    wanted.refuse_nonsense(precision, plan)  # before an export, or a download
    with live_view.progress(quiet=quiet) as progress:
        source = export.to_onnx(request, progress=progress)
        if input_type == "uint8":
            source = pixel_input.uint8_input(source)
        if calib_data or data:
            console.tell_preprocessing([request], [source.model], quiet=quiet)
        done = quantize.quantize(source, precision, form, plan, out, wanted, progress=progress)
    console.announce(done.artifact, quiet=quiet)
    console.wrote(done.artifact, quiet=quiet)
    if done.advice:
        console.note(done.advice, quiet=quiet)
    if done.candidates:
        console.emit(mixed.search(model, done.candidates, done.layers, environment.capture()), fmt)
    elif done.layers:
        console.emit(mixed.sensitivity(model, done.layers, environment.capture()), fmt)
    if done.is_within_budget is False:
        raise typer.Exit(1)
