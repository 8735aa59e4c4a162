"""The real annotations, table and lists; the radiographs themselves are blank, their pixels don't matter here."""
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SHARED
from unet_training.data import SegGrazPedWriDataset
from utils.datasets.annotated import AnnotatedImages, open_dataset
from utils.datasets.cvat import parse_cvat
from utils.datasets.sources import SPLITS
from utils.files import write_png

pytestmark = pytest.mark.shared
CLASS_COUNTS = [34, 24, 40, 40, 34, 22, 31, 27, 27, 35, 41, 41, 42, 41, 40, 43, 42]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    source = SHARED / "data" / "graz"
    folder = tmp_path_factory.mktemp("data") / "graz"
    shutil.copytree(source / "annotations", folder / "annotations")
    for path in source.glob("*.csv"):
        shutil.copy(path, folder)
    for path in (folder / "annotations").glob("*.xml"):
        for image in parse_cvat(path):
            write_png(folder / "img_only_front_all_left" / f"{image.stem}.png",
                      np.zeros((image.height, image.width), np.uint8))
    return folder.parent


@pytest.fixture(scope="module")
def data(data_dir) -> AnnotatedImages:
    return open_dataset("graz", data_dir)


def test_splits_are_the_papers(data):
    assert [len(data.stems(split)) for split in ("train", "val", "test")] == [43, 10, 10]
    assert data.stems("train", 2) == ["1789_1226690483_01_WRI-R1_F011", "0025_0483842858_01_WRI-L1_F000"]
    assert data.stems("test") == sorted(data.stems("test"))
    assert set(data.description.left_out_of_averages) < set(data.stems("test"))


def test_the_data_are_found_where_the_authors_have_them(data_dir, data, tmp_path):
    for name in ("annotations", "dataset.csv", "img_only_front_all_left", "successively_training_files_order.csv"):
        place = "cvat_annotation_xml" if name == "annotations" else name
        (tmp_path / place).symlink_to(data_dir / "graz" / name)
    moved = open_dataset("graz", tmp_path)
    assert [moved.stems(split) for split in SPLITS] == [data.stems(split) for split in SPLITS]
    np.testing.assert_array_equal(moved.mask(moved.stems("train")[0]), data.mask(data.stems("train")[0]))


def test_the_500_listed_images_are_the_unlabeled_ones(data_dir):
    folder = data_dir / "graz" / "img_only_front_all_left"
    listed = [line.split(",")[1] for line in (data_dir / "graz/500unlabeled_sample.csv").read_text().split()[1:]]
    for stem in listed:
        (folder / f"{stem}.png").touch()
    try:
        assert open_dataset("graz", data_dir).unlabeled_stems(43, True, 0) == listed
        assert open_dataset("graz", data_dir).unlabeled_stems(43, False, 0) == sorted(listed)
    finally:
        for stem in listed:
            (folder / f"{stem}.png").unlink()


@pytest.mark.slow
def test_positive_weights_and_class_counts_come_out_exactly(data):
    masks = np.stack([data.mask(stem) for stem in data.stems("train")])
    foreground = np.count_nonzero(masks, axis=(0, 2, 3))
    background = masks[:, 0].size - foreground
    assert [f"{weight:.4f}" for weight in background / foreground] == [
        f"{weight:.4f}" for weight in data.description.pos_weight]
    assert masks.any(axis=(2, 3)).sum(axis=0).tolist() == CLASS_COUNTS


def test_view_of_the_first_images(data_dir, data):
    view = SegGrazPedWriDataset("train", num_train_samples=2, data_dir=data_dir)
    image, mask = view[1]
    assert len(view) == 2 and len(view.labels) == 17
    assert tuple(image.shape) == (1, 384, 224) and tuple(mask.shape) == (17, 384, 224)
    assert image.unique().item() == pytest.approx(-0.3505533917353781 / 0.22763733675869177)
    np.testing.assert_array_equal(mask, data.mask(view.stems[1]))


def test_right_hands_look_like_left_ones(data):
    """The radius lies on the thumb's side: the same side of the ulna in every image."""
    ulna, radius = (data.description.labels.index(name) for name in ("Ulna", "Radius"))
    sides = {}
    for stem in [*data.stems("val"), *data.stems("test")]:
        mask = data.mask(stem)
        if mask[ulna].any() and mask[radius].any():
            column = [np.nonzero(mask[label])[1].mean() for label in (ulna, radius)]
            sides.setdefault("WRI-R" in stem, []).append(np.sign(column[1] - column[0]))
    assert set(sides) == {False, True}
    assert set(sides[True]) == set(sides[False]) and len(set(sides[True])) == 1
