"""Runs and models that are kept as files while there is no ClearML server.

    runs/                           or the folder that the environment variable SAM_BURDEN_RUNS names
        offline/<task id>/          a session, as ClearML writes it; end.json beside it says how it ended (ours)
        models/<model id>/          the weights, and model.json: what made them
        uploaded.json               server -> offline id -> id on that server, for tasks and models
"""
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from utils.files import atomic_path
from utils.paths import ROOT

TELLING_PARAMETERS = ("stage", "dataset", "num_train_samples")  # what a list of models says beside the id
LISTED_MODELS = 20


@dataclass(frozen=True)
class Model:
    """A trained network, found by its id, which is also safe as a folder name.

    `parameters` are those of the task that made it, with their types; `labels` are in channel order; `created` is in
    seconds since 1970. `weights` is a local file; a model on a server is downloaded when it is first asked for.
    """
    id: str
    parameters: dict
    labels: tuple[str, ...]
    tags: tuple[str, ...]
    task_id: str
    created: float
    get_weights: Callable[[], Path] = field(repr=False, compare=False)

    @property
    def weights(self) -> Path:
        return self.get_weights()


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


def store_model(weights: Path, parameters: Mapping, labels: Sequence[str], tags: Sequence[str], task_id: str) -> str:
    """Copies the weights and what made them, complete or not at all, and returns the new model id."""
    model_id = f"offline-{uuid4().hex}"
    folder = runs_dir() / "models" / model_id
    temporary = folder.with_name(f".{model_id}.part")
    temporary.mkdir(parents=True)
    try:
        shutil.copyfile(weights, temporary / weights.name)
        record = {"weights": weights.name, "parameters": dict(parameters), "labels": list(labels), "tags": list(tags),
                  "task_id": task_id, "created": time.time()}
        (temporary / "model.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return model_id


def local_models() -> list[Model]:
    """All models in the folder, newest first."""
    models = [_load_model(record.parent) for record in (runs_dir() / "models").glob("offline-*/model.json")]
    return sorted(models, key=lambda model: model.created, reverse=True)


def _load_model(folder: Path) -> Model:
    record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    weights = folder / record["weights"]
    return Model(folder.name, record["parameters"], tuple(record["labels"]), tuple(record["tags"]),
                 record["task_id"], record["created"], lambda: weights)


def describe(models: Sequence[Model]) -> str:
    """One line that lists ids and what the models are, for an error message."""
    if not models:
        return "none yet"
    listed = [f"{model.id} ({', '.join(f'{name}={model.parameters.get(name)}' for name in TELLING_PARAMETERS)})"
              for model in models[:LISTED_MODELS]]
    return "; ".join(listed) + (f"; {len(models) - LISTED_MODELS} older ones" if len(models) > LISTED_MODELS else "")


def end_session(task_id: str, started: float, status: str, reason: str, input_models: Sequence[str]) -> None:
    """Records how a session ended. A session without this record is still running, or was killed."""
    record = {"started": started, "status": status, "reason": reason, "input_models": list(input_models)}
    with atomic_path(runs_dir() / "offline" / task_id / "end.json") as path:
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")


def ended_sessions() -> list[Session]:
    """The sessions that have ended, oldest first, so that a model comes before the runs that use it."""
    sessions = []
    for path in (runs_dir() / "offline").glob("*/end.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        sessions.append(Session(path.parent, record["started"], record["status"], record["reason"],
                                tuple(record["input_models"])))
    return sorted(sessions, key=lambda session: session.started)


def uploaded_ids(server: str) -> dict[str, str]:
    """Offline id -> id on `server`, for what was brought there."""
    return _uploaded().get(server, {})


def remember_upload(server: str, old_id: str, new_id: str) -> None:
    """Records that a task or model is on `server`."""
    uploaded = _uploaded()
    uploaded.setdefault(server, {})[old_id] = new_id
    with atomic_path(runs_dir() / "uploaded.json") as path:
        path.write_text(json.dumps(uploaded, indent=1), encoding="utf-8")


def _uploaded() -> dict[str, dict[str, str]]:
    path = runs_dir() / "uploaded.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
