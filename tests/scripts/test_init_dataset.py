"""A folder of radiographs and an export of an annotation tool become a data set that opens at once: each format as its
tool writes it, masks compared with drawings that don't come from here."""
import base64
import csv
import io
import json
import re
import shlex
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from skimage.draw import polygon2mask

from scripts import init_dataset
from scripts.own_data.images import propose_input_size
from scripts.own_data.splits import assign, split_named
from tests.dicom_files import make_dicom
from utils.datasets.annotated import AnnotatedImages, open_dataset
from utils.datasets.description import OWN
from utils.errors import InputError
from utils.files import read_grey, write_png

HEIGHT, WIDTH, COUNT = 48, 80, 8
BONES = {"femur": [(5, 4), (30.5, 6), (28, 30), (8, 25.5)], "tibia": [(40, 10), (70, 12), (66, 41), (45, 40)]}


def run(data_dir: Path, images: Path, *arguments: object) -> Path | None:
    words = ["mine", "--images", images, "--data_dir", data_dir, "--input_size", HEIGHT, WIDTH, *arguments]
    return init_dataset.main(init_dataset.get_args_parser().parse_args(list(map(str, words))))


def corners(label: str, number: int) -> np.ndarray:
    """The polygon of a bone in the image of that number, (N, 2) as x, y."""
    return np.add(BONES[label], (number % 4, number % 3))


def drawn(label: str, number: int) -> np.ndarray:
    return polygon2mask((HEIGHT, WIDTH), corners(label, number)[:, ::-1])


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder of ten images, of which the last two are never annotated."""
    rng = np.random.default_rng(0)
    for number in range(COUNT + 2):
        write_png(tmp_path / "images" / f"{number}.png", rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8))
    return tmp_path / "images"


def open_mine(data_dir: Path, expected: Callable[[str, int], np.ndarray], labels=("femur", "tibia")) -> AnnotatedImages:
    """The data set, after it was compared with a drawing of each label in each image."""
    data = open_dataset("mine", data_dir)
    assert data.description.labels == tuple(labels)
    stems = [stem for split in ("train", "val", "test") for stem in data.stems(split)]
    assert sorted(stems) == [str(number) for number in range(COUNT)]
    for stem in stems:
        np.testing.assert_array_equal(data.mask(stem), [expected(label, int(stem)) for label in labels], stem)
    assert data.unlabeled_stems(1, False, 0) == ["8", "9"]
    return data


def cvat_xml(shape: Callable[[str, int], str], name: str = "{}.png", subsets: bool = False) -> str:
    """A task's export in the layout of CVAT for images 1.1."""
    of = ["Train"] * 4 + ["Validation"] * 2 + ["Test"] * 2
    elements = "".join(
        f'<image id="{number}" name="{name.format(number)}" width="{WIDTH}" height="{HEIGHT}"'
        + (f' subset="{of[number]}" task_id="1">' if subsets else ">")
        + "".join(shape(label, number) for label in BONES) + "</image>" for number in range(COUNT))
    return ('<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task><id>7</id></task>'
            f"</meta>{elements}</annotations>")


def cvat_polygon(label: str, number: int) -> str:
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in corners(label, number))
    return f'<polygon label="{label}" source="manual" occluded="0" points="{points}" z_order="0"></polygon>'


def test_the_zip_file_of_a_cvat_task(images, tmp_path, capsys):
    export = tmp_path / "task.zip"
    with zipfile.ZipFile(export, "w") as archive:
        archive.writestr("annotations.xml", cvat_xml(cvat_polygon))
        archive.write(images / "0.png", "images/0.png")
    path = run(tmp_path, images, "--annotations", export)
    open_mine(tmp_path, drawn)
    assert path == tmp_path / "mine" / OWN
    said = capsys.readouterr().out
    assert f"10 images (10 .png), {WIDTH} to {WIDTH} pixels wide and {HEIGHT} to {HEIGHT} high, 10 of 8 bits" in said
    assert "shapes: 8 femur, 8 tibia" in said and "6 train, 1 val, 1 test, of 8 patients" in said
    with Image.open(tmp_path / "mine" / "overlays.png") as page:
        assert page.width > 400


def test_a_cvat_project_with_subsets_boxes_ellipses_points_and_a_label_nobody_asked_for(images, tmp_path, capsys):
    def shape(label: str, number: int) -> str:
        if label == "femur":
            return f'<box label="femur" xtl="{5 + number}" ytl="4" xbr="{20 + number}" ybr="30" z_order="0"/>'
        return (f'<ellipse label="tibia" cx="50" cy="24" rx="{10 + number}" ry="9.5" z_order="0"/>'
                '<points label="femur" points="3,3"/><polyline label="rib" points="1,1;2,2"/><tag label="seen"/>'
                '<polygon label="Femur" points="1,1;9,1;9,9"/>')

    def expected(label: str, number: int) -> np.ndarray:
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        if label == "femur":
            return (x >= 5 + number) & (x <= 20 + number) & (y >= 4) & (y <= 30)
        return ((x - 50) / (10 + number)) ** 2 + ((y - 24) / 9.5) ** 2 <= 1

    export = tmp_path / "project.xml"
    export.write_text(cvat_xml(shape, "job/{}.png", subsets=True))
    run(tmp_path, images, "--annotations", export, "--labels", "tibia", "femur")
    data = open_mine(tmp_path, expected, ("tibia", "femur"))
    assert [data.stems(split) for split in ("train", "val", "test")] == [list("0123"), list("45"), list("67")]
    said = capsys.readouterr().out
    assert "8 shapes of the kind points" in said and "8 shapes of the kind polyline" in said
    assert "8 shapes of labels that --labels doesn't name: 8 Femur" in said
    with pytest.raises(InputError, match=r"nobody annotated 'tibea' \(tibia\?\)"):
        run(tmp_path, images, "--annotations", export, "--labels", "tibea")


def test_subsets_of_a_cvat_project_may_have_images_of_one_name(tmp_path):
    """Which CVAT exports into a folder for each subset."""
    subsets, elements = {"Train": range(4), "Validation": range(4, 6), "Test": range(6, 8)}, ""
    rng = np.random.default_rng(0)
    for subset, numbers in subsets.items():
        for place, number in enumerate(numbers):
            write_png(tmp_path / "images" / subset / f"{place}.png", rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8))
            elements += (f'<image id="{number}" name="{place}.png" subset="{subset}" width="{WIDTH}" height="{HEIGHT}">'
                         + "".join(cvat_polygon(label, number) for label in BONES) + "</image>")
    with zipfile.ZipFile(tmp_path / "project.zip", "w") as archive:
        archive.writestr("annotations.xml", f"<annotations><version>1.1</version>{elements}</annotations>")
    for _ in range(2):  # a second run reads the same
        run(tmp_path, tmp_path / "images", "--annotations", tmp_path / "project.zip")
    data = open_dataset("mine", tmp_path)
    for split, (subset, numbers) in zip(("train", "val", "test"), subsets.items(), strict=True):
        assert data.stems(split) == [f"{subset}__{place}" for place in range(len(numbers))]
        for stem, number in zip(data.stems(split), numbers, strict=True):
            np.testing.assert_array_equal(data.mask(stem), [drawn(label, number) for label in BONES])


def test_an_attribute_of_cvat_says_what_a_shape_shows(images, tmp_path):
    def shape(label: str, number: int) -> str:
        return cvat_polygon(label, number).replace(f'label="{label}"', 'label="bone"').replace(
            "</polygon>", f'<attribute name="which">{label}</attribute></polygon>')

    export = tmp_path / "a.xml"
    export.write_text(cvat_xml(shape))
    run(tmp_path, images, "--annotations", export)
    open_mine(tmp_path, drawn)
    run(tmp_path, images, "--annotations", export, "--attribute", "none")
    assert open_dataset("mine", tmp_path).description.labels == ("bone",)


@pytest.mark.parametrize("kind", ["polygons", "compressed", "uncompressed", "boxes"])
def test_coco_as_pycocotools_reads_it(images, tmp_path, kind, capsys):
    """With ids that don't begin at 1, a polygon of two parts, and crowds."""
    table = {"images": [{"id": 10 + number, "file_name": f"data/{number}.png", "height": HEIGHT, "width": WIDTH}
                        for number in range(COUNT)],
             "categories": [{"id": 3, "name": "femur"}, {"id": 9, "name": "tibia"}], "annotations": []}
    for number in range(COUNT):
        for category, label in ((3, "femur"), (9, "tibia")):
            mask, points = drawn(label, number), corners(label, number)
            rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            box = coco_mask.toBbox(rle).tolist()
            if kind == "uncompressed":
                flat = mask.flatten(order="F")
                changes = np.flatnonzero(np.diff(flat)) + 1
                counts = np.diff([0, *changes, flat.size]).tolist()
                drawing = {"size": [HEIGHT, WIDTH], "counts": [0, *counts] if flat[0] else counts}
            elif kind == "compressed":
                drawing = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
            elif kind == "polygons":
                drawing = [points.ravel().tolist(), [1.5, 40, 6, 40, 6, 46.5, 1, 46]]
            else:
                drawing = []
            table["annotations"].append({
                "id": len(table["annotations"]) + 1, "image_id": 10 + number, "category_id": category, "bbox": box,
                "area": float(mask.sum()), "iscrowd": int(kind == "uncompressed"), "segmentation": drawing})
    export = tmp_path / "result.json"
    export.write_text(json.dumps(table))
    run(tmp_path, images, "--annotations", export)
    oracle = COCO(str(export))

    def expected(label: str, number: int) -> np.ndarray:
        annotations = oracle.loadAnns(oracle.getAnnIds(10 + number, oracle.getCatIds(label)))
        if kind == "boxes":
            y, x = np.mgrid[:HEIGHT, :WIDTH]
            left, top, width, height = annotations[0]["bbox"]
            return (x >= left) & (x < left + width) & (y >= top) & (y < top + height)
        return oracle.annToMask(annotations[0]).astype(bool)
    open_mine(tmp_path, expected)


def test_coco_files_of_each_split_in_its_folder(tmp_path):
    """As Roboflow exports them: images of one name in several folders, and a category that has no annotation."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("valid", 1), ("test", 1)):
        for number in range(count):
            write_png(tmp_path / "set" / split / f"{number}.png", rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8))
        points = np.add(corners("femur", 0), (0, {"train": 1, "valid": 5, "test": 9}[split])).ravel().tolist()
        table = {"images": [{"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH}
                            for number in range(count)],
                 "categories": [{"id": 0, "name": "bones"}, {"id": 1, "name": "femur"}],
                 "annotations": [{"id": number, "image_id": number, "category_id": 1, "segmentation": [points],
                                  "bbox": [1, 1, 5, 5], "area": 9, "iscrowd": 0} for number in range(count)]}
        (tmp_path / "set" / split / "_annotations.coco.json").write_text(json.dumps(table))
    run(tmp_path, tmp_path / "set", "--annotations", tmp_path / "set")
    data = open_dataset("mine", tmp_path)
    assert data.description.labels == ("femur",)
    assert [data.stems(split) for split in ("train", "val", "test")] == [
        ["train__0", "train__1", "train__2"], ["valid__0"], ["test__0"]]
    for stem, shift in (("train__0", 1), ("valid__0", 5), ("test__0", 9)):
        oracle = coco_mask.decode(coco_mask.frPyObjects([np.add(corners("femur", 0), (0, shift)).ravel().tolist()],
                                                        HEIGHT, WIDTH))[..., 0]
        np.testing.assert_array_equal(data.mask(stem)[0], oracle)


def test_labelme_files_beside_the_images(images, tmp_path, capsys):
    """In the layout that labelme writes, with each of its shapes; polygons have their outline, as in its label maps."""
    box = np.zeros((12, 15), bool)
    box[3:, 4:9] = True
    for number in range(COUNT):
        png = io.BytesIO()
        Image.fromarray(box).save(png, "PNG")
        shapes = [
            {"label": "femur", "points": corners("femur", number).tolist(), "shape_type": "polygon"},
            {"label": "tibia", "points": [[60, 30], [50, 20]], "shape_type": "rectangle"},
            {"label": "tibia", "points": [[10, 40], [13, 44]], "shape_type": "circle"},
            {"label": "tibia", "points": [[30, 5], [44, 16]], "shape_type": "mask",
             "mask": base64.b64encode(png.getvalue()).decode()},
            {"label": "tibia", "points": [[30, 5]], "shape_type": "point"}]
        table = {"version": "5.5.0", "flags": {}, "imagePath": f"{number}.png", "imageData": None,
                 "shapes": [{"group_id": None, "description": "", "flags": {}, "mask": None, **shape}
                            for shape in shapes], "imageHeight": HEIGHT, "imageWidth": WIDTH}
        (images / f"{number}.json").write_text(json.dumps(table))
    run(tmp_path, images, "--annotations", images)
    assert "8 shapes of the kind point, which have no area" in capsys.readouterr().out

    def expected(label: str, number: int) -> np.ndarray:
        if label == "femur":
            canvas = Image.new("1", (WIDTH, HEIGHT))
            ImageDraw.Draw(canvas).polygon(list(map(tuple, corners(label, number))), outline=1, fill=1)
            return np.array(canvas)
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        mask = (x >= 50) & (x <= 60) & (y >= 20) & (y <= 30)
        mask |= cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (10, 40), 5, 1, -1) > 0
        mask[5:17, 30:45] |= box
        return mask

    data = open_dataset("mine", tmp_path)
    for stem in "0123":
        femur, tibia = data.mask(stem)
        np.testing.assert_array_equal(femur, expected("femur", int(stem)))
        assert (femur ^ drawn("femur", int(stem))).sum() < 2 * np.hypot(*np.diff(corners("femur", 0).T)).sum()
        odd = np.argwhere(tibia != expected("tibia", int(stem)))
        assert (np.abs(np.hypot(*(odd - [40, 10]).T) - 5) < 1).all()  # on the circle


def test_labelme_files_that_hold_their_images(tmp_path):
    """Written on Windows, without the images beside them."""
    rng, pixels = np.random.default_rng(0), {}
    for number in range(COUNT):
        pixels[str(number)] = rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
        png = io.BytesIO()
        Image.fromarray(pixels[str(number)]).save(png, "PNG")
        table = {"version": "5.4.1", "flags": {}, "imagePath": f"..\\x-rays\\{number}.png", "imageHeight": HEIGHT,
                 "imageWidth": WIDTH, "imageData": base64.b64encode(png.getvalue()).decode(),
                 "shapes": [{"label": "femur", "points": corners("femur", number).tolist(), "shape_type": "polygon"}]}
        (tmp_path / "json").mkdir(exist_ok=True)
        (tmp_path / "json" / f"{number}.json").write_text(json.dumps(table))
    for _ in range(2):
        run(tmp_path, tmp_path / "json", "--annotations", tmp_path / "json")
    data = open_dataset("mine", tmp_path)
    for stem in data.stems("train"):
        np.testing.assert_array_equal(data.read_grey(stem), pixels[stem])
        assert (data.mask(stem)[0] & drawn("femur", int(stem))).sum() > 0.98 * drawn("femur", int(stem)).sum()


@pytest.mark.parametrize("form", ["colors", "palette", "values", "value table", "class_names.txt", "classes.txt",
                                  "class_dict.csv", "names only"])
def test_label_maps(images, tmp_path, form, capsys):
    """CVAT's 'Segmentation mask 1.1', grey and with a palette; values with a table and without."""
    folder = tmp_path / ("export/SegmentationClass" if form in ("colors", "palette") else "masks")
    folder.mkdir(parents=True)
    palette = np.zeros((256, 3), np.uint8)
    palette[[1, 2]] = (250, 50, 83), (52, 209, 183)
    values = {"femur": 3, "tibia": 7} if form == "value table" else {"femur": 1, "tibia": 2}
    for number in range(COUNT):
        index = np.zeros((HEIGHT, WIDTH), np.uint8)
        for label, value in values.items():
            index[drawn(label, number)] = value
        picture = Image.fromarray(palette[index] if form in ("colors", "class_dict.csv") else index)
        if form in ("palette", "class_names.txt"):
            picture.putpalette(palette.tobytes())
        picture.save(folder / (f"{number}.png" if form != "names only" else f"seg_{number}.png"))
    export, more = folder, []
    if form in ("colors", "palette"):
        (folder.parent / "labelmap.txt").write_text(
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\nfemur:250,50,83::\ntibia:52,209,183::\n")
        export = tmp_path / "export.zip"
        with zipfile.ZipFile(export, "w") as archive:
            for path in (folder.parent / "labelmap.txt", *folder.iterdir()):
                archive.write(path, path.relative_to(folder.parent))
                if path.suffix == ".png":
                    archive.write(images / path.name, f"SegmentationObject/{path.name}")
    elif form == "value table":
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "femur": 3, "tibia": 7}}))
    elif form in ("values", "names only"):
        more = ["--labels", "femur", "tibia"]
    else:  # as labelme's examples, YOLO's tools and CamVid have them
        (tmp_path / form).write_text({"class_names.txt": "__ignore__\n_background_\nfemur\ntibia\n",
                                      "classes.txt": "femur\ntibia\n",
                                      "class_dict.csv": "name,r,g,b\nvoid,0,0,0\nfemur,250,50,83\ntibia,52,209,183\n"
                                      }[form])
    run(tmp_path, images, "--annotations", export, *more)
    open_mine(tmp_path, drawn)


@pytest.mark.parametrize("form", ["{label}/{number}.png", "{number}_{label}_mask.png", "{number}/{label}.tif",
                                  "masks/mask_{label}_{number}.png", "my {label}/{number}.gif"])
def test_a_mask_of_each_label(images, tmp_path, form):
    for number in range(COUNT):
        for label in BONES:
            path = tmp_path / "drawn" / form.format(label=label, number=number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn(label, number)).save(path)
    run(tmp_path, images, "--annotations", tmp_path / "drawn")
    names = ("my femur", "my tibia") if "my" in form else tuple(BONES)
    open_mine(tmp_path, lambda label, number: drawn(label.removeprefix("my "), number), names)


def test_masks_beside_their_images_of_one_label_in_jpeg_and_png(images, tmp_path):
    """Also of names that end with a bracket."""
    for path in list(images.iterdir()):
        path.rename(images / f"normal ({path.stem}).png")
    for number in range(COUNT):
        mask = Image.fromarray(np.uint8(255) * drawn("femur", number))
        mask.save(images / f"normal ({number})_segmentation.png")
    run(tmp_path, images, "--annotations", images, "--labels", "femur")
    data = open_dataset("mine", tmp_path)
    assert data.unlabeled_stems(1, False, 0) == ["normal (8)", "normal (9)"]
    for stem in data.stems("train"):
        np.testing.assert_array_equal(data.mask(stem), [drawn("femur", int(stem[-2]))])
    for path in images.glob("*_segmentation.png"):
        Image.open(path).convert("L").save(path.with_suffix(".jpg"))
        path.unlink()
    with pytest.raises(InputError, match="no mask fits an image"):
        run(tmp_path, images, "--annotations", images)


def test_the_folders_of_nnunet(images, tmp_path):
    """`17_0000.png` is the image of `17.png`, and dataset.json names the labels."""
    (tmp_path / "raw" / "labelsTr").mkdir(parents=True)
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps(
        {"channel_names": {"0": "grey"}, "labels": {"background": 0, "femur": 1, "tibia": 2}, "numTraining": COUNT}))
    images = images.rename(tmp_path / "raw" / "imagesTr")
    for path in list(images.iterdir()):
        path.rename(images / f"{path.stem}_0000.png")
    for number in range(COUNT):
        index = np.maximum(drawn("femur", number), np.uint8(2) * drawn("tibia", number))
        Image.fromarray(index).save(tmp_path / "raw" / "labelsTr" / f"{number}.png")
    run(tmp_path, images, "--annotations", tmp_path / "raw" / "labelsTr")
    data = open_dataset("mine", tmp_path)
    assert data.description.labels == ("femur", "tibia") and len(data.stems("train")) == 6
    for stem in data.stems("train"):
        np.testing.assert_array_equal(data.mask(stem)[1], drawn("tibia", int(stem.split("_")[0])))


def test_label_studio_and_a_label_that_vanishes(images, tmp_path, capsys):
    """A ZIP file with result.json, in which names of images begin with what makes them unique."""
    table = {"images": [{"id": number, "file_name": f"images/{number:08x}-{number}.png", "height": HEIGHT,
                         "width": WIDTH} for number in range(COUNT)],
             "categories": [{"id": 0, "name": "femur"}, {"id": 1, "name": "dot"}], "annotations": []}
    for number in range(COUNT):
        for label, points in ((0, corners("femur", number)), (1, np.array([[21, 41], [22, 41], [22, 42], [21, 42]]))):
            table["annotations"].append({"id": len(table["annotations"]), "image_id": number, "category_id": label,
                                         "segmentation": [points.ravel().tolist()], "bbox": [1, 1, 2, 2], "area": 9,
                                         "iscrowd": 0, "ignore": 0})
    with zipfile.ZipFile(tmp_path / "project.zip", "w") as archive:
        archive.writestr("result.json", json.dumps(table))
        archive.write(images / "0.png", "images/00000000-0.png")
    run(tmp_path, images, "--annotations", tmp_path / "project.zip", "--input_size", 32, 36)
    data = open_dataset("mine", tmp_path)
    assert data.description.labels == ("femur",) and data.unlabeled_stems(1, False, 0) == ["8", "9"]
    assert "too small to be seen at the network's input size: dot" in capsys.readouterr().out


def write_dicom(path: Path, pixels: np.ndarray, **elements: object) -> None:
    """With 12 bits."""
    make_dicom(pixels.astype("<u2"), BitsStored=12, HighBit=11, **elements).save_as(path, enforce_file_format=True)


def test_dicom_without_a_suffix_of_patients_with_several_images(tmp_path):
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 4096, (COUNT + 2, HEIGHT, WIDTH))
    forms = [{}, {"PhotometricInterpretation": "MONOCHROME1"}, {"WindowCenter": 1000, "WindowWidth": 1001},
             {"WindowCenter": ["1000", "2000"], "WindowWidth": ["1001", "9"], "RescaleSlope": 2,
              "RescaleIntercept": -500, "PhotometricInterpretation": "MONOCHROME1"}]
    folder = tmp_path / "dicom"
    for number, pixels in enumerate(stored):
        place = folder / f"study{number // 2}"
        place.mkdir(parents=True, exist_ok=True)
        write_dicom(place / f"IM.{number}", pixels, PatientID=f"P{number // 2}", **forms[number % 4])
    (folder / "DICOMDIR.txt").write_text("no image")
    export = tmp_path / "a.xml"
    export.write_text(cvat_xml(cvat_polygon, "IM.{}.dcm"))
    run(tmp_path, folder, "--annotations", export)
    data = open_dataset("mine", tmp_path)
    with (tmp_path / "mine" / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    for patient in {row["patient"] for row in rows}:
        assert len({row["split"] for row in rows if row["patient"] == patient}) == 1
    assert rows[3]["stem"] == "study1__IM.3" and rows[3]["file"] == "study1/IM.3"
    grey = [data.read_grey(f"study{number // 2}__IM.{number}") for number in range(4)]
    full = stored / 4095
    window = (np.arange(4096) - 999.5) / 1000 + 0.5  # the standard's formula of linear windows
    rescaled = ((2 * np.arange(4096) - 500) - 999.5) / 1000 + 0.5
    expected = [full[0], 1 - full[1], window.clip(0, 1)[stored[2]], 1 - rescaled.clip(0, 1)[stored[3]]]
    for image, values in zip(grey, expected, strict=True):
        assert image.dtype == np.uint16 and np.abs(image / 65535 - values).max() < 1e-4
    stem = data.stems("train")[0]
    mask = drawn("femur", int(stem.rpartition(".")[2]))
    np.testing.assert_array_equal(data.mask(stem)[0], mask)
    before = data.read_grey(stem)
    run(tmp_path, folder, "--annotations", export, "--mirror", ".")
    data = open_dataset("mine", tmp_path)
    np.testing.assert_array_equal(data.read_grey(stem), before[:, ::-1])
    np.testing.assert_array_equal(data.mask(stem)[0], mask[:, ::-1])


def test_nothing_of_a_patient_for_testing_is_trained_on(images, tmp_path, capsys):
    """Also not what nobody annotated, and neither after more was annotated."""
    for path in list(images.iterdir()):
        path.rename(images / f"P{int(path.stem) % 5}_{path.name}")  # P3_8 and P4_9 have no annotation
    export, splits = tmp_path / "a.xml", tmp_path / "splits.csv"
    export.write_text(cvat_xml(cvat_polygon, "{}.png"))
    text = re.sub(r'name="(\d)', lambda name: f'name="P{int(name[1]) % 5}_{name[1]}', export.read_text())
    export.write_text(text)
    splits.write_text("file,split\n" + "".join(f"P{n % 5}_{n}.png,{s}\n" for n, s in enumerate(
        ["train", "train", "val", "test", "train"])))
    for _ in range(2):
        run(tmp_path, images, "--annotations", export, "--patient", "^[^_]+", "--splits", splits)
        data = open_dataset("mine", tmp_path)
        assert data.unlabeled_stems(1, False, 0) == ["P4_9"]
        assert [data.stems(split) for split in ("val", "test")] == [["P2_2", "P2_7"], ["P3_3"]]
        assert "1 images that aren't annotated, of patients for validation or testing (P3_8)" in capsys.readouterr().out


def test_a_second_run_keeps_splits_and_takes_what_was_annotated_since(images, tmp_path, capsys):
    export, text = tmp_path / "a.xml", cvat_xml(cvat_polygon)
    last = text.index('<image id="6"')
    export.write_text(text[:last] + "</annotations>")
    run(tmp_path, images, "--annotations", export)
    before = {split: set(open_dataset("mine", tmp_path).stems(split)) for split in ("train", "val", "test")}
    export.write_text(text)
    run(tmp_path, images, "--annotations", export)
    after = open_mine(tmp_path, drawn)
    assert sum(map(len, before.values())) == 6
    assert all(before[split] <= set(after.stems(split)) for split in before)
    (tmp_path / "b.xml").write_text(text.replace("</annotations>", ""))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(tmp_path / "b.xml", "annotations.xml")
    for name in ("b.xml", "b.zip/annotations.xml"):
        with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path / name))}: not readable as XML"):
            run(tmp_path, images, "--annotations", tmp_path / name.split("/")[0])
    open_mine(tmp_path, drawn)  # is as it was
    splits = tmp_path / "splits.csv"
    splits.write_text("file,split\n" + "".join(
        f"{number}.png,{'training' if number < 5 else 'Val' if number < 6 else 'test'}\n" for number in range(COUNT)))
    run(tmp_path, images, "--annotations", export, "--splits", splits)
    assert open_mine(tmp_path, drawn).stems("val") == ["5"]


def test_mirrored_images_have_mirrored_masks(images, tmp_path):
    export = tmp_path / "a.xml"
    export.write_text(cvat_xml(cvat_polygon))
    run(tmp_path, images, "--annotations", export, "--mirror", "^[02468]")
    data = open_mine(tmp_path, lambda label, number: drawn(label, number)[:, ::-1] if number % 2 == 0 else
                     drawn(label, number))
    for stem in "89":
        original = read_grey(images / f"{stem}.png")
        np.testing.assert_array_equal(data.read_grey(stem), original[:, ::-1] if stem == "8" else original)
    run(tmp_path, images, "--annotations", export, "--mirrored", "^[02468]")
    data = open_mine(tmp_path, lambda label, number: drawn(label, number)[:, ::-1] if number % 2 == 0 else
                     drawn(label, number))
    np.testing.assert_array_equal(data.read_grey("8"), read_grey(images / "8.png"))


def test_what_does_not_fit_is_left_out_and_said(images, tmp_path, capsys):
    export = tmp_path / "a.xml"
    export.write_text(cvat_xml(cvat_polygon).replace("</annotations>", (
        f'<image id="20" name="gone.png" width="{WIDTH}" height="{HEIGHT}">{cvat_polygon("femur", 0)}</image>'
        f'<image id="21" name="8.png" width="{WIDTH}" height="{HEIGHT}"></image>'
        f'<image id="22" name="9.png" width="{HEIGHT}" height="{WIDTH}">{cvat_polygon("femur", 0)}</image>'
        "</annotations>")))
    (images / "broken.png").write_bytes(b"no image")
    (images / "deep").mkdir()
    run(tmp_path, images, "--annotations", export)
    open_mine(tmp_path, drawn)
    said = capsys.readouterr().out
    assert "1 annotated images that --images doesn't hold (gone.png)" in said
    assert "1 images in the export without a shape (8.png)" in said
    assert "1 annotated images that are of another size than their annotation (9" in said
    assert "1 images (broken.png): not a readable image" in said


def test_16_bit_images_are_measured(images, tmp_path):
    for path in list(images.iterdir()):
        Image.fromarray(read_grey(path).astype(np.uint16) * 16).save(path.with_suffix(".TIFF"))
        path.unlink()
    export = tmp_path / "a.xml"
    export.write_text(cvat_xml(cvat_polygon, "{}.TIFF"))
    run(tmp_path, images, "--annotations", export)
    assert open_mine(tmp_path, drawn).description.max_grey_value == 4095


def test_without_annotations_the_keys_are_listed(images, tmp_path, capsys):
    assert run(tmp_path, images) is None
    said = capsys.readouterr().out
    assert "--annotations" in said and "max_grey_value" in said and 'kind = "labelme"' in said
    assert not (tmp_path / "mine" / OWN).exists()


def test_files_of_others_are_left_alone(images, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / OWN).write_text("labels = []")
    with pytest.raises(InputError, match="was not written by this command"):
        run(tmp_path, images)
    with pytest.raises(InputError, match="choose another one"):
        init_dataset.main(init_dataset.get_args_parser().parse_args(["graz", "--images", str(images)]))
    (tmp_path / "mine" / OWN).unlink()
    with pytest.raises(InputError, match=r"lies in .*prepared, which this command writes"):
        run(tmp_path, tmp_path / "mine" / "prepared" / "img")


def test_patients_stay_together_and_rare_labels_are_trained_on():
    rng = np.random.default_rng(0)
    for seed in range(20):
        patients = {f"i{number}": f"p{rng.integers(12)}" for number in range(40)}
        shown = {stem: {"common"} | ({"rare"} if patient == "p3" else set()) for stem, patient in patients.items()}
        split_of = assign(patients, shown, {}, (0.7, 0.15, 0.15), seed)
        for patient in set(patients.values()):
            assert len({split_of[stem] for stem in patients if patients[stem] == patient}) == 1
        assert set(split_of.values()) == {"train", "val", "test"}
        assert all(split_of[stem] == "train" for stem in patients if patients[stem] == "p3")
        assert 16 <= sum(split == "train" for split in split_of.values()) <= 34
    with pytest.raises(InputError, match="2 patients are annotated, which is too few"):
        assign({"a": "p", "b": "q", "c": "q"}, {stem: set() for stem in "abc"}, {}, (0.7, 0.15, 0.15), 0)
    with pytest.raises(InputError, match="patient p is in the train and the test split"):
        assign({"a": "p", "b": "p"}, {stem: set() for stem in "ab"}, {"a": "train", "b": "test"}, (1, 1, 1), 0)


def test_names_of_splits_and_input_sizes():
    assert [split_named(name) for name in ("Train", "annotations/instances_val2017", "data/valid", "x", "train/test")
            ] == ["train", None, "val", None, None]
    assert propose_input_size([(1000, 2000), (990, 2010), (3000, 3000)]) == (192, 416)
    assert propose_input_size([(2000, 1200)]) == (384, 224)
    assert propose_input_size([(40, 70)]) == (32, 64)


@pytest.mark.parametrize("words", [
    "a --images b",
    "a --images 'b c' --annotations d e --without_shapes empty --fractions 0.5 0.25 0.25 --seed 7 --input_size 32 64"])
def test_the_command_in_the_description_is_the_one_that_made_it(words):
    args = init_dataset.get_args_parser().parse_args(shlex.split(words))
    said = shlex.split(init_dataset.say_command(vars(args)))
    assert said[:3] == ["python", "-m", "scripts.init_dataset"]
    assert said[3:] == shlex.split(words)


def write_png_masks(folder: Path, name: str, label: str | None = None) -> None:
    """Label maps (femur 1, tibia 2) of all annotated images, or the masks of one label; `name` has {number}."""
    for number in range(COUNT):
        index = np.maximum(drawn("femur", number), np.uint8(2) * drawn("tibia", number))
        path = folder / name.format(number=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(index if label is None else drawn(label, number)).save(path)


def copy_images(images: Path, folder: Path, name: str = "{}.png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        shutil.copy(images / f"{number}.png", folder / name.format(number))


def test_images_among_masks_are_no_masks(images, tmp_path, capsys):
    """As Datumaro and CVAT export them, for MOTS with the names of labels beside them: pixels with the values 1 and 2
    were taken for labels."""
    copy_images(images, tmp_path / "mots" / "images")
    (tmp_path / "mots" / "labels.txt").write_text("femur\ntibia\n")
    with pytest.raises(InputError, match=r"no mask fits an image; 8 files that are copies of images \(images/0\.png"):
        run(tmp_path, images, "--annotations", tmp_path / "mots")
    write_png_masks(tmp_path / "mots" / "instances", "{number}.png")
    run(tmp_path, images, "--annotations", tmp_path / "mots")
    open_mine(tmp_path, drawn)
    assert "8 files that are copies of images" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["voc", "camvid", "cityscapes", "kitti"])
def test_exports_with_the_same_masks_in_several_forms(images, tmp_path, form):
    """In the layout of Datumaro's and CVAT's writers: by label, by object, in color, beside the images."""
    place = {"voc": ("JPEGImages/{}.png", "SegmentationClass/{number}.png", "SegmentationObject/{number}.png"),
             "camvid": ("{split}/{}.png", "{split}annot/{number}.png", None),
             "cityscapes": ("leftImg8bit/{split}/{}_leftImg8bit.png", "gtFine/{split}/{number}_gtFine_color.png",
                            "gtFine/{split}/{number}_gtFine_instanceIds.png"),
             "kitti": ("{split}/image_2/{}.png", "{split}/semantic_rgb/{number}.png", "{split}/instance/{number}.png")}
    of = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    palette = np.array([(0, 0, 0), (250, 50, 83), (52, 209, 183)], np.uint8)
    for number, split in enumerate(of):
        image, colors, objects = place[form]
        path = tmp_path / "export" / image.replace("{split}", split).format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / f"{number}.png", path)
        index = np.maximum(drawn("femur", number), np.uint8(2) * drawn("tibia", number))
        by_label = "gtFine/{split}/{number}_gtFine_labelIds.png" if form == "cityscapes" else None
        for name, pixels in ((colors, palette[index]), (objects, index * np.uint8(number + 3)), (by_label, index)):
            if name:
                path = tmp_path / "export" / name.format(number=number, split=split)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    if form == "voc":
        (tmp_path / "export" / "labelmap.txt").write_text(
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\nfemur:250,50,83::\ntibia:52,209,183::\n")
    else:
        (tmp_path / "export" / "label_colors.txt").write_text(
            "0 0 0 background\n250 50 83 femur\n52 209 183 tibia\n")
    run(tmp_path, images, "--annotations", tmp_path / "export")
    data = open_mine(tmp_path, drawn)
    if form != "voc":
        assert [data.stems(split) for split in ("train", "val", "test")] == [list("0123"), list("45"), list("67")]


def test_several_coco_files_of_one_export(images, tmp_path, capsys):
    """As Datumaro writes them: instances, and the same for other uses."""
    table = {"images": [{"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH}
                        for number in range(COUNT)],
             "categories": [{"id": 1, "name": "femur"}, {"id": 2, "name": "tibia"}],
             "annotations": [{"id": 2 * number + place, "image_id": number, "category_id": place + 1, "iscrowd": 0,
                              "segmentation": {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(np.asfortranarray(
                                  drawn(label, number), np.uint8))["counts"].decode()}, "area": 1, "bbox": [0, 0, 1, 1]}
                             for number in range(COUNT) for place, label in enumerate(BONES)]}
    panoptic = {**table, "annotations": [{"image_id": number, "file_name": f"{number}.png", "segments_info": []}
                                         for number in range(COUNT)]}
    folder = tmp_path / "coco"
    folder.mkdir()
    for name, content in (("instances", table), ("stuff", table), ("image_info", {**table, "annotations": []}),
                          ("panoptic", panoptic)):
        (folder / f"{name}_default.json").write_text(json.dumps(content))
    run(tmp_path, images, "--annotations", folder)
    open_mine(tmp_path, drawn)
    assert "2 other COCO files beside the instances" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"COCO panoptic: export COCO instances, such as panoptic_default\.json"):
        run(tmp_path, images, "--annotations", folder / "panoptic_default.json")


def test_coco_with_addresses_boxes_and_images_of_no_size(images, tmp_path, capsys):
    """As Label Studio writes tasks whose image it couldn't load (no size), and boxes (no segmentation)."""
    table = {"images": [{"id": float(number), "file_name": f"https://x.org/x%20rays/{number}.png?key=a.b",
                         "height": HEIGHT, "width": WIDTH} for number in range(COUNT)]
             + [{"id": 90, "file_name": "8.png", "height": None, "width": None}],
             "categories": [{"id": 7, "name": "femur"}, {"id": 9, "name": "tibia"}], "annotations": []}
    for number in range(COUNT):
        table["annotations"] += [{"id": 2 * number, "image_id": number, "category_id": 7,
                                  "segmentation": [corners("femur", number).ravel().tolist()], "bbox": [0, 0, 1, 1]},
                                 {"id": 2 * number + 1, "image_id": number, "category_id": 9, "segmentation": [],
                                  "bbox": [40, 10, 20, 15]}]
    (tmp_path / "result.json").write_text("\ufeff" + json.dumps(table), encoding="utf-8")
    run(tmp_path, images, "--annotations", tmp_path / "result.json")
    box = np.zeros((HEIGHT, WIDTH), bool)
    box[10:25, 40:60] = True

    def expected(label: str, number: int) -> np.ndarray:
        polygon = coco_mask.frPyObjects([corners(label, number).ravel().tolist()], HEIGHT, WIDTH)
        return coco_mask.decode(polygon)[..., 0].astype(bool) if label == "femur" else box
    open_mine(tmp_path, expected)
    assert "8 annotations have nothing but a box, so that all of it is the mask: 8 tibia" in capsys.readouterr().out


def test_rectangles_of_newer_labelme_and_of_x_anylabeling(images, tmp_path):
    """Turned ones, and upright ones by four corners; none has a kind in old files."""
    for number in range(COUNT):
        turned = [[30, 5], [40, 15], [30, 25], [20, 15]]
        kind = "rotation" if number % 2 else "oriented_rectangle"
        shapes = [{"label": "femur", "points": turned, "shape_type": kind},
                  {"label": "tibia", "points": [[50, 20], [60, 20], [60, 30], [50, 30]], "shape_type": "rectangle"},
                  {"label": "tibia", "points": [[2, 2], [8, 2], [8, 40]], "shape_type": None}]
        (tmp_path / "json").mkdir(exist_ok=True)
        (tmp_path / "json" / f"{number}.json").write_text(json.dumps(
            {"version": "6.3.1", "shapes": shapes, "imagePath": f"{number}.png", "imageData": None,
             "imageHeight": HEIGHT, "imageWidth": WIDTH}))
    run(tmp_path, images, "--annotations", tmp_path / "json")

    def expected(label: str, _: int) -> np.ndarray:
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        if label == "femur":
            return abs(x - 30) + abs(y - 15) <= 10
        polygon = np.array(Image.new("1", (WIDTH, HEIGHT)))
        canvas = Image.fromarray(polygon)
        ImageDraw.Draw(canvas).polygon([(2, 2), (8, 2), (8, 40)], fill=1, outline=1)
        return np.array(canvas) | (x >= 50) & (x <= 60) & (y >= 20) & (y <= 30)
    open_mine(tmp_path, expected)


@pytest.mark.parametrize(("name", "text", "what"), [
    ("1.txt", "0 0.5 0.5 0.2 0.1\n", "YOLO's files"), ("1.xml", "<annotation/>", "Pascal VOC's or LabelMe's XML"),
    ("a.json", '[{"id": 1, "data": {}, "annotations": []}]', "Label Studio's JSON"),
    ("a.json", '{"items": [], "categories": {}}', "Datumaro's JSON"), ("1.nii.gz", "", "volumes or arrays"),
    ("a.json", '{"1.png12": {"regions": []}}', "VIA's JSON"), ("a.json", '{"_via_img_metadata": {}}', "VIA's JSON")])
def test_what_is_not_read_is_named_with_what_to_export_instead(images, tmp_path, name, text, what):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / name).write_text(text)
    for export in (tmp_path / "export", tmp_path / "export" / name):
        with pytest.raises(InputError, match=rf"{re.escape(str(export))}: holds nothing that is read \({what}.*such as "
                                             f"{re.escape(name)}"):
            run(tmp_path, images, "--annotations", export)
    copy_images(images, tmp_path / "export" / "images")
    with pytest.raises(InputError, match=f"copies of images .*it holds {what}"):
        run(tmp_path, images, "--annotations", tmp_path / "export")


def test_values_that_nobody_decided_and_labels_of_several_values(images, tmp_path, capsys):
    """nnU-Net's "ignore" was a label; its regions have a remedy."""
    for number in range(COUNT):
        index = np.maximum(drawn("femur", number), np.uint8(2) * drawn("tibia", number))
        index[:2, :5] = 3
        (tmp_path / "labelsTr").mkdir(exist_ok=True)
        Image.fromarray(index).save(tmp_path / "labelsTr" / f"{number}.png")
    table = tmp_path / "dataset.json"
    table.write_text(json.dumps({"labels": {"background": 0, "femur": 1, "tibia": 2, "ignore": 3}}))
    run(tmp_path, images, "--annotations", tmp_path / "labelsTr")
    open_mine(tmp_path, drawn)
    assert "the values 3, which no label has" in capsys.readouterr().out
    table.write_text(json.dumps({"labels": {"background": 0, "bones": [1, 2, 3], "tibia": 2}}))
    with pytest.raises(InputError, match="bones has several values; say what each value is: --values LABEL=VALUE"):
        run(tmp_path, images, "--annotations", tmp_path / "labelsTr")
    run(tmp_path, images, "--annotations", tmp_path / "labelsTr", "--values", "femur=1", "tibia=2")
    open_mine(tmp_path, drawn)
    with pytest.raises(InputError, match="femur and tibia are the same"):
        run(tmp_path, images, "--annotations", tmp_path / "labelsTr", "--values", "femur=1", "tibia=1")


def test_masks_whose_names_end_with_the_name_of_another_image(images, tmp_path):
    """3_11.png and 3_12.png are of image 3, not of 12."""
    shutil.copy(images / "9.png", images / "12.png")
    for place, label in enumerate(BONES, 11):
        write_png_masks(tmp_path / "masks", f"{{number}}_{place}.png", label)
    run(tmp_path, images, "--annotations", tmp_path / "masks")
    data = open_dataset("mine", tmp_path)
    assert data.description.labels == ("11", "12") and data.unlabeled_stems(1, False, 0) == ["12", "8", "9"]
    for stem in data.stems("train"):
        np.testing.assert_array_equal(data.mask(stem), [drawn(label, int(stem)) for label in BONES])


def test_masks_drawn_on_transparency(images, tmp_path):
    for number in range(COUNT):
        for label in BONES:
            mask = drawn(label, number)
            path = tmp_path / "masks" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.dstack([np.uint8(255) * mask, 0 * mask, 0 * mask, np.uint8(255) * mask]).astype(np.uint8)
                            ).save(path)
    run(tmp_path, images, "--annotations", tmp_path / "masks")
    open_mine(tmp_path, drawn)


def test_annotations_of_images_in_other_folders(tmp_path):
    """ward0/0.png was annotated, --images holds ward1/0.png only: it got the other one's masks."""
    rng, elements = np.random.default_rng(0), ""
    for number in range(COUNT):
        ward, place = number % 2, number // 2
        write_png(tmp_path / "all" / f"ward{ward}" / f"{place}.png", rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8))
        shapes = "" if ward else "".join(cvat_polygon(label, number) for label in BONES)
        elements += f'<image name="ward{ward}/{place}.png" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
    export = tmp_path / "a.xml"
    export.write_text(f"<annotations><version>1.1</version>{elements}</annotations>")
    with pytest.raises(InputError, match=r"0 appears twice \('ward0/0.png' and .* give `--images` the folder"):
        run(tmp_path, tmp_path / "all" / "ward1", "--annotations", export)
    two = [tmp_path / "ward0.xml", tmp_path / "ward1.xml"]
    for ward, path in enumerate(two):
        path.write_text(re.sub(rf'<image name="ward{1 - ward}.*?</image>', "", export.read_text()))
    with pytest.raises(InputError, match=r"ward1/0\.png and ward0/0\.png may both be the image"):
        run(tmp_path, tmp_path / "all" / "ward1", "--annotations", *two)
    run(tmp_path, tmp_path / "all", "--annotations", export, "--fractions", 1, 1, 1)
    data = open_dataset("mine", tmp_path)
    for stem in data.stems("train"):
        assert stem.startswith("ward0__")
        np.testing.assert_array_equal(data.mask(stem)[0], drawn("femur", 2 * int(stem[-1])))


def test_images_that_cant_be_decoded_are_left_out(images, tmp_path, capsys):
    """Their headers are right: one is cut off, one has negative values. Names may have points."""
    for path in list(images.iterdir()):
        path.rename(images / f"1.2.840.{path.name}")
    whole = (images / "1.2.840.9.png").read_bytes()
    (images / "cut.png").write_bytes(whole[:len(whole) // 2])
    tifffile.imwrite(images / "signed.tif", np.zeros((HEIGHT, WIDTH), np.int16))
    deep = images / ("f" * 120) / ("g" * 120)
    deep.mkdir(parents=True)
    shutil.copy(images / "1.2.840.9.png", deep / "deep.png")
    (tmp_path / "a.xml").write_text(cvat_xml(cvat_polygon, "1.2.840.{}"))
    run(tmp_path, images, "--annotations", tmp_path / "a.xml")
    data = open_dataset("mine", tmp_path)
    assert data.unlabeled_stems(1, False, 0) == ["1.2.840.8", "1.2.840.9"]
    for stem in data.stems("train"):
        np.testing.assert_array_equal(data.mask(stem)[0], drawn("femur", int(stem[-1])))
    said = capsys.readouterr().out
    assert "1 images (cut.png): not a readable image" in said and "1 images (signed.tif): has grey values" in said
    assert "its name with its folders has more than 220 bytes" in said


def test_names_that_differ_in_their_case_or_in_signs(images, tmp_path):
    """Labels "left bone" and "left_bone" shared a folder; of 1a.png and 1A.png one had the other's mask."""
    for number in range(COUNT + 2):
        (images / f"{number}.png").rename(images / f"{number}a.png")
    shutil.copy(images / "9a.png", images / "1A.png")
    for label, name in (("femur", "left bone"), ("tibia", "left_bone")):
        write_png_masks(tmp_path / "masks" / name, "{number}a.png", label)
    run(tmp_path, images, "--annotations", tmp_path / "masks")
    data = open_dataset("mine", tmp_path)
    assert data.unlabeled_stems(1, False, 0) == ["1A", "8a", "9a"]
    for stem in data.stems("train"):
        np.testing.assert_array_equal(data.mask(stem), [drawn(label, int(stem[0])) for label in BONES])
