"""Files that runs made, on the server: what another machine has made needn't be made again.

A task that made a file of a model carries the model's tag, and the file as an artifact with its SHA-256.
"""
import shutil
from collections.abc import Callable
from pathlib import Path

from utils.digests import digest_file
from utils.files import atomic_path
from utils.tracking.models import OFFLINE, PROJECT
from utils.tracking.server import ask_server, has_server, prepare_clearml

SHA256 = "sha256"
_kept_here: list[bool] = []


def keep_files_here() -> None:
    """From now on large files of this process aren't uploaded."""
    _kept_here.append(True)


def are_uploaded() -> bool:
    """Whether large files go to the server."""
    return not _kept_here


def tag_of(model_id: str) -> str:
    """Of the tasks that made something of a model."""
    return f"of {model_id.removeprefix(OFFLINE)[:8]}"


def upload_artifact(task, name: str, file: Path) -> None:
    """Raises OSError where it doesn't arrive."""
    if not task.upload_artifact(name, str(file), metadata={SHA256: digest_file(file)}, wait_on_upload=True):
        raise OSError(f"{file} was not uploaded")


def fetch_file(model_id: str, name: str, path: Path, is_wanted: Callable[[Path], bool]) -> bool:
    """Downloads the newest artifact of that name that was made of a model, complete or not at all; whether there was
    one.

    Args:
        is_wanted: whether what was downloaded is what is meant
    Raises:
        InputError: the server can't be reached.
    """
    if not has_server():
        return False
    for artifact in ask_server(_find, tag_of(model_id), name):
        file = ask_server(_download, artifact)
        if not file:
            continue
        if digest_file(file) != artifact.metadata[SHA256]:
            print(f"{name} of model {model_id}: the server's copy is damaged, so it is left out; the stage that makes "
                  "it, run here, puts a sound one there")
        elif is_wanted(file):
            with atomic_path(path) as temporary:
                shutil.copyfile(file, temporary)
            print(f"{path}: downloaded from the ClearML server")
            return True
    return False


def _find(tag: str, name: str) -> list:
    """The artifacts of that name with a digest, newest first."""
    task = prepare_clearml().Task
    ids = task.query_tasks(project_name=PROJECT, tags=[tag], task_filter={"order_by": ["-last_update"]})
    artifacts = [task.get_task(task_id).artifacts.get(name) for task_id in ids]
    return [artifact for artifact in artifacts if artifact and SHA256 in (artifact.metadata or {})]


def _download(artifact) -> Path | None:
    file = artifact.get_local_copy(extract_archive=False, force_download=True)  # an earlier one may be a damaged one
    return Path(file) if file else None
