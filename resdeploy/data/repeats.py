"""Images that occur more than once, by their bytes: statistics take images for independent, and copies are not.

Each content counts once, under the first of its names. Under several labels it counts not at all, since nobody can
say which answer would be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.errors import MalformedInput
from resdeploy.records import Repeats

if TYPE_CHECKING:
    from numpy.typing import NDArray


def count_each_once(
    ids: Sequence[str], labels: NDArray[np.int64], contents: Sequence[str]
) -> tuple[NDArray[np.int64], Repeats]:
    """Positions of the images that are counted, in order, and what is left out.

    Args:
        ids: (N,) names.
        labels: (N,) class ids; all -1 where there are none.
        contents: (N,) content hashes.

    Raises:
        MalformedInput: every image has several labels.
    """
    places: dict[str, list[int]] = {}
    for k, content in enumerate(contents):
        places.setdefault(content, []).append(k)
    counted, again, contradicted = [], [], []
    for first, *others in places.values():
        if (labels[others] == labels[first]).all():
            counted.append(first)
            again += [f"{ids[k]} is {ids[first]}" for k in others]
        else:
            contradicted.append(" is ".join(ids[k] for k in (first, *others)))
    if contents and not counted:
        raise MalformedInput(
            f"every image is there under several labels: {contradicted[0]}",
            cause="A class folder is a link to another, or a copy of it",
            fix="Leave each image in the folder of its class alone",
        )
    return np.array(counted, np.int64), Repeats(again=tuple(again), contradicted=tuple(contradicted))
