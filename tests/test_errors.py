"""What is refused is refused all at once."""

from __future__ import annotations

import pytest

from resdeploy.errors import ProfileError, UsageError, refuse


def test_a_problem_alone_is_the_error_that_it_is() -> None:
    with pytest.raises(UsageError) as caught:
        refuse((False, "--a is wrong", "Add --x"), (["m.onnx"], "--b is wrong", "Add --y"))
    assert (caught.value.what, caught.value.fix) == ("--b is wrong", "Add --y")


def test_several_problems_are_one_error_that_gives_each_its_fix() -> None:
    with pytest.raises(UsageError) as caught:
        refuse((True, "--a is wrong", "Add --x"), (False, "--b is wrong", "Add --y"), (True, "is --c wrong?", "Stop"))
    assert str(caught.value) == "error[E-USAGE]: (1) --a is wrong. Add --x. (2) is --c wrong? Stop."


def test_a_fix_that_all_problems_share_is_given_once_and_a_problem_said_twice_is_one() -> None:
    wrong = (True, "a: none", "Correct these keys")
    with pytest.raises(ProfileError) as caught:
        refuse(wrong, (True, "b: none", "Correct these keys"), wrong, kind=ProfileError, subject="profile p: ")
    assert str(caught.value) == "error[E-PROFILE]: profile p: a: none; b: none. Correct these keys."


def test_what_is_not_wrong_is_not_refused() -> None:
    refuse((False, "--a is wrong", "Add --x"), (None, "--b is wrong", "Add --y"))
