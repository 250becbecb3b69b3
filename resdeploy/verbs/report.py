"""`report`: saved results, whichever command wrote them, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resdeploy.data import datasets, thumbnails
from resdeploy.errors import MalformedInput, MissingInput, refuse
from resdeploy.report import page, render

Document = Mapping[str, Any]


def report(results: Sequence[Path], images: str | None = None) -> str:
    """The page of these files, in their order.

    Args:
        results: JSON that a command wrote.
        images: the data that a gate judged on, as `--data` names it: the images that flipped are shown.

    Raises:
        UsageError: `images` without a gate that names any, or more than a page holds.
        MissingInput: a file that is not there, or none of the images that flipped.
        MalformedInput: a file that none of our commands wrote, or that is damaged.
    """
    documents = [(path.name, load(path)) for path in results]
    return page_of(documents, images)


def page_of(named: Sequence[tuple[str, Document]], images: str | None) -> str:
    """The page of documents with their names; `images` and what is raised as in `report`."""
    pictures = {} if images is None else pictures_of([document for _, document in named], images)
    return page.render_page(named, pictures)


def load(path: Path) -> Document:
    """A document from its file.

    Raises:
        MissingInput: no such file.
        MalformedInput: it holds something else.
    """
    if not path.is_file():
        raise MissingInput(f"there is no file {path}", fix="Name results that were written with --format json -o FILE")
    document = render.read_saved(path)
    if document is None:
        raise MalformedInput(
            f"{path} is not a result that resdeploy has saved",
            fix="Write one with --format json -o FILE; of `resdeploy run` it is runs/NAME/results.json",
        )
    return document


def pictures_of(documents: Sequence[Document], data: str) -> dict[str, str]:
    """Thumbnails of the images that flipped, by name.

    Raises:
        UsageError: no document names any.
        MissingInput: `data` has none of them; or as `datasets.open_dataset`.
    """
    names = page.names_of_flipped(documents)
    refuse(
        (
            not any(document["command"] == "gate" for document in documents),
            "--images shows what flipped, and none of the results is a gate's",
            "Leave it out",
        )
    )
    pictures = thumbnails.thumbnails(datasets.open_dataset(data, split="test", need_labels=False), names)
    if names and not pictures:
        raise MissingInput(
            f"{data} has none of the {len(names)} images that flipped, such as {names[0]}",
            fix="Give --images what the gate was given as --data",
        )
    return pictures
