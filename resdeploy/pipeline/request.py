"""Which model a user means and how it is to see images. Nothing is opened here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from resdeploy.errors import UsageError
from resdeploy.records import ModelSpec, Preprocessing

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class Sight:
    """Changes to a model's preprocessing; None keeps what the model says. `resize=0` means no resizing."""

    img_size: int | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def given(self) -> bool:
        return any(value is not None for value in dataclasses.astuple(self))

    def applied_to(self, spec: ModelSpec) -> ModelSpec:
        """The spec with these changes.

        A model that does not say how it sees images (a foreign file) needs mean and std from the user; without them its
        preprocessing stays None.

        Raises:
            UsageError: mean and std of another length than the channels.
        """
        if not self.given:
            return spec
        channels, height, width = spec.input_shape
        size = (self.img_size, self.img_size) if self.img_size else (height, width)
        before = spec.preprocessing
        if before is None:
            if self.mean is None or self.std is None:
                return dataclasses.replace(spec, input_shape=(channels, *size))
            before = Preprocessing(size=size, channels="L" if channels == 1 else "RGB")
        seen = dataclasses.replace(
            before,
            size=size,
            resize=self._resize(before),
            interpolation=self.interpolation or before.interpolation,
            mean=self.mean or before.mean,
            std=self.std or before.std,
        )
        for option, values in (("--mean", seen.mean), ("--std", seen.std)):
            if len(values) != channels:
                raise UsageError(f"{option} has {len(values)} numbers, but {spec.name} takes {channels} channels")
        return dataclasses.replace(spec, input_shape=(channels, *size), preprocessing=seen)

    def _resize(self, before: Preprocessing) -> int | None:
        if self.resize is not None:
            return self.resize or None
        if before.resize is None or self.img_size is None:
            return before.resize
        # Another crop keeps the share of the image that it shows (timm's crop_pct).
        return round(before.resize * self.img_size / before.size[0])


@dataclass(frozen=True, kw_only=True)
class Request:
    """A model as the command line names it."""

    model: str
    weights: str = "random"
    classes: int | None = None
    seed: int = 0
    sight: Sight = Sight()
    trust_engine: bool = False  # run an engine although it was downloaded
