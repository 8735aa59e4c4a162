"""Trained models, found by id or by the parameters that made them.

Offline they are files, the weights and model.json in `<runs_dir>/models/<model id>/`; otherwise ClearML's output
models. One that was made offline keeps its id when it is uploaded, so that what was made of it is found on every
machine; the server's id is another name of it.
"""
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from utils.digests import digest_file
from utils.errors import InputError, say_once
from utils.locks import hold, remove_leftovers
from utils.provenance import describe_run
from utils.records import read_intact, write_record
from utils.tracking.clearml_patches import get_server_address, is_uploaded
from utils.tracking.offline_runs import find_offline_id, load_uploaded_ids, runs_dir
from utils.tracking.server import ask_server, has_server, prepare_clearml

PROJECT = "SAM carries the burden"
MODEL_NAME = "bone_segmentator"
OFFLINE = "offline-"  # what ids of models that are files begin with
PAGE_SIZE = 500  # models that a server lists at once
TELLING_PARAMETERS = ("stage", "dataset", "num_train_samples")  # what a list of models says beside the id
LISTED_MODELS = 20

_seen: list["Model"] = []  # on a server, which may be lost before they are asked for again


@dataclass(frozen=True)
class Model:
    """A trained network, found by its id, which is also safe as a folder name.

    `parameters` are those of the task that made it, with their types; `labels` are in channel order; `created` is in
    seconds since 1970. `weights` is a local file; a model on a server is downloaded when it is first asked for.
    `server_id` is its name on the server that it comes from, "" for one that is a file.
    """
    id: str
    parameters: dict
    labels: tuple[str, ...]
    tags: tuple[str, ...]
    task_id: str
    created: float
    get_weights: Callable[[], Path] = field(repr=False, compare=False)
    server_id: str = ""

    @property
    def weights(self) -> Path:
        return self.get_weights()


def fetch_model(model_id: str) -> Model:
    """The model of that id, with its weights as a local file.

    Of one that was made offline and uploaded since, its id and the server's are both good.

    Raises:
        InputError: there is no such model, or its weights can't be had. The message lists what there is.
    """
    known = [*load_local_models(), *_seen]
    if model := _choose(known, model_id) or _choose(known, find_offline_id(model_id)):
        return model
    places = f"in {runs_dir()}"
    if has_server():
        models = _find_server_models(**{"tags" if model_id.startswith(OFFLINE) else "id": [model_id]})
        if models:
            _seen.append(models[0])
            return models[0]
        places += f" and on {get_server_address()} in the project '{PROJECT}'"
    raise InputError(f"model id {model_id}: there is no such model {places}; there are: {describe(find_models())}")


def _choose(models: Sequence[Model], model_id: str) -> Model | None:
    """The one of that id, here or on the server; none of the id ""."""
    return next((model for model in models if model_id and model_id in (model.id, model.server_id)), None)


def find_models(**parameters) -> list[Model]:
    """The models whose task had all of these parameters, newest first: find_models(stage="initial", dataset="graz").

    A model that was made offline and uploaded since is listed once, by its offline id.
    """
    models = load_local_models()
    if has_server():
        known = {model.id for model in models} | set(load_uploaded_ids(get_server_address()).values())
        models += [model for model in _find_server_models(project=_find_projects())
                   if not known & {model.id, model.server_id}]
    matching = [model for model in models if parameters.items() <= model.parameters.items()]
    return sorted(matching, key=attrgetter("created"), reverse=True)


def name_result(parameters: Mapping[str, Any]) -> str:
    """What a model is, in a few words: "final phantom n=20 sam"."""
    architecture = parameters.get("architecture", "u_net")
    words = [parameters.get("stage", MODEL_NAME), parameters.get("dataset"),
             f"n={parameters['num_train_samples']}" if "num_train_samples" in parameters else None,
             parameters.get("pseudo_label"), architecture if architecture != "u_net" else None]
    return " ".join(str(word) for word in words if word)


def describe(models: Sequence[Model]) -> str:
    """One line that lists ids and what the models are, for an error message."""
    if not models:
        return "none yet"
    listed = [f"{model.id} ({', '.join(f'{name}={model.parameters.get(name)}' for name in TELLING_PARAMETERS)})"
              for model in models[:LISTED_MODELS]]
    return "; ".join(listed) + (f"; {len(models) - LISTED_MODELS} older ones" if len(models) > LISTED_MODELS else "")


def load_local_models() -> list[Model]:
    """The models that are files, newest first. What can't be read is left out, with a line that names it."""
    paths = sorted((runs_dir() / "models").glob(f"{OFFLINE}*/model.json"))
    models = [record.model(path) for path, record in read_intact(paths, ModelRecord)]
    return sorted(models, key=attrgetter("created"), reverse=True)


class ModelRecord(msgspec.Struct, frozen=True):
    """The content of a model.json; `weights` is the name of a file beside it, `sha256` of its bytes, `run` what made
    it."""
    weights: str
    parameters: dict[str, Any]
    labels: tuple[str, ...]
    tags: tuple[str, ...]
    task_id: str
    created: float
    sha256: str = ""
    run: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if Path(self.weights).name != self.weights:
            raise ValueError(f"weights {self.weights!r} is no name of a file")

    def model(self, path: Path) -> Model:
        """The model whose record lies at `path`."""
        return Model(path.parent.name, self.parameters, self.labels, self.tags, self.task_id, self.created,
                     partial(_check_weights, path.with_name(self.weights), self.sha256))


def _check_weights(path: Path, sha256: str) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: no such file, although its model.json is there; restore it, or train the model "
                         "again")
    if sha256 and digest_file(path) != sha256:
        raise InputError(f"{path}: damaged (its checksum is another); restore it from a copy, or move its folder away "
                         "and train the model again")
    return path


def store_model(weights: Path, parameters: Mapping, labels: Sequence[str], tags: Sequence[str], task_id: str) -> str:
    """Copies the weights and what made them, complete or not at all, and returns the new model id."""
    model_id = f"{OFFLINE}{uuid4().hex}"
    folder = runs_dir() / "models" / model_id
    temporary = folder.with_name(f".{model_id}.part")
    temporary.mkdir(parents=True)
    remove_leftovers(folder.parent)
    held = hold(temporary)
    try:
        shutil.copyfile(weights, temporary / weights.name)
        record = ModelRecord(weights.name, dict(parameters), tuple(labels), tuple(tags), task_id, time.time(),
                             digest_file(weights), describe_run())
        write_record(temporary / "model.json", record)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if held is not None:
            os.close(held)
    return model_id


def upload_model(task, weights: Path, parameters: Mapping, labels: Sequence[str], tags: Sequence[str]) -> str:
    """Makes the weights an output model of a ClearML task, and returns its id. The server learns of the model when they
    have arrived, so that an upload that fails leaves none.

    Args:
        tags: one that was made offline has its id among them
    Raises:
        OSError: they have not arrived.
    """
    clearml = prepare_clearml()
    place = f"{task.output_uri.rstrip('/')}/{PROJECT}/{task.id}/models/{MODEL_NAME}{weights.suffix}"
    uri = clearml.StorageManager.upload_file(str(weights), place)
    if not uri:
        raise OSError(f"{weights} was not uploaded to {place}")
    text = json.dumps(dict(parameters))
    model = clearml.OutputModel(
        task, name=name_result(parameters), framework="PyTorch", tags=list(tags),
        config_text=text, label_enumeration={label: channel for channel, label in enumerate(labels)})
    model.update_weights(register_uri=uri, update_comment=False)
    model_id, tags = _part_offline_id(tags, model.id)
    _seen.append(Model(model_id, json.loads(text), tuple(labels), tags, task.id, time.time(),
                       partial(_download, model_id, uri), model.id))
    return model.id


def _part_offline_id(tags: Sequence[str], server_id: str) -> tuple[str, tuple[str, ...]]:
    """The id of a model on the server, which is among its tags if it was made offline, and the other tags."""
    model_id = next((tag for tag in tags if re.fullmatch(f"{OFFLINE}[0-9a-f]{{32}}", tag)), server_id)
    return model_id, tuple(tag for tag in tags if tag != model_id)


def link_input_model(task, model_id: str, number: int) -> None:
    """Names the model of that id, the server's or that of an uploaded one here, as the `number`-th, from 1, that a
    ClearML task starts from."""
    model_id = load_uploaded_ids(get_server_address()).get(model_id, model_id)
    if model_id.startswith(OFFLINE):
        print(f"model {model_id} is not on the server, so the task can't link to it; "
              "`python -m scripts.upload_offline_runs` brings it there")
        return
    name = MODEL_NAME if number == 1 else f"{MODEL_NAME}_{number}"  # of two with the same name, only the last one stays
    task.set_input_model(model_id, update_task_design=False, update_task_labels=False, name=name)


def _find_server_models(**query) -> list[Model]:
    """Models on the server with complete weights, newest first."""
    found = ask_server(lambda: [model for model in _query_server(query) if is_uploaded(model.uri)])
    return [model for each in found if (model := _from_server(each))]


def _find_projects() -> list[str]:
    """The ids of this project on the server: a list of one, or of a name that is no id where it has no project yet."""
    found = ask_server(lambda: _open_api().projects.get_all(name=f"^{PROJECT}$", only_fields=["id", "name"]))
    return [project.id for project in found if project.name == PROJECT] or ["none yet"]


def find_queues() -> list[str]:
    """The names of the server's queues."""
    queues = ask_server(lambda: _open_api().queues.get_all(only_fields=["id", "name"]))
    return sorted(queue.name for queue in queues)


def _query_server(query: Mapping) -> Iterator:
    for number in itertools.count():
        page = list(_open_api().models.get_all(order_by=["-created"], page=number, page_size=PAGE_SIZE, **query))
        yield from page
        if len(page) < PAGE_SIZE:
            return


@cache
def _open_api():
    from clearml.backend_api.session.client import APIClient  # of the SDK, which takes half a second
    return APIClient()


def _from_server(model) -> Model | None:
    """None, with a line, if it can't be one of ours."""
    try:
        labels = sorted(model.labels, key=model.labels.get)
        parameters = json.loads(model.design["design"])
        if not isinstance(parameters, dict):
            raise ValueError(parameters)
        model_id, tags = _part_offline_id(model.tags or (), model.id)
        return Model(model_id, parameters, tuple(labels), tags, model.task, model.created.timestamp(),
                     partial(_download, model_id, model.uri), model.id)
    except (AttributeError, KeyError, TypeError, ValueError):  # of whatever somebody else has put there
        say_once(f"left out: model {model.id} on the server, which doesn't say by its labels and configuration how it "
                 "was trained here")
        return None


def _download(model_id: str, uri: str) -> Path:
    file = ask_server(lambda: prepare_clearml().StorageManager.get_local_copy(uri, extract_archive=False))
    if not file:
        raise InputError(f"model {model_id}: its weights could not be fetched from {uri}; check that the file is there")
    return Path(file)
