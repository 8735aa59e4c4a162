"""Several machines with one ClearML server: an agent runs a stage that was cloned in the web UI, and a second working
copy finds what the first one has made."""
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.clearml_server import ClearMLServer, running_server
from tests.fresh_process import ROOT
from tests.stage_runs import SMALL, N

AGENT = ROOT / ".agent" / "bin" / "clearml-agent"
TINY = [*N, *SMALL, "--epochs", "1", "--sam_type", "demo"]


def environment_of(folder: Path, server: ClearMLServer | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLEARML", "TRAINS"))}
    return {**kept, "SAM_BURDEN_RUNS": str(folder / "runs"), "CLEARML_CONFIG_FILE": str(folder / "clearml.conf"),
            "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", **(server.environment if server else {})}


def run_stage(module: str, *arguments: str, folder: Path, server: ClearMLServer | None) -> str:
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment_of(folder, server),
                          capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_agent(task_id: str, folder: Path, server: ClearMLServer) -> str:
    """Has an agent run a task; returns what it said in the end."""
    settings = {"CLEARML_AGENT_SKIP_PYTHON_ENV_INSTALL": "1", "CLEARML_AGENT_FORCE_CODE_DIR": str(ROOT),
                "CLEARML_AGENT_SKIP_PIP_VENV_INSTALL": sys.executable, "CLEARML_AGENT_QUEUE_POLL_FREQ_SEC": "0.5"}
    done = subprocess.run([AGENT, "execute", "--id", task_id], cwd=folder, capture_output=True, text=True,
                          env={**environment_of(folder, server), **settings}, timeout=300, check=False)
    return done.stdout[-3000:] + done.stderr[-3000:]


@contextmanager
def agents_at(queue: str, folder: Path, server: ClearMLServer) -> Iterator[dict[str, list[str]]]:
    """Two, which take tasks from the queue until the block ends. Yields, of each task by its name, the names of the
    tasks that had ended when it began."""
    waiting, ended = server.queues.setdefault(queue, []), threading.Event()
    before: dict[str, list[str]] = {}

    def work() -> None:
        while not ended.wait(0.1):
            with suppress(IndexError):
                task = server.tasks[waiting.pop(0)]
                before[task["name"]] = [each["name"] for each in server.tasks.values()
                                        if each["status"] == "completed"]
                run_agent(task["id"], folder, server)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        yield before
    finally:
        ended.set()
        for worker in workers:
            worker.join()


def shown(task: dict) -> dict[str, str]:
    """The arguments of a task by name."""
    return {name: item["value"] for section in task["hyperparams"].values() for name, item in section.items()}


needs_agent = pytest.mark.skipif(not AGENT.exists(), reason="no ClearML agent; `make .agent/installed` installs it")


@pytest.mark.slow
@needs_agent
def test_an_agent_runs_a_cloned_stage_with_the_arguments_that_the_server_shows(phantom_data_dir, tmp_path):
    """The evaluation of a pipeline is rerun alone; a training with what was changed."""
    data_dir = str(shutil.copytree(phantom_data_dir, tmp_path / "data"))
    with running_server(tmp_path / "files") as server:
        run_stage("unet_training.training", "--dataset", "phantom", "--data_dir", data_dir, *TINY[:-2],
                  "--lr", "0.004", folder=tmp_path, server=server)
        original, = server.tasks.values()
        assert original["script"]["entry_point"] == "-m unet_training.training"
        assert original["script"]["working_dir"] == "." and original["type"] == "training"
        assert original["hyperparams"]["training"]["lr"]["description"] == "initial learning rate of AdamW"
        assert "sha256" not in json.dumps(original["hyperparams"])
        clone = server.tasks[server.tasks_clone({"task": original["id"], "new_task_name": "clone"})["id"]]
        for section, name, value in (("training", "epochs", "3"), ("training", "lr", "0.001"), ("Args", "seed", "77"),
                                     ("initial network", "input_size", "64 96")):
            clone["hyperparams"][section][name]["value"] = value
        said = run_agent(clone["id"], tmp_path, server)
        assert clone["status"] == "completed", said
        assert set(server.tasks) == {original["id"], clone["id"]}
        model = next(model for model in server.models.values() if model["task"] == clone["id"])
        ran = json.loads(model["design"]["design"])
        assert (ran["epochs"], ran["lr"], ran["seed"], ran["input_size"]) == (3, 0.001, 77, [64, 96])
        arguments = shown(clone)
        assert [arguments[name] for name in ("epochs", "lr", "seed", "input_size")] == ["3", "0.001", "77", "64 96"]
        losses = [event["iter"] for event in server.events
                  if event["task"] == clone["id"] and event.get("metric") == "loss" and event["variant"] == "train"]
        assert losses == [0, 1, 2]


@pytest.mark.slow
def test_a_second_working_copy_finds_models_and_masks_of_the_first(phantom_data_dir, tmp_path):
    with running_server(tmp_path / "files") as server:
        copies = [tmp_path / name for name in ("first", "second")]
        for copy in copies:
            shutil.copytree(phantom_data_dir, copy / "data")

        def run_pipeline(copy: Path, *more: str) -> list[dict]:
            """The tasks that it adds."""
            before = set(server.tasks)
            run_stage("scripts.run_pipeline", "--dataset", "phantom", "--data_dir", str(copy / "data"), *TINY,
                      "--results_dir", str(copy / "results"), *more, folder=copy, server=server)
            return [task for key, task in server.tasks.items() if key not in before]

        made = run_pipeline(copies[0])
        assert {(task["name"], task["type"]) for task in made} == {
            ("train initial phantom n=3", "training"), ("predict, initial phantom n=3", "inference"),
            ("refine, initial phantom n=3", "inference"), ("train final phantom n=3 sam", "training"),
            ("evaluate test, initial phantom n=3", "testing"), ("evaluate unlabeled, initial phantom n=3", "testing"),
            ("evaluate unlabeled, initial phantom n=3, masks sam", "testing"),
            ("evaluate val, initial phantom n=3", "testing"),
            ("evaluate val, initial phantom n=3, masks sam", "testing"),
            ("evaluate test, final phantom n=3 sam", "testing")}
        assert {model["name"] for model in server.models.values()} == {"initial phantom n=3", "final phantom n=3 sam"}
        evaluation = made[-1]
        assert evaluation["script"]["entry_point"] == "-m scripts.evaluate"
        assert shown(evaluation)["model_id"] == evaluation["models"]["input"][0]["model"]
        assert shown(evaluation)["split"] == "test" and "rounds" not in shown(evaluation)
        assert {"dice", "run"} <= {artifact["key"] for artifact in evaluation["execution"]["artifacts"]}
        summary = {event["variant"]: event["value"] for event in server.events
                   if event["task"] == evaluation["id"] and event.get("metric") == "Summary"}
        assert {"Dice in %, test", "Dice in %, test, std", "images, test"} <= set(summary)
        assert run_pipeline(copies[0]) == []  # nothing to do
        anew = run_pipeline(copies[1], "--infer_batch_size", "3")
        assert len(server.models) == 2 and {task["type"] for task in anew} == {"testing"}
        first, second = ({path.relative_to(copy): path.read_bytes() for path in copy.glob("data/seg_masks/*/*.h5")}
                         for copy in copies)
        assert first == second and len(first) == 2
        page = (copies[1] / "results" / "report.html").read_text(encoding="utf-8")
        curves = page.partition("<h2>Training curves</h2>")[2].partition("</section>")[0]
        assert curves.count('class="chart"') == 4  # loss and Dice of both trainings, which it didn't run itself


@pytest.mark.slow
@needs_agent
def test_agents_run_a_pipeline_from_a_queue(phantom_data_dir, tmp_path):
    """Its numbers are those of a run without a server."""
    def run_pipeline(copy: str, server: ClearMLServer | None, *more: str) -> str:
        folder = tmp_path / copy
        return run_stage("scripts.run_pipeline", "--dataset", "phantom", "--data_dir", str(folder / "data"), *TINY,
                         "--results_dir", str(folder / "results"), *more, folder=folder, server=server)

    for copy in ("queued", "alone"):
        shutil.copytree(phantom_data_dir, tmp_path / copy / "data")
    with running_server(tmp_path / "files") as server, ThreadPoolExecutor() as pool:
        alone = pool.submit(run_pipeline, "alone", None)
        with agents_at("gpu", tmp_path / "queued", server) as before:
            run_pipeline("queued", server, "--queue", "gpu")
        tasks = {task["name"]: task for task in server.tasks.values()}
        number = len(server.tasks)
        assert "== 0 stages to queue gpu ==" in run_pipeline("queued", server, "--queue", "gpu")
        assert len(server.tasks) == number
        alone.result()
    initial, refine, final = "train initial phantom n=3", "refine, initial phantom n=3", "train final phantom n=3 sam"
    last = "evaluate test, final phantom n=3 sam"
    assert {task["status"] for task in tasks.values()} == {"completed"} and len(tasks) == number == 11
    assert set(tasks) - set(before) == {"pipeline results", "evaluate val, initial phantom n=3",
                                        "evaluate val, initial phantom n=3, masks sam"}
    controller = tasks["pipeline results"]
    assert controller["type"] == "controller" and {tasks[name]["parent"] for name in before} == {controller["id"]}
    assert before[initial] == [] and {initial, refine} <= set(before[final]) and final in before[last]
    models = {name: tasks[name]["models"]["output"][0]["model"] for name in (initial, final)}
    assert set(models.values()) == set(server.models)
    assert f"of {models[initial][:8]}" in tasks[refine]["tags"]
    for name in before.keys() - {initial}:
        assert shown(tasks[name])["model_id"] == models[final if name == last else initial]
    tables = [(tmp_path / copy / "results" / "table.csv").read_text() for copy in ("queued", "alone")]
    assert tables[0] == tables[1] and len(tables[0].splitlines()) == 5
