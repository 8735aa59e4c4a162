"""Bringing offline runs to a server."""
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from utils.errors import InputError
from utils.tracking.artifacts import upload_artifact
from utils.tracking.clearml_patches import get_server_address
from utils.tracking.models import link_input_model, load_local_models, upload_model
from utils.tracking.offline_runs import Session, find_ended_sessions, load_uploaded_ids, remember_upload
from utils.tracking.server import correct_status, explain_refusals, has_server, prepare_clearml


def upload_offline_runs() -> Iterator[tuple[str, str]]:
    """Brings the ended offline sessions and their models to the server, and yields each (offline id, id there).

    What was brought to this server before is left out, also when an earlier upload broke off.

    Raises:
        InputError: there are no credentials.
    """
    if not has_server():
        raise InputError("no ClearML credentials; run `clearml-init`, or set CLEARML_API_HOST, CLEARML_WEB_HOST, "
                         "CLEARML_FILES_HOST, CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY "
                         "(and not CLEARML_OFFLINE_MODE)")
    for session in find_ended_sessions():
        yield from _upload_session(session)


def _upload_session(session: Session) -> Iterator[tuple[str, str]]:
    clearml, server = prepare_clearml(), get_server_address()
    models = [model for model in load_local_models() if model.task_id in (session.id, session.end.replaces)]
    done = load_uploaded_ids(server)
    if {session.id, *(model.id for model in models)} <= done.keys():
        return
    with explain_refusals():
        if session.id not in done:
            new_id = clearml.Task.import_offline_session(str(session.folder))
            remember_upload(server, session.id, new_id)
            yield session.id, new_id
        task = clearml.Task.get_task(load_uploaded_ids(server)[session.id])
        task.mark_started(force=True)  # a closed task takes no models
        task.output_uri = True
        _say_when(task, session)
        for model in models:
            if model.id not in done:
                new_id = upload_model(task, model.weights, model.parameters, model.labels, [*model.tags, model.id])
                remember_upload(server, model.id, new_id)
                yield model.id, new_id
        for number, model_id in enumerate(session.end.input_models, 1):
            link_input_model(task, model_id, number)
        for name, file in session.end.artifacts.items():
            if Path(file).is_file():
                upload_artifact(task, name, Path(file))
        task.mark_completed(force=True)
        correct_status(task, session.end.status, session.end.reason)


def _say_when(task, session: Session) -> None:
    """A server keeps its own times, those of the upload; a task that it has known of such a run is told where it is."""
    task.add_tags(["offline"])
    ended = session.end.ended or (session.folder / "end.json").stat().st_mtime
    times = [datetime.fromtimestamp(time, UTC).isoformat(" ", "seconds") for time in (session.end.started, ended)]
    task.set_user_properties(began=times[0], ended=times[1])
    if session.end.replaces:
        with suppress(ValueError):  # somebody has deleted it
            lost = prepare_clearml().Task.get_task(session.end.replaces)
            lost.mark_stopped(status_message=f"the server was lost; all of it is in task {task.id}", force=True)
            lost.add_tags(["lost"])
