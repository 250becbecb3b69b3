"""Errors that are written down keep their code, and what is refused is refused all at once."""

from __future__ import annotations

import pytest

from resdeploy.errors import (
    BackendCrash,
    BackendMissing,
    EnvironmentFailure,
    IntegrityError,
    OutOfMemory,
    PickleRefused,
    ProfileError,
    ResdeployError,
    UsageError,
    refuse,
    revive,
)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (IntegrityError("e", code="E-UNSIGNED"), IntegrityError),
        (EnvironmentFailure("e", code="E-BROKEN-PACKAGE"), EnvironmentFailure),
        (BackendCrash("e", code="E-NOT-FINITE"), BackendCrash),
        (UsageError("e", code="E-DIVERGED"), UsageError),
        (BackendMissing("e"), BackendMissing),
        (OutOfMemory("e"), OutOfMemory),
        (PickleRefused("e"), PickleRefused),
        (ResdeployError("e"), BackendCrash),
    ],
)
def test_an_error_comes_back_with_its_code_and_exit_status(error: ResdeployError, kind: type[ResdeployError]) -> None:
    """A finer code than any class's is kept, and the class is one of its exit status."""
    revived = revive(error.code, error.exit_status, error.paragraph)
    assert (type(revived), revived.code, revived.exit_status) == (kind, error.code, error.exit_status)
    assert str(revived) == str(error)


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
