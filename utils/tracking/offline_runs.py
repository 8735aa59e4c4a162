"""Sessions that are kept as files while there is no ClearML server.

    runs/                           or the folder that the environment variable SAM_BURDEN_RUNS names
        offline/<task id>/          a session, as ClearML writes it; end.json beside it says how it ended (ours)
        models/<model id>/          the weights, and model.json: what made them (see utils/tracking/models.py)
        uploaded.json               server -> offline id -> id on that server, for tasks and models
"""
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from utils.errors import InputError
from utils.locks import remove_if_abandoned
from utils.paths import WORK
from utils.records import read_intact, read_record, write_record


@dataclass(frozen=True)
class Session:
    """An offline session that has ended, and how, see `SessionEnd`."""
    folder: Path
    end: "SessionEnd"

    @property
    def id(self) -> str:
        return self.folder.name


def runs_dir() -> Path:
    """The folder of offline sessions and models, absolute."""
    return Path(os.environ.get("SAM_BURDEN_RUNS") or WORK / "runs").absolute()


class SessionEnd(msgspec.Struct, frozen=True):
    """The content of an end.json. Times are in seconds since 1970, 0 in records of older versions.

    Attributes:
        artifacts: name -> file, which stays where it is until it is uploaded
        replaces: the id of the task on a server that was lost on the way; models may know the run by it
    """
    started: float
    status: Literal["completed", "failed", "stopped"]
    reason: str
    input_models: tuple[str, ...]
    ended: float = 0
    artifacts: dict[str, str] = {}
    replaces: str = ""


def end_session(task_id: str, end: SessionEnd) -> None:
    """Records how a session ended. A session without this record is still running, or was killed."""
    write_record(runs_dir() / "offline" / task_id / "end.json", end)


def find_ended_sessions() -> list[Session]:
    """The sessions that have ended, oldest first, so that a model comes before the runs that use it. What can't be read
    is left out, with a line that names it."""
    ends = read_intact(sorted((runs_dir() / "offline").glob("*/end.json")), SessionEnd)
    return sorted((Session(path.parent, end) for path, end in ends), key=lambda session: session.end.started)


def remove_killed_sessions() -> None:
    """Removes the sessions whose process was killed: they can't be uploaded, and who runs the stage again reports all
    of it anew."""
    for folder in (runs_dir() / "offline").glob("offline-*"):
        if folder.is_dir() and not (folder / "end.json").exists():
            remove_if_abandoned(folder)


def load_uploaded_ids(server: str) -> dict[str, str]:
    """Offline id -> id on `server`, for what was brought there. Raises InputError if the record of it is damaged."""
    return _load_uploads().get(server, {})


def find_offline_id(server_id: str) -> str:
    """The id that a task or model had before it was brought to a server; "" for others. Raises InputError as above."""
    pairs = (pair for ids in _load_uploads().values() for pair in ids.items())
    return next((old_id for old_id, new_id in pairs if new_id == server_id), "")


def remember_upload(server: str, old_id: str, new_id: str) -> None:
    """Records that a task or model is on `server`."""
    uploaded = _load_uploads()
    uploaded.setdefault(server, {})[old_id] = new_id
    write_record(runs_dir() / "uploaded.json", uploaded)


def _load_uploads() -> dict[str, dict[str, str]]:
    path = runs_dir() / "uploaded.json"
    try:
        return read_record(path, dict[str, dict[str, str]]) if path.exists() else {}
    except InputError as error:
        raise InputError(f"{error}; restore it from a copy, or move it away: what the server has already is then "
                         "uploaded once more") from None
