"""Images that come in clusters, as the frames of a video do: how many images drawn one by one they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.stats.proportions import normal_quantile

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def design_effect(outcomes: ArrayLike, clusters: Sequence[str], *, tail: float = 0.05) -> float:
    """By how much to divide all counts so that a test for images drawn one by one holds for drawn clusters; 1 or more.

    The variance of the mean outcome between clusters over its variance between images; counts divided by it are judged
    as usual (Rao and Scott, Biometrics 48 (1992) 577-585). The variance is that of clusters of any size, with their
    number over one less (Cameron and Miller, J. Human Resources 50 (2015) 317-372); for few clusters Student's t with
    one degree less than clusters takes the place of the normal quantile (there, section VI), as a factor.

    Where no outcome differs from the others nothing is known of how alike a cluster is: each counts as one image, with
    Kish's effective number where sizes differ (sum of sizes^2 / images, *Survey Sampling*, 1965).

    Args:
        outcomes: (n,) of each image.
        clusters: (n,) what each was taken from, two or more.
        tail: of the bound, in (0, 0.5).

    Raises:
        ValueError: fewer than two clusters.
    """
    from scipy.special import stdtrit

    x = np.asarray(outcomes, np.float64)
    names, which, sizes = np.unique(np.asarray(clusters, np.str_), return_inverse=True, return_counts=True)
    count = len(names)
    if count < 2:
        msg = f"{count} clusters"
        raise ValueError(msg)
    wider = float(stdtrit(count - 1, 1 - tail) / normal_quantile(1 - tail)) ** 2
    away = x - x.mean()
    if not away.any():
        return wider * float((sizes.astype(np.float64) ** 2).sum()) / len(x)
    between = count / (count - 1) * float((np.bincount(which, weights=away) ** 2).sum())
    return wider * max(1.0, between / float((away**2).sum()))
