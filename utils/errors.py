"""What a stage says to the user."""
import sys
from collections import Counter

MOST_NAMED = 10

_said: set[str] = set()
_named: Counter[str] = Counter()


class InputError(Exception):
    """Something the user gave is wrong. The message names the file, what is wrong with it and what to do."""


def say_once(text: str, kind: str | None = None, key: str | None = None) -> None:
    """Prints a line on standard error, once in a process.

    Args:
        kind: of what may be said of many images: the first `MOST_NAMED` lines of a kind are printed
        key: what tells the line from others (left out: its text)
    """
    if (key or text) in _said:
        return
    _said.add(key or text)
    if kind is None or _named[kind] < MOST_NAMED:
        print(text, file=sys.stderr)
    elif _named[kind] == MOST_NAMED:
        print("further images like this one are not named", file=sys.stderr)
    if kind is not None:
        _named[kind] += 1

