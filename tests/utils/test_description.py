import re

import numpy as np
import pytest

from utils.datasets.annotated import resize_masks
from utils.datasets.cvat import draw_masks, parse_cvat
from utils.datasets.description import DATASET_NAMES, FOLDER, MASK_KINDS, load_description, read_description
from utils.datasets.sources import CocoMasks, CvatMasks, LabelFiles, LabelMaps, LabelmeMasks, StoredMasks
from utils.errors import InputError
from utils.paths import ROOT


def test_names_and_kinds():
    assert DATASET_NAMES == ("dental", "graz", "jsrt", "phantom")
    descriptions = {name: load_description(name) for name in DATASET_NAMES}
    assert [descriptions[name].sam_type for name in DATASET_NAMES] == ["vit_h", "vit_h", "vit_h", "demo"]
    assert isinstance(descriptions["dental"].masks, LabelMaps)
    assert isinstance(descriptions["jsrt"].masks, StoredMasks)
    assert isinstance(descriptions["phantom"].masks, CvatMasks)
    assert descriptions["graz"].labels == descriptions["phantom"].labels == tuple(sorted(descriptions["graz"].labels))
    assert descriptions["graz"].input_size == (384, 224)


def test_a_description_beside_the_data_makes_a_data_set_of_them(tmp_path):
    (tmp_path / "mine").mkdir()
    text = (FOLDER / "jsrt.toml").read_text(encoding="utf-8").replace("train = 160", "train = 7")
    (tmp_path / "mine" / "description.toml").write_text(text, encoding="utf-8")
    description = load_description("mine", tmp_path)
    assert (description.name, description.masks.train) == ("mine", 7)
    for name in ("yours", "../mine", "mine/.."):
        with pytest.raises(InputError, match=r"no data set .*description\.toml"):
            load_description(name, tmp_path)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="graz, jsrt, phantom"):
        load_description("../graz")


@pytest.mark.parametrize(("old", "new", "message"), [
    ("std = 0.2", 'color = "grey"\nstd = 0.2', "unknown field `color` (known: name, labels, input_size, "),
    ('file = "masks.h5"', 'file = "masks.h5"\nattribute = "x"', "`$.masks` (known: file, train, val)"),
    ("[masks]", '[metadata]\nfile = "a.csv"\nsides = 1\n[masks]',
     "`$.metadata` (known: file, stem_column, keep, mirror, as_is, split_column)"),
    ('image_folder = "img"', "", "missing required field `image_folder`"),
    ("[4.9105, ", "[", "pos_weight needs 5 numbers, one per label, has 4"),
    ("[4.9105, ", "[-4.9105, ", "Expected `float` > 0.0 - at `$.pos_weight[0]`"),
    ("[4.9105, ", "[nan, ", "`$.pos_weight[0]`"),
    ("[4.9105, ", "[inf, ", "`$.pos_weight[0]`"),
    ("[4.9105, ", '["4.9105", ', "Expected `float`, got `str` - at `$.pos_weight[0]`"),
    ("[4.9105, 6.3263, 10.2737, 106.2339, 106.7618]", "[]", "`$.pos_weight`"),
    ('"right_lung", "left_lung"', '"right_lung", "right_lung"', "labels must be given, each once"),
    ('"right_lung", "left_lung"', '"right_lung", "mean"', "'mean' is the name of a column"),
    ("train = 160", "train = 0", "Expected `int` >= 1 - at `$.masks.train`"),
    ("std = 0.2", "max_grey_value = 0\nstd = 0.2", "Expected `int` >= 1 - at `$.max_grey_value`"),
    ("std = 0.2", "max_grey_value = 65536\nstd = 0.2", "Expected `int` <= 65535 - at `$.max_grey_value`"),
    ("[256, 256]", "[256]", "Expected `array` of length 2, got 1 - at `$.input_size`"),
    ("[256, 256]", "[256, 25.6]", "Expected `int`, got `float` - at `$.input_size[1]`"),
    ('"mask_store"', '"nifti"',
     "'nifti' - at `$.masks.kind` (known: cvat, coco, labelme, mask_store, label_maps, label_files)"),
    ('kind = "mask_store"', "", "missing required field `kind` - at `$.masks`"),
    ('"rest_of_train"', '"none"', "'none' - at `$.unlabeled` (known: not_annotated, all_of_train, rest_of_train)"),
    ("std = 0.2", "std = -0.2", "Expected `float` > 0.0 - at `$.std`"),
    ("std = 0.2", "std = nan  # ", "at `$.std`"),
    ("mean = 0.7", "mean = nan  # ", "at `$.mean`"),
    ("mean = 0.7", "mean = 100.7", "Expected `float` <= 1.0 - at `$.mean`"),
    ("std = ", "std ", "not a readable TOML file"),
])
def test_mistakes_in_a_description_name_file_and_key(tmp_path, old, new, message):
    text = (FOLDER / "jsrt.toml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_description(path, "mine")
    assert "mine.toml" in str(caught.value)


def test_an_unknown_key_in_a_list_of_tables_lists_the_known_ones(tmp_path):
    path = tmp_path / "mine.toml"
    text = (FOLDER / "phantom.toml").read_text(encoding="utf-8")
    path.write_text(text.replace("subset =", "part =", 1), encoding="utf-8")
    with pytest.raises(InputError, match=r"`\$\.masks\.train\[0\]` \(known: file, subset, in_project\)"):
        read_description(path, "mine")


def test_images_may_lie_in_the_folder_of_the_data_set_itself(tmp_path):
    assert load_description("graz").locate(tmp_path, ".") == tmp_path


def test_each_source_is_the_kind_of_its_table():
    assert {"cvat": CvatMasks, "coco": CocoMasks, "labelme": LabelmeMasks, "mask_store": StoredMasks,
            "label_maps": LabelMaps, "label_files": LabelFiles} == MASK_KINDS


def test_whole_numbers_serve_as_floats(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text((FOLDER / "jsrt.toml").read_text(encoding="utf-8").replace("[4.9105, ", "[5, "), encoding="utf-8")
    description = read_description(path, "mine")
    assert description.name == "mine"
    assert description.pos_weight[0] == 5.0 and isinstance(description.pos_weight[0], float)


@pytest.mark.slow
def test_constants_of_the_phantoms_come_out_of_their_annotations():
    description = load_description("phantom")
    images = [image for image in parse_cvat(ROOT / description.masks.train[0].file) if image.subset == "Train"]
    masks = np.stack([resize_masks(draw_masks(image, description.labels), description.input_size) for image in images])
    foreground = np.count_nonzero(masks, axis=(0, 2, 3))
    weights = (masks[:, 0].size - foreground) / foreground
    assert len(images) == 43
    assert [round(float(weight), 4) for weight in weights] == list(description.pos_weight)
