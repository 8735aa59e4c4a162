"""What is measured of one's own training images, and where it goes."""

import cv2
import numpy as np
import pytest

from scripts import measure_dataset
from segment_anything import embeddings
from segment_anything.options import Sam, SamOptions
from tests.small_sam import build_small_sam
from unet_training.data import LabeledDataset
from utils.datasets.annotated import open_dataset, read_scaled
from utils.datasets.description import OWN, load_description
from utils.errors import InputError
from utils.files import read_grey, write_png


def run(data_dir, dataset: str) -> dict[str, object]:
    parser = measure_dataset.get_args_parser()
    return measure_dataset.main(parser.parse_args(["--data_dir", str(data_dir), "--dataset", dataset]))


def test_what_is_printed_completes_the_description(own, capsys):
    data_dir, images, masks = own
    with pytest.raises(InputError, match=r"mean is missing; `python -m scripts\.measure_dataset --dataset mine`"):
        open_dataset("mine", data_dir)
    values = run(data_dir, "mine")
    assert values["mean"] == pytest.approx(np.mean(images / 255), abs=1e-6)
    assert values["std"] == pytest.approx(np.std(images / 255), abs=1e-6)
    weights = [np.count_nonzero(masks != value) / np.count_nonzero(masks == value) for value in (1, 2)]
    assert values["pos_weight"] == pytest.approx(weights, abs=1e-4)
    description = data_dir / "mine" / OWN
    description.write_text(capsys.readouterr().out + description.read_text())
    data = open_dataset("mine", data_dir)
    assert {key: getattr(data.description, key) for key in ("mean", "std")} == {
        key: values[key] for key in ("mean", "std")}
    pixels = np.stack([image for image, _ in LabeledDataset(data, data.stems("train"))])
    assert (pixels.mean(), pixels.std()) == pytest.approx((0, 1), abs=1e-4)


def test_images_are_measured_as_the_network_gets_them(own):
    """Resized in whole numbers, or in fractions where the description says so."""
    data_dir, images, _ = own
    path = data_dir / "mine" / OWN
    text = path.read_text().replace("[36, 60]", "[32, 50]")
    for resize_dtype, pixels in (("stored", images), ("float32", images.astype(np.float32))):
        path.write_text(f'resize_dtype = "{resize_dtype}"\n' + text)
        resized = np.stack([cv2.resize(image, (50, 32)) for image in pixels]) / 255
        values = run(data_dir, "mine")
        assert (values["mean"], values["std"]) == pytest.approx((resized.mean(), resized.std()), abs=1e-6)


def test_radiographs_of_12_bits_in_files_of_16_are_as_bright_as_others(own, capsys, monkeypatch):
    """The U-Net, the random walk and SAM see them as if they had all 16 bits."""
    data_dir, images, _ = own
    files = sorted((data_dir / "mine" / "img").iterdir())
    full = [read_grey(path).astype(np.uint16) * 257 for path in files]
    for path, image in zip(files, full, strict=True):
        write_png(path, image // 16)
    values = run(data_dir, "mine")
    assert values["max_grey_value"] == 4095
    assert values["mean"] == pytest.approx(np.mean(images / 255), abs=1e-4)
    description = data_dir / "mine" / OWN
    description.write_text(capsys.readouterr().out + description.read_text())
    data = open_dataset("mine", data_dir)
    scaled = read_scaled(files[1], data.description)
    assert scaled == pytest.approx(full[1] / 65535, abs=1 / 4095)
    assert Sam.choose(SamOptions(), data).name == "vit_b_max4095"
    seen = []  # in any order
    monkeypatch.setattr(embeddings, "encoder_input", lambda sam, grey, _: (seen.append(grey), (grey.shape,) * 2)[1])
    monkeypatch.setattr(embeddings, "_encode", lambda *_: [None])
    sam = build_small_sam()
    list(embeddings.compute_embeddings(sam, files, "", None, data.description.grey))
    assert min(np.abs(grey.astype(int) - full[1]).max() for grey in seen) < 65536 / 4095 + 1


def test_images_of_different_bits_are_each_read_with_their_own(own, capsys):
    data_dir, images, _ = own
    for number, image in enumerate(images):
        write_png(data_dir / "mine" / "img" / f"{number}.png", image.astype(np.uint16) * 257 // (64, 4)[number % 2])
    values = run(data_dir, "mine")
    assert "max_grey_value" not in values
    assert "# images use different numbers of bits, so each is read with its own: 2 up to 1023, 2 up to 16383" in (
        capsys.readouterr().out)
    assert (values["mean"], values["std"]) == pytest.approx((np.mean(images / 255), np.std(images / 255)), abs=2e-3)


def test_the_table_counts_what_the_training_masks_show(own, capsys):
    data_dir, _, masks = own
    run(data_dir, "mine")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["# 1 training images show no label: 0",
                         "# 4 training, 1 validation, 1 test images, 0 not annotated; 2 labels"]
    rows = [line.split() for line in lines[3:5]]
    assert rows == [["#", label, "-", str(sum((mask == value).any() for mask in masks)),
                     f"{100 * (masks == value).mean():.2f}"] for value, label in ((1, "heart"), (2, "lung"))]


def test_a_negative_among_other_images_is_named(own, capsys):
    data_dir, _, _ = own
    rng, scene = np.random.default_rng(0), np.linspace(40, 200, 60) + np.zeros((36, 1))
    for number in range(6):
        image = (scene + rng.normal(0, 10, scene.shape)).astype(np.uint8)
        write_png(data_dir / "mine" / "img" / f"{number}.png", 255 - image if number == 3 else image)
    run(data_dir, "mine")
    hints = [line for line in capsys.readouterr().out.splitlines() if "negative" in line]
    assert len(hints) == 1 and "3.png: looks like the negative of the other images" in hints[0]


def test_a_label_that_no_training_mask_shows_has_no_weight(own):
    data_dir, _, masks = own
    for number, mask in enumerate(masks):
        write_png(data_dir / "mine" / "masks" / f"{number}.png", mask * (mask != 2))
    with pytest.raises(InputError, match="no mask of the 4 training images shows lung"):
        run(data_dir, "mine")


@pytest.mark.slow
def test_the_phantoms_are_described_as_they_are_measured(phantom_data_dir):
    values, described = run(phantom_data_dir, "phantom"), load_description("phantom")
    assert values["pos_weight"] == list(described.pos_weight)
    assert (values["mean"], values["std"]) == pytest.approx((described.mean, described.std), abs=1.1e-6)
