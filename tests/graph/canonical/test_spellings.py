"""One network in many spellings is one canonical graph, and one INT8 file."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resdeploy.graph.canonical import form
from resdeploy.records import Target
from tests.spellings import OPSETS, assert_one_form, in_int8, respell, small_net


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**20), opset=st.sampled_from(OPSETS))
def test_every_spelling_has_the_same_canonical_graph(seed: int, opset: int) -> None:
    """Bit for bit but for names: constants anywhere, norms apart, pads apart, layouts, sums, bounds, opsets 7 to 22."""
    assert_one_form(seed, opset)


@pytest.mark.parametrize("target", get_args(Target))
def test_every_spelling_has_the_same_int8_file(target: Target, tmp_path: Path) -> None:
    """The same nodes, scales and integers but for names: the spelling costs no accuracy whatever the target."""
    plain = small_net(5)
    assert in_int8(respell(form.canonicalise(plain), 5, 13), target, tmp_path) == in_int8(plain, target, tmp_path)
