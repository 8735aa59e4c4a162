"""A ClearML server on the loopback interface, just enough for the SDK to run its whole flow against it.

    with running_server(folder) as server:
        subprocess.run(..., env={**os.environ, **server.environment})
        server.tasks, server.models, server.events      # what the SDK sent, by id
        server.troubles = {"events.add_batch": "dies"}  # from its first call on
"""
import base64
import copy
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"


class ClearMLServer:
    """Tasks, models and events as dicts; a method per service call, named <service>_<action>."""

    def __init__(self, files: Path):
        self.files, self.address = files, ""
        self.tasks: dict[str, dict] = {}
        self.models: dict[str, dict] = {}
        self.projects: dict[str, dict] = {}
        self.events: list[dict] = []
        self.queues: dict[str, list[str]] = {}  # name, which is its id, too -> ids of tasks that wait
        self.model_uris: list[str] = []  # that models ever had
        self.calls: list[str] = []
        self.troubles: dict[str, str] = {}  # call -> what the server does from then on: a key of TROUBLES, or "dies"
        self.trouble = ""

    @property
    def environment(self) -> dict[str, str]:
        return {"CLEARML_API_HOST": self.address, "CLEARML_WEB_HOST": self.address,
                "CLEARML_FILES_HOST": self.files.as_uri(), "CLEARML_API_ACCESS_KEY": ACCESS_KEY,
                "CLEARML_API_SECRET_KEY": SECRET_KEY}

    def call(self, name: str, body: dict) -> dict:
        self.calls.append(name)
        if name in ("tasks.ping", "workers.status_report", "workers.unregister", "debug.ping"):
            return {}
        return getattr(self, name.replace(".", "_"))(body)

    def auth_login(self, body: dict) -> dict:
        payload = {"exp": int(time.time()) + 3600, "api_version": "2.23", "server_version": "1.0.0"}
        parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
                 for part in ({"alg": "none", "typ": "JWT"}, payload)]
        return {"token": ".".join([*parts, "c2lnbmF0dXJl"])}

    def projects_get_all(self, body: dict) -> dict:
        name = body.get("name", "")
        return {"projects": [each for each in self.projects.values() if re.search(name, each["name"])]}

    def projects_create(self, body: dict) -> dict:
        return {"id": _create(self.projects, body)}

    def projects_get_by_id(self, body: dict) -> dict:
        return {"project": self.projects[body["project"]]}

    def tasks_create(self, body: dict) -> dict:
        empty = {"status": "created", "models": {"input": [], "output": []}, "output": {}, "execution": {}}
        return {"id": _create(self.tasks, {**empty, **body})}

    def tasks_get_by_id(self, body: dict) -> dict:
        return {"task": self.tasks[body["task"]]}

    def tasks_get_all(self, body: dict) -> dict:
        wanted = [self.tasks[key] for key in body.get("id") or self.tasks if key in self.tasks]
        return {"tasks": [task for task in wanted if set(body.get("tags") or ()) <= set(task.get("tags") or ())]}

    def tasks_edit(self, body: dict) -> dict:
        self.tasks[body["task"]].update({key: body[key] for key in body.keys() - {"task", "force"}})
        return {"updated": 1, "fields": {}}

    def tasks_set_requirements(self, body: dict) -> dict:
        self.tasks[body["task"]].setdefault("script", {})["requirements"] = body["requirements"]
        return {"updated": 1, "fields": {}}

    def tasks_add_or_update_artifacts(self, body: dict) -> dict:
        artifacts = self.tasks[body["task"]]["execution"].setdefault("artifacts", [])
        names = {artifact["key"] for artifact in body["artifacts"]}
        artifacts[:] = [*(artifact for artifact in artifacts if artifact["key"] not in names), *body["artifacts"]]
        return {"updated": 1}

    def tasks_edit_hyper_params(self, body: dict) -> dict:
        hyperparams = self.tasks[body["task"]].setdefault("hyperparams", {})
        for item in body["hyperparams"]:
            hyperparams.setdefault(item["section"], {})[item["name"]] = item
        return {"updated": 1}

    def tasks_clone(self, body: dict) -> dict:
        kept = {key: copy.deepcopy(value) for key, value in self.tasks[body["task"]].items()
                if key in ("project", "type", "script", "hyperparams", "configuration", "tags")}
        return self.tasks_create({**kept, "name": body["new_task_name"], "parent": body["task"]})

    def tasks_add_or_update_model(self, body: dict) -> dict:
        models = self.tasks[body["task"]]["models"]
        others = [model for model in models[body["type"]] if model["name"] != body["name"]]
        models[body["type"]] = [*others, {"name": body["name"], "model": body["model"]}]
        return {"updated": 1}

    def _change_status(self, body: dict, status: str) -> dict:
        task = self.tasks[body["task"]]
        if task["status"] not in ("created", "in_progress") and not body.get("force"):
            raise ValueError(f"task is {task['status']}, not in progress")
        task.update(status=status, status_reason=body.get("status_reason"), status_message=body.get("status_message"))
        return {"updated": 1, "fields": {}}

    def tasks_started(self, body: dict) -> dict:
        return self._change_status(body, "in_progress")

    def tasks_completed(self, body: dict) -> dict:
        return self._change_status(body, "completed")

    def tasks_failed(self, body: dict) -> dict:
        return self._change_status(body, "failed")

    def tasks_stopped(self, body: dict) -> dict:
        return self._change_status(body, "stopped")

    def queues_get_all(self, body: dict) -> dict:
        name = body.get("name", "")
        return {"queues": [{"id": each, "name": each} for each in self.queues if re.search(name, each)]}

    def queues_get_by_id(self, body: dict) -> dict:
        return {"queue": {"id": body["queue"], "name": body["queue"]}}

    def tasks_enqueue(self, body: dict) -> dict:
        self.queues[body["queue"]].append(body["task"])
        return {"queued": 1, **self._change_status(body, "queued")}

    def tasks_dequeue(self, body: dict) -> dict:
        for waiting in self.queues.values():
            waiting[:] = [task for task in waiting if task != body["task"]]
        self.tasks[body["task"]]["status"] = "created"
        return {"dequeued": 1, "updated": 1, "fields": {}}

    def models_create(self, body: dict) -> dict:
        self.model_uris.append(body["uri"])
        return {"id": _create(self.models, body), "created": True}

    def models_get_by_id(self, body: dict) -> dict:
        return {"model": self.models[body["model"]]}

    def models_edit(self, body: dict) -> dict:
        self.model_uris.append(body["uri"])
        self.models[body["model"]].update({key: body[key] for key in body.keys() - {"model"}})
        return {"updated": 1, "fields": {}}

    def models_get_all(self, body: dict) -> dict:
        wanted = [model for key, model in self.models.items() if key in body.get("id", self.models)
                  and model.get("project") in body.get("project", [model.get("project")])
                  and model.get("task") in body.get("task", [model.get("task")])]
        newest_first = sorted(wanted, key=lambda model: model["created"], reverse=True)
        begin = body.get("page", 0) * body.get("page_size", 500)
        return {"models": newest_first[begin:begin + body.get("page_size", 500)]}

    def events_scalar_metrics_iter_histogram(self, body: dict) -> dict:
        curves: dict[str, dict[str, dict[str, list]]] = {}
        for event in self.events:
            if (event["task"], event["type"]) == (body["task"], "training_stats_scalar"):
                points = curves.setdefault(event["metric"], {}).setdefault(
                    event["variant"], {"name": event["variant"], "x": [], "y": []})
                points["x"].append(event["iter"])
                points["y"].append(event["value"])
        return curves

    def events_add_batch(self, body: dict) -> dict:
        self.events += body["requests"]
        return {"added": len(body["requests"]), "errors": 0}


def _stall(handler: BaseHTTPRequestHandler) -> None:
    handler.server.stopped.wait(600)


def _refuse(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.close()


def _fail(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(500)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


TROUBLES = {"stalls": _stall, "refuses": _refuse, "fails": _fail}


def _create(table: dict[str, dict], record: dict) -> str:
    key = uuid.uuid4().hex
    table[key] = {**record, "id": key, "created": datetime.now(UTC).isoformat()}
    return key


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        name = self.path.rpartition("/")[2].partition("?")[0]
        server = self.server.clearml
        server.trouble = server.troubles.get(name, server.trouble)
        if server.trouble == "dies":
            self.server.die()
        if server.trouble:
            TROUBLES.get(server.trouble, _refuse)(self)
            return
        lines = [json.loads(line) for line in data.splitlines()] or [{}]
        body = {"requests": lines} if name == "events.add_batch" else lines[0]
        code, message, answer = 200, "OK", {}
        try:
            self._check_login(name)
            answer = self.server.clearml.call(name, body)
        except PermissionError as error:
            code, message = 401, str(error)
        except (KeyError, ValueError, AttributeError) as error:
            code, message = 400, f"{name}: {error!r}"
        endpoint = {"name": name, "requested_version": "2.23", "actual_version": "2.23"}
        meta = {"id": "1", "trx": "1", "endpoint": endpoint, "result_code": code, "result_subcode": 0,
                "result_msg": message, "error_stack": "", "error_data": {}}
        content = json.dumps({"meta": meta, "data": answer}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def _check_login(self, name: str) -> None:
        expected = "Basic " + base64.b64encode(f"{ACCESS_KEY}:{SECRET_KEY}".encode()).decode()
        if name == "auth.login" and self.headers["Authorization"] != expected:
            raise PermissionError("wrong credentials")

    def log_message(self, *args) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def die(self) -> None:
        """From a request on nobody listens any more."""
        self.socket.close()

    def handle_error(self, *args) -> None:
        """Connections that one side has closed."""


@contextmanager
def running_server(files: Path) -> Iterator[ClearMLServer]:
    """Serves until the block ends; uploaded files land in `files`."""
    files.mkdir(parents=True, exist_ok=True)
    http = _Server(("127.0.0.1", 0), _Handler)
    http.stopped = threading.Event()
    http.clearml = server = ClearMLServer(files)
    server.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        http.stopped.set()
        http.shutdown()
        thread.join()
        http.server_close()
