"""The arguments of a stage as the tracker shows them, and from there back: who clones a task, changes them and enqueues
it has its stage run with them.

A stage runs by its own command, or within another one (scripts.run_pipeline). In both cases its task shows the module
that reruns this stage alone, with what was chosen for it in the end.
"""
import argparse
import importlib
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.options import plain_value
from utils.paths import WORK

GENERAL = "Args"  # the section of arguments that are in no group
ACTIONS = (argparse._StoreAction, argparse._StoreTrueAction, argparse.BooleanOptionalAction)  # others act on others


@dataclass(frozen=True)
class Argument:
    """One of a task: its section, its value as the tracker takes it, and its help."""

    section: str
    value: str | int | float | bool | None
    help: str


@dataclass(frozen=True)
class Command:
    """What runs in this process."""

    module: str
    values: Mapping[str, Any]


_running: list[Command] = []


def note_command(parser: argparse.ArgumentParser, values: Mapping[str, Any]) -> None:
    """The stage that this process was started for, with its arguments by name."""
    _running[:] = [Command(parser.prog.rpartition(" ")[2], values)]


def get_module() -> str:
    """Of the stage that this process was started for; "" if it was started for something else."""
    return _running[0].module if _running else ""


def describe_arguments(module: str, chosen: Mapping[str, Any]) -> dict[str, Argument]:
    """Those of `python -m <module>`, by name: as `chosen`, or else as this process's command line says, or their
    defaults."""
    given = _running[0].values if _running else {}
    arguments = {}
    for section, action in _list_actions(importlib.import_module(module).get_args_parser()):
        value = next((values[action.dest] for values in (chosen, given) if action.dest in values), action.default)
        arguments[action.dest] = Argument(section, _as_shown(value), (action.help or "").replace("%%", "%"))
    return arguments


def _list_actions(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    for group in parser._action_groups:
        section = GENERAL if group.title in ("positional arguments", "options") else group.title.replace("/", " ")
        yield from ((section, action) for action in group._group_actions if type(action) in ACTIONS)


def _as_shown(value: Any) -> str | int | float | bool | None:
    """Paths in the project's folder start there, so that they mean the same on another machine."""
    if isinstance(value, Path):
        path = value.resolve()
        return str(path.relative_to(WORK)) if path.is_relative_to(WORK) else str(path)
    if isinstance(value, list | tuple):
        return shlex.join(map(str, value))
    return plain_value(value)


def command_line_of_task(parser: argparse.ArgumentParser) -> list[str]:
    """The arguments of the task that a ClearML agent runs this process for; [] if none does.

    Raises:
        InputError: the server can't be reached.
    """
    task_id = os.environ.get("CLEARML_TASK_ID")
    if not task_id:
        return []
    from utils.tracking.server import fetch_arguments  # takes half a second
    return write_command_line(parser, fetch_arguments(task_id))


def write_command_line(parser: argparse.ArgumentParser, shown: Mapping[str, str]) -> list[str]:
    """The command line that says what a task shows: {"<section>/<name>": text}. A text that is empty is left out."""
    texts = {name.partition("/")[2] or name: text for name, text in shown.items()}
    words = []
    for _, action in _list_actions(parser):
        if action.dest in texts:
            words += _write(action, texts[action.dest])
    return words


def _write(action: argparse.Action, text: str) -> list[str]:
    name = action.option_strings[0] if action.option_strings else ""
    if type(action) is not argparse._StoreAction:
        is_on = text.strip().lower() in ("true", "1", "yes", "on")
        if type(action) is argparse.BooleanOptionalAction:
            return [name if is_on else name.replace("--", "--no-", 1)]
        return [name] if is_on else []
    if action.nargs in (None, "?"):
        return [f"{name}={text}"] if text not in ("", "None") else []
    words = shlex.split(text.strip("[]").replace(",", " "))  # also as ClearML writes a list
    return [name, *words] if words or action.nargs == "*" else []
