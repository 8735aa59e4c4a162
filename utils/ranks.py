"""Which part of a stage's work is this process's: as one of those that torchrun started, or of a scheduler's array.

    torchrun --nproc_per_node 2 -m scripts.save_segmentations       # ranks 0 and 1
    python -m scripts.save_segmentations --shard 1/2                # elsewhere 2/2
"""
import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from utils.errors import InputError

Item = TypeVar("Item")
ONE_RUN = "TORCHELASTIC_RUN_ID"  # by which torchrun, and nothing else that sets RANK, is known


def processes() -> int:
    """How many torchrun started for this run, on all machines; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if ONE_RUN in os.environ else 1


def rank() -> int:
    """This process's number among them, from 0: the one that tracks, saves and publishes."""
    return int(os.environ["RANK"]) if ONE_RUN in os.environ else 0


def local_rank() -> int:
    """Its number among those on this machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if ONE_RUN in os.environ else 0


@dataclass(frozen=True)
class Shard:
    """The `number`-th, from 1, of `count` equal parts of the images."""

    number: int = 1
    count: int = 1

    @classmethod
    def choose(cls, text: str | None) -> "Shard":
        """That of `--shard`, or of this process's rank; the whole without either.

        Raises:
            InputError: it isn't of the form I/N with I from 1 to N, or torchrun shares the work already.
        """
        if text is None:
            return cls(rank() + 1, processes())
        if processes() > 1:
            raise InputError("--shard: torchrun shares the work among its processes; leave it out")
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise InputError(f"--shard {text}: give I/N with I from 1 to N, such as 1/8 to 8/8")
        return cls(int(number), int(count))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """In file names."""
        return f"{self.number}of{self.count}"

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `count`-th of them, so that shards take equally long wherever the hard ones lie."""
        return items[self.number - 1::self.count]

    def to_lock(self, path: Path) -> Path:
        """What `utils.locks.exclusive` takes for this shard's work on `path`: shards don't wait for each other."""
        return path if self.count == 1 else path.with_name(f"{path.name}.{self.name}")


WHOLE = Shard()
_shard = WHOLE


@contextmanager
def work_on(shard: Shard) -> Iterator[None]:
    """Within it `current_shard` is this one."""
    global _shard
    before, _shard = _shard, shard
    try:
        yield
    finally:
        _shard = before


def current_shard() -> Shard:
    """What this process works on."""
    return _shard


def add_shard_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shard", metavar="I/N", help="only the I-th of N parts of the images, as one of N processes "
                                                       "(left out: all, or what torchrun gives to this process)")
