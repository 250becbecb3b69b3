"""What a profile asks for: every key, its default, and the sentence that explains it wherever it is explained."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from resdeploy.registered_backends import BackendName
from resdeploy.vocabulary import (
    MAX_TIME_S,
    STRICT,
    Arithmetic,
    Effort,
    Interpolation,
    OnInconclusive,
    Precision,
    Scenario,
)


@dataclass(frozen=True)
class Says:
    """What a key is, for `resdeploy init` and docs/profile.md."""

    what: str
    example: Any = None  # a value of its kind, where the default is none
    group: str = ""  # begins with this key


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a TOML profile says. Flat, no inheritance; every field has a command-line equivalent."""

    __pydantic_config__ = STRICT
    name: Annotated[str, Says("files go to runs/NAME", group="The model")]
    model: Annotated[
        str, Says("a zoo name, timm:NAME, torchvision:NAME, package.module:factory, a .onnx or .safetensors file")
    ] = "resnet50"
    weights: Annotated[
        str, Says("random, imagenet1k_v1, imagenet1k_v2, a file (.pth .pt .th .safetensors) or a URL; of named models")
    ] = "random"
    classes: Annotated[int | None, Says("classes, where not the model's own", 10)] = None
    seed: Annotated[int, Says("seed of everything random")] = 0

    data: Annotated[
        str | None,
        Says(
            "digits, cifar10:DIR, or a folder with train/ and val/ or test/, one folder a class in each",
            "images",
            "The images",
        ),
    ] = None
    img_size: Annotated[int | None, Says("input height and width; default: the model's own", 224)] = None
    resize: Annotated[
        int | None, Says("shorter side before the crop; 0: no resizing; default: as the model says", 256)
    ] = None
    interpolation: Annotated[Interpolation | None, Says("how images are resized", "bicubic")] = None
    mean: Annotated[
        tuple[float, ...] | None, Says("means of the channels, for pixels from 0 to 1", [0.485, 0.456, 0.406])
    ] = None
    std: Annotated[tuple[float, ...] | None, Says("deviations of the channels, likewise", [0.229, 0.224, 0.225])] = None
    input: Annotated[
        Literal["float32", "uint8"], Says("uint8: the models take raw pixels and normalise by themselves")
    ] = "float32"
    skip_bad: Annotated[bool, Says("go on without images that cannot be read")] = False

    epochs: Annotated[int, Says("passes over the training images; 0: no training", group="Training")] = 0
    recipe: Annotated[Literal["fast", "paper"], Says("fast: one cycle; paper: He et al. 2015")] = "fast"
    lr: Annotated[
        float | None, Says("peak learning rate; default: by what there is to learn (docs/training.md)", 0.003)
    ] = None
    train_batch_size: Annotated[int, Says("images per step")] = 64
    accumulate: Annotated[int, Says("forward passes per step")] = 1
    hold_out: Annotated[float, Says("share of the training images that judges epochs")] = 0.0
    augmentation: Annotated[
        Literal["shift", "shift-only", "crop", "none"] | None, Says("default: what fits the data", "crop")
    ] = None
    train_precision: Annotated[
        Literal["fp32", "bf16"] | None, Says("default: bf16 where the machine computes in it", "fp32")
    ] = None

    prune_drop_pp: Annotated[
        float | None,
        Says("drop residual blocks within so many points of top-1 on training images", 1.0, "Smaller and faster files"),
    ] = None
    precisions: Annotated[tuple[Precision, ...], Says("fp32, with which the others are compared, fp16, bf16, int8")] = (
        "fp32",
        "int8",
    )
    calib_data: Annotated[
        str | None, Says("images for INT8 ranges; default: the training split of data", "images/train")
    ] = None
    calib_samples: Annotated[int, Says("how many of them")] = 300
    calib_method: Annotated[
        Literal["auto", "minmax", "entropy", "percentile", "mse"], Says("how INT8 ranges are chosen")
    ] = "percentile"
    calib_precision: Annotated[
        Arithmetic | None, Says("in what ranges are observed; default: BF16 on CPUs that have it", "fp32")
    ] = None
    portable: Annotated[
        bool | None,
        Says("INT8 weights in 7 bits, exact on CPUs without VNNI too; default: what this CPU needs", example=True),
    ] = None
    effort: Annotated[Effort, Says("high: exact input, second-order rounding; takes minutes")] = "normal"
    search_drop_pp: Annotated[
        float | None,
        Says("INT8 is the fastest mix of INT8 and floats whose top-1 drop is shown to be within so many points", 0.3),
    ] = None

    backends: Annotated[tuple[BackendName, ...], Says("who runs them", group="Running and timing")] = (
        "openvino",
        "onnxruntime",
    )
    batch_size: Annotated[int, Says("images per query")] = 1
    threads: Annotated[int | None, Says("CPU threads; default: the usable cores", 2)] = None
    scenario: Annotated[
        Scenario | None,
        Says("single-stream, multi-stream or offline; default: by the number of streams", "offline"),
    ] = None
    streams: Annotated[int | None, Says("queries at a time; default: 1, offline: one per core", 2)] = None
    duration_s: Annotated[float, Says("seconds of timed queries per row, at least")] = 3.0
    max_time_s: Annotated[float, Says("longest that one comparison with FP32 may take")] = MAX_TIME_S
    wait_quiet_s: Annotated[
        float | None, Says("before timing, longest wait until other processes leave the machine alone", 60.0)
    ] = None

    audit: Annotated[
        bool, Says("say of every file whether its blocks fused and in which precision they ran", group="Judging")
    ] = True
    require_fused: Annotated[bool, Says("judge that too: what did not fuse fails")] = False
    max_drop_pp: Annotated[float | None, Says("largest drop of top-1, in points", 0.5)] = None
    max_top5_drop_pp: Annotated[float | None, Says("likewise of top-5", 0.5)] = None
    confidence: Annotated[float, Says("one-sided, of every verdict")] = 0.95
    sequential: Annotated[bool, Says("images in random order, only as many as decide max_drop_pp")] = False
    max_slowdown_pct: Annotated[
        float | None,
        Says("of the median time, against FP32 on the same backend; negative: a speed-up is demanded", 3.0),
    ] = None
    max_cpu_slowdown_pct: Annotated[float | None, Says("likewise of the CPU time per image", 3.0)] = None
    max_size_mb: Annotated[float | None, Says("of the file that runs", 100.0)] = None
    max_memory_mb: Annotated[float | None, Says("peak of the process that ran it", 1000.0)] = None
    on_inconclusive: Annotated[OnInconclusive, Says("warn: an inconclusive verdict exits 0 with a warning")] = "fail"


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key of a profile as it is explained."""

    name: str
    says: Says
    default: Any  # None: nothing, or what the sentence says
    required: bool


def every_key() -> tuple[Key, ...]:
    """Every key, in order."""
    hints = typing.get_type_hints(Profile, include_extras=True)
    found = []
    for one in dataclasses.fields(Profile):
        (says,) = (extra for extra in hints[one.name].__metadata__ if isinstance(extra, Says))
        required = one.default is dataclasses.MISSING
        found.append(Key(name=one.name, says=says, default=None if required else one.default, required=required))
    return tuple(found)
