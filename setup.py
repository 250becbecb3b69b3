"""What pyproject.toml cannot say: where the profiles lie, and the long description, whose links lead somewhere on PyPI.

Everything else is in pyproject.toml.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parent
# Of the repository, such as https://github.com/OWNER/resdeploy. It has no public address yet; with one, the project's
# links are on its page, and the description's links and pictures lead into the repository.
ADDRESS = ""
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\((?!https?://|#|mailto:)([^()\s]+)\)")


def description(text: str, address: str) -> str:
    """The README as it holds away from the repository.

    Args:
        text: Markdown, with links and pictures relative to the repository.
        address: of the repository; "": it has none, so that of a link its words stay, and pictures are left out.
    """

    def mend(link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        if not address:
            return "" if picture else words
        return f"{picture}[{words}]({address}/{'raw' if picture else 'blob'}/HEAD/{target})"

    return re.sub(r"\n{3,}", "\n\n", LINK.sub(mend, text))


def urls(address: str) -> dict[str, str]:
    """What stands beside the description."""
    pages = {"Documentation": "docs/README.md", "Changelog": "CHANGELOG.md", "Security": "SECURITY.md"}
    links = {name: f"{address}/blob/HEAD/{page}" for name, page in pages.items()}
    return {"Source": address, "Issues": f"{address}/issues", **links} if address else {}


if __name__ == "__main__":
    from setuptools import find_packages, setup

    setup(
        packages=[
            *find_packages(include=["resdeploy", "resdeploy.*"]),
            *("resdeploy.profiles", "resdeploy.report.templates"),
        ],
        package_dir={"resdeploy.profiles": "profiles"},
        package_data={
            "resdeploy": ["py.typed"],
            "resdeploy.packaged": ["*.md"],
            "resdeploy.profiles": ["*.toml"],
            "resdeploy.report.templates": ["*"],
        },
        long_description=description((ROOT / "README.md").read_text(encoding="utf-8"), ADDRESS),
        long_description_content_type="text/markdown",
        project_urls=urls(ADDRESS),
    )
