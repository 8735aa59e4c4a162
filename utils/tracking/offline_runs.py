"""Sessions that are kept as files while there is no ClearML server.

    runs/                           or the folder that the environment variable SAM_BURDEN_RUNS names
        offline/<task id>/          a session, as ClearML writes it; end.json beside it says how it ended (ours)
        models/<model id>/          the weights, and model.json: what made them (see utils/tracking/models.py)
        uploaded.json               server -> offline id -> id on that server, for tasks and models
"""
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.files import atomic_path
from utils.paths import ROOT


@dataclass(frozen=True)
class Session:
    """An offline session that has ended: `status` is "completed", "failed" or "stopped"."""
    folder: Path
    started: float
    status: str
    reason: str
    input_models: tuple[str, ...]

    @property
    def id(self) -> str:
        return self.folder.name


def runs_dir() -> Path:
    """The folder of offline sessions and models, absolute."""
    return Path(os.environ.get("SAM_BURDEN_RUNS") or ROOT / "runs").absolute()


def end_session(task_id: str, started: float, status: str, reason: str, input_models: Sequence[str]) -> None:
    """Records how a session ended. A session without this record is still running, or was killed."""
    record = {"started": started, "status": status, "reason": reason, "input_models": list(input_models)}
    with atomic_path(runs_dir() / "offline" / task_id / "end.json") as path:
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")


def find_ended_sessions() -> list[Session]:
    """The sessions that have ended, oldest first, so that a model comes before the runs that use it."""
    sessions = []
    for path in (runs_dir() / "offline").glob("*/end.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        sessions.append(Session(path.parent, record["started"], record["status"], record["reason"],
                                tuple(record["input_models"])))
    return sorted(sessions, key=lambda session: session.started)


def load_uploaded_ids(server: str) -> dict[str, str]:
    """Offline id -> id on `server`, for what was brought there."""
    return _load_uploads().get(server, {})


def remember_upload(server: str, old_id: str, new_id: str) -> None:
    """Records that a task or model is on `server`."""
    uploaded = _load_uploads()
    uploaded.setdefault(server, {})[old_id] = new_id
    with atomic_path(runs_dir() / "uploaded.json") as path:
        path.write_text(json.dumps(uploaded, indent=1), encoding="utf-8")


def _load_uploads() -> dict[str, dict[str, str]]:
    path = runs_dir() / "uploaded.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
