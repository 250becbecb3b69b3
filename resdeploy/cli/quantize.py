"""`resdeploy quantize`."""

from typing import Annotated, Literal

import typer

from resdeploy.cli import console, options


def quantize(
    model: options.Model,
    precision: Annotated[Literal["fp16", "bf16", "int8"], typer.Option(help="What to make.")] = "int8",
    target: Annotated[
        Literal["tensorrt", "openvino", "onnxruntime"], typer.Option(help="Whose fusion rules Q/DQ follows.")
    ] = "openvino",
    calib_data: options.CalibData = None,
    calib_samples: options.CalibSamples = 300,
    calib_method: options.CalibMethod = "percentile",
    portable: options.Portable = None,
    weights: options.Weights = "random",
    classes: options.Classes = None,
    output: options.Output = None,
    img_size: options.ImgSize = None,
    resize: options.Resize = None,
    interpolation: options.Interpolation = None,
    mean: options.Mean = None,
    std: options.Std = None,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Write an FP16, BF16 or INT8 model, its precision explicit in the graph.

    Examples: resdeploy quantize r56.onnx --calib-data cifar10/train · resdeploy quantize r50.onnx --precision fp16
    """
    from resdeploy.pipeline import make

    sight = options.sight(img_size, resize, interpolation, mean, std)
    request = options.request(model, sight, weights=weights, classes=classes, seed=seed)
    plan = make.CalibrationPlan(
        data=calib_data, samples=calib_samples, method=calib_method, portable=portable, seed=seed
    )
    out = output or options.beside(model, f".{precision}.onnx")
    with console.progress(quiet=quiet) as progress:
        source = make.onnx_fp32(request, progress=progress)
        artifact = make.lowered(source, precision, target, plan, out, progress=progress)
    console.announce(artifact, quiet=quiet)
    console.wrote(artifact, quiet=quiet)
