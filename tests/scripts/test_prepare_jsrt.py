import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from msgspec.structs import replace

from scripts.prepare_jsrt import NUM_POINTS, ORGAN_FOLDERS, draw_contours, get_args_parser, main, read_raw
from utils.datasets.annotated import AnnotatedImages, load_image, open_dataset
from utils.datasets.description import load_description
from utils.datasets.sources import StoredMasks
from utils.errors import InputError
from utils.files import read_grey, write_png
from utils.mask_store import MaskStore

BOXES = ((2, 3, 8, 9), (10, 3, 16, 9), (8, 5, 12, 14), (3, 1, 7, 2), (11, 1, 15, 2))  # x0, y0, x1, y1


def contours() -> np.ndarray:
    """166 points on the borders of five boxes."""
    parts = []
    for (x0, y0, x1, y1), count in zip(BOXES, (44, 50, 26, 23, 23), strict=True):
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        parts += corners + [(x0, y0)] * (count - 4)
    return np.array(parts, np.float32)


@pytest.fixture
def source(tmp_path):
    for stem in ("c", "a", "b"):
        write_png(tmp_path / "images" / f"{stem}.png", np.full((16, 20), 50, np.uint8))
    (tmp_path / "landmarks").mkdir()
    for stem in ("c", "a"):
        np.save(tmp_path / "landmarks" / f"{stem}.npy", contours())
    return tmp_path


def run(source, data_dir, *arguments: str):
    main(get_args_parser().parse_args(["--source", str(source), "--data_dir", str(data_dir), *arguments]))


def test_each_class_gets_its_own_points():
    masks = draw_contours(contours(), (16, 20))
    assert masks.shape == (5, 16, 20) and masks.dtype == bool
    for mask, (x0, y0, x1, y1) in zip(masks, BOXES, strict=True):
        rows, columns = np.nonzero(mask)
        assert (columns.min(), rows.min(), columns.max(), rows.max()) == (x0, y0, x1, y1)
        assert mask.sum() == (x1 - x0 + 1) * (y1 - y0 + 1)


def test_images_without_landmarks_are_left_out_and_a_rerun_completes(source, tmp_path, capsys):
    data = tmp_path / "data"
    run(source, data)
    labels = load_description("jsrt").labels
    assert MaskStore(data / "jsrt/masks.h5", labels).stems == ["a", "c"]
    assert "no landmarks: b" in capsys.readouterr().out
    (data / "jsrt/img/a.png").unlink()
    np.save(source / "landmarks" / "b.npy", contours())
    run(source, data)
    assert MaskStore(data / "jsrt/masks.h5", labels).stems == ["a", "b", "c"]
    assert sorted(path.name for path in (data / "jsrt/img").iterdir()) == ["a.png", "b.png", "c.png"]
    assert "2 of them new" in capsys.readouterr().out


def test_replaced_images_and_landmarks_are_followed(source, tmp_path, capsys):
    data, labels = tmp_path / "data", load_description("jsrt").labels
    run(source, data)
    before = MaskStore(data / "jsrt/masks.h5", labels).mask("a")
    write_png(source / "images" / "a.png", np.full((16, 20), 70, np.uint8))
    np.save(source / "landmarks" / "c.npy", contours() + 1)
    run(source, data)
    assert "2 of them new" in capsys.readouterr().out.splitlines()[-1]
    assert (read_grey(data / "jsrt/img/a.png") == 70).all() and (read_grey(data / "jsrt/img/c.png") == 50).all()
    store = MaskStore(data / "jsrt/masks.h5", labels)
    np.testing.assert_array_equal(store.mask("a"), before)
    np.testing.assert_array_equal(store.mask("c"), draw_contours(contours() + 1, (16, 20)))
    run(source, data)
    assert "0 of them new" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(("points", "message"), [
    (np.zeros((165, 2)), "166 points"), (np.full((166, 2), np.nan), "166 points"), (np.array(["a"]), "166 points"),
    (np.array([{}], object), "not a readable NumPy file")])
def test_wrong_landmarks_are_named(source, tmp_path, points, message):
    np.save(source / "landmarks" / "a.npy", points, allow_pickle=True)
    with pytest.raises(InputError, match=rf"a\.npy: .*{message}"):
        run(source, tmp_path / "data")


def draw(points: np.ndarray, side: int) -> np.ndarray:
    """The five organs at that size, by OpenCV, of points in pixels of 1024 x 1024."""
    masks, start = np.zeros((5, side, side), np.uint8), 0
    for mask, count in zip(masks, NUM_POINTS.values(), strict=True):
        contour = np.round(points[start:start + count] * side / 1024 * 16).astype(np.int32)
        cv2.fillPoly(mask, [contour], 1, shift=4)
        start += count
    return masks > 0


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * np.sum(first & second) / (first.sum() + second.sum())


def publish(folder: Path, stem: str, points: np.ndarray) -> None:
    """Landmarks as the repository has them: one folder an organ."""
    for name, part in zip(ORGAN_FOLDERS, np.split(points, np.cumsum(list(NUM_POINTS.values()))[:-1]), strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        np.save(folder / name / f"{stem}.npy", part)


@pytest.fixture
def published(tmp_path) -> tuple[Path, np.ndarray]:
    """Landmarks as they are published, of an image of 512 x 512 pixels, and all of them, in pixels of 1024 x 1024."""
    points = contours() / (20, 16) * 1024
    publish(tmp_path / "landmarks", "a", points)
    write_png(tmp_path / "images" / "a.png", np.full((512, 512), 90, np.uint8))
    return tmp_path, points


def test_landmarks_as_they_are_published(published, tmp_path):
    source, points = published
    run(source, tmp_path / "data")
    masks = MaskStore(tmp_path / "data/jsrt/masks.h5", load_description("jsrt").labels).mask("a")
    assert masks.shape == (5, 512, 512)
    assert all(dice(*pair) > 0.99 for pair in zip(masks, draw(points, 512), strict=True))
    (source / "landmarks" / "H" / "a.npy").unlink()
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(InputError, match=r"H/a\.npy: no such landmarks; get the whole folder"):
        run(source, tmp_path / "data")


@pytest.mark.parametrize("side", [256, 512, 2048])
def test_landmarks_of_another_size_are_refused_and_what_the_message_says_lets_them_through(tmp_path, side):
    points = contours() / (20, 16) * 1024
    write_png(tmp_path / "images" / "a.png", np.full((side, side), 90, np.uint8))
    (tmp_path / "landmarks").mkdir()
    np.save(tmp_path / "landmarks" / "a.npy", points)
    with pytest.raises(InputError, match=rf"^a: .* is {side} x {side} pixels; .*`--landmark_size 1024`") as caught:
        run(tmp_path, tmp_path / "data")
    assert not (tmp_path / "data/jsrt/masks.h5").exists()
    remedy = re.search("`(--landmark_size 1024)`", str(caught.value))[1]
    run(tmp_path, tmp_path / "data", *remedy.split())
    masks = MaskStore(tmp_path / "data/jsrt/masks.h5", load_description("jsrt").labels).mask("a")
    assert all(dice(*pair) > 0.98 for pair in zip(masks, draw(points, side), strict=True))


def test_jsrts_own_files_are_read(published, tmp_path):
    source, points = published
    values = np.random.default_rng(0).integers(0, 4096, (2048, 2048))
    values[:1024] //= 2
    (source / "images" / "a.png").unlink()
    (source / "images" / "a.IMG").write_bytes(values.astype(">u2").tobytes())
    run(source, tmp_path / "data")
    image = read_grey(tmp_path / "data/jsrt/img/a.png")
    means = values.reshape(256, 8, 256, 8).mean(axis=(1, 3))
    assert image.dtype == np.uint8 and np.abs(image - 255 * (1 - means / 4096)).max() < 1.01
    masks = MaskStore(tmp_path / "data/jsrt/masks.h5", load_description("jsrt").labels).mask("a")
    assert all(dice(*pair) > 0.97 for pair in zip(masks, draw(points, 256), strict=True))
    for content in (values.astype(">u2").tobytes()[:-2], values.astype("<u2").tobytes()):
        (source / "images" / "a.IMG").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.IMG: not a file of JSRT's, which hold 2048 x 2048 numbers"):
            read_raw(source / "images" / "a.IMG", (256, 256))


def test_files_of_12_bits_come_to_the_network_as_bright_as_those_of_8(source, tmp_path):
    """Also where only some are: the description's mean and std are of 8 bits."""
    scene = np.random.default_rng(0).random((16, 20))
    for stem in "abcd":
        np.save(source / "landmarks" / f"{stem}.npy", contours())
        write_png(source / "images" / f"{stem}.png", np.round(scene * 4095).astype(np.uint16))
    write_png(source / "images" / "b.png", np.round(scene * 255).astype(np.uint8))
    run(source, tmp_path / "data")
    description = replace(load_description("jsrt"), masks=StoredMasks("masks.h5", 2, 1), input_size=(32, 40))
    data = AnnotatedImages(description, tmp_path / "data" / "jsrt")
    first, second = (load_image(data.image_path(stem), data.description) for stem in "ab")
    assert np.abs(first - second).max() < 1 / 255 / description.std + 1e-6


@pytest.mark.shared
def test_the_published_landmarks_are_those_that_were_joined(shared, tmp_path):
    """Of real images at 256 x 256, with both forms of the same landmarks."""
    stems = sorted(path.stem for path in (shared / "data/jsrt_published/landmarks/H").glob("*.npy"))
    for form, landmarks in (("joined", shared / "data/jsrt/landmarks"),
                            ("published", shared / "data/jsrt_published/landmarks")):
        (tmp_path / form / "images").mkdir(parents=True)
        (tmp_path / form / "landmarks").symlink_to(landmarks)
        for stem in stems:
            (tmp_path / form / "images" / f"{stem}.png").symlink_to(shared / "data/jsrt/images" / f"{stem}.png")
        run(tmp_path / form, tmp_path / form / "data")
    joined, published = (MaskStore(tmp_path / form / "data/jsrt/masks.h5", load_description("jsrt").labels)
                         for form in ("joined", "published"))
    assert joined.stems == published.stems == stems
    for stem in stems:
        differ = joined.mask(stem) ^ published.mask(stem)
        assert differ.mean() < 1e-4  # the joined ones were rounded to float32


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="images: no such folder"):
        run(tmp_path, tmp_path / "data")
    (tmp_path / "images").mkdir()
    (tmp_path / "landmarks").mkdir()
    with pytest.raises(InputError, match="none of its 0 images has landmarks"):
        run(tmp_path, tmp_path / "data")


@pytest.mark.shared
@pytest.mark.slow
def test_the_real_data_give_the_constants_of_the_description(shared, tmp_path):
    run(shared / "data" / "jsrt", tmp_path)
    data = open_dataset("jsrt", tmp_path)
    assert [len(data.stems(split)) for split in ("train", "val", "test")] == [160, 40, 46]
    assert len(data.unlabeled_stems(20, True, 0)) == 140 and data.has_ground_truth(data.unlabeled_stems(20, True, 0)[0])
    stems = data.stems("train")
    images = np.stack([load_image(data.image_path(stem), data.description) for stem in stems])
    assert abs(images.mean(dtype=np.float64)) < 1e-5 and abs(images.std(dtype=np.float64) - 1) < 1e-5
    foreground = sum(data.mask(stem).mean(axis=(1, 2)) for stem in stems) / len(stems)
    np.testing.assert_allclose((1 - foreground) / foreground, data.description.pos_weight, rtol=3e-3)
