"""The dental data set's format: JPEG images, label maps, 32 teeth, landscape; generated, and the real stand-in."""
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from scripts import evaluate, save_segmentations
from tests.conftest import ROOT
from unet_training import training
from utils.datasets.annotated import load_image, open_dataset, resize_masks
from utils.datasets.description import FOLDER, OWN, load_description
from utils.errors import InputError
from utils.mask_store import MaskStore

LABELS = load_description("dental").labels
# CLASS_LABEL and BCE_POS_WEIGHTS of scripts/dental_dataset.py in the authors' branch additional_ds
PAPER_LABELS = "13 14 15 11 12 19 20 21 22 23 24 25 27 32 16 26 17 1 2 3 4 5 6 7 8 9 10 18 28 29 30 31"
PAPER_WEIGHTS = """
    270.1158 192.5302 188.6575 189.5051 244.8739 214.9675 222.4272 227.7497 185.8342 259.1098 308.6378 301.8164 179.1835
    265.5014 344.5692 255.3629 284.0897 314.7787 177.8944 176.8611 257.4408 246.6468 183.3314 222.9948 170.8807 168.2754
    226.9026 188.9870 212.7988 211.4843 192.7491 173.3434"""


def write_description(data_dir, name: str, train: int, val: int) -> None:
    text = (FOLDER / "dental.toml").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^train = 450", f"train = {train}", re.sub(r"(?m)^val = 75", f"val = {val}", text))
    (data_dir / name / "description.toml").write_text(text, encoding="utf-8")


@pytest.fixture
def teeth(tmp_path):
    """Nine images of 120 x 60 with a tooth of each label in a grid; a data folder."""
    folder = tmp_path / "teeth"
    rng = np.random.default_rng(0)
    for name in ("img", "masks_machine"):
        (folder / name).mkdir(parents=True)
    for number in range(9):
        mask = np.zeros((60, 120), np.uint8)
        for value in rng.permutation(33)[: 20 + number]:
            row, column = divmod(int(value) - 1, 8)
            if value:
                mask[2 + 15 * row:13 + 15 * row, 2 + 15 * column:12 + 15 * column] = value
        Image.fromarray(mask).save(folder / "masks_machine" / f"{number:03}.png")
        Image.fromarray((mask > 0) * np.uint8(120) + 60).save(folder / "img" / f"{number:03}.jpg")
    write_description(tmp_path, "teeth", 5, 2)
    return tmp_path


def test_labels_and_weights_are_the_papers():
    description = load_description("dental")
    assert list(description.labels) == PAPER_LABELS.split()
    assert list(description.pos_weight) == [float(weight) for weight in PAPER_WEIGHTS.split()]


def test_label_maps_become_channels_of_their_names_and_back(teeth):
    data = open_dataset("teeth", teeth, (60, 120))
    assert [len(data.stems(split)) for split in ("train", "val", "test")] == [5, 2, 2]
    assert data.unlabeled_stems(2, True, 0) == ["000", "001", "002", "003", "004"]
    for stem in data.stems("train"):
        index = np.array(Image.open(teeth / "teeth" / "masks_machine" / f"{stem}.png"))
        mask = data.mask(stem)
        assert mask.shape == (32, 60, 120)
        np.testing.assert_array_equal((mask * np.arange(1, 33)[:, None, None]).sum(axis=0), index)
        assert {LABELS[value - 1] for value in np.unique(index) if value} == {
            label for label, channel in zip(LABELS, mask, strict=True) if channel.any()}


def test_stages_run_on_landscape_images_with_many_classes(teeth):
    def run(stage, *arguments):
        return stage.main(stage.get_args_parser().parse_args(["--dataset", "teeth", "--data_dir", str(teeth),
                                                              "--num_train_samples", "2", *arguments]))
    model_id = run(training, "--epochs", "1", "--base_width", "2", "--n_last_channel", "2", "--input_size", "32", "64",
                   "--data_sample_per_epoch", "4", "--batch_size", "2")
    store = MaskStore(run(save_segmentations), LABELS)
    assert store.stems == ["000", "001", "002", "003", "004"] and store.mask("002").shape == (32, 32, 64)
    summary = run(evaluate, "--model_id", model_id, "--results_dir", str(teeth / "results"))
    assert summary.count == 2


def test_a_mask_that_was_made_to_be_looked_at_is_refused(teeth):
    path = teeth / "teeth" / "masks_machine" / "000.png"
    Image.fromarray(np.full((60, 120), 200, np.uint8)).save(path)
    with pytest.raises(InputError, match=r"000\.png: has the value 200, but there are 32 labels"):
        open_dataset("teeth", teeth).mask("000")


@pytest.mark.parametrize("form", ["8 bit", "16 bit", "palette", "palette of 4 bit", "1 bit"])
def test_label_maps_are_read_as_their_values_however_they_are_stored(teeth, form):
    values = np.zeros((60, 120), np.uint8)
    values[10:30, 20:50] = 1
    image = Image.fromarray(values)
    if form == "1 bit":
        image = Image.fromarray(values > 0)
    else:
        values[40:50, 60:90] = 9
        image = Image.fromarray(values.astype(np.uint16) if form == "16 bit" else values)
    if form.startswith("palette"):
        image.putpalette(np.random.default_rng(0).integers(0, 256, 16 * 3, np.uint8).tobytes())
    path = teeth / "teeth" / "masks_machine" / "000.png"
    image.save(path, **({"bits": 4} if "4 bit" in form else {}))
    expected = values == np.arange(1, 33)[:, None, None]
    np.testing.assert_array_equal(open_dataset("teeth", teeth, (60, 120)).mask("000"), expected)


def test_label_maps_in_color_are_refused_and_those_of_three_equal_channels_read(teeth):
    path = teeth / "teeth" / "masks_machine" / "000.png"
    expected = open_dataset("teeth", teeth).mask("000")
    colors = np.stack([np.array(Image.open(path))] * 3, axis=-1)
    Image.fromarray(colors).save(path)
    np.testing.assert_array_equal(open_dataset("teeth", teeth).mask("000"), expected)
    colors[0, 0] = 1, 2, 3
    Image.fromarray(colors).save(path)
    with pytest.raises(InputError, match=r"000\.png: is in color; say which color each label has"):
        open_dataset("teeth", teeth).mask("000")


def test_missing_folders_and_images_are_named(teeth):
    (teeth / "teeth" / "img" / "008.jpg").unlink()
    with pytest.raises(InputError, match=r"008\.jpg: no such image"):
        open_dataset("teeth", teeth).stems("test")
    with pytest.raises(InputError, match=r"masks_machine: no such folder of masks"):
        open_dataset("dental", teeth)


@pytest.mark.shared
def test_the_stand_ins_description_is_that_of_its_images(shared, tmp_path):
    folder = tmp_path / "standin"
    folder.mkdir()
    for name in ("img", "masks_machine"):
        (folder / name).symlink_to(shared / "data" / "dental" / name)
    shutil.copy(ROOT / "docs" / "dental_standin.toml", folder / OWN)
    data = open_dataset("standin", tmp_path)
    assert [len(data.stems(split)) for split in ("train", "val", "test")] == [200, 40, 60]
    assert data.description.labels == LABELS
    stem = data.stems("test")[0]
    index = np.array(Image.open(folder / "masks_machine" / f"{stem}.png"))
    expected = resize_masks(index == np.arange(1, 33)[:, None, None], (224, 384))
    np.testing.assert_array_equal(data.mask(stem), expected)
    counts, grey = np.zeros(33), []
    for stem in data.stems("train"):
        index = Image.open(folder / "masks_machine" / f"{stem}.png")
        counts += np.bincount(np.asarray(index.resize((384, 224), Image.Resampling.NEAREST)).ravel(), minlength=33)
        grey.append(load_image(data.image_path(stem), data.description))
    weights = counts.sum() / counts[1:] - 1
    np.testing.assert_allclose(data.description.pos_weight, weights, rtol=0.02)  # nearest, but another one
    assert abs(np.mean(grey)) < 0.01 and abs(np.std(grey) - 1) < 0.01
