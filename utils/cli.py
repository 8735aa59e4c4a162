"""How every stage starts: arguments are parsed, bad input ends it with one line and exit code 2."""
import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from utils.errors import InputError
from utils.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch


def run_stage(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser,
              argv: list[str] | None = None) -> None:
    """Runs `main(args)`. An `InputError` becomes one line on standard error and exit code 2."""
    args = parser.parse_args(argv)
    keep_freed_memory()
    try:
        main(args)
    except InputError as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command resumes where it stopped", file=sys.stderr)
        sys.exit(130)


def stage_parser(module: str, docstring: str, conflict_handler: str = "error") -> argparse.ArgumentParser:
    """A parser whose `--help` opens with the stage's docstring and shows every default.

    `module` is the name in `python -m <module>`.
    """
    return argparse.ArgumentParser(prog=f"python -m {module}", description=docstring,
                                   formatter_class=_HelpFormatter, conflict_handler=conflict_handler)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's line breaks and shows defaults, except where there is none to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def select_device(gpu_id: int | None) -> "torch.device":
    """The GPU of that number; without a number the first GPU. The CPU where there is none, with a note if one was asked
    for: so the paper's commands run there, too.

    Raises:
        InputError: there are GPUs, but not that one.
    """
    import torch  # takes seconds, and not every stage needs it
    count = torch.cuda.device_count()
    if count == 0:
        if gpu_id is not None:
            print(f"--gpu_id {gpu_id}: no CUDA GPU was found; computing on the CPU", file=sys.stderr)
        return torch.device("cpu")
    if gpu_id is None or 0 <= gpu_id < count:
        return torch.device("cuda", gpu_id or 0)
    raise InputError(f"--gpu_id {gpu_id}: there is no such GPU; GPUs 0 to {count - 1} are here")
