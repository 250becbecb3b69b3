"""Option types that several commands share, so that a name means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from resdeploy import vocabulary
from resdeploy.cli import console
from resdeploy.errors import MalformedInput, MissingInput, UnknownName, UsageError, refuse
from resdeploy.registered_backends import PREFERENCE
from resdeploy.vocabulary import STEPS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from resdeploy import records
    from resdeploy.deploy.model_string import PreprocessingOverride, Request
    from resdeploy.vocabulary import Step

_MODEL = "The model"
_SEEING = "How images become the input"
OUTPUT = "Output"


def distinct(outputs: Iterable[Path | None], inputs: Iterable[str]) -> None:
    """Refuses outputs that would overwrite an input, or each other.

    Raises:
        UsageError: two of them are one file.
    """
    written = [path for path in outputs if path is not None]
    taken = [Path(name).resolve() for name in inputs]
    refuse(
        *(
            (
                path.resolve() in (*taken, *(other.resolve() for other in written[:k])),
                f"{path} is an input, or is written twice",
                "Give every output a file of its own",
            )
            for k, path in enumerate(written)
        )
    )


def writable(path: Path | None) -> Path | None:
    """The path as it is, once it is known that it can be written: before long work, not after it.

    Raises:
        NotWritable, DiskFull: it cannot.
    """
    from resdeploy import store

    if path is not None:
        store.probe(path)
    return path


def page(path: Path | None) -> Path | None:
    """As `writable`, of an HTML page, which needs jinja2.

    Raises:
        PackageMissing: jinja2 is not installed.
        NotWritable, DiskFull: the file cannot be written.
    """
    from resdeploy import packages

    if path is not None:
        packages.need("jinja2", "an HTML page", otherwise="use --format md, which needs nothing")
    return writable(path)


def svg(path: Path | None) -> Path | None:
    """As `writable`, of a chart, which is always SVG.

    Raises:
        UsageError: its suffix says that it is something else.
        NotWritable, DiskFull: it cannot be written.
    """
    if path is not None and path.suffix.lower() != ".svg":
        raise UsageError(f"{path} is not called .svg, and charts are SVG", fix=f"Write --chart {path.stem}.svg")
    return writable(path)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A zoo name, timm:NAME, torchvision:NAME, package.module:factory, a .onnx or .safetensors file.",
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        help="random, imagenet1k_v1, imagenet1k_v2, a file (.pth .pt .th .safetensors) or a URL.",
        rich_help_panel=_MODEL,
    ),
]
Classes = Annotated[int | None, typer.Option(min=1, help="Classes, where not the model's own.", rich_help_panel=_MODEL)]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]

ImgSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Input height and width: 224, or 192,256.", rich_help_panel=_SEEING)
]
Resize = Annotated[
    int | None, typer.Option(min=0, help="Shorter side before the crop; 0: no resizing.", rich_help_panel=_SEEING)
]
Interpolation = Annotated[
    Literal["nearest", "bilinear", "bicubic", "lanczos"] | None,
    typer.Option(help="How images are resized.", rich_help_panel=_SEEING),
]
Mean = Annotated[str | None, typer.Option(metavar="R,G,B", help="Means of the channels.", rich_help_panel=_SEEING)]
Std = Annotated[str | None, typer.Option(metavar="R,G,B", help="Deviations of the channels.", rich_help_panel=_SEEING)]

Channels = Annotated[
    Literal["rgb", "bgr"] | None,
    typer.Option(help="Order of the input's channels; files of OpenCV and Caffe: bgr.", rich_help_panel=_SEEING),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Names of the classes, one a line in the order of the logits.", rich_help_panel=_SEEING
    ),
]

Input = Annotated[
    Literal["float32", "uint8"],
    typer.Option(
        "--input", help="uint8: the model takes raw pixels and normalises by itself.", rich_help_panel=_SEEING
    ),
]

SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without images that cannot be read.")]
DATA = "digits, cifar10:DIR, synthetic:N, or a folder in ImageFolder layout."
Data = Annotated[str | None, typer.Option(help=DATA)]
_BACKENDS = f"auto, {', '.join(PREFERENCE[:-1])} or {PREFERENCE[-1]}"
Backend = Annotated[str, typer.Option(help=f"{_BACKENDS}.")]
Backends = Annotated[str, typer.Option(help=f"{_BACKENDS}; several with commas between them, or all.")]
SomeBackends = Annotated[str, typer.Option(help=f"{_BACKENDS}; several with commas between them.")]
Precision = Annotated[Literal["fp32", "fp16", "bf16", "int8"], typer.Option(help="Arithmetic of the model.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: the usable cores.")]
# Of `measure.interleaved`, 16 blocks of 5,000; written out, since --help must not load what that needs.
Duration = Annotated[
    float, typer.Option(min=0.1, help="Seconds of timed queries per row, at least, or about 80,000 queries.")
]
MaxTime = Annotated[float, typer.Option(min=0.1, help="Longest that one comparison may take, in seconds.")]
CalibData = Annotated[str | None, typer.Option(help="Images for INT8 ranges: the same forms as --data.")]
CalibSamples = Annotated[int, typer.Option(min=1, help="How many images to calibrate on.")]
CalibMethod = Annotated[
    Literal["auto", "minmax", "entropy", "percentile", "mse"], typer.Option(help="How INT8 ranges are chosen.")
]
CalibPrecision = Annotated[
    Literal["fp32", "bf16"] | None,
    typer.Option(
        help="Arithmetic of the network while its ranges are observed; default: BF16 on CPUs that have it.",
        show_default=False,
    ),
]
Portable = Annotated[
    bool | None,
    typer.Option(
        "--portable/--no-portable",
        help="Weights in 7 bits, exact on CPUs without VNNI too; default: what this CPU needs.",
        show_default=False,
    ),
]
Sensitivity = Annotated[
    bool, typer.Option("--sensitivity", help="Also report what each layer and block costs when it alone is INT8.")
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        min=0.0, max=99.99, help="Search the fastest mixed model whose top-1 drop on --data is within so many points."
    ),
]
Confidence = Annotated[float, typer.Option(min=0.51, max=0.9999, help="One-sided confidence.")]
TrustEngine = Annotated[bool, typer.Option("--trust-engine", help="Run a downloaded TensorRT engine: it is a program.")]
EffortLevel = Annotated[
    Literal["normal", "high"],
    typer.Option("--effort", help="high: exact input, second-order rounding; takes minutes."),
]
Format = Annotated[
    Literal["table", "json", "csv", "md"],
    typer.Option("--format", help="Form of the result.", rich_help_panel=OUTPUT),
]
Wide = Annotated[
    bool,
    typer.Option(
        "--wide",
        is_eager=True,
        help="Tables with all columns, however long their lines are.",
        callback=console.set_wide,
        rich_help_panel=OUTPUT,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option("--report", help="HTML page of the result to write.", callback=page, rich_help_panel=OUTPUT),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="File to write to.", callback=writable, rich_help_panel=OUTPUT),
]
# The console keeps it too, for what no verb need say by itself.
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        is_eager=True,
        help="Only results and errors.",
        callback=console.set_silent,
        rich_help_panel=OUTPUT,
    ),
]
# Its callback keeps it; verbs need not look at it. Eager, so that errors in other options have their traceback too.
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        is_eager=True,
        metavar="",  # a flag that may be repeated takes no number
        callback=console.set_verbosity,
        help="Name the files used; -vv: tracebacks too.",
        rich_help_panel=OUTPUT,
    ),
]


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Comma-separated numbers of an option.

    Raises:
        UsageError: not numbers.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as e:
        raise UsageError(
            f"{option} takes numbers separated by commas, not {text!r}", fix=f"Write {option} 0.5,0.5,0.5"
        ) from e


def positive_integers(text: str, option: str) -> tuple[int, ...]:
    """Comma-separated positive integers of an option, as in `-b 1,8,32`.

    Raises:
        UsageError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"{option} takes positive whole numbers separated by commas, not {text!r}", fix=f"Write {option} 1,8"
        )
    return tuple(int(part) for part in parts)


def precisions(text: str) -> tuple[records.Precision, ...]:
    """Comma-separated precisions of an option; none where it is empty.

    Raises:
        UsageError: anything else.
    """
    from resdeploy.records import PRECISIONS

    names = [part.strip() for part in text.split(",")] if text else []
    if not set(names) <= set(PRECISIONS):
        raise UsageError(f"--precision takes {', '.join(PRECISIONS)}, not {text!r}")
    return tuple(name for name in PRECISIONS if name in names)


def targets(text: str) -> tuple[records.Target, ...]:
    """Comma-separated targets of `--target`.

    Raises:
        UnknownName: another word.
    """
    parts = tuple(part.strip() for part in text.split(","))
    for part in parts:
        if part not in get_args(vocabulary.Target):
            raise UnknownName(
                f"--target takes {', '.join(get_args(vocabulary.Target))}, not {part!r}",
                fix="Write --target onnxruntime, or --target openvino,onnxruntime for one file that serves both",
            )
    return tuple(each for each in get_args(vocabulary.Target) if each in parts)


def steps(names: Collection[str]) -> tuple[Step, ...]:
    """Steps of a profile's run by their names.

    Raises:
        UnknownName: no such step.
    """
    if unknown := sorted(set(names) - set(STEPS)):
        raise UnknownName(f"there is no step {', '.join(unknown)}", fix=f"Choose of {', '.join(STEPS)}")
    return tuple(step for step in STEPS if step in names)


def preprocessing_override(
    img_size: str | None,
    resize: int | None = None,
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None,
    mean: str | None = None,
    std: str | None = None,
    channels: Literal["rgb", "bgr"] | None = None,
    labels: Path | None = None,
) -> PreprocessingOverride:
    """The `PreprocessingOverride` that the shared options describe."""
    from resdeploy.deploy.model_string import ORDERS, PreprocessingOverride

    return PreprocessingOverride(
        img_size=size(img_size),
        resize=resize,
        interpolation=interpolation,
        mean=numbers(mean, "--mean"),
        std=numbers(std, "--std"),
        channels=ORDERS[channels] if channels else None,
        labels=None if labels is None else names_in(labels),
    )


def size(text: str | None) -> int | tuple[int, int] | None:
    """Of `--img-size`: one number for a square, or height and width.

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    parts = positive_integers(text, "--img-size")
    if len(parts) > 2:
        raise UsageError(f"--img-size takes a height and a width, not {text!r}", fix="Write --img-size 192,256")
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def names_in(path: Path) -> tuple[str, ...]:
    """The lines of a file of class names, without those at its end that are empty.

    Raises:
        MissingInput: no such file.
        MalformedInput: not text in UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        raise MissingInput(f"there is no file {path}", fix="Give --labels a file with one class name a line") from e
    except UnicodeDecodeError as e:
        raise MalformedInput(f"{path} is no text in UTF-8", fix="Save it as UTF-8, one class name a line") from e
    return tuple(line.strip() for line in lines)


def request(
    model: str,
    override: PreprocessingOverride,
    *,
    weights: str = "random",
    classes: int | None = None,
    seed: int = 0,
    trust_engine: bool = False,
) -> Request:
    """The `Request` that the shared options describe; of a model that is a program, it is said."""
    from resdeploy.deploy.model_string import Request

    console.name_program(model)
    return Request(
        model=model, weights=weights, classes=classes, seed=seed, override=override, trust_engine=trust_engine
    )
