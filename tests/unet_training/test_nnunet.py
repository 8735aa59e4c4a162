"""nnU-Net as a stage: what it is given and what comes back, with its commands replaced, and once for real."""
import json
import pickle
import subprocess
import zipfile
from argparse import Namespace
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import evaluate, plot_results, run_pipeline, run_study, save_nnunet_segmentations, train_nnunet
from tests import stage_runs
from tests.stage_runs import new_workplace
from unet_training.nnunet import nnunet
from unet_training.nnunet.nnunet import NNUNet, unpack
from utils.csv_tables import read_rows
from utils.datasets.annotated import open_dataset
from utils.errors import InputError
from utils.mask_store import MaskStore
from utils.tracking.models import fetch_model, find_models

SIZE = (64, 48)
SMALL = ["--epochs", "1", "--base_width", "2", "--n_last_channel", "2", "--input_size", "64", "48",
         "--data_sample_per_epoch", "4", "--batch_size", "4"]


class FakeNNUNet:
    """Stands for nnU-Net's commands: remembers them, and predicts the ground truth where a class of its data set says
    it."""

    def __init__(self, data):
        self.data, self.commands, self.environment, self.exit_code = data, [], {}, 0
        data.mask = cache(data.mask)

    def run(self, command, env, check):
        self.commands.append([Path(command[0]).name, *command[1:]])
        self.environment = env
        if self.exit_code == 0 and self.commands[-1][0] == "nnUNetv2_train":
            self.train(*command[1:6])
        if self.exit_code == 0 and self.commands[-1][0] == "nnUNetv2_predict":
            self.predict(**dict(zip(command[1::2], command[2::2], strict=True)))
        return Namespace(returncode=self.exit_code)

    def train(self, number, configuration, fold, _, trainer):
        results = Path(self.environment["nnUNet_results"]) / f"Dataset{int(number):03}_" / f"{trainer}__{configuration}"
        (results / f"fold_{fold}").mkdir(parents=True)
        for name in ("plans.json", "dataset.json", "fold_all/checkpoint_best.pth"):
            (results / name).write_text(name)
        torch.save({"network_weights": {"weight": torch.ones(2)}, "optimizer_state": {}, "trainer_name": trainer,
                    "logging": {"loss": [np.float32(1), np.float64(2)]}}, results / "fold_all" / "checkpoint_final.pth")

    def predict(self, **options):
        output, results = Path(options["-o"]), Path(self.environment["nnUNet_results"])
        output.mkdir()
        (trained,) = results.glob(f"Dataset{int(options['-d']):03}_*/{options['-tr']}__{options['-c']}")
        assert {path.name for path in trained.iterdir()} == {"plans.json", "dataset.json", "fold_all"}
        (checkpoint,) = (trained / "fold_all").iterdir()
        assert torch.load(checkpoint, weights_only=True).keys() == {"network_weights", "trainer_name"}
        export = json.loads((results.parent / "export.json").read_text())
        table = np.array(export["tables"][int(options["-d"]) - 1], bool)
        used = table.any(axis=0)
        for image in Path(options["-i"]).iterdir():
            stem = image.name.removesuffix("_0000.png")
            mask = self.data.mask(stem)
            index = np.zeros(mask.shape[1:], np.uint8)
            for number, row in enumerate(table):
                index[(mask[used] == row[used][:, None, None]).all(axis=0)] = number
            Image.fromarray(index).save(output / f"{stem}.png")

    def names(self) -> list[str]:
        return [command[0].removeprefix("nnUNetv2_") for command in self.commands]


@pytest.fixture
def fake(phantom_data_dir, monkeypatch, tmp_path_factory):
    fake = FakeNNUNet(open_dataset("phantom", phantom_data_dir, SIZE))
    folder = tmp_path_factory.mktemp("bin")
    for name in ("plan_and_preprocess", "train", "predict"):
        (folder / f"nnUNetv2_{name}").touch()
    monkeypatch.setattr(nnunet.sys, "executable", str(folder / "python"))
    monkeypatch.setattr(nnunet.subprocess, "run", fake.run)
    return fake


@pytest.fixture(scope="module")
def workplace(phantom_data_dir, tmp_path_factory):
    """A data folder that may be written to and a hardly trained initial model: the folder and the model's id."""
    with new_workplace(phantom_data_dir, tmp_path_factory.mktemp("workplace"), *SMALL) as made:
        yield made


def run(stage, data_dir, *arguments):
    return stage_runs.run(stage, data_dir, *stage_runs.N, *arguments)


def nnunet_in(folder: Path, data, encoding="combinations", epochs=1000, device="cpu") -> NNUNet:
    return NNUNet(folder, data, encoding, epochs, 250, torch.device(device))


def packed(method: NNUNet, folder: Path) -> Path:
    method.train(method.data.stems("train", 3))
    method.pack(folder / "nnunet.zip")
    return folder / "nnunet.zip"


@pytest.mark.parametrize("encoding", ["combinations", "groups"])
def test_the_truth_comes_back_as_it_went_out(fake, tmp_path, encoding):
    stems, method = fake.data.stems("train", 3), nnunet_in(tmp_path / "own", fake.data, encoding)
    archive = packed(method, tmp_path)
    with unpack(archive, fake.data, method.device) as elsewhere:
        masks = dict(elsewhere.predict(stems))
    assert list(masks) == stems
    for stem, mask in masks.items():
        assert mask.dtype == bool and mask.shape == (17, *SIZE)
        np.testing.assert_array_equal(mask, fake.data.mask(stem))
    folders = sorted((tmp_path / "own" / "raw").iterdir())
    assert len(folders) == 1 if encoding == "combinations" else len(folders) > 1
    shown = set()
    for folder in folders:
        description = json.loads((folder / "dataset.json").read_text())
        assert list(description["labels"].values()) == list(range(len(description["labels"])))
        assert description["numTraining"] == 3 and description["file_ending"] == ".png"
        assert sorted(path.stem for path in (folder / "labelsTr").iterdir()) == sorted(stems)
        names = list(description["labels"])
        for stem in stems:
            index, image = (np.asarray(Image.open(folder / part / f"{stem}{end}.png"))
                            for part, end in (("labelsTr", ""), ("imagesTr", "_0000")))
            assert index.shape == image.shape == SIZE and image.dtype == np.uint8
            original = np.asarray(Image.open(fake.data.image_path(stem)), np.float32)[None, None]
            resized = torch.nn.functional.interpolate(torch.from_numpy(original), SIZE, mode="bilinear")
            np.testing.assert_allclose(image, resized[0, 0], atol=0.51)
            shown |= {(stem, label) for number in np.unique(index)[1:]
                      for label in names[number].removeprefix(f"{number} ").split(" + ")}
    labels = fake.data.description.labels
    assert shown == {(stem, label) for stem in stems
                     for label, mask in zip(labels, fake.data.mask(stem), strict=True) if mask.any()}


def test_commands_and_where_nnunet_keeps_its_files(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    method = nnunet_in(tmp_path / "own", fake.data)
    packed(method, tmp_path)
    plan, train = fake.commands
    assert plan[:5] == ["nnUNetv2_plan_and_preprocess", "-d", "1", "-c", "2d"]
    assert train == ["nnUNetv2_train", "1", "2d", "all", "-tr", "nnUNetTrainer", "-device", "cpu", "--c"]
    assert fake.environment["CUDA_VISIBLE_DEVICES"] == "4,7"
    for name in ("raw", "preprocessed", "results"):
        assert fake.environment[f"nnUNet_{name}"] == str(tmp_path / "own" / name)
    gpu = nnunet_in(tmp_path / "other", fake.data, epochs=2, device="cuda:1")
    with unpack(packed(gpu, tmp_path), fake.data, gpu.device) as other:
        list(other.predict(fake.data.stems("val")[:1]))
    assert fake.names()[2:] == ["plan_and_preprocess", "train", "predict"]
    for command in fake.commands[3:]:
        assert command[command.index("-tr") + 1] == "ShorterTrainer" and command[command.index("-device") + 1] == "cuda"
    assert (fake.environment["NNUNET_EPOCHS"], fake.environment["CUDA_VISIBLE_DEVICES"]) == ("2", "7")


def test_an_interrupted_export_is_made_anew(fake, tmp_path, monkeypatch):
    written = []

    def fails_late(path, image):
        written.append(path)
        if len(written) == 5:
            raise KeyboardInterrupt
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

    method, stems = nnunet_in(tmp_path / "own", fake.data), fake.data.stems("train", 3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(nnunet, "write_png", fails_late)
        method.export(stems)
    (written[0].parent / ".left_behind.png").write_bytes(b"")
    method.export(stems)
    assert len(list((tmp_path / "own").rglob("*.png"))) == 6
    kept = written[0].stat().st_mtime_ns
    method.export(stems)
    assert written[0].stat().st_mtime_ns == kept
    with pytest.raises(InputError, match=r"export\.json: .* other labeled images"):
        method.export(stems[:2])


def test_a_training_that_fails_goes_on_in_the_next_run(fake, tmp_path):
    method, stems = nnunet_in(tmp_path, fake.data, "groups"), fake.data.stems("train", 3)
    fake.exit_code = 3
    with pytest.raises(InputError, match="nnUNetv2_plan_and_preprocess failed with exit code 3"):
        method.train(stems)
    fake.exit_code = 0
    method.train(stems)
    groups = len(method.export(stems))
    assert fake.names() == ["plan_and_preprocess"] + groups * ["plan_and_preprocess", "train"]
    method.train(stems)
    assert len(fake.commands) == 1 + 2 * groups


def test_labeled_images_that_show_nothing(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(fake.data, "mask", lambda stem: np.zeros((17, *SIZE), bool))
    for encoding in ("combinations", "groups"):
        with pytest.raises(InputError, match="no mask of the 3 labeled images shows a label"):
            nnunet_in(tmp_path, fake.data, encoding).export(fake.data.stems("train", 3))


def test_masks_are_saved_once_under_the_initial_models_id(fake, workplace):
    data_dir, initial = workplace
    path = run(save_nnunet_segmentations, data_dir)
    assert path == data_dir / "seg_masks" / initial / "nnunet_combinations.h5"
    store = MaskStore(path, fake.data.description.labels)
    (model,) = find_models(stage="nnunet")
    assert len(store.stems) == 12 and store.attributes["nnunet_model_id"] == model.id
    assert model.parameters["initial_model_id"] == initial and model.parameters["num_train_samples"] == 3
    assert not any(path.is_file() for path in (data_dir / "phantom" / "nnunet").rglob("*"))
    ran = len(fake.commands)
    run(save_nnunet_segmentations, data_dir)
    assert len(fake.commands) == ran
    short = run(train_nnunet, data_dir, "--nnunet_epochs", "2", "--nnunet_encoding", "groups")
    ran = len(fake.commands)
    path = run(save_nnunet_segmentations, data_dir, "--nnunet_model_id", short)
    assert path.stem == "nnunet_groups_2x250" and set(fake.names()[ran:]) == {"predict"}


def test_other_models_and_labels_are_refused(fake, workplace, tmp_path):
    data_dir, initial = workplace
    with pytest.raises(InputError, match=f"model id {initial}: is no nnU-Net; give the id that scripts.train_nnunet"):
        run(save_nnunet_segmentations, data_dir, "--nnunet_model_id", initial)
    own = run(train_nnunet, data_dir, "--nnunet_epochs", "3")
    with pytest.raises(InputError, match=f"model id {own}: is an nnU-Net; name the initial model .* {initial}, and"):
        run(evaluate, data_dir, "--model_id", own, "--results_dir", str(tmp_path))
    with pytest.raises(InputError, match=r"no nnU-Net was trained with .*'nnunet_epochs': 9"):
        run(evaluate, data_dir, "--pseudo_label", "nnunet", "--nnunet_epochs", "9", "--results_dir", str(tmp_path))
    (tmp_path / "other.zip").write_bytes(b"no archive")
    with zipfile.ZipFile(tmp_path / "harmful.zip", "w") as file:
        file.writestr("export.json", "{}")
        file.writestr("results/checkpoint_final.pth", pickle.dumps(print, 2))
    archive = packed(nnunet_in(tmp_path / "own", fake.data), tmp_path)
    fake.data.description = replace(fake.data.description, labels=fake.data.description.labels[::-1])
    for path, message in ((tmp_path / "other.zip", "other.zip: holds no nnU-Net"), (archive, "labels of this nnU-Net"),
                          (tmp_path / "harmful.zip", "harmful.zip: holds no nnU-Net .Unpickling")):
        with pytest.raises(InputError, match=message), unpack(path, fake.data, torch.device("cpu")):
            pass


def test_the_study_knows_nnunet_alone_and_as_a_teacher(fake, workplace, tmp_path):
    data_dir, initial = workplace
    methods = ("nnunet", "nnunet_alone")
    table = run(run_study, data_dir, *SMALL, "--methods", *methods, "--results_dir", str(tmp_path))
    rows = read_rows(table, run_study.COLUMNS)
    dice = {method: np.mean([float(row["dice"]) for row in rows if row["method"] == method]) for method in methods}
    assert dice["nnunet_alone"] > 90 > dice["nnunet"]  # not all combinations are among those of 3 images
    assert (tmp_path / "phantom" / initial / "test_nnunet_combinations" / "dice.csv").exists()
    ids = {row["method"]: row["model_id"] for row in rows}
    assert ids["nnunet_alone"] == initial and fetch_model(ids["nnunet"]).parameters["initial_model_id"] == initial
    trained = fake.names().count("train")
    plot_results.main(plot_results.get_args_parser().parse_args(["--results_dir", str(tmp_path)]))
    assert (tmp_path / "overlays.png").exists() and fake.names().count("train") == trained


def test_without_nnunet_every_stage_says_how_to_get_it(workplace, monkeypatch, tmp_path):
    data_dir, _ = workplace
    monkeypatch.setattr(nnunet.sys, "executable", str(tmp_path / "python"))
    before = len(find_models())
    other = ["--nnunet_epochs", "7"]
    for stage, arguments in ((train_nnunet, other), (save_nnunet_segmentations, other),
                             (run_pipeline, ["--pseudo_label", "nnunet", "--batch_size", "4"]),
                             (run_study, ["--methods", "nnunet", "--batch_size", "4"])):
        with pytest.raises(InputError, match=r"pip install -r requirements_nnunet\.txt"):
            run(stage, data_dir, *arguments)
    assert len(find_models()) == before  # told before anything is trained


def test_nnunet_itself(workplace, monkeypatch):
    pytest.importorskip("nnunetv2", reason="nnU-Net is optional: pip install -r requirements_nnunet.txt")
    for name, processes in {"nnUNet_npp": "0", "nnUNet_nps": "0", "nnUNet_n_proc_DA": "1"}.items():
        monkeypatch.setenv(name, processes)  # each takes seconds to start
    data_dir, _ = workplace
    arguments = ["--nnunet_epochs", "1", "--nnunet_iterations", "1"]
    path = run(save_nnunet_segmentations, data_dir, *arguments)
    store = MaskStore(path, open_dataset("phantom", data_dir).description.labels)
    assert path.stem == "nnunet_combinations_1x1" and len(store.stems) == 12
    assert store.mask(store.stems[0]).shape == (17, *SIZE)
    monkeypatch.setattr(subprocess, "run", None)  # a rerun starts nothing
    assert run(save_nnunet_segmentations, data_dir, *arguments) == path
