"""Going through many images: in batches, and with reading and writing beside the computation."""
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields the items in lists of `size`, the last one perhaps shorter; takes no item before it is needed."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def map_threaded(function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1) -> Iterator[Result]:
    """Yields `function(item)` for every item, in order; meanwhile threads work on the next `threads` items.

    `items` is advanced by the caller's thread: with a computation as `items` and a writer as `function`, a result is
    written while the next one is computed. An exception of `function` is raised in place of its result.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
