"""Experiment tracking: the flow train -> next stage in two processes, offline and against a loopback server."""
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from scripts import upload_offline_runs
from tests.clearml_server import ClearMLServer, running_server
from tests.fresh_process import ROOT, printed, run_code, run_python
from utils.cli import run_stage
from utils.errors import InputError
from utils.tracking.experiment import start
from utils.tracking.models import fetch_model, find_models
from utils.tracking.offline_runs import load_uploaded_ids

LABELS = ["Radius", "Ulna", "Os lunatum"]
PARAMETERS = {"stage": "initial", "dataset": "phantom", "num_train_samples": 5, "lr": 1e-3, "gpu_id": None,
              "input_size": [96, 56], "data_aug": True, "note": "5"}
DEFINITIONS = f"PARAMETERS, LABELS = {PARAMETERS!r}, {LABELS!r}"  # for the processes below

TRAIN = DEFINITIONS + """
import numpy as np, sys, torch
from pathlib import Path
from utils.tracking.experiment import start
folder = Path(sys.argv[1])
torch.save({"weight": torch.arange(6.)}, folder / "unet.pt")
state = torch.manual_seed(7).get_state()
with start("initial training", PARAMETERS, ["phantom", "n=5"]) as experiment:
    assert torch.equal(torch.get_rng_state(), state)  # a stage's seed is the stage's
    for epoch in range(3):
        experiment.scalar("loss", "training", 1 / (epoch + 1), epoch)
        experiment.scalar("Dice", "validation", float("nan"), epoch)
    experiment.histogram("Dice per class", [0.5, float("nan"), 0.25], LABELS, 2)
    experiment.image("prediction", "first", np.zeros((30, 20, 3), np.uint8), 2)
    experiment.table("summary", [["what", "Dice"], ["initial", 74.3]])
    experiment.figure("study", "curves", np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    experiment.single_value("Dice in %", 74.3)
    print("seen on the console")
    print("model id:", experiment.save_model(folder / "unet.pt", LABELS))
"""

NEXT_STAGE = DEFINITIONS + """
import sys
import utils.tracking.models as models_module
from utils.cli import InputError
from utils.tracking.experiment import start
from utils.tracking.models import fetch_model, find_models
model = fetch_model(sys.argv[1])
assert model.parameters == PARAMETERS and list(model.labels) == LABELS, model
assert {name: type(value) for name, value in model.parameters.items()} == {n: type(v) for n, v in PARAMETERS.items()}
assert sorted(model.tags) == ["n=5", "phantom"]
assert [match.id for match in find_models(stage="initial", num_train_samples=5)] == [model.id]
assert find_models(stage="final") == []
models_module.PAGE_SIZE = 1  # the newest one is unfinished
assert [match.id for match in find_models(stage="initial", num_train_samples=5)] == [model.id]
print("weights:", model.weights)
with start("prediction", {"stage": "prediction"}) as experiment:
    for _ in range(2):
        experiment.use_model(model.id)
for name, error in (("crash", ValueError("boom")), ("interruption", KeyboardInterrupt())):
    try:
        with start(name, {"stage": name}):
            raise error
    except (ValueError, KeyboardInterrupt):
        pass
try:
    fetch_model("no-such-model")
except InputError as error:
    print("unknown:", error)
"""

AFTER_UPLOAD = DEFINITIONS + """
import json, os, sys
from scripts import upload_offline_runs
from utils.tracking.experiment import start
from utils.tracking.models import fetch_model, find_models
from utils.tracking.offline_runs import runs_dir
old, new, elsewhere = sys.argv[1:]
upload_offline_runs.main(None)
assert fetch_model(old).weights.read_bytes() == b"initial"
assert [model.id for model in find_models()] == [old]
with start("next", {}) as experiment:
    experiment.use_model(old)
record = runs_dir() / "uploaded.json"  # as if the upload had broken off between the task and its model
ids = json.loads(record.read_text())
del ids["checksum"]
next(iter(ids.values())).pop(old)
record.write_text(json.dumps(ids))
upload_offline_runs.main(None)
os.environ["SAM_BURDEN_RUNS"] = elsewhere
model = fetch_model(new)
assert model.weights.read_bytes() == b"initial" and model.parameters == PARAMETERS
"""

RESUMED = """
from utils.tracking.experiment import start
from pathlib import Path
state = Path(sys.argv[1])
for interrupted in (True, False):
    try:
        with start("train", {"stage": "initial"}, ["initial"], state=state) as experiment:
            print("continued:", experiment.continued)
            experiment.scalar("loss", "train", 0.5, 1 - interrupted)
            state.write_bytes(b"after the first epoch")
            if interrupted:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        continue
print("left:", [path.name for path in state.parent.glob("state*")])
"""

SERVER_TROUBLE = """
import os
from utils.cli import InputError
from utils.tracking.experiment import start
from utils.tracking.models import find_models
address = os.environ["CLEARML_API_HOST"]
os.environ["CLEARML_API_HOST"] = "http://127.0.0.1:9"
try:
    find_models()
except InputError as error:
    print("unreachable:", error)
os.environ.update(CLEARML_API_HOST=address, CLEARML_API_SECRET_KEY="wrong")
try:
    with start("training", {}):
        pass
except InputError as error:
    print("refused:", error)
"""

KILLED = """
import time
from utils.tracking.experiment import start
with start("killed", {}):
    print("at work", flush=True)
    time.sleep(100)
"""

OWN_TASK = """
from clearml import Task
from utils.errors import InputError
from utils.tracking.clearml_patches import report_from_threads
from utils.tracking.experiment import start
report_from_threads()  # the SDK's own way, a fork beside its threads, hangs now and then
Task.set_offline(True)
own = Task.init("own", "mine", auto_resource_monitoring=False)
try:
    with start("training", {}):
        pass
except InputError as error:
    print("refused:", error)
own.close()
with start("training", {}) as experiment:
    pass
print("ended: completed")
"""

DIFFERENCE = """
import argparse  # a password in a script that is in no repository is its difference
from unet_training.models import add_common_arguments
from utils.cli import run_stage
from utils.tracking.experiment import start
parser = argparse.ArgumentParser()
add_common_arguments(parser)
def main(args):
    with start("training", {}):
        pass
run_stage(main, parser)
"""


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """This process stays offline whatever the machine's settings are, with its runs in a temporary folder."""
    monkeypatch.setenv("CLEARML_OFFLINE_MODE", "1")
    monkeypatch.setenv("SAM_BURDEN_RUNS", str(tmp_path / "runs"))


def train_offline(tmp_path: Path, content: bytes = b"weights", **parameters) -> str:
    weights = tmp_path / "unet.pt"
    weights.write_bytes(content)
    with start("training", parameters) as experiment:
        experiment.scalar("loss", "training", 0.5, 0)
        experiment.image("prediction", "first", np.zeros((30, 20), np.uint8), 0)
        return experiment.save_model(weights, LABELS)


def sessions_by_name(runs: Path) -> dict[str, dict]:
    """Name of the task -> how it ended."""
    return {json.loads((end.parent / "task.json").read_text())["name"]: json.loads(end.read_text())
            for end in (runs / "offline").glob("*/end.json")}


@pytest.mark.slow
def test_two_processes_offline(tmp_path):
    runs = tmp_path / "runs"
    options = {"folder": tmp_path, "runs": runs}
    output = run_code(TRAIN, str(tmp_path), **options)
    assert "network:" not in output
    model_id = printed("model id", output)
    assert re.fullmatch(r"[\w-]+", model_id)
    (tmp_path / "unet.pt").rename(tmp_path / "trained.pt")  # the next stage must read the stored copy
    output = run_code(NEXT_STAGE, model_id, **options)
    assert "network:" not in output
    weights = Path(printed("weights", output))
    assert weights.is_relative_to(runs) and weights.read_bytes() == (tmp_path / "trained.pt").read_bytes()
    assert model_id in printed("unknown", output) and "dataset=phantom" in printed("unknown", output)
    ends = sessions_by_name(runs)
    assert {name: end["status"] for name, end in ends.items()} == {
        "initial training": "completed", "prediction": "completed", "crash": "failed", "interruption": "stopped"}
    assert ends["prediction"]["input_models"] == [model_id, model_id] and ends["crash"]["reason"] == "ValueError: boom"
    session = (runs / "offline" / fetch_model(model_id).task_id)
    reported = {event["metric"] for line in (session / "metrics.jsonl").read_text().splitlines()
                for event in json.loads(line)}
    assert reported == {"loss", "Dice per class", "prediction", "summary", "study", "Summary"}
    assert "seen on the console" in (session / "log.jsonl").read_text()


@pytest.mark.slow
def test_two_processes_with_a_server(tmp_path):
    with running_server(tmp_path / "server_files") as server:
        options = {"folder": tmp_path, "runs": tmp_path / "runs", "server": server}
        model_id = printed("model id", run_code(TRAIN, str(tmp_path), **options))
        others = {"unfinished": {"uri": "file:///x/uploading_file"},  # as older versions left after a kill
                  "foreign": {"labels": None}, "strange": {"design": {"design": "[1]"}}, "bare": {"design": None},
                  "other_project": {"project": "other"}}
        for name, changes in others.items():
            server.models[name] = {**server.models[model_id], **changes, "id": name}
        output = run_code(NEXT_STAGE, model_id, **options)
    asked = [line for line in output.splitlines() if line.startswith("network:")]
    assert asked and all("127.0.0.1" in line for line in asked)  # nothing but the server, no check for updates
    assert not (tmp_path / "runs").exists()
    weights = Path(printed("weights", output))
    assert weights.is_relative_to(server.files) and weights.read_bytes() == (tmp_path / "unet.pt").read_bytes()
    assert model_id in printed("unknown", output) and "unfinished" not in printed("unknown", output)

    tasks = {task["name"]: task for task in server.tasks.values()}
    assert {name: task["status"] for name, task in tasks.items()} == {
        "initial training": "completed", "prediction": "completed", "crash": "failed", "interruption": "stopped"}
    assert tasks["crash"]["status_message"] == "ValueError: boom"
    assert any("Traceback" in event.get("msg", "") for event in server.events if event["task"] == tasks["crash"]["id"])
    assert tasks["prediction"]["parent"] == tasks["initial training"]["id"]
    training = tasks["initial training"]
    assert sorted(training["tags"]) == ["n=5", "phantom"]
    arguments = training["hyperparams"]["Args"]
    assert arguments["num_train_samples"]["value"] == "5" and arguments["input_size"]["value"] == "[96, 56]"
    assert training["models"]["output"] == [{"name": "bone_segmentator", "model": model_id}]
    assert set(server.models) == {model_id, *others}  # torch.save itself is not traced
    assert all(output.count(f"left out: model {name}") == 1 for name in ("foreign", "strange", "bare"))
    assert server.models[model_id]["name"] == "initial phantom n=5"
    assert server.models[model_id]["labels"] == {"Radius": 0, "Ulna": 1, "Os lunatum": 2}
    assert tasks["prediction"]["models"]["input"] == [{"name": "bone_segmentator", "model": model_id},
                                                      {"name": "bone_segmentator_2", "model": model_id}]
    check_events(server, training["id"])


def check_events(server: ClearMLServer, task_id: str) -> None:
    events = [event for event in server.events if event["task"] == task_id]
    losses = [event["value"] for event in events if event.get("metric") == "loss"]
    assert losses == pytest.approx([1, 1 / 2, 1 / 3])
    assert not [event for event in events if event.get("metric") == "Dice"]  # NaN is no point of a curve
    figure = json.loads(next(event["plot_str"] for event in events if event.get("metric") == "study"))
    with urlopen(figure["layout"]["images"][0]["source"]) as picture:
        pixels = np.asarray(Image.open(io.BytesIO(picture.read())))
    assert np.array_equal(pixels, np.arange(60).reshape(4, 5, 3))
    assert [event["value"] for event in events if event.get("variant") == "Dice in %"] == [74.3]
    plots = {event["metric"]: json.loads(event["plot_str"])["data"][0] for event in events if "plot_str" in event}
    assert plots["Dice per class"]["x"] == ["Radius", "Os lunatum"] and plots["Dice per class"]["y"] == [0.5, 0.25]
    assert plots["summary"]["header"]["values"] == ["what", "Dice"]
    image = next(event for event in events if event.get("metric") == "prediction")
    assert (server.files / image["key"]).is_file()
    assert any("seen on the console" in event.get("msg", "") for event in events)


@pytest.mark.slow
def test_upload_of_offline_runs(tmp_path):
    runs = tmp_path / "runs"
    initial = train_offline(tmp_path, b"initial", **PARAMETERS)
    with start("final training", {"stage": "final"}) as experiment:
        experiment.use_model(initial)
    with pytest.raises(ValueError, match="boom"), start("crash", {}):
        raise ValueError("boom")
    (runs / "offline" / "offline-killed").mkdir()  # has not ended
    with running_server(tmp_path / "server_files") as server:
        output = run_python(["-m", "scripts.upload_offline_runs"], runs, server)
        new_ids = dict(re.findall(r"^(\S+) -> (\S+)$", output, re.MULTILINE))
        assert len(new_ids) == 4 and set(new_ids.values()) == {*server.tasks, *server.models}
        assert all("offline" in task["tags"] for task in server.tasks.values())
        assert "began" in server.tasks[new_ids[fetch_model(initial).task_id]]["hyperparams"]["properties"]
        new = new_ids[initial]
        assert server.models[new]["uri"].startswith(server.files.as_uri())
        tasks = {task["name"]: task for task in server.tasks.values()}
        assert {name: task["status"] for name, task in tasks.items()} == {
            "training": "completed", "final training": "completed", "crash": "failed"}
        assert [model["model"] for model in tasks["final training"]["models"]["input"]] == [new]
        assert tasks["training"]["hyperparams"]["Args"]["lr"]["value"] == "0.001"
        events = [event for event in server.events if event["task"] == tasks["training"]["id"]]
        assert [event["value"] for event in events if event.get("metric") == "loss"] == [0.5]
        images = [event["key"] for event in events if event.get("metric") == "prediction"]
        assert len(images) == 1 and (server.files / images[0]).is_file()

        output = run_code(AFTER_UPLOAD, initial, new, str(tmp_path / "elsewhere"), folder=tmp_path, runs=runs,
                          server=server)
        assert "nothing to upload" in output
        following = next(task for task in server.tasks.values() if task["name"] == "next")
        assert [model["model"] for model in following["models"]["input"]] == [new]
        assert f"{initial} -> {list(server.models)[1]}" in output
        assert len(server.models) == 2 and len(server.tasks) == 4


def test_upload_without_credentials(capsys):
    with pytest.raises(SystemExit) as end:
        run_stage(upload_offline_runs.main, upload_offline_runs.get_args_parser(), [])
    assert end.value.code == 2 and "no ClearML credentials" in capsys.readouterr().err


def test_server_trouble_is_told_in_one_line(tmp_path):
    with running_server(tmp_path / "server_files") as server:
        output = run_code(SERVER_TROUBLE, folder=tmp_path, runs=tmp_path / "runs", server=server)
    assert "http://127.0.0.1:9 can't be reached" in printed("unreachable", output)
    assert "wrong credentials" in printed("refused", output) and "check the credentials" in printed("refused", output)


@pytest.mark.slow
def test_a_training_that_resumes_continues_its_task(tmp_path):
    with running_server(tmp_path / "server_files") as server:
        output = run_code(RESUMED, str(tmp_path / "state.pt"), folder=tmp_path, runs=tmp_path / "runs", server=server)
    assert re.findall("^continued: (.*)$", output, re.MULTILINE) == ["False", "True"]
    assert printed("left", output) == "['state.pt']"
    task, = server.tasks.values()
    assert task["status"] == "completed"
    assert [event["iter"] for event in server.events if event.get("metric") == "loss"] == [0, 1]


def test_models_are_found_newest_first_by_equal_parameters(tmp_path):
    first = train_offline(tmp_path, stage="initial", dataset="graz", n=5)
    second = train_offline(tmp_path, stage="initial", dataset="graz", n=5)
    other = train_offline(tmp_path, stage="initial", dataset="graz", n=10)
    assert [model.id for model in find_models(dataset="graz", n=5)] == [second, first]
    assert [model.id for model in find_models(n=10)] == [other]
    assert find_models(n="5") == [] == find_models(seed=None)


def test_unknown_id_offline(tmp_path):
    with pytest.raises(InputError, match="there are: none yet"):
        fetch_model("offline-0")
    model_id = train_offline(tmp_path, stage="initial", dataset="graz", num_train_samples=5)
    expected = rf"offline-0: .*{model_id} \(stage=initial, dataset=graz, num_train_samples=5\)"
    with pytest.raises(InputError, match=expected):
        fetch_model("offline-0")
    with pytest.raises(InputError, match=expected), start("next", {}) as experiment:
        experiment.use_model("offline-0")


def test_no_model_from_an_interrupted_copy(tmp_path, monkeypatch):
    def copy_half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", copy_half)
    with pytest.raises(KeyboardInterrupt):
        train_offline(tmp_path)
    assert find_models() == [] and list((tmp_path / "runs" / "models").iterdir()) == []
    assert sessions_by_name(tmp_path / "runs")["training"]["status"] == "stopped"


def test_termination_stops_the_task(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end, start("long", {}):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 5)
    assert end.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert sessions_by_name(tmp_path / "runs")["long"]["status"] == "stopped"


def test_what_a_killed_run_left_of_its_session_goes_with_the_next(tmp_path):
    """A run that was started by a program with a task of its own."""
    runs = tmp_path / "runs"
    killed = subprocess.Popen([sys.executable, "-c", KILLED], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "SAM_BURDEN_RUNS": str(runs), "CLEARML_PROC_MASTER_ID": "1:other",
                                   "TRAINS_PROC_MASTER_ID": "1:other"})
    assert next(line for line in killed.stdout if "at work" in line)
    with start("beside it", {}):
        assert len(list((runs / "offline").glob("offline-*"))) == 2
    assert len(list((runs / "offline").glob("offline-*"))) == 2  # one ended, one at work
    killed.kill()
    killed.communicate()
    with start("after it", {}):
        pass
    assert set(sessions_by_name(runs)) == {"beside it", "after it"}
    assert len(list((runs / "offline").iterdir())) == 2  # each once, as a folder


def test_a_task_of_the_callers_own_is_told(tmp_path):
    output = run_code(OWN_TASK, folder=tmp_path, runs=tmp_path / "runs")
    assert "a ClearML task of your own is open (mine)" in printed("refused", output)
    assert "task.close()" in printed("refused", output) and "ended: completed" in output


def test_a_stage_reports_from_a_thread(tmp_path):
    thread = threading.Thread(target=train_offline, args=(tmp_path,))
    thread.start()
    thread.join()
    assert sessions_by_name(tmp_path / "runs")["training"]["status"] == "completed"


@pytest.mark.parametrize(("arguments", "kept"), [([], True), (["--no-record_diff"], False)])
def test_the_working_trees_changes_stay_here_on_request(tmp_path, arguments, kept):
    run_code(DIFFERENCE, *arguments, folder=tmp_path, runs=tmp_path / "runs")
    task, = (tmp_path / "runs" / "offline").glob("*/task.json")
    assert ("a password" in task.read_text()) == kept


def test_damaged_weights_are_told_and_damaged_uploads_are_not_taken_for_none(tmp_path):
    model_id = train_offline(tmp_path, b"weights")
    path = fetch_model(model_id).weights
    assert path.read_bytes() == b"weights"
    path.write_bytes(b"weighty")
    with pytest.raises(InputError, match=r"unet\.pt: damaged .* train the model again"):
        _ = fetch_model(model_id).weights
    path.unlink()
    with pytest.raises(InputError, match=r"unet\.pt: no such file"):
        _ = fetch_model(model_id).weights
    (tmp_path / "runs" / "uploaded.json").write_text('{"server": ')
    with pytest.raises(InputError, match=r"uploaded\.json: a damaged record .* uploaded once more"):
        load_uploaded_ids("server")
