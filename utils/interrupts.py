"""Ctrl-C. Imported before all else, so it needs next to nothing itself."""
import os
import signal
import sys
from collections.abc import Callable


def end_quietly_on_interrupt() -> None:
    """Until a stage takes over, Ctrl-C is one line: for the packages of commands, whose imports take seconds.

    Does nothing where a package is imported for another reason than to run one of its modules.
    """
    if sys.argv[:1] == ["-m"]:  # until Python has found the module
        on_interrupt(_end_at_once)


def on_interrupt(handler: Callable | signal.Handlers) -> None:
    """What Ctrl-C does from now on; in a thread nothing changes, as no other than the main one may say so."""
    try:
        signal.signal(signal.SIGINT, handler)
    except ValueError:
        return


def _end_at_once(*_: object) -> None:
    print("interrupted; nothing was begun", file=sys.stderr, flush=True)
    os._exit(130)
