"""Images that a run goes on without, because they can't be read: told of at its end, listed in a file.

    leave_out({"12": "img/12.png: not a readable image; replace the file"}, folder)
    ...
    run_stage then ends with exit code 3
"""
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from utils.ranks import WHOLE, current_shard

FILE = "left_out.csv"

_left_out: dict[Path, dict[str, str]] = {}  # list -> stem -> reason


def leave_out(reasons: Mapping[str, str], folder: Path) -> None:
    """Notes the images, stem -> reason, of the data set whose derived files lie in `folder`; with none of them its list
    of earlier ones goes."""
    from utils.tables import write_rows  # OpenCV and NumPy, which the start of a stage has no time for
    shard = current_shard()
    path = folder / (FILE if shard == WHOLE else f"left_out_{shard.name}.csv")
    known = _left_out.setdefault(path, {})
    new = {stem: reason for stem, reason in reasons.items() if stem not in known}
    known.update(new)
    with suppress(OSError):  # the folder may be read-only, and the end says it anyway
        if new:
            write_rows(path, [["stem", "reason"], *known.items()])
        elif not known:
            path.unlink(missing_ok=True)
    for reason in list(new.values())[:1]:
        print(f"left out: {reason}" + (f" ({len(new)} like it)" if len(new) > 1 else ""), file=sys.stderr)


def describe_left_out() -> str:
    """Of this run, in one line; "" if nothing was left out."""
    return "; ".join(f"{len(reasons)} images were left out, as they can't be read, such as {next(iter(reasons))}: see "
                     f"{path}" for path, reasons in _left_out.items() if reasons)
