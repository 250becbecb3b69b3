"""The processes that torchrun has started, by the variables that it sets; without it, this one alone."""

from __future__ import annotations

import os


def process_count() -> int:
    """How many processes torchrun has started, 1 where it did not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0 on."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Which of those on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def started() -> bool:
    """Whether torchrun started this process."""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()
