"""`resdeploy eval`: its options, and accuracy on images with its interval."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from resdeploy.cli import console, live_view, options


def evaluate(
    model: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Zoo names or model files.")],
    data: Annotated[str, typer.Option(help=options.DATA)],
    weights: options.Weights = "random",
    backend: options.Backend = "auto",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"] | None, typer.Option(help="Default: what the model is.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per query.")] = 32,
    threads: options.Threads = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Save per-image predictions (.npz, .json, .csv); one model only.", callback=options.writable),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N", help="Evaluate the K-th of N parts of the images, for merge; auto: as torchrun numbers them."
        ),
    ] = None,
    skip_bad: options.SkipBad = False,
    calib_data: options.CalibData = None,
    calib_samples: options.CalibSamples = 300,
    calib_method: options.CalibMethod = "percentile",
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
    """Measure top-1 and top-5 accuracy, with 95 % intervals.

    Examples: resdeploy eval resnet20 --weights resnet20.th --data cifar10/test --backend torch ·
    resdeploy eval r50.onnx --data imagenet/val --shard 2/3 --predictions part2.npz ·
    torchrun --nproc-per-node 2 -m resdeploy eval r50.onnx --data imagenet/val --shard auto --predictions r50.npz
    """
    from resdeploy import torchrun
    from resdeploy.deploy import candidates, model_string
    from resdeploy.deploy.calibration import CalibrationPlan
    from resdeploy.errors import refuse
    from resdeploy.measure import environment, prediction_files, shards
    from resdeploy.report import evaluations
    from resdeploy.verbs import evaluate

    override = options.preprocessing_override(img_size, resize, interpolation, mean, std, channels, labels)
    requests = [
        options.request(name, override, weights=weights, classes=classes, seed=seed, trust_engine=trust_engine)
        for name in model
    ]
    refuse(
        (
            predictions is not None and len(requests) > 1,
            "--predictions saves one model's predictions",
            "Name one model",
        ),
        (
            predictions is not None and predictions.suffix not in prediction_files.SUFFIXES,
            f"--predictions does not write {predictions}",
            f"End it in {' or '.join(prediction_files.SUFFIXES)}",
        ),
        (
            shard is not None and predictions is None,
            "--shard evaluates a part of the images, which is good for `resdeploy merge` alone",
            "Add --predictions PART.npz",
        ),
    )
    if shard is None and torchrun.process_count() > 1:
        console.note(
            f"torchrun started {torchrun.process_count()} processes, and each evaluates all images: "
            "--shard auto --predictions F.npz gives each its part",
            quiet=quiet or torchrun.rank() > 0,
        )
    part = None if shard is None else shards.parse(shard)
    if part is not None and shard == shards.AUTO:  # every process was given the same names
        predictions, output = (path and shards.path_of(path, part) for path in (predictions, output))
    calibration = CalibrationPlan(
        data=calib_data, samples=calib_samples, method=calib_method, portable=portable, seed=seed
    )
    plan = evaluate.EvalPlan(
        data=data,
        backend=backend,
        precision=precision,
        batch_size=batch_size,
        threads=threads,
        skip_bad=skip_bad,
        keep_logits=predictions is not None,
        shard=part,
    )
    model_string.refuse_missing(requests)
    console.chosen(backend, [precision or candidates.precision_of(each) for each in requests], quiet=quiet)
    results = []
    with live_view.progress(quiet=quiet) as progress:
        for request in requests:
            results.append(evaluate.evaluate(request, plan, calibration, progress=progress))
            console.announce(results[-1].source, quiet=quiet)
    console.tell_preprocessing(requests, [result.source.model for result in results], quiet=quiet)
    if predictions is not None:
        prediction_files.save(results[0].predictions, predictions)
    names = model_string.names(requests)
    if part is not None:
        console.note(f"wrote {predictions}", quiet=quiet)
        document = evaluations.shard(names[requests[0]], results[0].predictions, environment.capture())
        console.emit(document, fmt, output, quiet=quiet)
        return
    rows = [
        (names[request], r.predictions, prediction_files.score(r.predictions), r.backend, r.source.precision)
        for request, r in zip(requests, results, strict=True)
    ]
    console.emit(evaluations.evaluation(rows, environment.capture()), fmt, output, quiet=quiet)
