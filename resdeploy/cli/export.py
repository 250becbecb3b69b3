"""`resdeploy export`: its options, and a network written as ONNX."""

from pathlib import Path

from resdeploy.cli import console, live_view, options


def export(
    model: options.Model,
    weights: options.Weights = "random",
    output: options.Output = None,
    classes: options.Classes = None,
    input_type: options.Input = "float32",
    img_size: options.ImgSize = None,
    resize: options.Resize = None,
    interpolation: options.Interpolation = None,
    mean: options.Mean = None,
    std: options.Std = None,
    channels: options.Channels = None,
    labels: options.Labels = None,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Write a canonical ONNX file (BN folded, opset 17), checked against torch in float64.

    Examples: resdeploy export resnet50 --input uint8 · resdeploy export resnet56 --weights resnet56.th -o r56.onnx
    """
    from resdeploy.deploy import export, model_string, pixel_input

    override = options.preprocessing_override(img_size, resize, interpolation, mean, std, channels, labels)
    request = options.request(model, override, weights=weights, classes=classes, seed=seed)
    out = output or Path(f"{model_string.stem(model)}.onnx")
    with live_view.progress(quiet=quiet) as progress:
        if input_type == "uint8":
            artifact = pixel_input.uint8_input(export.to_onnx(request, progress=progress), out)
        else:
            artifact = export.to_onnx(request, out, progress=progress)
    console.announce(artifact, quiet=quiet)
    console.wrote(artifact, quiet=quiet)
