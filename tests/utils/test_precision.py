"""Full float32, also for several threads at once."""
import threading

import torch

from utils.precision import full_float32


def test_the_last_of_several_threads_restores_the_setting():
    first_left, allowed = threading.Event(), []

    def stay_longer() -> None:
        with full_float32():
            begun.set()
            first_left.wait()
            allowed.append(torch.backends.cudnn.allow_tf32)

    assert torch.backends.cudnn.allow_tf32
    begun, thread = threading.Event(), threading.Thread(target=stay_longer)
    with full_float32():
        thread.start()
        begun.wait()
    first_left.set()
    thread.join()
    assert allowed == [False]
    assert torch.backends.cudnn.allow_tf32


def test_an_error_leaves_it_as_it_was():
    @full_float32()
    def fail() -> None:
        assert not torch.backends.cudnn.allow_tf32
        raise OSError

    try:
        fail()
    except OSError:
        assert torch.backends.cudnn.allow_tf32
