"""The phantoms: reproducible to the last bit, annotated as CVAT does it, and anatomically in order."""
import argparse
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from lxml import etree
from skimage.draw import polygon2mask

from scripts import make_phantoms
from scripts.phantoms.anatomy import Child, sample_bones, sample_child, sample_image
from scripts.phantoms.cvat import write_cvat
from scripts.phantoms.geometry import clip, exposed_field, fill_polygon, generator, polygon_area
from scripts.phantoms.radiograph import render
from scripts.phantoms.templates import APPEARANCE, FOREARM_FUSES
from utils.datasets.cvat import CvatImage, CvatShape, RunLengths, draw_masks, parse_cvat
from utils.datasets.description import load_description
from utils.errors import InputError
from utils.files import read_grey

ROOT = Path(__file__).parents[2]
TRAIN_FILE, TEST_FILE = ROOT / "annotations_train.xml", ROOT / "annotations_test.xml"
# of the pixels of the first two test images; changes when they are drawn differently, and only then should it change
DIGEST = "c7f8a51795cf15954c6b33d159e849135697b6ba98a67fd6d62e03ec21a9498c"
DIGEST_COMMAND = """
import hashlib, sys
from pathlib import Path
from scripts.phantoms.radiograph import render
from utils.datasets.cvat import parse_cvat
images = parse_cvat(Path("annotations_test.xml"))[:2]
print(hashlib.sha256(b"".join(render(image).tobytes() for image in images)).hexdigest())
"""


@pytest.fixture(scope="module")
def labeled() -> list[CvatImage]:
    return parse_cvat(TRAIN_FILE) + parse_cvat(TEST_FILE)


def test_committed_annotations_come_out_of_the_seed(tmp_path):
    make_phantoms.write_annotations(tmp_path)
    for committed in (TRAIN_FILE, TEST_FILE):
        assert (tmp_path / committed.name).read_bytes() == committed.read_bytes()


@pytest.mark.slow
def test_pixels_do_not_depend_on_process_threads_or_processor():
    """The second process has one thread and none of NumPy's code for newer processors."""
    plain = {**os.environ, "OMP_NUM_THREADS": "1", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4",
             "OPENCV_CPU_DISABLE": "AVX2,AVX512-SKX"}
    for environment in (dict(os.environ), plain):
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", DIGEST_COMMAND], cwd=ROOT, env=environment,
                              capture_output=True, text=True, check=True)
        assert done.stdout.strip() == DIGEST


def test_rendering_leaves_opencv_as_it_was(labeled):
    before = cv2.useOptimized()
    smallest = min(labeled, key=lambda image: image.width * image.height)
    first, second = render(smallest), render(smallest)
    assert cv2.useOptimized() == before
    assert first.dtype == np.uint8 and first.shape == (smallest.height, smallest.width)
    assert np.array_equal(first, second)


def test_splits(labeled):
    subsets = [image.subset for image in labeled]
    assert [subsets.count(name) for name in ("Train", "Validation", "Test")] == [43, 10, 10]
    unlabeled = {sample_child(number).stem for number in range(64, 184)}
    assert len(unlabeled | {image.stem for image in labeled}) == 183
    for side in ("WRI-L", "WRI-R"):
        assert sum(side in image.stem for image in labeled) > 15
    assert len({(image.width, image.height) for image in labeled}) > 50
    assert all(400 <= image.width <= 800 and 640 <= image.height <= 1300 for image in labeled)


def test_shapes_lie_in_the_exposed_field(labeled):
    kinds = [(shape.anatomy, shape.rle is not None) for image in labeled for shape in image.shapes]
    assert 20 < sum(painted for _, painted in kinds) < 80
    assert 3 < sum(anatomy == "Sonstiges" for anatomy, _ in kinds) < 60
    for image in labeled:
        field = exposed_field(image.stem, image.width, image.height)
        for points in (shape.polygon for shape in image.shapes if shape.polygon is not None):
            assert polygon_area(clip(points, field)) > 0.995 * polygon_area(points)


def test_thumb_side(labeled):
    """The thumb lies on the right of a left hand seen from the back, and on the left of a right one."""
    thumbs, little_fingers = (draw_centres(labeled, f"Ossa metacarpalia {finger}") for finger in ("I", "V"))
    compared = [(stem, x > little_fingers[stem]) for stem, x in thumbs.items() if stem in little_fingers]
    assert len(compared) > 50
    assert all(to_the_right == ("WRI-L" in stem) for stem, to_the_right in compared)


def draw_centres(images: list[CvatImage], anatomy: str) -> dict[str, float]:
    return {image.stem: float(shape.polygon[:, 0].mean()) for image in images for shape in image.shapes
            if shape.anatomy == anatomy and shape.polygon is not None}


def test_bones_appear_and_fuse_with_age():
    def bones(age: float) -> set[str]:
        return {name for name, _ in sample_bones(Child(1, False, False, age, age), generator("test", str(age)))}

    assert not bones(0.4) & {"Epiphyse Radius", "Os triquetrum", "Os lunatum", "Os scaphoideum", "Os pisiforme"}
    assert {"Radius", "Ulna", "Ossa metacarpalia I", "Ossa metacarpalia V"} <= bones(0.4)
    assert set(APPEARANCE) <= bones(13)
    assert "Os pisiforme" not in bones(6) and {"Os capitatum", "Os hamatum", "Os triquetrum"} <= bones(6)
    grown = bones(FOREARM_FUSES + 1)
    assert not grown & {"Epiphyse Radius", "Epiphyse Ulna"} and set(APPEARANCE) - grown == {
        "Epiphyse Radius", "Epiphyse Ulna"}


def test_carpal_rows():
    """From the thumb's side: scaphoid, lunate, triquetrum; trapezium, trapezoid, capitate, hamate, further out."""
    bones = dict(sample_bones(Child(7, False, False, 14, 14), generator("test", "rows")))
    x, y = ({name: outline[:, axis].mean() for name, outline in bones.items()} for axis in (0, 1))
    proximal = ["Os triquetrum", "Os lunatum", "Os scaphoideum"]
    distal = ["Os hamatum", "Os capitatum", "Os trapezoideum", "Os trapezium"]
    for row in (proximal, distal):
        assert sorted(row, key=x.get) == row
    assert max(y[name] for name in proximal) < min(y[name] for name in distal)
    assert abs(x["Os pisiforme"] - x["Os triquetrum"]) < 0.2 and abs(y["Os pisiforme"] - y["Os triquetrum"]) < 0.2


@pytest.mark.slow
def test_class_balance_is_like_that_of_real_wrists(labeled):
    """Foreground shares of small and large bones are within a factor of two of the paper's pos_weight."""
    real = {"Epiphyse Radius": 108.1, "Epiphyse Ulna": 349.2, "Os capitatum": 69.6, "Os pisiforme": 364.6,
            "Os scaphoideum": 131.5, "Os trapezoideum": 240.9, "Ossa metacarpalia III": 51.7, "Radius": 11.3,
            "Ulna": 17.9}
    train = [image for image in labeled if image.subset == "Train"]
    shares = np.mean([draw_masks(image, tuple(real)).mean(axis=(1, 2)) for image in train], axis=0)
    ratio = (1 / shares - 1) / np.array(list(real.values()))
    assert np.all((ratio > 0.5) & (ratio < 2))


@pytest.mark.slow
def test_described_mean_and_spread_are_those_of_the_training_images(labeled):
    description = load_description("phantom")
    height, width = description.input_size
    pixels = [cv2.resize(render(image) / 255, (width, height), interpolation=cv2.INTER_LINEAR)
              for image in labeled if image.subset == "Train"]
    assert round(float(np.mean(pixels)), 5) == round(description.mean, 5)  # mirroring doesn't change them
    assert round(float(np.std(pixels)), 5) == round(description.std, 5)


def test_image_shows_what_is_annotated(labeled):
    """Air is darker than flesh, flesh than bone, bone than two bones; what the collimator covers is black."""
    levels = []
    for image in [image for image in labeled if image.subset == "Test"][:4]:
        pixels = render(image).astype(float)
        masks = draw_masks(image, sorted({shape.anatomy for shape in image.shapes}))
        field = fill_polygon(exposed_field(image.stem, image.width, image.height), pixels.shape)
        distance = cv2.distanceTransform((~masks.any(axis=0)).astype(np.uint8), cv2.DIST_L2, 5)
        depth = masks.sum(axis=0)
        assert pixels[~cv2.dilate(field.astype(np.uint8), np.ones((5, 5))).astype(bool)].max(initial=0) < 16
        flesh = (distance > 3) & (distance < 14) & field
        levels.append([np.median(pixels[part]) for part in (flesh, depth == 1, depth == 2)])
    flesh, bone, overlap = np.mean(levels, axis=0)
    assert flesh + 25 < bone < overlap - 15


def test_a_radius_is_needed():
    square = CvatShape("Ulna", polygon=np.array([[10.0, 10], [40, 10], [40, 90], [10, 90]]))
    with pytest.raises(InputError, match=r"lonely\.png: no radius"):
        render(CvatImage("lonely", "lonely.png", 60, 100, None, (square,)))


def test_written_shapes_are_read_back(tmp_path):
    polygon = CvatShape("Os lunatum", polygon=np.array([[1.25, 2.5], [30.0, 4.75], [11.01, 22.99]]))
    painted = CvatShape("Os pisiforme", rle=RunLengths((0, 3, 1, 2), 4, 5, 3, 2))
    images = [CvatImage("a", "a.png", 40, 30, "Train", (polygon, painted)), CvatImage("b", "b.png", 9, 7, None, ())]
    write_cvat(tmp_path / "some.xml", images)
    read = parse_cvat(tmp_path / "some.xml")
    assert [(image.name, image.width, image.height, image.subset) for image in read] == [
        ("a.png", 40, 30, "Train"), ("b.png", 9, 7, "default")]
    assert np.array_equal(read[0].shapes[0].polygon, polygon.polygon) and read[0].shapes[1] == painted
    mask = draw_masks(read[0], ["Os pisiforme"])[0]
    assert np.argwhere(mask).tolist() == [[5, 4], [5, 5], [5, 6], [6, 5], [6, 6]]


def test_painted_shapes_equal_their_outline():
    number = next(n for n in range(1, 40) if any(shape.rle for shape in sample_image(n, None).shapes))
    rle = next(shape.rle for shape in sample_image(number, None).shapes if shape.rle)
    assert sum(rle.runs) == rle.width * rle.height and min(rle.runs[1:]) > 0
    box = np.repeat(np.arange(len(rle.runs)) % 2, rle.runs).reshape(rle.height, rle.width)
    assert box.any(axis=1)[[0, -1]].all() and box.any(axis=0)[[0, -1]].all()  # the box is tight


@pytest.mark.shared
def test_same_elements_as_in_real_files(shared):
    """Element and attribute names as in real exports of tasks; exports of projects add `subset` and `task_id`."""
    def names(path: Path, tag: str) -> set[frozenset[str]]:
        return {frozenset(element.attrib) for element in etree.parse(str(path)).iter(tag)}

    real = shared / "data" / "graz" / "annotations" / "annotations_train1.xml"
    for tag in ("polygon", "mask", "attribute"):
        assert names(TRAIN_FILE, tag) == names(real, tag)
    assert names(TRAIN_FILE, "image") == {next(iter(names(real, "image"))) | {"subset", "task_id"}}


def test_fill_polygon_equals_scikit_image():
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = rng.uniform(-25, 90, (rng.integers(3, 12), 2))  # self-crossing ones, too, and partly outside
        assert np.array_equal(fill_polygon(points, (70, 50)), polygon2mask((70, 50), points[:, ::-1]))


def test_clip_keeps_what_lies_in_both():
    rng = np.random.default_rng(1)
    for number in range(50):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
        shape = np.stack([40 + 45 * np.cos(angle), 60 + 50 * np.sin(angle)], axis=1) + rng.normal(0, 3, (9, 2))
        field = exposed_field(f"clip{number}", 80, 120)
        in_both = fill_polygon(shape, (120, 80)) & fill_polygon(field, (120, 80))
        different = fill_polygon(clip(shape, field), (120, 80)) ^ in_both
        assert np.count_nonzero(different[1:-1, 1:-1]) <= 1  # pixels on the border lie on the outline


def _arguments(tmp_path: Path, **changes) -> argparse.Namespace:
    defaults = make_phantoms.get_args_parser().parse_args([])
    return argparse.Namespace(**{**vars(defaults), "data_dir": tmp_path / "data", "annotations_dir": tmp_path,
                                 "num_unlabeled": 1, "num_workers": 2, **changes})


def test_stage_draws_mirrors_and_keeps(tmp_path, labeled):
    left = min((i for i in labeled if "WRI-L" in i.stem), key=lambda i: i.width * i.height)
    right = min((i for i in labeled if "WRI-R" in i.stem), key=lambda i: i.width * i.height)
    write_cvat(tmp_path / "annotations_train.xml", [replace(left, subset="Train")])
    write_cvat(tmp_path / "annotations_test.xml", [replace(right, subset="Test")])
    make_phantoms.main(_arguments(tmp_path))
    folder = tmp_path / "data" / "phantom" / "img_only_front_all_left"
    ground_truth = parse_cvat(tmp_path / "data" / "phantom" / "unlabeled_ground_truth.xml")
    assert {path.name for path in folder.iterdir()} == {f"{i.stem}.png" for i in (left, right, ground_truth[0])}
    assert np.array_equal(read_grey(folder / f"{left.stem}.png"), render(left))
    assert np.array_equal(read_grey(folder / f"{right.stem}.png"), render(right)[:, ::-1])
    kept, redrawn, other = (folder / f"{each.stem}.png" for each in (left, right, ground_truth[0]))
    made, pixels = kept.stat().st_mtime_ns, read_grey(other)
    redrawn.unlink(), other.write_bytes(b"not what was drawn")
    make_phantoms.main(_arguments(tmp_path))
    assert kept.stat().st_mtime_ns == made and redrawn.exists() and np.array_equal(read_grey(other), pixels)
    moved = replace(left, shapes=tuple(replace(shape, polygon=None if shape.polygon is None else shape.polygon + 3)
                                       for shape in left.shapes), subset="Train")
    write_cvat(tmp_path / "annotations_train.xml", [moved])
    make_phantoms.main(_arguments(tmp_path))
    assert np.array_equal(read_grey(kept), render(moved)) and not np.array_equal(render(moved), render(left))


def test_stage_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(InputError, match="num_unlabeled 121"):
        make_phantoms.main(_arguments(tmp_path, num_unlabeled=121))
    with pytest.raises(InputError, match=r"annotations_train\.xml: no such annotations"):
        make_phantoms.main(_arguments(tmp_path))


def test_digest_is_of_these_pixels(labeled):
    images = [image for image in labeled if image.subset == "Test"][:2]
    assert hashlib.sha256(b"".join(render(image).tobytes() for image in images)).hexdigest() == DIGEST
