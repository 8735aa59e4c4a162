"""Masks of a folder of new images, against PyTorch's and Pillow's own resizing."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import predict_folder
from scripts.mask_folder.writing import name_images, write_masks
from tests.conftest import INPUT, LABELS, MEAN, STD
from unet_training.networks.u_net import UNet
from utils.datasets.dicom import read_dicom
from utils.datasets.label_maps import read_label_map
from utils.errors import InputError
from utils.files import write_png


def run(trained, images: Path, *more: str) -> dict:
    args = ["--model_id", trained[1], "--data_dir", str(trained[0]), "--images", str(images), "--out",
            str(images.parent / "out"), *more]
    table = predict_folder.main(predict_folder.get_args_parser().parse_args(args))
    return json.loads(table.read_text(encoding="utf-8"))


def expected_masks(network: UNet, path: Path) -> np.ndarray:
    pixels = np.array(Image.open(path), np.float64)
    pixels = torch.from_numpy(pixels / (65535 if pixels.max() > 255 else 255))[None, None].float()
    seen = torch.nn.functional.interpolate(pixels, INPUT, mode="bilinear")
    with torch.no_grad():
        probabilities = network((seen - MEAN) / STD).sigmoid()
    return torch.nn.functional.interpolate(probabilities, pixels.shape[2:], mode="bilinear")[0].numpy() > 0.5


def read_masks(out: Path, entry: dict) -> np.ndarray:
    if len(entry["files"]) == 1:
        values = np.array(Image.open(out / entry["files"][0]))
        return np.stack([values == 1, values == 2])
    return np.stack([np.array(Image.open(out / file)) == 255 for file in entry["files"]])


def test_masks_lie_at_each_images_size_and_where_the_image_does(trained, images):
    table, out = run(trained, images), images.parent / "out"
    assert [entry["image"] for entry in table["images"]] == ["a.png", "p 1/a.jpg", "p 1/b.TIF"]
    assert table["labels"] == list(LABELS) and table["masks"] == "raw" and table["failed"] == []
    for entry in table["images"]:
        masks, expected = read_masks(out, entry), expected_masks(trained[2], images / entry["image"])
        assert expected.mean() > 0.05 and np.mean(masks != expected) < 2e-3  # rounding
        assert [entry["labels"][label]["area"] for label in LABELS] == masks.sum(axis=(1, 2)).tolist()
        assert (entry["height"], entry["width"]) == masks.shape[1:]
        assert entry["labels"]["heart"]["estimated_dice"] is None
        stem = entry["image"].rpartition(".")[0]
        assert all(file.startswith(f"masks/{stem}.") for file in entry["files"])
        picture = np.array(Image.open(out / "overlays" / f"{stem}.png"))
        assert picture.shape[0] == entry["height"] and picture.shape[1] > entry["width"] + 30  # the legend


def test_a_rerun_does_what_is_missing(trained, images, monkeypatch):
    first = run(trained, images)
    (images.parent / "out" / first["images"][0]["overlay"]).unlink()
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(images / "p 1" / "a.jpg")  # another image
    predicted, read = [], predict_folder.Predictor.read
    monkeypatch.setattr(predict_folder.Predictor, "read",
                        lambda self, path: predicted.append(path.name) or read(self, path))
    again = run(trained, images)
    assert predicted == ["a.png", "a.jpg"]
    assert again["images"][::2] == first["images"][::2] and again["images"][1]["height"] == 40
    with pytest.raises(InputError, match=r"masks\.json: was made with masks = raw, this run has .*another --out"):
        run(trained, images, "--refine")


def test_images_that_cant_be_read_are_listed_and_the_others_done(trained, images, capsys):
    (images / "broken.png").write_bytes(b"\x89PNG nothing")
    (images / "gone.png").symlink_to(images / "moved.png")
    with pytest.raises(SystemExit) as stop:
        run(trained, images)
    assert stop.value.code == 3 and "broken.png: not a readable image" in capsys.readouterr().err
    table = json.loads((images.parent / "out" / "masks.json").read_text(encoding="utf-8"))
    assert len(table["images"]) == 3 and [each["image"] for each in table["failed"]] == ["broken.png", "gone.png"]
    with pytest.raises(InputError, match="holds no image"):
        run(trained, images.parent / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("refinement", ["paper", "recommended"])
def test_sam_refines_at_the_images_size(trained, images, refinement):
    table = run(trained, images, "--refine", "--refinement", refinement)
    masks = read_masks(images.parent / "out", table["images"][0])
    assert masks.shape == (2, 120, 90) and masks.any() and "demo SAM" in table["notice"]
    estimates = [values["estimated_dice"] for entry in table["images"] for values in entry["labels"].values()]
    assert any(estimate is not None and 0 <= estimate <= 1 for estimate in estimates)


def test_label_maps_where_labels_dont_overlap_and_a_file_each_where_they_do(tmp_path):
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 2:9, 3:20], masks[2, 9:15, 5:30] = True, True
    files = write_masks(tmp_path, "a/b", masks, ["x", "y", "z"])
    assert files == ["a/b.png"]
    np.testing.assert_array_equal(read_label_map(tmp_path / "a/b.png", ["x", "y", "z"], {}), masks)
    masks[1, 8, 5] = True
    files = write_masks(tmp_path, "a/b", masks, ["x", "Os/y", "z"])
    assert files == ["a/b.x.png", "a/b.Os%2Fy.png", "a/b.z.png"]
    assert all((np.array(Image.open(tmp_path / file)) == 255 * mask).all()
               for file, mask in zip(files, masks, strict=True))


def write_dicom(path: Path, pixels: np.ndarray, **tags) -> Path:
    pydicom = pytest.importorskip("pydicom", reason="DICOM files are read by the optional package pydicom")
    header = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    for name in ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"):
        header.pop(name, None)
    header.set_pixel_data(pixels, tags.pop("PhotometricInterpretation", "MONOCHROME2"), 12)
    for name, value in tags.items():
        setattr(header, name, value)
    header.save_as(path)
    return path


def test_dicom_is_shown_as_its_header_says(tmp_path):
    pixels = np.random.default_rng(3).integers(0, 4096, (21, 34), np.uint16)
    pixels[0, :2] = 0, 4095
    plain = read_dicom(write_dicom(tmp_path / "a.dcm", pixels)).pixels
    assert plain.dtype == np.uint16 and np.abs(plain - pixels * (65535 / 4095)).max() <= 0.5
    negative = read_dicom(write_dicom(tmp_path / "b.dcm", pixels, PhotometricInterpretation="MONOCHROME1")).pixels
    np.testing.assert_array_equal(negative, 65535 - plain)
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": [1500, 40], "WindowWidth": [3000, 400]}
    path = write_dicom(tmp_path / "c.dcm", pixels, **rescaled)
    from pydicom import dcmread
    from pydicom.pixels import apply_rescale, apply_windowing
    header = dcmread(path)
    windowed = apply_windowing(apply_rescale(header.pixel_array, header), header)  # over the range of 12 bits
    expected = (windowed + 1000) / (2 * 4095) * 65535
    assert np.abs(read_dicom(path).pixels - expected).max() <= 0.51
    assert 0.1 < np.mean(read_dicom(path).pixels == 0) < 0.3  # what lies below the window


def test_dicom_among_the_images(trained, images):
    write_dicom(images / "IM0001", np.array(Image.open(images / "a.png")).astype(np.uint16) * 16)
    write_dicom(images / "damaged.dcm", np.zeros((9, 9), np.uint16)).write_bytes(b"nothing")
    with pytest.raises(SystemExit):
        run(trained, images)
    table = json.loads((images.parent / "out" / "masks.json").read_text(encoding="utf-8"))
    assert [each["image"] for each in table["failed"]] == ["damaged.dcm"]
    dicom, png = (read_masks(images.parent / "out", entry) for entry in table["images"][:2])
    assert (table["images"][0]["image"], dicom.shape) == ("IM0001", png.shape)


def test_dicom_says_areas_and_gets_a_segmentation(trained, images):
    pytest.importorskip("highdicom", reason="DICOM segmentations are written by the optional package highdicom")
    from pydicom import dcmread
    pixels = np.array(Image.open(images / "a.png")).astype(np.uint16) * 16
    write_dicom(images / "IM0001", pixels, PixelSpacing=[0.2, 0.5])
    write_dicom(images / "bare.dcm", pixels, PixelSpacing=None, ImagerPixelSpacing=[0.1, 0.1], PatientID=None)
    del (header := dcmread(images / "bare.dcm")).StudyInstanceUID
    header.save_as(images / "bare.dcm")
    table, out = run(trained, images), images.parent / "out"
    full, _, bare, *_ = table["images"]
    masks, segmentation = read_masks(out, full), dcmread(out / full["dicom_seg"])
    np.testing.assert_array_equal(segmentation.pixel_array.astype(bool), masks)
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == ["heart", "lung"]
    assert segmentation.PatientID == dcmread(images / "IM0001").PatientID
    area = masks.sum(axis=(1, 2)) * 0.2 * 0.5
    assert [values["area_mm2"] for values in full["labels"].values()] == pytest.approx(area.tolist())
    assert bare["pixel_spacing"] == [0.1, 0.1] and "dicom_seg" not in bare and bare["files"]


def test_names_stay_apart(tmp_path):
    for name in ("a.png", "a.jpg", "b/a.png", "out/c.png", "notes.txt"):
        write_png(tmp_path / (Path(name).stem + "_.png"), np.zeros((2, 2), np.uint8))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{Path(name).stem}_.png").rename(tmp_path / name)
    assert name_images(tmp_path, tmp_path / "out") == {
        "a.jpg": "a.jpg", "a.png": "a.png", "b/a.png": "b/a"}


def test_files_of_other_kinds_are_named(tmp_path, capsys):
    for name in ("a.PNG", "b.webp", "c.nii.gz", "d.mha", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert name_images(tmp_path, tmp_path / "out") == {"a.PNG": "a", "b.webp": "b"}
    assert "left out: 2 files that are no images of the kinds that are read (c.nii.gz, d.mha); save them as PNG" in (
        capsys.readouterr().err)
