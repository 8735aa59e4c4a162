"""One tracked run of a stage, in ClearML's terms a task.

The calls are the same whether there is a server or not (see utils/tracking/server.py):

    with start("initial training", {"stage": "initial", "num_train_samples": 5}) as experiment:
        experiment.scalar("loss", "training", 0.3, step=0)
        model_id = experiment.save_model(Path("unet.pt"), labels)
    weights = fetch_model(model_id).weights         # in any other process, see utils/tracking/models.py
"""
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.locks import check_writable, exclusive, hold
from utils.tracking.clearml_patches import keep_recent_sessions_in, leave_parents_task, release_signals
from utils.tracking.models import PROJECT, fetch_model, link_input_model, store_model, upload_model
from utils.tracking.offline_runs import end_session, remove_killed_sessions, runs_dir
from utils.tracking.server import correct_status, explain_refusals, has_server, prepare_clearml


class Experiment:
    """One run of a stage. Made by `start`."""

    def __init__(self, task, parameters: Mapping, tags: Sequence[str]):
        self.id: str = task.id
        self._task, self._parameters, self._tags = task, dict(parameters), tuple(tags)
        self._started, self._input_models = time.time(), []
        self._logger = task.get_logger()
        self._held = None if has_server() else hold(_session_folder(task))
        task.connect(dict(parameters), name="Args")

    def scalar(self, title: str, series: str, value: float, step: int) -> None:
        """One point of the curve `series` in the plot `title`. A value that isn't finite is left out."""
        if math.isfinite(value):
            self._logger.report_scalar(title, series, float(value), step)

    def histogram(self, title: str, values: Sequence[float], labels: Sequence[str], step: int) -> None:
        """One bar per class. Classes whose value is NaN are left out."""
        bars = {label: float(value) for label, value in zip(labels, values, strict=True) if math.isfinite(value)}
        self._logger.report_histogram(title, "classes", list(bars.values()), iteration=step, xlabels=list(bars))

    def image(self, title: str, series: str, image: np.ndarray, step: int) -> None:
        """A debug image, uint8, (H, W) or (H, W, 3)."""
        self._logger.report_image(title, series, iteration=step, image=image)

    def table(self, title: str, rows: Sequence[Sequence], step: int = 0) -> None:
        """A table; its first row is the header."""
        self._logger.report_table(title, "table", iteration=step, table_plot=[list(row) for row in rows])

    def use_model(self, model_id: str) -> None:
        """Links a model that this run starts from.

        Raises:
            InputError: there is no such model.
        """
        self._input_models.append(fetch_model(model_id).id)
        if has_server():
            link_input_model(self._task, model_id, len(self._input_models))

    def save_model(self, weights: Path, labels: Sequence[str]) -> str:
        """Keeps a copy of the weights as output model `bone_segmentator` with the labels of its channels.

        Returns its id once the copy is complete; a run that dies before that leaves no model.
        """
        if has_server():
            return upload_model(self._task, weights, self._parameters, labels, self._tags)
        return store_model(weights, self._parameters, labels, self._tags, self.id)

    def _end(self, status: str, reason: str) -> None:
        self._task.flush(wait_for_uploads=True)
        self._task.close()
        if has_server():
            correct_status(self._task, status, reason)
        else:
            _session_folder(self._task).with_suffix(".zip").unlink(missing_ok=True)  # the SDK's copy of the folder
            end_session(self.id, self._started, status, reason, self._input_models)
        if self._held is not None:
            os.close(self._held)


@contextmanager
def start(name: str, parameters: Mapping, tags: Sequence[str] = ()) -> Iterator[Experiment]:
    """Opens the task `name` of this project and closes it after the block.

    It ends as completed; as failed after an exception; as stopped when it is interrupted or terminated.

    Args:
        parameters: a flat dict of str, int, float, bool, None or lists of them
    Raises:
        InputError: the server that the credentials are for doesn't answer or refuses them, or a task of the caller's
            own is open.
        OSError: there is no place for the session.
    """
    leave_parents_task()
    if own := prepare_clearml().Task.current_task():
        raise InputError(f"a ClearML task of your own is open ({own.name}), beside which no stage can have its own; "
                         "close it first: task.close()")
    if has_server():
        experiment = Experiment(_init_task(name, tags), parameters, tags)
    else:
        check_writable(runs_dir() / "offline")
        with exclusive(runs_dir() / "offline"):  # a session is held before another run looks for those of killed ones
            remove_killed_sessions()
            experiment = Experiment(_init_task(name, tags), parameters, tags)
    status, reason = "completed", ""
    try:
        with _unwind_on_termination():
            yield experiment
    except (KeyboardInterrupt, SystemExit):
        status, reason = "stopped", "interrupted"
        raise
    except BaseException as error:
        status, reason = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        experiment._end(status, reason)


def _init_task(name: str, tags: Sequence[str]):
    clearml, online = prepare_clearml(), has_server()
    if not online:
        os.environ["CLEARML_CACHE_DIR"] = str(runs_dir())
        keep_recent_sessions_in(runs_dir())
    with explain_refusals():
        task = clearml.Task.init(PROJECT, name, tags=list(tags), reuse_last_task_id=False, output_uri=online or None,
                                 auto_connect_arg_parser=False, auto_connect_frameworks=False,
                                 auto_resource_monitoring=False)
    release_signals(task)  # `start` sees to them
    return task


def _session_folder(task) -> Path:
    return runs_dir() / "offline" / task.id


@contextmanager
def _unwind_on_termination() -> Iterator[None]:
    """SIGTERM (`kill`, the time limit of a job scheduler) unwinds like Ctrl-C, so that the task is closed."""
    if threading.current_thread() is not threading.main_thread():  # no other one may
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
