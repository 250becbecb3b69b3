"""What is published: the description holds away from the repository, and profiles are found in clone and wheel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resdeploy import places, store
from resdeploy.errors import MissingInput
from setup import description, urls

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TARGET = re.compile(r"\]\(([^()\s]+)\)")


def test_the_description_has_no_link_that_leads_nowhere() -> None:
    """Without an address of the repository the words stay; with one, links lead there."""
    assert [link for link in TARGET.findall(description(README, "")) if "://" not in link] == []
    led = description("![a picture](docs/a.svg) and [a page](docs/a.md#part), [else](https://elsewhere/)", "https://us")
    assert TARGET.findall(led) == [
        "https://us/raw/HEAD/docs/a.svg",
        "https://us/blob/HEAD/docs/a.md#part",
        "https://elsewhere/",
    ]
    assert description("Look at [a page](docs/a.md).\n\n![a picture](docs/a.svg)\n\nEnd", "") == (
        "Look at a page.\n\nEnd"
    )
    assert urls("") == {}
    assert set(urls("https://us")) >= {"Source", "Issues", "Changelog"}


def test_a_profile_is_named_by_its_path_or_as_one_that_comes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own file goes first; a name that is none is answered with those there are."""
    monkeypatch.chdir(tmp_path)
    assert store.read_profile(store.find_profile("quickstart")).name == "quickstart"
    (tmp_path / "quickstart").write_text('name = "mine"')
    assert store.read_profile(store.find_profile("quickstart")).name == "mine"
    with pytest.raises(MissingInput, match=r"no profile quickstep.*resdeploy init.*quickstart"):
        store.read_profile(store.find_profile("quickstep"))
    with pytest.raises(MissingInput):
        store.read_profile(store.find_profile("../profiles/quickstart"))
    monkeypatch.setattr(places, "__file__", str(tmp_path / "resdeploy/places.py"))
    assert places.profiles_dir() == tmp_path / "profiles"  # a clone
    (tmp_path / "resdeploy/profiles").mkdir(parents=True)
    assert places.profiles_dir() == tmp_path / "resdeploy/profiles"  # a wheel
