"""Arrays between a lane and its child: each a file in their folder for as long as it is on its way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resdeploy import scratch, store

if TYPE_CHECKING:
    from numpy.typing import NDArray


def put(path: Path, array: NDArray[np.generic]) -> None:
    """Writes an `.npy` file; not with `numpy.save`, whose error on a full disk does not say that the disk is full.

    Raises:
        DiskFull, NotWritable: what the operating system said.
    """
    array = np.ascontiguousarray(array)
    with store.disk_errors(path, fix=scratch.roomier(path.parent.parent)), path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.reshape(-1).view(np.uint8).data)


def take(path: Path) -> NDArray[np.generic]:
    """Reads an `.npy` file into memory and removes it.

    Not mapped: whoever keeps a mapped answer keeps a file descriptor and a file with it, one for each batch.
    """
    array: NDArray[np.generic] = np.load(path, allow_pickle=False)
    path.unlink()
    return array
