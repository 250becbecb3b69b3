"""Which of several images count."""

from __future__ import annotations

import numpy as np
import pytest

from resdeploy.data import repeats
from resdeploy.errors import MalformedInput


def test_a_content_counts_once_and_under_two_labels_not_at_all() -> None:
    """The first name of each content stays, in order; all names of a contradicted one go."""
    ids, labels, contents = "abcdefg", np.array([0, 1, 0, 1, 2, 0, 2]), ("x", "y", "x", "z", "z", "x", "w")
    kept, found = repeats.count_each_once(ids, labels, contents)
    assert [ids[k] for k in kept] == ["a", "b", "g"]
    assert found.again == ("c is a", "f is a")
    assert found.contradicted == ("d is e",)
    assert [sentence[:2] for sentence in found.notes] == ["2 ", "1 "]


def test_nothing_is_said_of_images_that_differ() -> None:
    """As every published data set should be."""
    kept, found = repeats.count_each_once("ab", np.array([0, 0]), ("x", "y"))
    assert (kept.tolist(), found.notes) == ([0, 1], ())


def test_a_set_of_contradictions_is_malformed() -> None:
    """Nothing is left to judge on; two of the names are given."""
    with pytest.raises(MalformedInput, match="a is b") as caught:
        repeats.count_each_once("ab", np.array([0, 1]), ("x", "x"))
    assert caught.value.exit_status == 4
