"""Stages that are killed at random moments end, when they are run again, as if nothing had happened.

`make stress` kills each of them 20 times, the other test runs only a few. Some kills follow each other before a stage
may finish, so that unfinished work is resumed several times.
"""
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.fresh_process import ROOT
from utils.mask_store import MaskStore
from utils.paths import mask_file
from utils.tracking.models import load_local_models

KILLS = int(os.environ.get("STRESS") or 2)  # of a stage
IN_A_ROW = min(KILLS, 4)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STAGE = """
import sys
sys.argv[0] = "-m"  # as Python does until it has found a stage
import scripts, unet_training
from importlib import import_module
stage, trainer = import_module(sys.argv[1]), import_module("unet_training.trainer")
trainer.SECONDS_BETWEEN_STATES = 0
from utils.cli import run_stage
run_stage(stage.main, stage.get_args_parser(), sys.argv[2:])
"""
SMALL = ("--epochs", "6", "--base_width", "4", "--n_last_channel", "4", "--input_size", "96", "64",
         "--data_sample_per_epoch", "8", "--batch_size", "4")
FINAL = ("--pseudo_label", "raw", "--epochs", "6", "--batch_size", "4")
STAGES = {  # module -> arguments
    "scripts.make_phantoms": ("--num_unlabeled", "12", "--num_workers", "1"),
    "unet_training.training": ("--num_train_samples", "3", *SMALL),
    "scripts.save_segmentations": (),
    "scripts.generate_img_embeddings": ("--num_train_samples", "3"),
    "scripts.save_refined_segmentations": (),
    "scripts.save_random_walk_segmentations": (),
    "scripts.add_sam_agreement": (),
    "unet_training.training_on_pseudo_labels": (*FINAL, "--num_workers", "1"),
    "unet_training.training_with_mean_teacher": ("--epochs", "6", "--batch_size", "4"),
    "scripts.evaluate": (),
    "scripts.search_refinement": ("--refiner", "random_walk", "--trials", "6", "--no-figures"),
}
QUICK = ("unet_training.training", "scripts.save_segmentations")
WITHOUT_DATASET = ("scripts.make_phantoms",)
OF_A_MODEL = tuple(name for name in STAGES if name not in (*WITHOUT_DATASET, "unet_training.training",
                                                         "scripts.generate_img_embeddings"))


class Place:
    """A data folder, runs and results of its own."""

    def __init__(self, folder: Path):
        self.folder, self.data, self.runs, self.results = folder, folder / "data", folder / "runs", folder / "results"

    def start(self, module: str, model_id: str) -> subprocess.Popen:
        arguments = [*STAGES[module], "--data_dir", str(self.data)]
        if module not in WITHOUT_DATASET:
            arguments += ["--dataset", "phantom"]
        if module in OF_A_MODEL:
            arguments += ["--model_id", model_id]
        if module in ("scripts.evaluate", "scripts.search_refinement"):
            arguments += ["--results_dir", str(self.results)]
        environment = {**os.environ, "SAM_BURDEN_RUNS": str(self.runs), "CLEARML_OFFLINE_MODE": "1",
                       "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen([sys.executable, "-c", STAGE, module, *arguments], cwd=ROOT, env=environment, text=True,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)

    def finish(self, module: str, model_id: str) -> float:
        """Seconds that the stage took."""
        started = time.monotonic()
        process = self.start(module, model_id)
        _, error = process.communicate(timeout=600)
        assert process.returncode == 0, error
        return time.monotonic() - started

    def results_of(self, module: str, model_id: str, known: set[str]) -> dict[str, object]:
        """What the stage made, so that it can be compared."""
        if module.startswith("unet_training"):
            os.environ["SAM_BURDEN_RUNS"] = str(self.runs)
            made = [model for model in load_local_models() if model.id not in known]
            states = [torch.load(model.weights, weights_only=True)["state_dict"] for model in made]
            assert made and all(same(state, states[0]) for state in states)
            return states[0]
        if module == "scripts.make_phantoms":
            return {path.name: path.read_bytes() for path in self.data.rglob("*.png")}
        if module == "scripts.generate_img_embeddings":
            made = {}
            for path in self.data.rglob("sam_embeddings/demo/*.h5"):
                with h5py.File(path) as file:
                    made[path.name] = file["embedding"][()], file.attrs["checkpoint_sha256"]
            return made
        if module in ("scripts.evaluate", "scripts.search_refinement"):
            return {path.name: path.read_text() for path in self.results.rglob("*.csv")}
        paths = list(mask_file(self.data, model_id, "x").parent.glob("*.h5"))
        labels = [str(number) for number in range(17)]
        made = {}
        for path in paths:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("utils.mask_store._check_labels", lambda *_: None)
                store = MaskStore(path, labels)
            made |= {f"{path.name} {stem}": (store.mask(stem), store.estimated_dice(stem)) for stem in store.stems}
        return made

    def leftovers(self) -> list[Path]:
        unended = [path for path in self.runs.glob("offline/offline-*") if not (path / "end.json").exists()]
        return [*unended, *self.runs.glob("offline/*.zip"), *self.runs.glob("unfinished/*.pt"),
                *(path for path in self.folder.rglob("*") if re.search(r"\.part|\.lock$", path.name))]


def same(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return np.array_equal(one, other, equal_nan=True) if isinstance(one, np.ndarray) else one == other


@pytest.fixture(scope="module")
def begun(workplace, tmp_path_factory) -> tuple[Path, str]:
    """What the stages start from, with raw masks, and the model's id."""
    folder = tmp_path_factory.mktemp("kills") / "begun"
    shutil.copytree(workplace[0], folder / "data")
    shutil.copytree(os.environ["SAM_BURDEN_RUNS"], folder / "runs")
    Place(folder).finish("scripts.save_segmentations", workplace[1])
    return folder, workplace[1]


@pytest.mark.slow
@pytest.mark.parametrize("module", STAGES if os.environ.get("STRESS") else QUICK)
def test_a_killed_stage_ends_as_if_nothing_had_happened(begun, tmp_path, module, monkeypatch):
    folder, model_id = begun
    monkeypatch.setenv("SAM_BURDEN_RUNS", str(folder / "runs"))
    known = {model.id for model in load_local_models()}
    drawn, killed = random.Random(module), 0

    def new_place(name: str) -> Place:
        place = Place(tmp_path / name)
        shutil.copytree(folder, place.folder)
        if module == "scripts.make_phantoms":
            shutil.rmtree(place.data)
        if module == "scripts.save_segmentations":
            shutil.rmtree(place.data / "seg_masks")
        return place

    whole = new_place("whole")
    seconds = whole.finish(module, model_id)
    expected = whole.results_of(module, model_id, known)
    for number in range(KILLS // IN_A_ROW):
        place = new_place(str(number))
        for _ in range(IN_A_ROW):
            process, how = place.start(module, model_id), drawn.choice(SIGNALS)
            time.sleep(seconds * drawn.random())
            process.send_signal(how)
            _, error = process.communicate(timeout=600)
            killed += process.returncode != 0
            if how == signal.SIGINT:
                assert "Traceback" not in error, error
        place.finish(module, model_id)
        assert same(place.results_of(module, model_id, known), expected)
        assert not place.leftovers()
        shutil.rmtree(place.folder)
    print(f"\n{module}: killed {killed} times within {seconds:.1f} s, nothing lost")
