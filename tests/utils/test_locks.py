"""Two runs on one output, and what killed ones leave."""
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.fresh_process import ROOT
from utils import locks
from utils.files import atomic_path
from utils.locks import check_writable, exclusive

WORK = """
import sys, time
from pathlib import Path
from utils.files import atomic_path
from utils.locks import exclusive
path, seconds = Path(sys.argv[1]), float(sys.argv[2])
with exclusive(path):
    number = int(path.read_text()) if path.exists() else 0
    with atomic_path(path) as temporary:
        temporary.write_text(str(number + 1))
        print("working", flush=True)
        time.sleep(seconds)
"""


def work(path, seconds):
    return subprocess.Popen([sys.executable, "-c", WORK, str(path), str(seconds)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_second_run_waits_and_sees_what_the_first_made(tmp_path):
    path = tmp_path / "new" / "count.txt"
    processes = [work(path, 0.2) for _ in range(4)]
    errors = [process.communicate(timeout=100)[1] for process in processes]
    assert path.read_text() == "4" and list(path.parent.iterdir()) == [path]
    waited = [error for error in errors if error]
    assert waited and all(error == f"{path}: another run is working on it; waiting until it has ended\n"
                          for error in waited)


def test_a_killed_run_keeps_nobody_waiting_and_the_next_one_tidies_up(tmp_path):
    path = tmp_path / "count.txt"
    killed = work(path, 100)
    killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(list(tmp_path.iterdir())) == 2  # the lock, and a half written file
    time.sleep(locks.YOUNG)
    assert work(path, 0).communicate(timeout=100)[1] == ""
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "1"


def test_what_a_living_run_is_writing_stays(tmp_path):
    with atomic_path(tmp_path / "one.txt") as temporary:
        temporary.write_text("half")
        os.utime(temporary, (0, 0))
        locks.remove_leftovers.__wrapped__(tmp_path)
        assert temporary.exists()


def test_threads_take_turns(tmp_path):
    path, inside = tmp_path / "output", []

    def enter():
        with exclusive(path):
            inside.append(1)
            time.sleep(0.01)
            assert inside.pop() == 1 and not inside

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_worked_on_and_told(tmp_path, capsys, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with exclusive(tmp_path / "output"), atomic_path(tmp_path / "output") as temporary:
        temporary.write_text("whole")
    assert "no locks" in capsys.readouterr().err
    assert (tmp_path / "output").read_text() == "whole"


def test_who_only_reads_needs_no_lock():
    with exclusive(locks.Path("/sys/output")):
        pass
    with pytest.raises(OSError, match=r"not permitted|denied|Read-only"):
        check_writable(locks.Path("/sys"))


def test_other_errors_are_not_hidden(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError), exclusive(tmp_path / "file" / "output"):
        pass
