"""Overlapped reading and writing: order, errors, and how far ahead it runs."""
import threading

import pytest

from utils.overlap import batched, map_threaded


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order(threads):
    assert list(map_threaded(lambda item: item * item, range(20), threads)) == [item * item for item in range(20)]
    assert list(map_threaded(str, [], threads)) == []


def test_an_error_comes_in_place_of_its_result():
    results = map_threaded(lambda item: 1 // item, [2, 1, 0, 5])
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_the_next_item_is_worked_on_meanwhile_and_no_more_than_that():
    begun, taken = threading.Semaphore(0), []

    def items():
        for item in range(10):
            taken.append(item)
            yield item

    def work(item: int) -> int:
        begun.release()
        return item

    results = map_threaded(work, items())
    assert next(results) == 0
    assert begun.acquire(timeout=5)
    assert begun.acquire(timeout=5)  # the second one began before it was asked for
    assert taken == [0, 1]
    results.close()


def test_batches_take_no_item_too_early():
    items = iter(range(5))
    batches = batched(items, 2)
    assert next(batches) == [0, 1] and next(items) == 2
    assert list(batches) == [[3, 4]]
    assert list(batched([], 2)) == []
