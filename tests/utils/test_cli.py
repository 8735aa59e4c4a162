"""How stages end."""
import argparse
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from tests.fresh_process import ROOT
from utils.cli import run_stage, select_device
from utils.errors import InputError


def raise_(error: BaseException):
    raise error


def end(capsys, error: BaseException) -> tuple[int, str]:
    """Exit code and standard error of a stage in which that happens."""
    with pytest.raises(SystemExit) as stop:
        run_stage(lambda _: raise_(error), argparse.ArgumentParser(prog="stage"), [])
    return stop.value.code, capsys.readouterr().err


def system_error(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *names)


def test_bad_input_is_one_line_and_exit_code_2(capsys):
    error = InputError("folder/image.png: broken;\n  replace it")
    assert end(capsys, error) == (2, "stage: error: folder/image.png: broken; replace it\n")


@pytest.mark.parametrize(("error", "words"), [
    (system_error(errno.ENOSPC, "a/raw.h5"), ["a/raw.h5: No space left on device; make room"]),
    (system_error(errno.EROFS, "a"), ["a: Read-only file system; allow it, or name another folder", "--derived_dir"]),
    (system_error(errno.EACCES, "a"), ["a: Permission denied"]),
    (system_error(errno.EIO), ["Input/output error; mend this; then the same command"]),
    (MemoryError(), ["out of memory", "--batch_size"]),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
     ["out of memory"]),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ["out of memory (CUDA out of memory)"]),
])
def test_what_the_machine_refuses_is_one_line_and_exit_code_1(capsys, error, words):
    code, text = end(capsys, error)
    assert code == 1 and text.count("\n") == 1 and all(each in text for each in words)


def test_a_mistake_of_this_project_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_stage(lambda _: 1 / 0, argparse.ArgumentParser(prog="stage"), [])


def test_a_stage_runs_in_a_thread():
    done = []
    thread = threading.Thread(target=run_stage, args=(done.append, argparse.ArgumentParser(), []))
    thread.start()
    thread.join()
    assert len(done) == 1


@pytest.mark.parametrize("seconds", [0.15, 0.4, 0.8])
def test_an_interruption_while_packages_are_imported_is_one_line(seconds):
    """From the moment on at which Python has found the stage."""
    code = ("import os, signal, sys, threading; pid = os.getpid(); sys.argv[0] = '-m'; import scripts; "
            f"threading.Timer({seconds}, os.kill, (pid, signal.SIGINT)).start(); import unet_training.training; "
            "import time; time.sleep(20)")
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100,
                             check=False)
    assert (process.returncode, process.stderr) == (130, "interrupted; nothing was begun\n")


def test_the_shell_starts_a_stage_in_this_way():
    process = subprocess.Popen([sys.executable, "-m", "unet_training.training", "--help"], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while "_multiarray_umath" not in Path(f"/proc/{process.pid}/maps").read_text():  # of NumPy
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=100)
    assert error == "interrupted; nothing was begun\n" and process.returncode == 130


def test_warnings_of_libraries_stay_away_unless_asked_for():
    program = ("import argparse, warnings; from utils.cli import run_stage;"
               "run_stage(lambda _: warnings.warn('of a library'), argparse.ArgumentParser(), [])")
    for flags, told in (([], False), (["-W", "default"], True)):
        done = subprocess.run([sys.executable, *flags, "-c", program], cwd=ROOT, capture_output=True, text=True,
                              check=True)
        assert ("of a library" in done.stderr) is told


def test_what_opencv_says_of_a_damaged_file_stays_away_unless_asked_for(tmp_path):
    path = tmp_path / "damaged.tif"
    tifffile.imwrite(path, np.zeros((20, 31), np.uint16))
    path.write_bytes(path.read_bytes()[:-300])
    program = ("import argparse, sys; from pathlib import Path; from utils.cli import run_stage;"
               "from utils.files import read_grey;"
               "run_stage(lambda _: read_grey(Path(sys.argv[1])), argparse.ArgumentParser(), [])")
    for flags, told in (([], False), (["-W", "default"], True)):
        done = subprocess.run([sys.executable, *flags, "-c", program, str(path)], cwd=ROOT, text=True,
                              capture_output=True)
        assert ("TIFF_Error" in done.stderr) is told
        assert "damaged.tif: not a readable image of 8 or 16 bits" in done.stderr


def test_device(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert select_device(None) == torch.device("cpu") and not capsys.readouterr().err
    assert select_device(0) == torch.device("cpu") and "no CUDA GPU" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device(None) == torch.device("cuda", 0)
    assert select_device(1) == torch.device("cuda", 1)
    with pytest.raises(InputError, match="0 to 1"):
        select_device(2)
    with pytest.raises(InputError):
        select_device(-1)
