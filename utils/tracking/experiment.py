"""Experiment tracking, and models found by id. The only module that knows ClearML.

With credentials (environment variables or clearml.conf) everything goes to the ClearML server. Without them, or with
CLEARML_OFFLINE_MODE=1, ClearML's own offline mode writes sessions into the project, and models lie beside them (see
utils/tracking/offline_runs.py); nothing then reaches for a network. The calls are the same:

    with start("initial training", {"stage": "initial", "num_train_samples": 5}) as experiment:
        experiment.scalar("loss", "training", 0.3, step=0)
        model_id = experiment.save_model(Path("unet.pt"), labels)
    weights = fetch_model(model_id).weights         # in any other process
"""
import itertools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.tracking.offline_runs import (
    Model,
    Session,
    describe,
    end_session,
    ended_sessions,
    local_models,
    remember_upload,
    runs_dir,
    store_model,
    uploaded_ids,
)

PROJECT = "SAM carries the burden"
MODEL_NAME = "bone_segmentator"
PAGE_SIZE = 500  # models that a server lists at once
REMEDY = "check the credentials and the server's addresses, or set CLEARML_OFFLINE_MODE=1 to work without it"


class Experiment:
    """One run of a stage. Made by `start`."""

    def __init__(self, task, parameters: Mapping, tags: Sequence[str]):
        self.id: str = task.id
        self._task, self._parameters, self._tags = task, dict(parameters), tuple(tags)
        self._started, self._input_models = time.time(), []
        self._logger = task.get_logger()
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
        if _has_server():
            _link_input_model(self._task, model_id, len(self._input_models))

    def save_model(self, weights: Path, labels: Sequence[str]) -> str:
        """Keeps a copy of the weights as output model `bone_segmentator` with the labels of its channels.

        Returns its id once the copy is complete; a run that dies before that leaves no model.
        """
        if _has_server():
            return _upload_model(self._task, weights, self._parameters, labels, self._tags)
        return store_model(weights, self._parameters, labels, self._tags, self.id)

    def _end(self, status: str, reason: str) -> None:
        self._task.flush(wait_for_uploads=True)
        self._task.close()
        if _has_server():
            _mark(self._task, status, reason)
        else:
            end_session(self.id, self._started, status, reason, self._input_models)


@contextmanager
def start(name: str, parameters: Mapping, tags: Sequence[str] = ()) -> Iterator[Experiment]:
    """Opens the task `name` of this project and closes it after the block.

    It ends as completed; as failed after an exception; as stopped when it is interrupted or terminated.

    Args:
        parameters: a flat dict of str, int, float, bool, None or lists of them
    Raises:
        InputError: the server that the credentials are for doesn't answer or refuses them.
    """
    experiment = Experiment(_init_task(name, tags), parameters, tags)
    status, reason = "completed", ""
    try:
        with _terminable():
            yield experiment
    except (KeyboardInterrupt, SystemExit):
        status, reason = "stopped", "interrupted"
        raise
    except BaseException as error:
        status, reason = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        experiment._end(status, reason)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM (`kill`, the time limit of a job scheduler) unwinds like Ctrl-C, so that the task is closed."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fetch_model(model_id: str) -> Model:
    """The model of that id, with its weights as a local file.

    An id that was made offline stays good when there is a server.

    Raises:
        InputError: there is no such model, or its weights can't be had. The message lists what there is.
    """
    for model in local_models():
        if model.id == model_id:
            return model
    found = _server_models(id=[model_id]) if _has_server() else []
    if not found:
        places = f"in {runs_dir()}" + (f" and on {_server()} in the project '{PROJECT}'" if _has_server() else "")
        raise InputError(f"model id {model_id}: there is no such model {places}; there are: {describe(find_models())}")
    return found[0]


def find_models(**parameters) -> list[Model]:
    """The models whose task had all of these parameters, newest first: find_models(stage="initial", dataset="graz").

    A model that was made offline and uploaded since is listed once, by its offline id.
    """
    models = local_models()
    if _has_server():
        uploaded = set(uploaded_ids(_server()).values())
        models += [model for model in _server_models(name=f"^{MODEL_NAME}$") if model.id not in uploaded]
    wanted = parameters.items()
    return sorted((model for model in models if wanted <= model.parameters.items()),
                  key=lambda model: model.created, reverse=True)


def upload_offline_runs() -> Iterator[tuple[str, str]]:
    """Brings the ended offline sessions and their models to the server, and yields each (offline id, id there).

    What was brought to this server before is left out, also when an earlier upload broke off.

    Raises:
        InputError: there are no credentials.
    """
    if not _has_server():
        raise InputError("no ClearML credentials; run `clearml-init`, or set CLEARML_API_HOST, CLEARML_WEB_HOST, "
                         "CLEARML_FILES_HOST, CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY "
                         "(and not CLEARML_OFFLINE_MODE)")
    for session in ended_sessions():
        yield from _upload_session(session)


def _upload_session(session: Session) -> Iterator[tuple[str, str]]:
    clearml, server = _clearml(), _server()
    models = [model for model in local_models() if model.task_id == session.id]
    done = uploaded_ids(server)
    if {session.id, *(model.id for model in models)} <= done.keys():
        return
    with _server_errors():
        if session.id not in done:
            new_id = clearml.Task.import_offline_session(str(session.folder))
            remember_upload(server, session.id, new_id)
            yield session.id, new_id
        task = clearml.Task.get_task(uploaded_ids(server)[session.id])
        task.mark_started(force=True)  # a closed task takes no models
        task.output_uri = True
        for model in models:
            if model.id not in done:
                new_id = _upload_model(task, model.weights, model.parameters, model.labels, model.tags)
                remember_upload(server, model.id, new_id)
                yield model.id, new_id
        for number, model_id in enumerate(session.input_models, 1):
            _link_input_model(task, model_id, number)
        task.mark_completed(force=True)
        _mark(task, session.status, session.reason)


@cache
def _clearml():
    """The SDK, prepared: a slow reporting process and the update check are off, offline mode is on without a server.

    Raises:
        InputError: clearml.conf can't be read, or the server that the credentials are for can't be reached.
    """
    os.environ.setdefault("CLEARML_LOG_LEVEL", "WARNING")
    import clearml
    from clearml.backend_config.errors import ConfigurationError
    from clearml.backend_interface.task.task import Task
    from clearml.utilities.check_updates import CheckPackageUpdates
    Task._report_subprocess_enabled = False  # it takes 8 s to close; setting it by configuration reads all files twice
    CheckPackageUpdates._package_version_checked = True  # there is no setting for this
    try:
        online = _credentials()
    except ConfigurationError as error:
        raise InputError(f"ClearML: {error}; mend this file or move it away") from None
    if online:
        _check_reachable(_server())
    clearml.Task.set_offline(not online)
    return clearml


def _credentials() -> bool:
    """Whether the environment or clearml.conf has what a server asks for, as the SDK itself reads them."""
    from clearml.backend_api.session.defs import ENV_ACCESS_KEY, ENV_AUTH_TOKEN, ENV_OFFLINE_MODE, ENV_SECRET_KEY
    from clearml.config import config_obj
    key = ENV_ACCESS_KEY.get() or config_obj.get("api.credentials.access_key", "")
    secret = ENV_SECRET_KEY.get() or config_obj.get("api.credentials.secret_key", "")
    return not ENV_OFFLINE_MODE.get() and bool((key and secret) or ENV_AUTH_TOKEN.get())


def _check_reachable(server: str) -> None:
    """The SDK itself would try again for minutes without a word."""
    import requests
    try:
        requests.get(f"{server}/debug.ping", timeout=10)
    except requests.exceptions.SSLError:
        pass  # it is there; whether its certificate matters is a setting of the SDK
    except requests.RequestException as error:
        raise InputError(f"ClearML: {server} can't be reached ({type(error).__name__}); {REMEDY}") from None


def _has_server() -> bool:
    return not _clearml().Task.is_offline()


def _server() -> str:
    from clearml.backend_api import Session
    return Session.get_api_server_host()


def _init_task(name: str, tags: Sequence[str]):
    from clearml.binding.environ_bind import PatchOsFork
    from clearml.config.cache import SessionCache
    clearml, online = _clearml(), _has_server()
    if not online:
        os.environ["CLEARML_CACHE_DIR"] = SessionCache.SESSION_CACHE_FOLDER = str(runs_dir())
    with _server_errors():
        task = clearml.Task.init(PROJECT, name, tags=list(tags), reuse_last_task_id=False, output_uri=online or None,
                                 auto_connect_arg_parser=False, auto_connect_frameworks=False,
                                 auto_resource_monitoring=False)
    task._remove_signal_hooks()  # they keep forked workers from being terminated; `start` sees to signals
    PatchOsFork.patch_fork(None)  # workers that load data report nothing; preparing each for it costs 0.1 s
    return task


@contextmanager
def _server_errors() -> Iterator[None]:
    """Refused credentials, and a file server that can't be written to, are the user's to mend."""
    from clearml.backend_api.session.session import LoginError
    try:
        yield
    except (LoginError, ValueError) as error:
        task = _clearml().Task.current_task()
        if task:
            task.mark_failed(status_message=str(error), force=True)
        raise InputError(f"ClearML: {error}; {REMEDY}") from None


def _mark(task, status: str, reason: str) -> None:
    """Corrects the status of a closed task, which the SDK leaves as completed."""
    if status == "failed":
        task.mark_failed(status_reason=reason, status_message=reason, force=True)
    elif status == "stopped":
        task.mark_stopped(status_message=reason, force=True)


def _upload_model(task, weights: Path, parameters: Mapping, labels: Sequence[str], tags: Sequence[str]) -> str:
    model = _clearml().OutputModel(task, name=MODEL_NAME, framework="PyTorch", tags=list(tags),
                                   config_text=json.dumps(dict(parameters)),
                                   label_enumeration={label: channel for channel, label in enumerate(labels)})
    model.update_weights(str(weights), target_filename=MODEL_NAME + weights.suffix, auto_delete_file=False,
                         update_comment=False, async_enable=False)  # the server learns the address after the upload
    return model.id


def _link_input_model(task, model_id: str, number: int) -> None:
    """As the first, second, ... of a task; a second one of the same name would take the first one's place."""
    model_id = uploaded_ids(_server()).get(model_id, model_id)
    if model_id.startswith("offline-"):
        print(f"model {model_id} is not on the server, so the task can't link to it; "
              "`python -m scripts.upload_offline_runs` brings it there")
    else:
        name = MODEL_NAME if number == 1 else f"{MODEL_NAME}_{number}"
        task.set_input_model(model_id, update_task_design=False, update_task_labels=False, name=name)


def _server_models(**query) -> list[Model]:
    """Models on the server with complete weights, newest first."""
    found = []
    with _server_errors():
        for page in itertools.count():
            some = list(_api().models.get_all(order_by=["-created"], page=page, page_size=PAGE_SIZE, **query))
            found += some
            if len(some) < PAGE_SIZE:
                break
    return [_from_server(model) for model in found
            if model.uri and not model.uri.endswith(("uploading_file", "failed_uploading"))]


@cache
def _api():
    from clearml.backend_api.session.client import APIClient
    return APIClient()


def _from_server(model) -> Model:
    labels = sorted(model.labels or {}, key=model.labels.get)
    try:
        parameters = json.loads((model.design or {}).get("design") or "{}")
    except ValueError:  # not one of ours
        parameters = {}
    return Model(model.id, parameters, tuple(labels), tuple(model.tags or ()), model.task,
                 model.created.timestamp(), partial(_download, model.id, model.uri))


def _download(model_id: str, uri: str) -> Path:
    file = _clearml().StorageManager.get_local_copy(uri, extract_archive=False)
    if not file:
        raise InputError(f"model {model_id}: its weights could not be fetched from {uri}; check that the file is there")
    return Path(file)
