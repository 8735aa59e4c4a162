"""nnU-Net as a stage: what it is given and what comes back, with its commands replaced, and once for real."""
import json
import shutil
import subprocess
from argparse import Namespace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import nnunet, plot_results, run_pipeline, run_study, save_nnunet_segmentations, train_nnunet
from scripts.csv_tables import read_rows
from scripts.nnunet import NNUNet
from scripts.segmentation_dataset import open_dataset
from unet_training import training
from utils.cli import InputError
from utils.experiment import fetch_model, find_models
from utils.mask_store import MaskStore

SIZE = (64, 48)
SMALL = ["--epochs", "1", "--base_width", "2", "--n_last_channel", "2", "--input_size", "64", "48",
         "--data_sample_per_epoch", "4", "--batch_size", "4"]


class FakeNNUNet:
    """Stands for nnU-Net's commands: remembers them, and predicts the truth where a class of its data set says it."""

    def __init__(self, data):
        self.data, self.commands, self.environment, self.exit_code = data, [], {}, 0
        data.mask = cache(data.mask)

    def run(self, command, env, check):
        self.commands.append([Path(command[0]).name, *command[1:]])
        self.environment = env
        if self.commands[-1][0] == "nnUNetv2_predict" and self.exit_code == 0:
            self.predict(**dict(zip(command[1::2], command[2::2], strict=True)))
        return Namespace(returncode=self.exit_code)

    def predict(self, **options):
        output = Path(options["-o"])
        output.mkdir()
        export = json.loads((Path(self.environment["nnUNet_raw"]).parent / "export.json").read_text())
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
    data_dir = shutil.copytree(phantom_data_dir, tmp_path_factory.mktemp("workplace") / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAM_BURDEN_RUNS", str(data_dir.parent / "runs"))
        yield data_dir, run(training, data_dir, *SMALL)


def run(stage, data_dir, *arguments):
    args = ["--dataset", "phantom", "--data_dir", str(data_dir), "--num_train_samples", "3", *arguments]
    return stage.main(stage.get_args_parser().parse_args(args))


def nnunet_in(folder: Path, data, encoding="combinations", epochs=1000, device="cpu") -> NNUNet:
    return NNUNet(folder, data, data.stems("train", 3), encoding, epochs, 250, torch.device(device))


@pytest.mark.parametrize("encoding", ["combinations", "groups"])
def test_the_truth_comes_back_as_it_went_out(fake, tmp_path, encoding):
    method = nnunet_in(tmp_path, fake.data, encoding)
    masks = dict(method.predict(method.stems))
    assert list(masks) == method.stems
    for stem, mask in masks.items():
        assert mask.dtype == bool and mask.shape == (17, *SIZE)
        np.testing.assert_array_equal(mask, fake.data.mask(stem))
    folders = sorted((tmp_path / "raw").iterdir())
    assert len(folders) == 1 if encoding == "combinations" else len(folders) > 1
    shown = set()
    for folder in folders:
        description = json.loads((folder / "dataset.json").read_text())
        assert list(description["labels"].values()) == list(range(len(description["labels"])))
        assert description["numTraining"] == 3 and description["file_ending"] == ".png"
        assert sorted(path.stem for path in (folder / "labelsTr").iterdir()) == sorted(method.stems)
        names = list(description["labels"])
        for stem in method.stems:
            index, image = (np.asarray(Image.open(folder / part / f"{stem}{end}.png"))
                            for part, end in (("labelsTr", ""), ("imagesTr", "_0000")))
            assert index.shape == image.shape == SIZE and image.dtype == np.uint8
            original = np.asarray(Image.open(fake.data.image_path(stem)), np.float32)[None, None]
            resized = torch.nn.functional.interpolate(torch.from_numpy(original), SIZE, mode="bilinear")
            np.testing.assert_allclose(image, resized[0, 0], atol=0.51)
            shown |= {(stem, label) for number in np.unique(index)[1:]
                      for label in names[number].removeprefix(f"{number} ").split(" + ")}
    labels = fake.data.description.labels
    assert shown == {(stem, label) for stem in method.stems
                     for label, mask in zip(labels, fake.data.mask(stem), strict=True) if mask.any()}


def test_commands_and_where_nnunet_keeps_its_files(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    method = nnunet_in(tmp_path / "own", fake.data)
    method.train()
    plan, train = fake.commands
    assert plan[:5] == ["nnUNetv2_plan_and_preprocess", "-d", "1", "-c", "2d"]
    assert train == ["nnUNetv2_train", "1", "2d", "all", "-tr", "nnUNetTrainer", "-device", "cpu", "--c"]
    assert fake.environment["CUDA_VISIBLE_DEVICES"] == "4,7"
    for name in ("raw", "preprocessed", "results"):
        assert fake.environment[f"nnUNet_{name}"] == str(tmp_path / "own" / name)
    list(nnunet_in(tmp_path / "other", fake.data, epochs=2, device="cuda:1").predict(method.stems[:1]))
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

    method = nnunet_in(tmp_path / "own", fake.data)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(nnunet, "write_png", fails_late)
        method.export()
    (written[0].parent / ".left_behind.png").write_bytes(b"")
    method.export()
    assert len(list((tmp_path / "own").rglob("*.png"))) == 6
    kept = written[0].stat().st_mtime_ns
    method.export()
    assert written[0].stat().st_mtime_ns == kept
    other = NNUNet(method.folder, fake.data, method.stems[:2], "combinations", 1000, 250, method.device)
    with pytest.raises(InputError, match=r"export\.json: .* other labelled images"):
        other.export()


def test_a_training_that_fails_goes_on_in_the_next_run(fake, tmp_path):
    method = nnunet_in(tmp_path, fake.data, "groups")
    fake.exit_code = 3
    with pytest.raises(InputError, match="nnUNetv2_plan_and_preprocess failed with exit code 3"):
        method.train()
    fake.exit_code = 0
    groups = len(method.train())
    assert fake.names() == ["plan_and_preprocess"] + groups * ["plan_and_preprocess", "train"]
    method.train()
    assert len(fake.commands) == 1 + 2 * groups


def test_labelled_images_that_show_nothing(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(fake.data, "mask", lambda stem: np.zeros((17, *SIZE), bool))
    for encoding in ("combinations", "groups"):
        with pytest.raises(InputError, match="no mask of the 3 labelled images shows a label"):
            nnunet_in(tmp_path, fake.data, encoding).export()


def test_masks_are_saved_once_under_the_initial_models_id(fake, workplace):
    data_dir, initial = workplace
    path = run(save_nnunet_segmentations, data_dir)
    assert path == data_dir / "seg_masks" / initial / "nnunet_combinations.h5"
    store = MaskStore(path, fake.data.description.labels)
    assert len(store.stems) == 12 and store.attributes["nnunet"] == "n3_64x48_seed42"
    ran = len(fake.commands)
    run(train_nnunet, data_dir)
    run(save_nnunet_segmentations, data_dir)
    assert len(fake.commands) == ran
    short = run(save_nnunet_segmentations, data_dir, "--nnunet_epochs", "2", "--nnunet_encoding", "groups")
    assert short.stem == "nnunet_groups_2x250" and len(fake.commands) > ran


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
                             (run_pipeline, ["--pseudo_label", "nnunet", "--seed", "5"]),
                             (run_study, ["--methods", "nnunet", "--seeds", "5"])):
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
