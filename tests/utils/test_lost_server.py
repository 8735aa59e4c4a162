"""A ClearML server, or the place of its files, that fails in the middle of a run: the run ends by itself and soon, and
nothing of it is lost."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.clearml_server import ClearMLServer, running_server
from tests.fresh_process import ROOT, run_python

PATIENCE = 1.5  # seconds
MOST = 30  # seconds that a run may take here, most of them for the SDK's import on a busy machine
STAGE = """
import argparse, sys, time
from pathlib import Path
import numpy as np
from utils.cli import run_stage
from utils.tracking.experiment import start
from utils.tracking.models import fetch_model

def main(args):
    weights = Path(args.weights)
    weights.write_bytes(b"weights")
    with start("train", {"stage": "initial", "dataset": "phantom", "num_train_samples": 3}, ["initial"]) as experiment:
        for epoch in range(4):
            experiment.scalar("loss", "train", 1 / (epoch + 1), epoch)
            experiment.image("validation", "first", np.zeros((20, 30, 3), np.uint8), epoch)
            time.sleep(0.6)  # the SDK reports every few seconds
        experiment.single_value("Dice in %", 70.5)
        experiment.figure("study", "curves", np.zeros((20, 30, 3), np.uint8))
        model_id = experiment.save_model(weights, ["Radius"])
    with start("next", {"stage": "next"}) as experiment:  # as in a pipeline
        experiment.use_model(model_id)
        print("weights:", fetch_model(model_id).weights)

parser = argparse.ArgumentParser(prog="python -m stage")
parser.add_argument("weights")
run_stage(main, parser)
"""


def start_stage(tmp_path: Path, server: ClearMLServer, **environment: str) -> subprocess.Popen:
    (tmp_path / "stage.py").write_text(STAGE)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLEARML", "TRAINS"))}
    kept |= {"SAM_BURDEN_RUNS": str(tmp_path / "runs"), "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT),
             "CLEARML_CONFIG_FILE": str(tmp_path / "none"), "SAM_BURDEN_SERVER_PATIENCE": str(PATIENCE),
             **server.environment, **environment}
    return subprocess.Popen([sys.executable, str(tmp_path / "stage.py"), str(tmp_path / "unet.pt")], env=kept, cwd=ROOT,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def sessions(runs: Path) -> dict[str, dict]:
    """Name of the task -> how its offline session ended."""
    return {json.loads((end.parent / "task.json").read_text())["name"]: json.loads(end.read_text())
            for end in (runs / "offline").glob("*/end.json")}


@pytest.mark.slow
@pytest.mark.parametrize(("call", "trouble"), [("events.add_batch", "dies"), ("models.create", "stalls"),
                                               ("events.add_batch", "fails"), ("the place of its files", "")])
def test_nothing_is_lost_with_the_server(tmp_path, call, trouble):
    files = {} if trouble else {"CLEARML_FILES_HOST": "http://127.0.0.1:9"}
    with running_server(tmp_path / "server_files") as server:
        server.troubles = {call: trouble}
        stage = start_stage(tmp_path, server, **files)
        output, errors = stage.communicate(timeout=MOST + 15 * PATIENCE)
        statuses = {task["name"]: task["status"] for task in server.tasks.values()}
        assert server.models == {}  # no ghosts
    assert stage.returncode == 0, output + errors
    told = [line for line in errors.splitlines() if "scripts.upload_offline_runs" in line]
    assert len(told) == 1 and told[0].startswith("ClearML: ") and "Traceback" not in errors
    assert statuses == {"train": "in_progress" if trouble else "stopped"}
    weights = Path(re.search("^weights: (.*)$", output, re.MULTILINE)[1])
    assert weights.read_bytes() == b"weights"
    ends = sessions(tmp_path / "runs")
    assert {name: end["status"] for name, end in ends.items()} == {"train": "completed", "next": "completed"}
    if trouble == "dies":
        check_upload(tmp_path, next(iter(server.tasks.values())))


def check_upload(tmp_path: Path, lost: dict) -> None:
    """The server has come back, with the task as it knew it last."""
    with running_server(tmp_path / "mended") as mended:
        mended.tasks[lost["id"]] = {**lost, "status": "in_progress"}
        run_python(["-m", "scripts.upload_offline_runs"], tmp_path / "runs", mended)
        tasks = {task["name"]: task for task in mended.tasks.values() if task["id"] != lost["id"]}
        events = [event for event in mended.events if event["task"] == tasks["train"]["id"]]
        assert [event["value"] for event in events if event.get("metric") == "loss"] == pytest.approx(
            [1, 1 / 2, 1 / 3, 1 / 4])
        assert [event["value"] for event in events if event.get("metric") == "Summary"] == [70.5]
        assert len([event for event in events if event.get("metric") == "validation"]) == 4
        model, = mended.models.values()
        assert Path(model["uri"].removeprefix("file://")).read_bytes() == b"weights"
        assert [each["model"] for each in tasks["next"]["models"]["input"]] == [model["id"]]
        assert mended.tasks[lost["id"]]["status"] == "stopped" and "offline" in tasks["train"]["tags"]


@pytest.mark.slow
def test_reports_that_a_server_refused_for_a_while_are_told_again(tmp_path):
    with running_server(tmp_path / "server_files") as server:
        server.troubles = {"events.add_batch": "fails", "models.create": ""}  # it has come back by then
        stage = start_stage(tmp_path, server)
        while not server.trouble and stage.poll() is None:
            time.sleep(0.05)
        while server.calls.count("events.add_batch") == 0 and stage.poll() is None:
            time.sleep(0.5)
            server.troubles, server.trouble = {}, ""
        server.troubles, server.trouble = {}, ""  # a call that was under way may have seen them
        output, errors = stage.communicate(timeout=MOST + 15 * PATIENCE)
        assert stage.returncode == 0, output + errors
        losses = {event["iter"]: event["value"] for event in server.events if event.get("metric") == "loss"}
    assert losses == pytest.approx({epoch: 1 / (epoch + 1) for epoch in range(4)})
    assert {task["status"] for task in server.tasks.values()} == {"completed"} and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_model_that_the_server_has_is_found_when_it_is_lost_later(tmp_path):
    with running_server(tmp_path / "server_files") as server:
        server.troubles = {"events.add_batch": "fails", "models.create": "", "debug.ping": ""}  # takes all but reports
        output, errors = start_stage(tmp_path, server).communicate(timeout=MOST + 15 * PATIENCE)
        assert len(server.models) == 1 and "takes no reports" in errors, output + errors
    weights = Path(re.search("^weights: (.*)$", output, re.MULTILINE)[1])
    assert weights.read_bytes() == b"weights"
    assert {name: end["status"] for name, end in sessions(tmp_path / "runs").items()} == {
        "train": "completed", "next": "completed"}


@pytest.mark.slow
def test_an_interruption_ends_the_waiting_and_a_start_leaves_no_draft(tmp_path):
    with running_server(tmp_path / "server_files") as server:
        stage = start_stage(tmp_path, server)
        while not server.tasks:  # it is being made, and has no tags yet
            time.sleep(0.01)
        stage.send_signal(signal.SIGINT)
        _, errors = stage.communicate(timeout=MOST)
        task, = server.tasks.values()
    assert stage.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert task["status"] == "stopped" and task["tags"] == ["initial"]
