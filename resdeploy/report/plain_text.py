"""Words from anywhere made harmless, and lines broken between words alone."""

from __future__ import annotations

import re

_FORMULA = tuple("=+-@\t\r＝＋－＠")


def inert(text: str) -> str:
    """Text that no terminal, log viewer or CI runner acts upon; whatever is not printable is shown escaped.

    A runner takes `::` for a command where a line begins with it, and lines break between words.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return re.sub(r"(?<!\S):(?=:)", ": ", shown).replace("##[", "## [")


def no_formula(text: str) -> str:
    """Text that no spreadsheet computes (OWASP, "CSV Injection")."""
    return "'" + text if text.lstrip().startswith(_FORMULA) else text


def fold(text: str, width: int | None, indent: str = "") -> list[str]:
    """The text in lines of at most `width` columns (None: one line), broken between words alone.

    A word that is longer than a line has one of its own; an interval is one word.

    Args:
        text: on one line.
        width: columns.
        indent: what every line but the first begins with.
    """
    from rich.cells import cell_len

    if width is None or cell_len(text) <= width:
        return [text]
    lines: list[str] = []
    line = ""
    for word in _words(text):
        longer = f"{line} {word}" if line.strip() else line + word
        if line.strip() and cell_len(longer) > width:
            lines.append(line)
            longer = indent + word
        line = longer
    return [*lines, line]


def _words(text: str) -> list[str]:
    return re.findall(r"\[[^\[\]]*\][^\s\[]*|\S+", text)
