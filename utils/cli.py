"""How every stage starts and ends: arguments are parsed; what goes wrong is one line and an exit code.

    2      what the user gave is wrong (`InputError`, arguments)
    1      what the machine refuses: disk, permission, memory
    3      done, but for images that can't be read
    130    interrupted
"""
import argparse
import errno
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING

from utils.errors import InputError
from utils.interrupts import on_interrupt
from utils.left_out import describe_left_out
from utils.memory import keep_freed_memory
from utils.options import Preset
from utils.provenance import note_arguments
from utils.ranks import local_rank, processes, rank
from utils.tracking.arguments import command_line_of_task, note_command

if TYPE_CHECKING:
    import torch


RESUMES = "the same command resumes where it stopped"
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), f"make room; then {RESUMES}"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "allow it, or name another folder (--data_dir, "
                    "--derived_dir, --results_dir, or SAM_BURDEN_RUNS in the environment)"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n), or give fewer --num_workers"),
}
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "Insufficient memory",
                 "Cannot allocate memory")


def run_stage(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser,
              argv: list[str] | None = None, shared: bool = False) -> None:
    """Runs `main(args)`. What the user or the machine must mend becomes one line on standard error and an exit code.

    Args:
        shared: whether several processes of torchrun share the stage's work; the first one's output alone is shown
    """
    try:
        _run(main, parser, argv, shared)
    except SystemExit as end:
        _leave(end.code)
        raise
    except Exception:
        if _must_leave():
            traceback.print_exc()
        _leave(1)
        raise
    _leave(0)


def _leave(code: object) -> None:
    """Ends the process at once where threads would keep it, or abort it."""
    if _must_leave():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _must_leave() -> bool:
    """Whether a ClearML server was lost, for which threads wait for hours, or processes of torchrun know each other,
    whose threads were seen to abort one at its end."""
    server = sys.modules.get("utils.tracking.server")  # else there is none
    distributed = sys.modules.get("torch.distributed") if processes() > 1 else None
    return (server is not None and server.is_given_up()) or (distributed is not None and distributed.is_initialized())


def _run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, argv: list[str] | None,
         shared: bool) -> None:
    on_interrupt(signal.default_int_handler)
    args = _parse(parser, argv)
    keep_freed_memory()
    note_arguments({name: value for name, value in vars(args).items() if name != "given"})
    _prepare_process(getattr(args, "threads", None), getattr(args, "record_diff", True))
    if not getattr(args, "upload_masks", True):
        from utils.tracking.artifacts import keep_files_here  # takes a while, as the tracker does
        keep_files_here()
    try:
        if processes() > 1 and not shared:
            raise InputError("this stage doesn't share its work; start it without torchrun")
        with redirect_stdout(_Silence()) if rank() else nullcontext():
            main(args)
        if told := describe_left_out():
            _end(parser, f"done, but {told}", 3)
    except InputError as error:
        _end(parser, f"error: {error}", 2)
    except BrokenPipeError:  # who read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _end(parser, f"error: {explain(error)}", 1)
    except KeyboardInterrupt:
        _end(parser, f"interrupted; {RESUMES}", 130)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        _end(parser, f"error: out of memory ({str(error).partition('.')[0]}); give a smaller --batch_size, "
                     f"--infer_batch_size or --sam_type, or end other programs; {RESUMES}", 1)


class _Silence(io.TextIOBase):
    """Takes what is printed, and keeps none of it."""

    def write(self, text: str) -> int:
        return len(text)


def _parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Where a ClearML agent runs the stage, what its task shows comes last, so that it counts."""
    try:
        of_task = command_line_of_task(parser) if argv is None else []
    except InputError as error:
        _end(parser, f"error: {error}", 2)
    args = parser.parse_args([*(sys.argv[1:] if argv is None else argv), *of_task])
    note_command(parser, vars(args))
    return args


def _prepare_process(threads: int | None, record_diff: bool) -> None:
    if not sys.warnoptions:  # those of libraries are for programmers; what a user must know is an `InputError`
        warnings.simplefilter("ignore")
        if cv2 := sys.modules.get("cv2"):
            cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    logging.getLogger("clearml.Repository Detection").setLevel(logging.ERROR)  # a checkout may have no remote
    if threads:
        import torch  # takes seconds, and not every stage computes
        torch.set_num_threads(threads)
    if not record_diff:
        os.environ["CLEARML_VCS_DIFF"] = ""  # which takes the place of the working tree's


def explain(error: OSError) -> str:
    """What the system refuses, why, and what to do."""
    what = f"{error.filename2 or error.filename}: " if error.filename else ""
    return f"{what}{error.strerror or error}; {REMEDIES.get(error.errno, f'mend this; then {RESUMES}')}"


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def _end(parser: argparse.ArgumentParser, message: str, code: int) -> None:
    on_interrupt(signal.SIG_DFL)  # a second Ctrl-C ends at once, without a traceback
    print(f"{parser.prog}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def stage_parser(module: str, docstring: str, conflict_handler: str = "error") -> argparse.ArgumentParser:
    """A parser whose `--help` opens with the stage's docstring and shows every default.

    `module` is the name in `python -m <module>`.
    """
    return _StageParser(prog=f"python -m {module}", description=docstring, formatter_class=_HelpFormatter,
                        conflict_handler=conflict_handler, allow_abbrev=False)


class _StageParser(argparse.ArgumentParser):
    """Also says which arguments were given: `given` holds the names of those that aren't defaults."""

    def parse_args(self, argv=None, namespace=None):
        parsed = super().parse_args(argv, namespace)
        untouched = argparse.Namespace(**dict.fromkeys((action.dest for action in self._actions), self))
        super().parse_args(argv, untouched)
        parsed.given = frozenset(name for name, value in vars(untouched).items() if value is not self)
        for action in self._actions:
            if isinstance(action, Preset):
                action.apply(vars(parsed), parsed.given)
        return parsed


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's line breaks and shows defaults, except where there is none to show. Its first line names
    only what must be given."""

    def add_usage(self, usage, actions, groups, prefix=None):
        self._prog += " [options]"
        super().add_usage(usage, [action for action in actions if action.required or not action.option_strings], [],
                          prefix)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def select_device(gpu_id: int | None) -> "torch.device":
    """The GPU of that number; without a number the first GPU, under torchrun each process its own. The CPU where there
    is none, with a note if one was asked for: so the paper's commands run there, too.

    Raises:
        InputError: there are GPUs, but not that one.
    """
    import torch  # takes seconds, and not every stage needs it
    count = torch.cuda.device_count()
    if count and processes() > 1:
        if gpu_id is not None or local_rank() >= count:
            raise InputError(f"each process of torchrun has a GPU of its own: leave out --gpu_id, and give "
                             f"--nproc_per_node at most {count}, the number of GPUs here")
        gpu_id = local_rank()
    if count == 0:
        if gpu_id is not None:
            print(f"--gpu_id {gpu_id}: no CUDA GPU was found; computing on the CPU", file=sys.stderr)
        return torch.device("cpu")
    if gpu_id is None or 0 <= gpu_id < count:
        return torch.device("cuda", gpu_id or 0)
    raise InputError(f"--gpu_id {gpu_id}: there is no such GPU; GPUs 0 to {count - 1} are here")


def tell(title: str, lines: Iterable[str]) -> None:
    """Prints each line with the title before it."""
    for line in lines:
        print(f"{title}: {line}")
