"""What `--help` prints: commands and options in groups, examples one a line, nothing cut and no word broken.

Written here and not by rich, whose import costs more than all else that `--help` does (benchmarks/startup.py).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

WIDEST = 100  # columns; longer lines are hard to read
FIRST = 30  # the widest first column: longer ones have a line of their own
BOLD = "\x1b[1m{}\x1b[0m"  # ECMA-48, select graphic rendition
SHORT = 24  # letters of choices that stand beside their option; longer ones stand in its text
KINDS = {"int": "N", "float": "X", "str": "TEXT", "text": "TEXT", "Path": "PATH", "path": "PATH"}  # by the type's name
NOTHING: tuple[Any, ...] = (None, False, "", (), [])
Entry = tuple[str, str]  # left and right


class Command(TyperCommand):
    """A command whose help is written here."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(of_command(self, ctx))


class Group(TyperGroup):
    """A group of commands, likewise."""

    panels: tuple[str, ...] = ()  # in this order; others come last

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(of_group(self, ctx))


class App(typer.Typer):
    """Typer's app with all of its commands such."""

    def __init__(self, *, cls: type[Group] = Group, **options: Any) -> None:
        super().__init__(cls=cls, rich_markup_mode=None, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        return super().command(name, cls=Command, **options)


def of_command(command: Any, ctx: Any) -> str:
    """How it is called, what it does, examples, arguments, options."""
    return "\n\n".join([*_opening(command, ctx), *_options(command, ctx)]) + "\n"


def of_group(group: Any, ctx: Any) -> str:
    """As of a command; the commands of each panel before the options."""
    panels: dict[str, list[Entry]] = {}
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        entry = name, _paragraphs(command.help or "")[0]
        panels.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append(entry)
    width = max(len(name) for entries in panels.values() for name, _ in entries)
    listed = [_section(panel, panels[panel], width) for panel in _in_order(panels, group.panels)]
    return "\n\n".join([*_opening(group, ctx), *listed, *_options(group, ctx)]) + "\n"


def usage(command: Any, ctx: Any) -> str:
    """How it is called, after `Usage:`."""
    pieces = [
        ctx.command_path,
        "[OPTIONS]",
        *(_argument(each) for each in command.get_params(ctx) if _is_argument(each)),
    ]
    return " ".join([*pieces, *(["COMMAND [ARGS]..."] if isinstance(command, TyperGroup) else [])])


def _opening(command: Any, ctx: Any) -> list[str]:
    parts = [f"{_bold('Usage:')} {usage(command, ctx)}"]
    for paragraph in _paragraphs(f"{command.help or ''}\n\n{command.epilog or ''}"):
        head, _, examples = paragraph.partition(": ")
        if head in ("Example", "Examples"):
            parts.append("\n".join([_bold(f"{head}:"), *map(_example, examples.split(" · "))]))
        else:
            parts.append("\n".join(textwrap.wrap(paragraph, _width(), break_long_words=False, break_on_hyphens=False)))
    return parts


def _paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()] or [""]


def _example(example: str) -> str:
    """As it can be copied: a line that goes on ends in a backslash, and the next one begins with an option."""
    lines: list[str] = []
    for piece in re.split(" (?=-)", example):
        if lines and len(lines[-1]) + len(piece) + 1 <= _width() - 8:
            lines[-1] += f" {piece}"
        else:
            lines.append(piece)
    return "  " + " \\\n      ".join(lines)


def _options(command: Any, ctx: Any) -> list[str]:
    arguments: list[Entry] = []
    panels: dict[str, list[Entry]] = {}
    for parameter in command.get_params(ctx):
        if getattr(parameter, "hidden", False):
            continue
        if _is_argument(parameter):
            arguments.append((_argument(parameter), _text(parameter)))
        else:
            panel = getattr(parameter, "rich_help_panel", None) or "Options"
            panels.setdefault(panel, []).append((_names(parameter), _text(parameter)))
    sections = [("Arguments", arguments)] if arguments else []
    return [_section(title, entries) for title, entries in sections] + [
        _section(panel, panels[panel]) for panel in _in_order(panels, ("Options",))
    ]


def _in_order(panels: Iterable[str], first: Sequence[str]) -> list[str]:
    """Panels as they come, but for those that have a place."""
    return sorted(panels, key=lambda panel: first.index(panel) if panel in first else len(first))


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _names(option: Any) -> str:
    """`-b, --batch-size N`, `--portable / --no-portable`."""
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        return f"{names} / {', '.join(option.secondary_opts)}"
    return names if option.is_flag or option.count else f"{names} {_kind(option)}"


def _kind(option: Any) -> str:
    if option.metavar:
        return str(option.metavar)
    if choices := _choices(option):
        return choices if len(choices) <= SHORT else "NAME"
    described = _described(option)
    name = str(getattr(getattr(described, "annotation", None), "__name__", getattr(described, "name", "text")))
    return next((letters for kind, letters in KINDS.items() if name.startswith(kind)), "TEXT")


def _choices(parameter: Any) -> str:
    return "|".join(str(choice) for choice in getattr(_described(parameter), "choices", None) or ())


def _described(parameter: Any) -> Any:
    """Its type, which Typer keeps in one of two places: from 0.27 on it is no longer click's."""
    return getattr(parameter, "type_descriptor", None) or parameter.type


def _text(parameter: Any) -> str:
    """What it does, what it can be, where else it is taken from, and what it is by default."""
    told = [parameter.help or ""]
    choices = _choices(parameter)
    if len(choices) > SHORT:
        told.append(f"One of {choices.replace('|', ', ')}.")
    if parameter.envvar:
        told.append(f"Also from {parameter.envvar}.")
    if parameter.required and parameter.param_type_name == "option":
        told.append("[required]")
    shown = parameter.show_default
    if isinstance(shown, str):
        told.append(f"[default: {shown}]")
    elif shown and not callable(parameter.default) and parameter.default not in (*NOTHING, True):
        default = parameter.default
        told.append(f"[default: {format(default, 'g') if isinstance(default, float) else default}]")
    return " ".join(filter(None, told))


def _section(title: str, entries: Iterable[Entry], width: int = 0) -> str:
    entries = list(entries)
    width = width or max((len(left) for left, _ in entries if len(left) <= FIRST), default=FIRST)
    lines = [_bold(f"{title}:")]
    for left, right in entries:
        wrapped = textwrap.wrap(right, _width() - width - 4, break_long_words=False, break_on_hyphens=False) or [""]
        beside = left if len(left) <= width else ""
        lines += [] if beside else [f"  {left}"]
        lines += [f"  {'' if k else beside:<{width}}  {line}".rstrip() for k, line in enumerate(wrapped)]
    return "\n".join(lines)


def _width() -> int:
    return min(shutil.get_terminal_size().columns, WIDEST)


def _bold(text: str) -> str:
    wanted = sys.stdout is not None and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return BOLD.format(text) if wanted else text
