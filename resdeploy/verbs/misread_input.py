"""Why a candidate may have failed: does it answer better when images are preprocessed in another way?

Fingerprints reveal two files that *say* different things about their input. A network trained on BGR whose file says
RGB shows only in this way: where another reading of the images brings back most of the lost answers, that reading is
the likely cause. The verdict stands either way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from resdeploy.judge.pairs import Pair
from resdeploy.measure import interleaved, run_images
from resdeploy.records import Preprocessing, Progress

IMAGES = 400  # looked at again: shares within about 5 points, and a second or two per reading
BROUGHT_BACK = 0.5  # of the accuracy lost, from which a reading counts as the likely cause
# What networks are commonly trained with: torchvision, TensorFlow, CIFAR, pixels from 0 to 1 and from 0 to 255.
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mean and std of 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "CIFAR-10's mean and std": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "pixels from 0 to 1 without normalisation": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "pixels from 0 to 255 without normalisation": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}


def readings(spec: Preprocessing) -> Iterator[tuple[str, Preprocessing]]:
    """Other ways in which the network may have been trained to see images, and their names."""
    if spec.channels != "L":
        # With the same mean and std a colour, as most do, or a position.
        swapped = dataclasses.replace(spec, channels="BGR" if spec.channels == "RGB" else "RGB")
        name = f"{swapped.channels} in place of {spec.channels}"
        yield name, dataclasses.replace(swapped, mean=spec.mean[::-1], std=spec.std[::-1])
        yield f"{name}, mean and std in the same order", swapped
    for name, (mean, std) in NORMALISATIONS.items():
        channels = len(spec.mean)
        if (mean[:channels], std[:channels]) != (spec.mean, spec.std):
            yield name, dataclasses.replace(spec, mean=mean[:channels], std=std[:channels])


def cause(candidate: interleaved.Candidate, pair: Pair, data: str, *, progress: Progress) -> str:
    """A sentence that names the reading of the images that brings back most of what was lost; "" where none does.

    Args:
        candidate: the built model that failed.
        pair: its predictions beside the baseline's.
        data: the images, as the command line names them.
        progress: what is being done.
    """
    from resdeploy.data import datasets

    spec = candidate.artifact.model.preprocessing if candidate.artifact.model else None
    if spec is None or not pair.baseline.ids:
        return ""
    images = datasets.open_dataset(data, split="test")
    where = {name: k for k, name in enumerate(pair.baseline.ids)}
    shared = images.subset([k for k, name in enumerate(images.ids) if name in where])
    some = datasets.choose(shared, min(IMAGES, len(shared)), seed=0)
    positions = np.array([where[name] for name in some.ids])
    before, now = (
        float(np.mean(side.top[positions, 0] == side.labels[positions])) for side in (pair.baseline, pair.candidate)
    )
    if before <= now:
        return ""
    alternatives = list(readings(spec))
    shares = run_images.shares_right(candidate, some, [other for _, other in alternatives], progress=progress)
    best, name = max((share, name) for share, (name, _) in zip(shares, alternatives, strict=True))
    back = (best - now) / (before - now)
    if back <= BROUGHT_BACK:
        return ""
    return (
        f"Shown {len(some)} of the images again with {name}, the candidate gets back {100 * min(back, 1):.0f} % of the "
        "accuracy it lost: its file likely states its preprocessing wrongly"
    )
