"""Going through many images: in batches, side by side, with reading and writing beside the computation."""
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from utils.threads import use_one_thread

Item, Result = TypeVar("Item"), TypeVar("Result")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields the items in lists of `size`, the last one perhaps shorter; takes no item before it is needed."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def map_threaded(function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1,
                 prepare: Callable[[], None] | None = None) -> Iterator[Result]:
    """Yields `function(item)` for every item, in order; meanwhile threads work on the next `threads` items.

    `items` is advanced by the caller's thread: with a computation as `items` and a writer as `function`, a result is
    written while the next one is computed. An exception of `function` is raised in place of its result. Each thread
    calls `prepare` first.
    """
    with ThreadPoolExecutor(threads, initializer=prepare) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def map_side_by_side(function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
                     ) -> Iterator[Result]:
    """`map_threaded` for what PyTorch computes on a CPU: each worker computes with one thread, its own.

    Threads that share an operation wait for each other at its end; workers don't, so that their throughput grows with
    the cores. Results don't depend on the number of workers. They share the weights, and each takes the memory that one
    item's computation does.

    Args:
        function: enters `torch.inference_mode` itself, which is a thread's own
        workers: None: as many as an operation would have threads
    """
    import torch  # takes seconds, and not every stage that reads beside its computation needs it
    threads = torch.get_num_threads()
    return map_threaded(function, items, workers or threads, partial(use_one_thread, elsewhere=threads))
