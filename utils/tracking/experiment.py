"""One tracked run of a stage, in ClearML's terms a task.

The calls are the same whether there is a server or not (see utils/tracking/server.py):

    with start("initial training", {"stage": "initial", "num_train_samples": 5}) as experiment:
        experiment.scalar("loss", "training", 0.3, step=0)
        model_id = experiment.save_model(Path("unet.pt"), labels)
    weights = fetch_model(model_id).weights         # in any other process, see utils/tracking/models.py
"""
import base64
import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import InputError
from utils.locks import check_writable, exclusive, hold
from utils.provenance import describe_run
from utils.records import find_record, write_record
from utils.tracking.arguments import describe_arguments, get_module
from utils.tracking.artifacts import upload_artifact
from utils.tracking.clearml_patches import (
    follow_agents_task,
    get_server_address,
    hide_end_of_abort,
    keep_recent_sessions_in,
    leave_parents_task,
    name_entry_point,
    release_signals,
    set_arguments,
    show_results_page_alone,
    skip_archive,
    stop_watching,
    watch_losses,
)
from utils.tracking.journal import Description, Journal
from utils.tracking.models import OFFLINE, PROJECT, Model, fetch_model, link_input_model, store_model, upload_model
from utils.tracking.offline_runs import SessionEnd, end_session, remove_killed_sessions, runs_dir
from utils.tracking.server import (
    LONGEST,
    PINGS,
    Answer,
    ServerGone,
    ask_server,
    call_server,
    correct_status,
    get_patience,
    give_up,
    has_server,
    prepare_clearml,
)

MADE_OF = "what the result depends on"  # the configuration object of the parameters
_tags: list[str] = []  # of all runs that begin within `tagged`


class Experiment:
    """One run of a stage. Made by `start`.

    Attributes:
        id: of the task
        continued: whether it continues the task of an earlier run, which has reported its epochs there
        aborted: whether somebody has stopped the task in the web UI
    """

    def __init__(self, task, description: Description, continued: bool = False):
        self.id: str = task.id
        self.continued, self.aborted = continued, False
        self._ended = threading.Event()
        self._task, self._description = task, description
        self._started, self._input_models, self._artifacts = time.time(), [], {}
        self._logger = task.get_logger()
        self._online, self._lost, self._journal = has_server(), "", Journal()
        self._count_losses = watch_losses() if self._online else None
        self._held = None if self._online else hold(_session_folder(task))

    def describe(self) -> None:
        """Says what runs: the arguments, what the result depends on, and what it is made with."""
        if not self._online:
            self._describe()
            return
        self._call_server(self._describe)
        self._call_server(self._check_files, longest=1)
        if threading.current_thread() is threading.main_thread():  # which is the one that can be interrupted
            hide_end_of_abort(self._task)
            self._call_server(self._task.register_abort_callback, self._abort, LONGEST * get_patience())

    def _abort(self) -> None:
        """As Ctrl-C, and returns when the run has ended: then the SDK or an agent kills the process."""
        self.aborted = True
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        self._ended.wait()

    def _describe(self) -> None:
        described = self._description
        if described.module:
            set_arguments(self._task, described.arguments)
            self._task.set_configuration_object(MADE_OF, config_dict=dict(described.parameters))
        else:
            self._task.connect(dict(described.parameters), name="Args")

    def _check_files(self) -> None:
        """A small file, before hours of training: what made the run."""
        if not self._task.upload_artifact("run", describe_run(), wait_on_upload=True):
            raise OSError(f"{self._task.output_uri} takes no files")

    def scalar(self, title: str, series: str, value: float, step: int) -> None:
        """One point of the curve `series` in the plot `title`. A value that isn't finite is left out."""
        if math.isfinite(value):
            self.send("report_scalar", title=title, series=series, value=float(value), iteration=step)

    def single_value(self, name: str, value: float) -> None:
        """A result of the whole run, by which runs are compared. One that isn't finite is left out."""
        if math.isfinite(value):
            self.send("report_single_value", name=name, value=float(value))

    def histogram(self, title: str, values: Sequence[float], labels: Sequence[str], step: int) -> None:
        """One bar per class. Classes whose value is NaN are left out."""
        bars = {label: float(value) for label, value in zip(labels, values, strict=True) if math.isfinite(value)}
        self.send("report_histogram", title=title, series="classes", values=list(bars.values()), iteration=step,
                  xlabels=list(bars))

    def image(self, title: str, series: str, image: np.ndarray, step: int) -> None:
        """A debug image, uint8, (H, W) or (H, W, 3)."""
        self.send("report_image", title=title, series=series, iteration=step, image=image)

    def table(self, title: str, rows: Sequence[Sequence], step: int = 0) -> None:
        """A table; its first row is the header."""
        self.send("report_table", title=title, series="table", iteration=step, table_plot=[list(row) for row in rows])

    def figure(self, title: str, series: str, image: np.ndarray) -> None:
        """A figure among the plots, uint8, (H, W) or (H, W, 3), pixel by pixel."""
        self.send("report_plotly", title=title, series=series, iteration=0, figure=_as_plot(image))

    def note(self, line: str) -> None:
        """A line for the task's console alone: what a stage prints at its very end comes too late for it."""
        self.send("report_text", msg=line, print_console=False)

    def send(self, method: str, **arguments: Any) -> None:
        """Calls a method of the SDK's logger, and notes it for when the server is lost."""
        if self._online:
            self._journal.note(method, dict(arguments))
        if not self._lost:
            getattr(self._logger, method)(**arguments)

    def artifact(self, name: str, file: Path) -> None:
        """A file that the run made, to be downloaded with its digest. Offline it stays where it is until it is
        uploaded."""
        self._artifacts[name] = str(file.absolute())
        self._call_server(upload_artifact, self._task, name, file)

    def use_model(self, model_id: str) -> None:
        """Links a model that this run starts from.

        Raises:
            InputError: there is no such model.
        """
        model = fetch_model(model_id)
        self._input_models.append(model.server_id or model.id)
        self._call_server(self._link, model)

    def _link(self, model: Model) -> None:
        link_input_model(self._task, self._input_models[-1], len(self._input_models))
        if not self._task.parent and not model.task_id.startswith(OFFLINE):  # a clone's parent is the original
            self._task.set_parent(model.task_id)

    def save_model(self, weights: Path, labels: Sequence[str]) -> str:
        """Keeps a copy of the weights as an output model with the labels of its channels.

        Returns its id once the copy is complete; a run that dies before that leaves no model. Where the server is
        lost, the copy is kept here.
        """
        parameters, tags = self._description.parameters, self._description.tags
        model_id = self._call_server(upload_model, self._task, weights, parameters, labels, tags)
        return model_id or store_model(weights, parameters, labels, tags, self.id)

    def _call_server(self, call: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer | None:
        """As `utils.tracking.server.call_server`; None offline, and where the server is lost or has been."""
        if not self._online or self._lost:
            return None
        try:
            return call_server(call, *arguments, **options)
        except ServerGone as error:
            self._lose(str(error))
            return None

    def _lose(self, reason: str) -> None:
        self._lost = reason
        stop_watching(self._task)
        with suppress(ServerGone, InputError):  # where its files alone are out of reach, the server learns why
            call_server(lambda: self._task.mark_stopped(status_message=f"goes on offline: {reason}", force=True),
                        longest=0.2)
        give_up(self._task, reason)

    def end(self, status: str, reason: str) -> None:
        """Closes it as "completed", "failed" or "stopped"."""
        try:
            self._end(status, reason)
        finally:
            self._ended.set()

    def _end(self, status: str, reason: str) -> None:
        self._call_server(self._close, status, reason)
        end = SessionEnd(self._started, status, reason, tuple(self._input_models), time.time(), self._artifacts,
                         self.id if self._online else "")
        if self._lost:
            self._keep(end)
        elif not self._online:
            self.end_offline(end)

    def _close(self, status: str, reason: str) -> None:
        self._task.flush(wait_for_uploads=True)
        known, began = 0, time.monotonic()
        while (dropped := self._count_losses()) > known:  # the server was out of order: it is told all once more
            if known:
                if time.monotonic() - began > get_patience():
                    raise OSError(f"{get_server_address()} takes no reports")
                time.sleep(get_patience() / PINGS)
            known = dropped
            for method, arguments in self._journal.calls:
                getattr(self._logger, method)(**arguments)
            self._task.flush(wait_for_uploads=True)
        self._task.close()
        correct_status(self._task, status, reason)

    def end_offline(self, end: SessionEnd) -> None:
        """Closes an offline session."""
        self._task.flush(wait_for_uploads=True)
        self._task.close()
        end_session(self.id, end)
        if self._held is not None:
            os.close(self._held)

    def _keep(self, end: SessionEnd) -> None:
        try:
            session = self._journal.keep(self._description, end)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"ClearML: {self._lost}; and no offline session of this run could be written ({error}). A model of "
                  f"it is kept in {runs_dir()}", file=sys.stderr)
            return
        print(f"ClearML: {self._lost}; this run is kept as {session} in {runs_dir()}, with its model if it made one; "
              "`python -m scripts.upload_offline_runs` brings it to the server", file=sys.stderr)

    def tell_failure(self, error: BaseException) -> None:
        """Puts the traceback into the task's console, which ends before Python prints it."""
        self.note(f"error: {error}" if isinstance(error, InputError) else "".join(traceback.format_exception(error)))


def _as_plot(image: np.ndarray) -> dict[str, Any]:
    """The pixels as a figure of plotly, which ClearML's plots are, with the image as PNG in it."""
    import cv2  # takes a while, and few runs have figures
    height, width = image.shape[:2]
    encoded = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]) if image.ndim == 3 else image)[1]
    source = f"data:image/png;base64,{base64.b64encode(encoded.tobytes()).decode()}"
    picture = {"source": source, "xref": "x", "yref": "y", "x": 0, "y": height, "sizex": width, "sizey": height,
               "sizing": "stretch", "layer": "below"}
    axes = {"xaxis": {"range": [0, width], "visible": False},
            "yaxis": {"range": [0, height], "visible": False, "scaleanchor": "x"}}
    corners = {"type": "scatter", "mode": "markers", "x": [0, width], "y": [0, height], "opacity": 0}
    return {"data": [corners], "layout": {"images": [picture], "showlegend": False, **axes}}


@contextmanager
def start(name: str, parameters: Mapping, tags: Sequence[str] = (), *, kind: str = "training", module: str = "",
          chosen: Mapping[str, Any] | None = None, state: Path | None = None) -> Iterator[Experiment]:
    """Opens the task `name` of this project and closes it after the block.

    It ends as completed; as failed after an exception; as stopped when it is interrupted or terminated. Where the
    server is lost on the way, the run goes on, and is kept as an offline one.

    Args:
        parameters: a flat dict of str, int, float, bool, None or lists of them
        kind: of ClearML's types of tasks
        module: the stage that runs, so that a clone of the task reruns it
        chosen: of its arguments, where the parameters don't say it
        state: the file of a training that may be interrupted: the run that resumes there continues its task
    Raises:
        InputError: the server that the credentials are for doesn't answer or refuses them, or a task of the caller's
            own is open.
        OSError: there is no place for the session.
    """
    leave_parents_task()
    if own := prepare_clearml().Task.current_task():
        raise InputError(f"a ClearML task of your own is open ({own.name}), beside which no stage can have its own; "
                         "close it first: task.close()")
    arguments = describe_arguments(module, {**parameters, **(chosen or {})}) if module else {}
    description = Description(name, dict(parameters), (*tags, *_tags), kind, module, arguments)
    begun = _BegunTask(state) if state and has_server() else None
    with _delayed_signals() as delayed:
        if has_server():
            experiment = open_online(description, begun.find() if begun else "")
        else:
            experiment = open_offline(description)
    status, reason = "completed", ""
    try:
        with _unwind_on_termination():
            if delayed:
                signal.raise_signal(delayed[0])
            if begun:
                begun.note(experiment.id)
            yield experiment
            if begun:
                begun.forget()
    except (KeyboardInterrupt, SystemExit):
        status, reason = "stopped", "aborted in the web UI" if experiment.aborted else "interrupted"
        raise
    except BaseException as error:
        status, reason = "failed", f"{type(error).__name__}: {error}"
        experiment.tell_failure(error)
        raise
    finally:
        experiment.end(status, reason)


class _BegunTask:
    """The task on the server of a training that may be interrupted, noted beside the training's state."""

    def __init__(self, state: Path):
        self._state, self._record = state, state.with_suffix(".task.json")

    def find(self) -> str:
        """Its id; "" if there is none of this server, or nothing to resume."""
        known = (find_record(self._record, dict[str, str]) or {}) if self._state.exists() else {}
        return known["task"] if known.get("server") == get_server_address() else ""

    def note(self, task_id: str) -> None:
        write_record(self._record, {"server": get_server_address(), "task": task_id})

    def forget(self) -> None:
        """Once the training has ended."""
        self._record.unlink(missing_ok=True)


@contextmanager
def tagged(tag: str) -> Iterator[None]:
    """All runs that begin in the block have this tag, too: what belongs together is found by it."""
    _tags.append(tag)
    try:
        yield
    finally:
        _tags.remove(tag)


def open_online(description: Description, continues: str = "") -> Experiment:
    """A task on the server. Raises InputError."""
    task = ask_server(_init_task, description, continues)
    experiment = Experiment(task, description, continued=task.id == continues)
    experiment.describe()
    return experiment


def open_offline(description: Description) -> Experiment:
    """A session as files. Raises OSError."""
    check_writable(runs_dir() / "offline")
    os.environ["CLEARML_CACHE_DIR"] = str(runs_dir())
    keep_recent_sessions_in(runs_dir())
    skip_archive()
    with exclusive(runs_dir() / "offline"):  # a session is held before another run looks for those of killed ones
        remove_killed_sessions()
        experiment = Experiment(_init_task(description), description)
    experiment.describe()
    return experiment


def _init_task(description: Description, continues: str = ""):
    clearml, online = prepare_clearml(), has_server()
    follow_agents_task(description.module == get_module())
    name_entry_point(description.module)
    clearml.Task.set_random_seed(None)  # or else all random numbers would begin anew, with a seed of the SDK's
    with show_results_page_alone():
        task = clearml.Task.init(PROJECT, description.name, task_type=description.kind, tags=list(description.tags),
                                 reuse_last_task_id=continues or False, continue_last_task=0 if continues else False,
                                 output_uri=online or None, auto_connect_arg_parser=False,
                                 auto_connect_frameworks=False, auto_resource_monitoring=False)
    release_signals(task)  # `start` sees to them
    if online and not set(description.tags) <= set(task.get_tags() or ()):  # an agent's
        task.add_tags(description.tags)
    if online and not task.output_uri:  # of a clone
        task.output_uri = True
    return task


def _session_folder(task) -> Path:
    return runs_dir() / "offline" / task.id


@contextmanager
def _delayed_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM wait for the end of the block, so that no task is left half made; a second one doesn't."""
    delayed: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # no other one may
        yield delayed
        return

    def delay(number: int, _: object) -> None:
        if delayed:
            raise KeyboardInterrupt
        delayed.append(number)

    before = {number: signal.signal(number, delay) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield delayed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
