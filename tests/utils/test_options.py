"""Options that are written once: as fields, arguments, and what the tracker keeps."""
import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from utils.errors import InputError
from utils.options import add_options, is_options, option, option_values, options_from, positive_int


@dataclass(frozen=True)
class Walk:
    radius: int = option(8, "pixels", type=positive_int)
    names: tuple[str, ...] = option(("a", "b"), "several")
    fast: bool = option(False, "a switch")
    tidy: bool = option(True, "a switch that is on")
    folder: Path | None = option(None, "a place", type=Path)

    def __post_init__(self):
        if self.radius > 20:
            raise InputError(f"--radius {self.radius}: give 20 or less")


@dataclass(frozen=True)
class Longer(Walk):
    seed: int = 42


def parse(*arguments: str, options: type = Walk) -> Walk:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=7)
    add_options(parser, Walk)
    add_options(parser.add_argument_group("again"), options)  # fields that are there already are left out
    return options_from(options, parser.parse_args(arguments))


def test_arguments_are_those_of_the_fields():
    assert parse() == Walk() and option_values(Walk()) == {
        "radius": 8, "names": ["a", "b"], "fast": False, "tidy": True, "folder": None}
    given = parse("--radius", "3", "--names", "c", "--fast", "--no-tidy", "--folder", "here")
    assert given == Walk(3, ("c",), True, False, Path("here"))
    assert option_values(given)["folder"] == str(Path("here").absolute())


def test_a_field_without_argument_of_its_own_takes_another_arguments_value():
    assert parse("--seed", "5", options=Longer) == Longer(seed=5)
    assert "seed" not in option_values(Longer()) and is_options(Walk()) and not is_options(Longer())


def test_defaults_may_be_replaced_and_help_shows_them():
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_options(parser, Walk, radius=2)
    assert options_from(Walk, parser.parse_args([])).radius == 2 and "pixels (default: 2)" in parser.format_help()


def test_what_options_refuse_is_the_users_to_mend(capsys):
    with pytest.raises(InputError, match="--radius 30"):
        parse("--radius", "30")
    with pytest.raises(SystemExit):
        parse("--radius", "0")
    assert "0 is not a positive number" in capsys.readouterr().err
