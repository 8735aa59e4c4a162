"""Options of a stage as dataclasses: each is written once, and its command-line argument is made from it.

    @dataclass(frozen=True)
    class Walk:
        radius: int = option(8, "radius of the disk in pixels", type=positive_int)

    add_options(parser, Walk)                   # --radius, with its help and default
    walk = options_from(Walk, parser.parse_args())
"""
import argparse
import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

Options = TypeVar("Options")


def option(default: Any, help: str, **arguments: Any) -> Any:
    """A field of an options dataclass.

    Args:
        default: of the field and its argument; True or False make a switch, a tuple several values
        help: of its argument
        arguments: more for `add_argument`, such as type, choices, nargs or metavar
    """
    return dataclasses.field(default=default, metadata={"argument": {"help": help, **arguments}})


def add_options(parser: argparse._ActionsContainer, options: type, only: Collection[str] = (), **defaults: Any) -> None:
    """Adds the argument `--<field>` of each field that was made by `option`, or of those that `only` names; `defaults`
    replace those of the fields. A class with a `title` has a group of that title in `--help`, but for those that `only`
    names.

    One that is there already is left out: option dataclasses may share fields.
    """
    if not only and isinstance(parser, argparse.ArgumentParser) and hasattr(options, "title"):
        parser = argument_group(parser, options.title)
    for field in dataclasses.fields(options):
        wanted = "argument" in field.metadata and (not only or field.name in only)
        if wanted and f"--{field.name}" not in parser._option_string_actions:
            default = defaults.get(field.name, field.default)
            arguments = {**_infer(default), **field.metadata["argument"]}
            parser.add_argument(f"--{field.name}", default=default, **arguments)


def argument_group(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """The parser's group of that title, a new one where there is none yet."""
    known = [group for group in parser._action_groups if group.title == title]
    return known[0] if known else parser.add_argument_group(title)


class Preset(argparse.Action):
    """An argument whose value gives other options their values, as far as these aren't given: `values` holds them by
    name. A stage's parser (`utils.cli.stage_parser`) applies it, in the order of its arguments."""

    def __init__(self, *names: Any, values: Mapping[str, Mapping[str, Any]], **arguments: Any):
        super().__init__(*names, choices=tuple(values), **arguments)
        self.values = values

    def __call__(self, parser, namespace, name, option_string=None):
        setattr(namespace, self.dest, name)

    def apply(self, arguments: dict[str, Any], given: Collection[str]) -> None:
        """Changes the parsed arguments, by name, that aren't `given`."""
        preset = self.values.get(arguments[self.dest], {})
        arguments.update({name: value for name, value in preset.items() if name not in given})


def _infer(default: Any) -> dict[str, Any]:
    """What a default says of its argument, where the field doesn't."""
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction if default else "store_true"}
    if isinstance(default, tuple):
        return {"nargs": "+"}
    return {}


def options_from(options: type[Options], args: argparse.Namespace, **more: Any) -> Options:
    """The options that the arguments say; `more` are fields that have no argument.

    Raises:
        InputError: the options' own checks refuse them.
    """
    names = [field.name for field in dataclasses.fields(options) if hasattr(args, field.name)]
    values = {name: getattr(args, name) for name in names if name not in more}
    return options(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()},
                   **more)


def is_options(value: object) -> bool:
    """Whether it is an options dataclass, each field of which was made by `option`."""
    return dataclasses.is_dataclass(value) and all("argument" in field.metadata for field in dataclasses.fields(value))


def option_values(*options: object) -> dict[str, Any]:
    """The options by name, as the tracker and JSON take them."""
    values = {}
    for instance in options:
        for field in dataclasses.fields(instance):
            if "argument" in field.metadata:
                values[field.name] = plain_value(getattr(instance, field.name))
    return values


def positive_int(text: str) -> int:
    """An argparse type for counts."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def positive_float(text: str) -> float:
    """An argparse type for rates and weights, which float32 still holds after some steps of computation."""
    value = float(text)
    if not 0 < value <= 1e30:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number up to 1e30")
    return value


def non_negative(number: type) -> Callable[[str], int | float]:
    """An argparse type of 0 or more."""
    def convert(text: str) -> int | float:
        value = number(text)
        if not 0 <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{value} is negative, or not a number")
        return value
    return convert


def plain_value(value: Any) -> Any:
    """A value as the tracker and JSON take it: paths as text and in full, tuples as lists."""
    if isinstance(value, Path):
        return str(value.resolve())
    return list(value) if isinstance(value, tuple) else value
