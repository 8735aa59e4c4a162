"""nnU-Net as a stage: what it is given and what comes back, with its commands replaced, and for real."""
import io
import json
import subprocess
import zipfile
from argparse import Namespace
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace as changed
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits

from scripts import evaluate, plot_results, run_pipeline, run_study, save_nnunet_segmentations, train_nnunet
from tests import stage_runs
from tests.stage_runs import new_workplace
from unet_training.nnunet import nnunet
from unet_training.nnunet.label_tables import ENCODINGS
from unet_training.nnunet.nnunet import NNUNet, NNUNetOptions, unpack
from utils.datasets.annotated import open_dataset
from utils.errors import InputError
from utils.mask_store import MaskStore
from utils.tables import read_rows
from utils.tracking.models import Model, fetch_model, find_models

SIZE = (64, 48)
SMALL = ["--epochs", "1", "--base_width", "2", "--n_last_channel", "2", "--input_size", "64", "48",
         "--data_sample_per_epoch", "4", "--batch_size", "4"]
PLANS = {  # what nnU-Net 2.8.1 writes of a data set of phantoms, shortened
    "dataset_name": "", "plans_name": "nnUNetPlans", "image_reader_writer": "NaturalImage2DIO",
    "experiment_planner_used": "ExperimentPlanner", "label_manager": "LabelManager", "transpose_forward": [0, 1, 2],
    "foreground_intensity_properties_per_channel": {"0": {"max": 247.0, "mean": 143.56166076660156}},
    "configurations": {"2d": {
        "data_identifier": "nnUNetPlans_2d", "preprocessor_name": "DefaultPreprocessor", "patch_size": [64, 48],
        "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False], "batch_dice": True,
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            "arch_kwargs": {
                "n_stages": 4, "strides": [[1, 1], [2, 2], [2, 2], [2, 2]], "conv_op": "torch.nn.modules.conv.Conv2d",
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True}}}}}}


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
            self.predict(*command[1:])
        return Namespace(returncode=self.exit_code)

    def train(self, number, configuration, fold, _, trainer):
        root = Path(self.environment["nnUNet_results"]).parent
        (raw,) = (root / "raw").glob(f"Dataset{int(number):03}_*")
        model = root / "results" / raw.name / f"{trainer}__nnUNetPlans__{configuration}"
        (model / f"fold_{fold}" / "validation").mkdir(parents=True)
        (model / "dataset.json").write_bytes((raw / "dataset.json").read_bytes())
        (model / "plans.json").write_text(json.dumps({**PLANS, "dataset_name": raw.name}))
        (model / f"fold_{fold}" / "checkpoint_best.pth").touch()
        torch.save({"network_weights": {"weight": torch.ones(2)}, "optimizer_state": {}, "trainer_name": trainer,
                    "init_args": {"configuration": configuration}, "logging": {"loss": [np.float32(1), np.float64(2)]}},
                   model / f"fold_{fold}" / "checkpoint_final.pth")

    def predict(self, *arguments):
        flags = [argument for argument in arguments if argument.startswith("--")]
        options = dict(zip(arguments[:-len(flags) or None:2], arguments[1:-len(flags) or None:2], strict=True))
        output, results = Path(options["-o"]), Path(self.environment["nnUNet_results"])
        output.mkdir()
        (trained,) = results.glob(f"Dataset{int(options['-d']):03}_*/{options['-tr']}__nnUNetPlans__{options['-c']}")
        assert {path.name for path in trained.iterdir()} == {"plans.json", "dataset.json", "fold_all"}
        (checkpoint,) = (trained / "fold_all").iterdir()
        assert torch.load(checkpoint, weights_only=True).keys() == {"network_weights", "trainer_name", "init_args"}
        export = json.loads((results.parent / "export.json").read_text())
        table = np.array(export["tables"][int(options["-d"]) - 1], bool)
        for image in Path(options["-i"]).iterdir():
            stem = image.name.removesuffix("_0000.png")
            index = self.classes(stem, table)
            Image.fromarray(index).save(output / f"{stem}.png")
            if flags == ["--save_probabilities"]:
                np.savez(output / stem, probabilities=self.probabilities(index, trained / "dataset.json"))

    def classes(self, stem, table) -> np.ndarray:
        mask, used = self.data.mask(stem), table.any(axis=0)
        index = np.zeros(mask.shape[1:], np.uint8)
        for number, row in enumerate(table):
            index[(mask[used] == row[used][:, None, None]).all(axis=0)] = number
        return index

    def probabilities(self, index, dataset_json) -> np.ndarray:
        """As nnU-Net writes them: a region after the other, as dataset.json has them, and an axis for the depth."""
        _, *regions = json.loads(dataset_json.read_text())["labels"].values()
        return np.array([np.where(np.isin(index, region), 0.51, 0.5)[None] for region in regions], np.float32)

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
    return NNUNet(folder, data, NNUNetOptions(encoding, epochs), torch.device(device))


def packed(method: NNUNet, folder: Path) -> Path:
    method.train(method.data.stems("train", 3))
    method.pack(folder / "nnunet.zip")
    return folder / "nnunet.zip"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_ground_truth_comes_back_as_it_went_out(fake, tmp_path, encoding):
    stems, method = fake.data.stems("train", 3), nnunet_in(tmp_path / "own", fake.data, encoding)
    archive = packed(method, tmp_path)
    with unpack(archive, fake.data, method.device) as elsewhere:
        masks = dict(elsewhere.predict(stems))
    assert list(masks) == stems
    for stem, mask in masks.items():
        assert mask.dtype == bool and mask.shape == (17, *SIZE)
        np.testing.assert_array_equal(mask, fake.data.mask(stem))
    folders = sorted((tmp_path / "own" / "raw").iterdir())
    assert len(folders) > 1 if encoding == "groups" else len(folders) == 1
    shown = set()
    for folder in folders:
        description = json.loads((folder / "dataset.json").read_text())
        assert description["labels"].pop("background") == 0
        regions = "regions_class_order" in description
        assert regions == encoding.startswith("regions")
        if not regions:
            assert list(description["labels"].values()) == list(range(1, len(description["labels"]) + 1))
        assert description["numTraining"] == 3 and description["file_ending"] == ".png"
        assert sorted(path.stem for path in (folder / "labelsTr").iterdir()) == sorted(stems)
        for stem in stems:
            index, image = (np.asarray(Image.open(folder / part / f"{stem}{end}.png"))
                            for part, end in (("labelsTr", ""), ("imagesTr", "_0000")))
            assert index.shape == image.shape == SIZE and image.dtype == np.uint8
            original = np.asarray(Image.open(fake.data.image_path(stem)), np.float32)[None, None]
            resized = torch.nn.functional.interpolate(torch.from_numpy(original), SIZE, mode="bilinear")
            np.testing.assert_allclose(image, resized[0, 0], atol=0.51)
            for name, classes in description["labels"].items():
                assert not regions or len(classes) > 1 or encoding == "groups"
                if np.isin(index, classes).any():
                    shown |= {(stem, label) for label in name.split(" ", 1)[1].split(" + ")}
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


@pytest.mark.parametrize(("encoding", "epochs", "trainer", "variant"), [
    ("regions", 1000, "nnUNetTrainer", "nnunet_regions"),
    ("regions", 2, "ShorterTrainer", "nnunet_regions_2x250"),
    ("regions_bce", 1000, "BCETrainer", "nnunet_regions_bce"),
    ("regions_bce", 2, "BCETrainer", "nnunet_regions_bce_2x250")])
def test_which_trainer_learns_regions(fake, tmp_path, encoding, epochs, trainer, variant):
    method = nnunet_in(tmp_path / "own", fake.data, encoding, epochs)
    packed(method, tmp_path)
    assert method.options.variant == variant
    assert fake.commands[1][4:6] == ["-tr", trainer] and fake.environment["NNUNET_EPOCHS"] == str(epochs)


def test_options_of_a_tracked_model():
    options = NNUNetOptions("groups", 3, 4)
    model = Model("an-id", {"stage": "nnunet", "seed": 1, **asdict(options)}, (), (), "", 0, None)
    assert NNUNetOptions.of(model) == options
    with pytest.raises(InputError, match="model id an-id: is no nnU-Net"):
        NNUNetOptions.of(replace(model, parameters={"stage": "initial"}))
    for wrong in (("best",), ("groups", 0), ("groups", 3, "4"), ("groups", True)):
        with pytest.raises(InputError, match=r"is none of comb|not a positive number"):
            NNUNetOptions(*wrong)


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


def test_a_training_that_fails_resumes_in_the_next_run(fake, tmp_path):
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
    for encoding in ENCODINGS:
        with pytest.raises(InputError, match="no mask of the 3 labeled images shows a label"):
            nnunet_in(tmp_path, fake.data, encoding).export(fake.data.stems("train", 3))


@pytest.mark.slow
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
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as file:
        file.writestr("export.json", "{}")
    archive = packed(nnunet_in(tmp_path / "own", fake.data), tmp_path)
    fake.data.description = changed(fake.data.description, labels=fake.data.description.labels[::-1])
    for path, message in ((tmp_path / "other.zip", "other.zip: holds no nnU-Net"), (archive, "labels of this nnU-Net"),
                          (tmp_path / "empty.zip", "empty.zip: holds no nnU-Net .KeyError")):
        with pytest.raises(InputError, match=message), unpack(path, fake.data, torch.device("cpu")):
            pass


def altered(archive: Path, **changes) -> Path:
    """A copy of an archive with what the changes make of the content of its files, by their names' stems."""
    path = archive.with_stem("altered")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            change = changes.pop(Path(name).stem, None)
            new.writestr(name, change(old.read(name)) if change else old.read(name))
        for name, content in changes.items():
            new.writestr(name, content)
    return path


def with_entry(*keys, value):
    """Changes an entry of a JSON file."""
    def change(content: bytes) -> str:
        whole = part = json.loads(content)
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        return json.dumps(whole)
    return change


OF_2D = ("configurations", "2d")
ARCHITECTURE = (*OF_2D, "architecture")


@pytest.mark.parametrize("keys", [
    (*ARCHITECTURE, "network_class_name"), *((*ARCHITECTURE, "arch_kwargs", name) for name in (
        "conv_op", "norm_op", "dropout_op", "nonlin", "block", "norm_op_kwargs")),
    *((*OF_2D, name) for name in ("preprocessor_name", "resampling_fn_data", "resampling_fn_probabilities",
                                  "resampling_fn_seg", "inherits_from", "previous_stage", "UNet_class_name")),
    *((name,) for name in ("image_reader_writer", "label_manager", "experiment_planner_used", "dataset_name"))])
@pytest.mark.parametrize("text", ["os.system", "subprocess.getoutput", "torch.hub.load"])
def test_plans_that_name_anything_else_never_reach_nnunet(fake, tmp_path, keys, text):
    archive = altered(packed(nnunet_in(tmp_path / "own", fake.data), tmp_path), plans=with_entry(*keys, value=text))
    before = len(fake.commands)
    with (pytest.raises(InputError, match=rf"altered\.zip: its plans\.json says {keys[-1]} = '{text}'") as error,
          unpack(archive, fake.data, torch.device("cpu")) as method):
        list(method.predict(fake.data.stems("val")[:1]))
    assert "\n" not in str(error.value) and len(fake.commands) == before


def test_plans_that_hide_a_name(fake, tmp_path):
    archive = packed(nnunet_in(tmp_path / "own", fake.data), tmp_path)
    for keys, value in (((*OF_2D, "normalization_schemes"), ["ZScoreNormalization", "os.system"]),
                        ((*ARCHITECTURE, "_kw_requires_import"), ["conv_op", "strides"]),
                        ((*ARCHITECTURE, "arch_kwargs", "nonlin_kwargs"), {"inplace": {"deeper": "os.system"}}),
                        ((*ARCHITECTURE, "arch_kwargs", "nonlin"), PLANS["image_reader_writer"])):
        path = altered(archive, plans=with_entry(*keys, value=value))
        with pytest.raises(InputError, match="which nnU-Net itself wouldn't write"), unpack(
                path, fake.data, torch.device("cpu")):
            pass


def test_checkpoints_that_run_something_or_name_a_trainer(fake, tmp_path):
    archive = packed(nnunet_in(tmp_path / "own", fake.data), tmp_path)

    def with_trainer(content: bytes) -> bytes:
        state = torch.load(io.BytesIO(content), weights_only=True)
        torch.save({**state, "trainer_name": "EvilTrainer"}, buffer := io.BytesIO())
        return buffer.getvalue()

    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    def harm(content: bytes) -> bytes:
        torch.save({"trainer_name": Harmful()}, buffer := io.BytesIO())
        return buffer.getvalue()

    for change, message in ((with_trainer, "is for the trainer 'EvilTrainer'"), (harm, "no nnU-Net .UnpicklingError")):
        with pytest.raises(InputError, match=message), unpack(
                altered(archive, checkpoint_final=change), fake.data, torch.device("cpu")):
            pass
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["../outside.txt", "/anywhere/outside.txt", "results/Dataset001_combinations/evil.py",
                                  "results/Dataset001_combinations/../../../outside.txt"])
def test_what_is_no_part_of_an_archive_is_refused(fake, tmp_path, name):
    archive = altered(packed(nnunet_in(tmp_path / "own", fake.data), tmp_path), **{name: "text"})
    with pytest.raises(InputError, match="is no part of an nnU-Net"), unpack(
            archive, fake.data, torch.device("cpu")):
        pass


@pytest.mark.parametrize(("name", "keys", "value"), [
    ("export", ("encoding",), "../../elsewhere"), ("export", ("epochs",), "1; true"), ("export", ("tables",), [[[1]]]),
    ("export", ("tables",), "none"), ("export", ("stems",), None), ("plans", ("configurations",), "2d")])
def test_records_that_are_damaged(fake, tmp_path, name, keys, value):
    archive = packed(nnunet_in(tmp_path / "own", fake.data), tmp_path)
    archive = altered(archive, **{name: with_entry(*keys, value=value)})
    with pytest.raises(InputError, match=r"altered\.zip: "), unpack(archive, fake.data, torch.device("cpu")):
        pass


@pytest.mark.slow
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


@pytest.fixture
def really(monkeypatch):
    """nnU-Net itself, where it is installed, with as few processes as it takes: each needs seconds to start."""
    pytest.importorskip("nnunetv2", reason="nnU-Net is optional: pip install -r requirements_nnunet.txt")
    for name, processes in {"nnUNet_npp": "0", "nnUNet_nps": "0", "nnUNet_n_proc_DA": "1"}.items():
        monkeypatch.setenv(name, processes)


@pytest.mark.slow
def test_nnunet_itself(workplace, really, monkeypatch):
    data_dir, _ = workplace
    arguments = ["--nnunet_epochs", "1", "--nnunet_iterations", "1"]
    path = run(save_nnunet_segmentations, data_dir, *arguments)
    store = MaskStore(path, open_dataset("phantom", data_dir).description.labels)
    assert path.stem == "nnunet_combinations_1x1" and len(store.stems) == 12
    assert store.mask(store.stems[0]).shape == (17, *SIZE)
    monkeypatch.setattr(subprocess, "run", None)  # a rerun starts nothing
    assert run(save_nnunet_segmentations, data_dir, *arguments) == path


@pytest.mark.slow
def test_nnunet_itself_on_regions(phantom_data_dir, really, monkeypatch, tmp_path):
    """Against nnU-Net's own label map of the same regions, also of an image that it crops."""
    data = open_dataset("phantom", phantom_data_dir, SIZE)
    method = NNUNet(tmp_path / "own", data, NNUNetOptions("regions_bce", 2, 2), torch.device("cpu"))
    archive = packed(method, tmp_path)
    images, label_maps = nnunet.write_images, {}

    def write_with_margins(folder, data, stems):
        images(folder, data, stems)
        for path in folder.iterdir():
            image = np.array(Image.open(path))
            image[:10], image[:, :7], image[-3:] = 0, 0, 0
            Image.fromarray(image).save(path)

    def read_both(folder, stem, table):
        label_maps[stem] = np.asarray(Image.open(folder / f"{stem}.png"))
        return read(folder, stem, table)

    read = nnunet._read_regions
    monkeypatch.setattr(nnunet, "_read_regions", read_both)
    monkeypatch.setattr(nnunet, "write_images", write_with_margins)
    with unpack(archive, data, method.device) as network:
        masks = dict(network.predict(data.stems("val")[:2]))
        description = json.loads((network.folder / network.options.model_folder(1) / "dataset.json").read_text())
    labels = [int(name.split()[0]) for name in description["labels"] if name != "background"]
    for stem, mask in masks.items():
        assert mask.shape == (17, *SIZE) and mask.any() and not mask[:, :10].any() and not mask[:, :, :7].any()
        painted = np.zeros(SIZE, np.uint8)
        for label, number in zip(labels, description["regions_class_order"], strict=True):
            painted[mask[label]] = number
        np.testing.assert_array_equal(painted, label_maps[stem])


def test_the_loss_of_regions_bce(really, phantom_data_dir, monkeypatch, tmp_path):
    data = open_dataset("phantom", phantom_data_dir, SIZE)
    method = NNUNet(tmp_path, data, NNUNetOptions("regions_bce"), torch.device("cpu"))
    for name, value in method._make_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(nnunet.TRAINERS)
    from trainers import BCETrainer
    description = nnunet.describe_dataset(np.eye(4, 3, -1, dtype=bool), ["a", "b", "c"], 1, regions=True)
    trainer = BCETrainer({**PLANS, "continue_training": False}, "2d", "all", description, torch.device("cpu"))
    loss = trainer._build_loss()
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn((2, 3, 64 // scale, 48 // scale), generator=generator) for scale in (1, 2, 4)]
    targets = [torch.randint(2, output.shape, generator=generator).bool() for output in outputs]
    expected = [binary_cross_entropy_with_logits(output, target.float())
                for output, target in zip(outputs, targets, strict=True)]
    # nnU-Net's weights of the scales: halved from one to the next, none for the last
    torch.testing.assert_close(loss(outputs, targets), (expected[0] + expected[1] / 2) / 1.5)
