"""Reading, writing and computing side by side: order, errors, and how far ahead it runs."""
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import ROOT
from utils.overlap import batched, map_side_by_side, map_threaded


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


@pytest.mark.parametrize("workers", [1, 3, None])
def test_workers_give_results_in_order_and_errors_in_place(workers):
    def work(item: int) -> float:
        time.sleep(0.01 * (item % 3))  # later items are ready first
        return 1 / item

    results = map_side_by_side(work, [3, 1, 2, 4, 0, 5], workers)
    assert [next(results) for _ in range(4)] == [1 / 3, 1, 1 / 2, 1 / 4]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_more_workers_run_than_asked_for_and_no_more_items_are_taken():
    running, most, taken, lock = 0, 0, [], threading.Lock()

    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return item

    results = map_side_by_side(work, (taken.append(item) or item for item in range(20)), 3)
    for number in range(20):
        assert next(results) == number
        assert len(taken) <= number + 4
    assert most == 3


INTERRUPTED = """
import time
from utils.cli import run_stage, stage_parser
from utils.overlap import map_side_by_side

def work(item):
    time.sleep(0.1)
    return item

def main(args):
    for item in map_side_by_side(work, range(10 ** 6), 2):
        print(item, flush=True)

run_stage(main, stage_parser("stage", ""))
"""


def test_a_stage_can_be_interrupted_meanwhile():
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "0\n"
        process.send_signal(signal.SIGINT)
        assert "interrupted" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
