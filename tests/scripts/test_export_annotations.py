"""Saved masks as annotations, and corrected ones as labels of the next run."""
import csv
import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from scripts import export_annotations
from tests.conftest import OWN_DESCRIPTION
from unet_training.checkpoint import Training, save_checkpoint
from unet_training.data import LabeledDataset
from unet_training.models import TrainedModel
from unet_training.networks.u_net import UNet
from unet_training.pseudo_labels import PSEUDO_LABELS
from unet_training.saved_masks import masks_path
from utils.datasets.annotated import open_dataset
from utils.datasets.cvat import draw_masks, parse_cvat
from utils.datasets.description import OWN
from utils.datasets.sources import AnnotationFile, CvatMasks
from utils.datasets.writers import CvatLabels, ExportedImage, write_cvat
from utils.errors import InputError
from utils.files import write_png
from utils.mask_store import MaskWriter
from utils.tracking.models import fetch_model, store_model

LABELS, INPUT, SIZE = ("heart", "lung"), (36, 60), (90, 151)
ESTIMATES = {"R4": (0.9, 0.5), "R5": (np.nan, 0.6), "u6": (0.95, 0.95), "u7": (np.nan, np.nan)}
CVAT = """kind = "cvat"
attribute = "organ"
mirror_stems_with = "R"
train = [{{ file = "annotations.xml", subset = "Train" }}{more}]
val = [{{ file = "val.xml" }}]
test = [{{ file = "test.xml" }}]
"""


def ground_truth(number: int) -> np.ndarray:
    """Of an image as it was annotated: two disks, bool (2, H, W)."""
    rows, columns = np.mgrid[:SIZE[0], :SIZE[1]]
    return np.stack([np.hypot(rows - 40, columns - x - 4 * number) < radius for x, radius in ((30, 20), (80, 14))])


def describe(data_dir, more: str = "") -> None:
    head = OWN_DESCRIPTION.partition("[masks]")[0].replace("vit_b", "demo")
    text = f"mean = 0.5\nstd = 0.3\npos_weight = [1, 1]\n{head}[masks]\n{CVAT.format(more=more)}"
    (data_dir / "mine" / OWN).write_text(text)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """(data folder, model id, the stages' arguments): four labeled images, and four with saved masks of SAM; those with
    an R are mirrored."""
    monkeypatch.setenv("SAM_BURDEN_RUNS", str(tmp_path / "runs"))
    data_dir, folder = tmp_path / "data", tmp_path / "data" / "mine"
    stems = ["0", "1", "2", "3", *ESTIMATES]
    for number, stem in enumerate(stems):
        grey = (100 + 60 * ground_truth(number)[0] - 70 * ground_truth(number)[1]).astype(np.uint8)
        write_png(folder / "img" / f"{stem}.png", grey[:, ::-1] if "R" in stem else grey)
    names = CvatLabels(LABELS, "structure", "organ")
    for file, numbers in (("annotations", (0, 1)), ("val", (2,)), ("test", (3,))):
        images = [ExportedImage(f"{number}.png", ground_truth(number), np.full(2, np.nan)) for number in numbers]
        write_cvat(folder / f"{file}.xml", images, names, tolerance=None)
    text = (folder / "annotations.xml").read_text(encoding="utf-8")
    (folder / "annotations.xml").write_text(text.replace("<image ", '<image subset="Train" '), encoding="utf-8")
    describe(data_dir)
    save_checkpoint(tmp_path / "unet.pt", UNet(2, 4, 4), Training("mine", LABELS, INPUT, 0.5, 0.3))
    parameters = {"stage": "initial", "dataset": "mine", "num_train_samples": 2, "architecture": "u_net"}
    model_id = store_model(tmp_path / "unet.pt", parameters, LABELS, (), "task")
    arguments = ["--dataset", "mine", "--data_dir", str(data_dir), "--model_id", model_id, "--results_dir",
                 str(tmp_path / "results")]
    args = export_annotations.get_args_parser().parse_args(arguments)
    model = TrainedModel.load(fetch_model(model_id), open_dataset("mine", data_dir), "cpu")
    for kind in ("sam", "raw"):
        labels = PSEUDO_LABELS[kind].from_args(args, model.data)
        with MaskWriter(masks_path(labels, model), LABELS, labels.attributes(model)) as writer:
            for number, (stem, estimates) in enumerate(ESTIMATES.items(), 4):
                small = np.stack([cv2.resize(mask, INPUT[::-1], interpolation=cv2.INTER_AREA) > 0
                                  for mask in ground_truth(number).astype(np.uint8)])
                writer.write(stem, small[..., ::-1] if "R" in stem else small,
                             np.array(estimates) if kind == "sam" else None)
    return data_dir, model_id, arguments


def export(saved, *more: str):
    return export_annotations.main(export_annotations.get_args_parser().parse_args([*saved[2], *more]))


def test_the_least_sure_come_first_at_their_size_and_unmirrored(saved):
    path = export(saved, "--shapes", "mask")
    images = parse_cvat(path, "organ", LABELS)
    assert [image.name for image in images] == ["u7.png", "R5.png", "R4.png", "u6.png"]
    for image in images:
        masks = draw_masks(image, LABELS)
        expected = ground_truth(4 + list(ESTIMATES).index(image.stem))  # a pixel of the network is 2.5 of the image
        assert masks.shape == (2, *SIZE) and 2 * (masks & expected).sum() / (masks.sum() + expected.sum()) > 0.93
    assert 'label="structure"' in path.read_text(encoding="utf-8")
    with (path.parent / "estimates.csv").open(encoding="utf-8") as file:
        assert list(csv.reader(file))[1:3] == [["u7.png", "", "", ""], ["R5.png", "60.00", "", "60.00"]]
    described, = json.loads((path.parent / "labels.json").read_text(encoding="utf-8"))
    assert described["name"] == "structure"


def test_polygons_say_the_same_and_images_come_along_as_they_were_annotated(saved):
    exact = {image.stem: draw_masks(image, LABELS) for image in parse_cvat(export(saved, "--shapes", "mask"), "organ")}
    path = export(saved, "--worst", "3", "--with_images")
    for image in parse_cvat(path, "organ"):
        masks = draw_masks(image, LABELS)
        assert 2 * (masks & exact[image.stem]).sum() / (masks.sum() + exact[image.stem].sum()) >= 0.99
        grey = cv2.imread(str(path.parent / "images" / image.name), cv2.IMREAD_GRAYSCALE)
        assert (grey[ground_truth(4 + list(ESTIMATES).index(image.stem))[1]] < 100).all()
    assert len(list((path.parent / "images").iterdir())) == 3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_holds_the_same_masks(saved):
    COCO = pytest.importorskip("pycocotools.coco", reason="pycocotools isn't installed").COCO
    exact = {image.name: draw_masks(image, LABELS) for image in parse_cvat(export(saved, "--shapes", "mask"), "organ")}
    coco = COCO(export(saved, "--format", "coco", "--worst", "2"))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["u7.png", "R5.png"]
    for annotation in coco.loadAnns(coco.getAnnIds()):
        name = coco.loadImgs(annotation["image_id"])[0]["file_name"]
        np.testing.assert_array_equal(coco.annToMask(annotation), exact[name][annotation["category_id"] - 1])


def test_masks_without_estimates_have_no_worst(saved):
    assert len(parse_cvat(export(saved, "--pseudo_label", "raw"), "organ")) == 4
    with pytest.raises(InputError, match="holds no estimates"):
        export(saved, "--pseudo_label", "raw", "--worst", "2")


def test_corrected_annotations_are_labels_of_the_next_run(saved):
    """The two worst images are corrected (to their ground truth), the file is one more of the training."""
    data_dir, folder = saved[0], saved[0] / "mine"
    path = export(saved, "--worst", "2")
    numbers = {stem: number for number, stem in enumerate(ESTIMATES, 4)}
    corrected = [ExportedImage(image.name, ground_truth(numbers[image.stem]), np.full(2, np.nan))
                 for image in parse_cvat(path, "organ")]
    write_cvat(path, corrected, CvatLabels(LABELS, "structure", "organ"), tolerance=None)
    shutil.copy(path, folder / "corrected_1.xml")
    before = open_dataset("mine", data_dir)
    assert (len(before.stems("train")), len(before.select())) == (2, 4)
    describe(data_dir, more=', { file = "corrected_1.xml" }')
    after = open_dataset("mine", data_dir)
    assert after.stems("train") == ["0", "1", "R5", "u7"] and after.select() == ["R4", "u6"]
    for stem, (image, mask) in zip(after.stems("train"), LabeledDataset(after, after.stems("train")), strict=True):
        grey = 255 * (0.3 * image[0].numpy() + 0.5)
        assert (grey[mask[0].numpy() & ~mask[1].numpy()] > 140).mean() > 0.9, stem  # mirrored as its image is


def test_labels_of_a_data_set_that_was_made_of_an_export(tmp_path):
    """Which names its CVAT files without splits."""
    names = CvatLabels(LABELS, "structure", "organ")
    write_cvat(tmp_path / "a.xml", [ExportedImage("0.png", ground_truth(0), np.full(2, np.nan))], names)
    masks = CvatMasks(files=(AnnotationFile("a.xml"),), attribute="organ")
    description = SimpleNamespace(labels=LABELS, masks=masks, locate=lambda folder, file: folder / file)
    data = SimpleNamespace(description=description, folder=tmp_path)
    assert export_annotations.Export(data, SimpleNamespace(stems=[]), set()).cvat_labels(None) == names
