"""Several machines with one ClearML server: an agent runs a stage that was cloned in the web UI, and a second working
copy finds what the first one has made."""
import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.clearml_server import ClearMLServer, running_server
from tests.fresh_process import ROOT, printed, run_code
from tests.stage_runs import SMALL, N
from unet_training.checkpoint import Training, save_checkpoint
from unet_training.models import DataOptions, Selection, TrainedModel
from unet_training.networks.u_net import UNet
from unet_training.pseudo_labels import Raw
from unet_training.saved_masks import save_masks
from utils.datasets.description import OWN
from utils.files import load_tensors, write_png
from utils.tracking.experiment import start
from utils.tracking.models import fetch_model

AGENT = ROOT / ".agent" / "bin" / "clearml-agent"
TINY = [*N, *SMALL, "--epochs", "1", "--sam_type", "demo"]
BLOBS = """
sam_type = "demo"
labels = ["upper", "lower"]
input_size = [96, 64]
mean = 0.2
std = 0.2
pos_weight = [8, 8]
image_folder = "img"
prepare = "draw them"
unlabeled = "rest_of_train"

[masks]
kind = "label_maps"
folder = "masks"
train = 8
val = 2
"""


def draw_blobs(data_dir: Path) -> None:
    """The data set `blobs`: twelve images of two labels, which take a tenth of the phantoms' time."""
    folder, rng = data_dir / "blobs", np.random.default_rng(0)
    for number in range(12):
        masks = np.zeros((96, 64), np.uint8)
        for value, center in enumerate(((20 + number, 30), (44 - number, 66)), 1):
            cv2.ellipse(masks, center, (10, 16), 0, 0, 360, value, cv2.FILLED)
        image = 70 * masks + rng.integers(0, 60, masks.shape, np.uint8)
        for name, picture in (("img", image), ("masks", masks)):
            write_png(folder / name / f"{number:02}.png", picture)
    (folder / OWN).write_text(BLOBS)


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


ABORTED = """
import argparse, time
from pathlib import Path
import torch
from torch.utils.data import DataLoader, TensorDataset
from unet_training.checkpoint import Training
from unet_training.epoch import bce_loss, train_epoch
from unet_training.hyper_params import Schedule
from unet_training.networks.u_net import UNet
from unet_training.trainer import Prepared, fit
from utils.cli import run_stage
from utils.tracking.experiment import start

def run_epoch(*arguments):
    time.sleep(0.5)
    return train_epoch(*arguments)

def main(args):
    torch.manual_seed(0)
    data, cpu = TensorDataset(torch.rand(2, 1, 32, 48), torch.rand(2, 2, 32, 48) < 0.5), torch.device("cpu")
    model, batches = UNet(2, base_width=2, n_last_channel=2), DataLoader(data, 2)
    with start("train", {"stage": "initial"}, state=args.state) as experiment:
        fit(Prepared(model, model, batches, batches, bce_loss([1.0, 2.0], cpu),
                     Training("phantom", ("left", "right"), (32, 48), 0.4, 0.2), run_epoch=run_epoch),
            Schedule(999), cpu, experiment, args.state)

parser = argparse.ArgumentParser(prog="python -m stage")
parser.add_argument("state", type=Path)
for _ in range(2):
    try:
        run_stage(main, parser)
    except SystemExit as end:
        print("ended:", end.code, flush=True)
"""

MASKS = """
import sys
from pathlib import Path
import numpy as np
import torch
from scripts import save_random_walk_segmentations, upload_offline_runs
from unet_training.models import DataOptions, Selection, TrainedModel
from unet_training.nnunet import training as nnunet_training
from unet_training.nnunet.nnunet import NNUNetOptions
from unet_training.pseudo_labels import Mask, NNUNetMasks, Raw
from unet_training.saved_masks import masks_path, open_saved_masks, save_masks
from utils.cli import run_stage
from utils.errors import InputError
from utils.tracking.experiment import start
from utils.tracking.models import fetch_model, find_models
from utils.tracking.offline_runs import load_uploaded_ids

data_dir, folder, files, old = Path(sys.argv[1]), *map(Path, sys.argv[2:4]), sys.argv[4]
CPU = torch.device("cpu")

def seen_from(machine, model_id=old):
    data = DataOptions("phantom", data_dir, folder / machine).open((32, 48))
    return TrainedModel.load(fetch_model(model_id), data, CPU)

first = seen_from("first")
own = masks_path(Raw(), first).read_bytes()
upload_offline_runs.main(None)
new = load_uploaded_ids(os.environ["CLEARML_API_HOST"])[old]
assert [model.id for model in find_models(stage="initial")] == [old]
assert open_saved_masks(Raw(), seen_from("first", new)).path == masks_path(Raw(), first)

os.environ["SAM_BURDEN_RUNS"] = str(folder / "runs of the second")
assert [model.id for model in find_models(stage="initial")] == [old]
for model_id in (new, old):
    assert open_saved_masks(Raw(), seen_from("first", model_id)).path == masks_path(Raw(), first)  # one network folder
assert open_saved_masks(Raw(), seen_from("second", new)).path.read_bytes() == own
with start("next", {}) as experiment:
    experiment.use_model(new)
print("uploaded as:", new)

NNUNetMasks.compute = lambda _, model, stems: (Mask(stem, np.eye(17 * 32, 48, dtype=bool).reshape(17, 32, 48))
                                               for stem in stems)
NNUNetMasks.check = lambda _: None
made_with = nnunet_training.identity(NNUNetOptions(), 42, first)
with start("nnU-Net", {**made_with, "initial_model_id": old}) as experiment:
    (folder / "nnunet.zip").write_bytes(b"of nnU-Net")
    nnunet_id = experiment.save_model(folder / "nnunet.zip", first.data.description.labels)
labels = NNUNetMasks(NNUNetOptions(), 42)
made = save_masks(labels, first, Selection())
fetched = open_saved_masks(labels, seen_from("second"))
assert fetched.path != made and fetched.path.read_bytes() == made.read_bytes()
assert fetched.attributes["nnunet_model_id"] == nnunet_id

for stored in files.rglob("raw.h5"):
    stored.write_bytes(stored.read_bytes()[:-1] + b"!")
try:
    open_saved_masks(Raw(), seen_from("third"))
except InputError as error:
    print("missing:", error)
assert not masks_path(Raw(), seen_from("third")).exists()
save_masks(Raw(), seen_from("third"), Selection())
print("made anew")
assert sorted(open_saved_masks(Raw(), seen_from("fourth")).images.items()) == sorted(
    open_saved_masks(Raw(), first).images.items())
run_stage(save_random_walk_segmentations.main, save_random_walk_segmentations.get_args_parser(),
          ["--dataset", "phantom", "--data_dir", str(data_dir), "--derived_dir", str(folder / "first"),
           "--model_id", old, "--no-upload_masks"])
"""

needs_agent = pytest.mark.skipif(not AGENT.exists(), reason="no ClearML agent; `make .agent/installed` installs it")


@pytest.mark.slow
@needs_agent
def test_an_agent_runs_a_cloned_stage_with_the_arguments_that_the_server_shows(tmp_path):
    """The evaluation of a pipeline is rerun alone; a training with what was changed."""
    draw_blobs(tmp_path / "data")
    with running_server(tmp_path / "files") as server:
        run_stage("unet_training.training", "--dataset", "blobs", "--data_dir", str(tmp_path / "data"), *TINY[:-2],
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
def test_a_second_working_copy_finds_models_and_masks_of_the_first(tmp_path):
    with running_server(tmp_path / "files") as server:
        copies = [tmp_path / name for name in ("first", "second")]
        for copy in copies:
            draw_blobs(copy / "data")

        def run_pipeline(copy: Path, *more: str) -> list[dict]:
            """The tasks that it adds."""
            before = set(server.tasks)
            run_stage("scripts.run_pipeline", "--dataset", "blobs", "--data_dir", str(copy / "data"), *TINY,
                      "--results_dir", str(copy / "results"), *more, folder=copy, server=server)
            return [task for key, task in server.tasks.items() if key not in before]

        made = run_pipeline(copies[0])
        assert {(task["name"], task["type"]) for task in made} == {
            ("train initial blobs n=3", "training"), ("predict, initial blobs n=3", "inference"),
            ("refine, initial blobs n=3", "inference"), ("train final blobs n=3 sam", "training"),
            ("evaluate test, initial blobs n=3", "testing"), ("evaluate unlabeled, initial blobs n=3", "testing"),
            ("evaluate unlabeled, initial blobs n=3, masks sam", "testing"),
            ("evaluate val, initial blobs n=3", "testing"),
            ("evaluate val, initial blobs n=3, masks sam", "testing"),
            ("evaluate test, final blobs n=3 sam", "testing")}
        assert {model["name"] for model in server.models.values()} == {"initial blobs n=3", "final blobs n=3 sam"}
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
def test_agents_run_a_pipeline_from_a_queue(tmp_path):
    """An ensemble of two labels. Its numbers are those of a run without a server."""
    def run_pipeline(copy: str, server: ClearMLServer | None, *more: str) -> str:
        folder = tmp_path / copy
        return run_stage("scripts.run_pipeline", "--dataset", "blobs", "--data_dir", str(folder / "data"), *TINY,
                         "--ensemble", "2", "--results_dir", str(folder / "results"), *more, folder=folder,
                         server=server)

    for copy in ("queued", "alone"):
        draw_blobs(tmp_path / copy / "data")
    with running_server(tmp_path / "files") as server, ThreadPoolExecutor() as pool:
        alone = pool.submit(run_pipeline, "alone", None)
        with agents_at("gpu", tmp_path / "queued", server) as before:
            run_pipeline("queued", server, "--queue", "gpu")
        tasks = {task["name"]: task for task in server.tasks.values()}
        number = len(server.tasks)
        assert "== 0 stages to queue gpu ==" in run_pipeline("queued", server, "--queue", "gpu")
        assert len(server.tasks) == number
        alone.result()
    initial, ensemble, refine, final = ("train initial blobs n=3", "combine ensemble blobs n=3",
                                        "refine, ensemble blobs n=3", "train final blobs n=3 sam")
    last = "evaluate test, final blobs n=3 sam"
    assert {task["status"] for task in tasks.values()} == {"completed"} and len(tasks) == number - 1 == 12
    assert set(tasks) - set(before) == {"pipeline results", "evaluate val, ensemble blobs n=3",
                                        "evaluate val, ensemble blobs n=3, masks sam"}
    controller = tasks["pipeline results"]
    assert controller["type"] == "controller" and {tasks[name]["parent"] for name in before} == {controller["id"]}
    assert before[ensemble].count(initial) == 2 and {ensemble, refine} <= set(before[final]) and final in before[last]
    members = [task["models"]["output"][0]["model"] for task in server.tasks.values() if task["name"] == initial]
    assert set(shown(tasks[ensemble])["model_ids"].split()) == set(members)
    models = {name: tasks[name]["models"]["output"][0]["model"] for name in (ensemble, final)}
    assert {*members, *models.values()} == set(server.models)
    assert f"of {models[ensemble][:8]}" in tasks[refine]["tags"]
    of_ensemble = refine, final, "evaluate unlabeled, ensemble blobs n=3, masks sam"
    assert {shown(tasks[name])["model_id"] for name in of_ensemble} == {models[ensemble]}
    assert shown(tasks[last])["model_id"] == models[final]
    tables = [(tmp_path / copy / "results" / "table.csv").read_text() for copy in ("queued", "alone")]
    assert tables[0] == tables[1] and len(tables[0].splitlines()) == 5


@pytest.mark.slow
def test_an_abort_in_the_web_ui_is_as_ctrl_c(tmp_path):
    """Twice, so that the second run is one that goes on."""
    state, script, ends = tmp_path / "state.pt", tmp_path / "stage.py", []
    script.write_text(ABORTED)
    with running_server(tmp_path / "files") as server:
        stage = subprocess.Popen([sys.executable, script, state], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 text=True, env={**environment_of(tmp_path, server), "PYTHONPATH": str(ROOT)})
        for _ in range(2):
            reported = len(epochs_of(server))
            while len(epochs_of(server)) == reported and stage.poll() is None:
                time.sleep(0.05)
            task, = server.tasks.values()
            server.tasks_stop({"task": task["id"]})
            assert task["status"] == "stopped"
            ends.append(next(line for line in stage.stdout if line.startswith("ended")))
            assert len(load_tensors(state)["history"]) == len(epochs_of(server))
        errors = stage.communicate()[1]
    assert ends == ["ended: 130\n"] * 2 and stage.returncode == 0
    assert epochs_of(server) == list(range(len(epochs_of(server))))  # none twice
    assert (task["status"], task["status_message"]) == ("stopped", "aborted in the web UI")
    lines = [line for line in errors.splitlines() if line.strip() and "epoch" not in line]  # of a progress bar
    assert lines == ["python -m stage: interrupted; the same command resumes where it stopped"] * 2


def epochs_of(server: ClearMLServer) -> list[int]:
    """Whose loss was reported, in their order."""
    return [event["iter"] for event in server.events if event.get("metric") == "loss" and event["variant"] == "train"]


@pytest.mark.slow
def test_masks_travel_by_the_server_under_any_id_of_their_model(phantom_data_dir, tmp_path, monkeypatch):
    """Made offline and uploaded; made by nnU-Net; damaged on the server; kept here."""
    monkeypatch.setenv("SAM_BURDEN_RUNS", str(tmp_path / "runs"))
    data = DataOptions("phantom", phantom_data_dir, tmp_path / "first").open((32, 48))
    labels, weights = data.description.labels, tmp_path / "unet.pt"
    save_checkpoint(weights, UNet(len(labels), 2, 2), Training("phantom", labels, (32, 48), 0.4, 0.2))
    parameters = {"stage": "initial", "dataset": "phantom", "num_train_samples": 3, "architecture": "u_net"}
    with start("train", parameters) as experiment:
        model_id = experiment.save_model(weights, labels)
    save_masks(Raw(), TrainedModel.load(fetch_model(model_id), data, torch.device("cpu")), Selection())
    with running_server(tmp_path / "files") as server:
        output = run_code(MASKS, str(phantom_data_dir), str(tmp_path), str(server.files), model_id, folder=tmp_path,
                          runs=tmp_path / "runs", server=server)
    new = printed("uploaded as", output)
    assert f"{model_id} -> {new}" in output
    tasks = {task["name"]: task for task in server.tasks.values()}
    assert [model["model"] for model in tasks["next"]["models"]["input"]] == [new]
    told = [line for line in output.partition("made anew")[0].splitlines() if "damaged" in line]
    assert told and all(line.startswith(f"raw of model {model_id}: the server's copy is damaged") for line in told)
    assert "no such masks; make them with `python -m scripts.save_segmentations`" in printed("missing", output)
    artifacts = {name: [artifact["key"] for artifact in task["execution"].get("artifacts", [])]
                 for name, task in tasks.items()}
    assert "raw" in artifacts["predict, initial phantom n=3"]
    assert artifacts["random_walk, initial phantom n=3"] == ["run"]


@pytest.mark.slow
@needs_agent
def test_agents_run_a_study_from_a_queue(tmp_path):
    """A method of two trainings, and two seeds; here nothing is left to do but the table."""
    draw_blobs(tmp_path / "data")
    with running_server(tmp_path / "files") as server:
        with agents_at("gpu", tmp_path, server):
            said = run_stage("scripts.run_study", "--dataset", "blobs", "--data_dir", str(tmp_path / "data"), *TINY,
                             "--methods", "mean_teacher", "--seeds", "1", "2", "--queue", "gpu",
                             "--results_dir", str(tmp_path / "results"), folder=tmp_path, server=server)
        assert "== 6 stages to queue gpu ==" in said and said.count("already measured") == 2
        controller = next(task for task in server.tasks.values() if task["name"] == "study results")
        tasks = [task for task in server.tasks.values() if task is not controller]
        assert {task["status"] for task in server.tasks.values()} == {"completed"} and len(tasks) == 6
        assert {task["parent"] for task in tasks} == {controller["id"]}
        models = {(task["name"], shown(task)["seed"]): task["models"]["output"][0]["model"] for task in tasks
                  if task["type"] == "training"}
    assert set(models.values()) == set(server.models) and len(models) == 4
    for seed in ("1", "2"):
        initial, teacher = (models[f"train {stage} blobs n=3", seed] for stage in ("initial", "mean_teacher"))
        assert [shown(task)["model_id"] for task in tasks if (task["name"], shown(task)["seed"]) == (
            "train mean_teacher blobs n=3", seed)] == [initial]
        with (tmp_path / "results" / "study.csv").open(newline="") as file:
            ids = {row["method"]: row["model_id"] for row in csv.DictReader(file) if row["seed"] == seed}
        assert ids == {"mean_teacher": teacher}
