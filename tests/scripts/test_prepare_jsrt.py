import numpy as np
import pytest

from scripts.prepare_jsrt import draw_contours, get_args_parser, main
from utils.datasets.annotated import load_image, open_dataset
from utils.datasets.description import load_description
from utils.errors import InputError
from utils.files import write_png
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


def run(source, data_dir):
    main(get_args_parser().parse_args(["--source", str(source), "--data_dir", str(data_dir)]))


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


@pytest.mark.parametrize(("points", "message"), [
    (np.zeros((165, 2)), "166 points"), (np.full((166, 2), np.nan), "166 points"), (np.array(["a"]), "166 points"),
    (np.array([{}], object), "not a readable NumPy file")])
def test_wrong_landmarks_are_named(source, tmp_path, points, message):
    np.save(source / "landmarks" / "a.npy", points, allow_pickle=True)
    with pytest.raises(InputError, match=rf"a\.npy: .*{message}"):
        run(source, tmp_path / "data")


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
