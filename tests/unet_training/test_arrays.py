"""The method on images in memory, against what the commands write."""
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from scripts import predict_folder, save_refined_segmentations
from segment_anything.refinement.refine import RefinementOptions
from unet_training.arrays import load_model, load_sam, refine
from unet_training.new_images import read_image
from utils.errors import InputError
from utils.grey import STORED, GreyValues
from utils.mask_store import MaskStore


def predict_all(trained, images, *more: str) -> dict[str, tuple[np.ndarray, list[float | None]]]:
    """What the command writes: image -> its masks and estimates."""
    args = ["--model_id", trained[1], "--data_dir", str(trained[0]), "--images", str(images), "--out",
            str(images.parent / "out"), *more]
    table = predict_folder.main(predict_folder.get_args_parser().parse_args(args))
    read = {}
    for entry in json.loads(table.read_text(encoding="utf-8"))["images"]:
        pictures = [np.array(Image.open(table.parent / file)) for file in entry["files"]]
        masks = [pictures[0] == value for value in (1, 2)] if len(pictures) == 1 else [each == 255 for each in pictures]
        read[entry["image"]] = np.stack(masks), [values["estimated_dice"] for values in entry["labels"].values()]
    return read


def test_masks_of_arrays_are_those_of_files_and_of_the_command(trained, images):
    unet, written = load_model(trained[1], trained[0]), predict_all(trained, images)
    assert unet.labels == ("heart", "lung") and len(written) == 3
    for name, (masks, _) in written.items():
        probabilities = unet.predict(images / name)
        assert probabilities.dtype == np.float32 and 0 <= probabilities.min() < probabilities.max() <= 1
        np.testing.assert_array_equal(probabilities > 0.5, masks)
        np.testing.assert_array_equal(unet.predict(cv2.imread(str(images / name), cv2.IMREAD_UNCHANGED)), probabilities)
    assert unet.predict(images / "a.png", at_image_size=False).shape == (2, 36, 60)


@pytest.mark.slow
def test_refined_masks_are_those_of_the_commands(trained, images):
    data_dir, model_id, _ = trained
    unet, sam = load_model(model_id, data_dir), load_sam("demo")
    for name, (masks, estimates) in predict_all(trained, images, "--refine").items():
        refined = refine(unet.predict(images / name, at_image_size=False), images / name, sam)
        np.testing.assert_array_equal(refined.masks, masks)
        expected = np.array([np.nan if each is None else each for each in estimates])
        np.testing.assert_allclose(refined.estimates, expected, atol=1e-4)
        assert [asked is None for asked in refined.prompts] == np.isnan(expected).tolist() != [True, True]
    args = ["--dataset", "mine", "--data_dir", str(data_dir), "--model_id", model_id, "--include_annotated",
            "--ccl_selection", "largest"]
    parser, largest = save_refined_segmentations.get_args_parser(), RefinementOptions(ccl_selection="largest")
    store = MaskStore(save_refined_segmentations.main(parser.parse_args(args)), unet.labels)
    for stem in store.stems:
        image = cv2.imread(str(data_dir / "mine" / "img" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
        refined = refine(unet.predict(image, at_image_size=False), image, sam, largest, at_image_size=False)
        np.testing.assert_array_equal(refined.masks, store.mask(stem))


@pytest.mark.slow
def test_recommended_as_the_command(trained, images, capsys):
    unet, sam = load_model(trained[1], trained[0]), load_sam("demo")
    calibration = unet.calibrate(sam)
    written = predict_all(trained, images, "--refine", "--refinement", "recommended")
    assert capsys.readouterr().out.count("chosen on 1 validation images") == 1  # known by then
    image = images / "p 1" / "b.TIF"
    refined = refine(unet.predict(image, at_image_size=False), image, sam, calibration, grey=unet.grey)
    np.testing.assert_array_equal(refined.masks, written["p 1/b.TIF"][0])


def test_prompts_are_in_pixels_of_the_image():
    image, masks = np.zeros((90, 120), np.uint8), np.zeros((2, 30, 60), bool)
    masks[0, 5:15, 10:31] = True
    options = RefinementOptions(prompt2nd=("pos_points",))
    (box, points), nothing = refine(masks, image, load_sam("demo"), options).prompts
    assert box.box.tolist() == [20, 15, 60, 42] and box.points is None and nothing is None
    assert points.points.tolist() == [[40, 30]]  # of row 9.5, half to even


def test_pixels_of_every_kind():
    grey = np.random.default_rng(0).integers(0, 256, (21, 34), np.uint8)
    np.testing.assert_array_equal(read_image(np.stack([grey] * 3, axis=2), STORED), grey)
    np.testing.assert_array_equal(read_image(grey / 255, STORED), grey * np.uint16(257))
    inverted = GreyValues(inverted=True)
    np.testing.assert_array_equal(read_image(grey, inverted), 255 - grey)
    np.testing.assert_array_equal(read_image(grey / 255, inverted), grey * np.uint16(257))  # says itself what is black
    twelve = grey * np.uint16(16)
    np.testing.assert_allclose(read_image(twelve, GreyValues(range="bits")) / 65535, twelve / 4095, atol=1e-4)
    for odd in (grey[None, None], grey.astype(int), grey * 1.0, np.full((4, 5), np.nan), grey[:0]):
        with pytest.raises(InputError, match=r"^image: .*; (give|scale)"):
            read_image(odd, STORED)
    with pytest.raises(InputError, match="no such image"):
        read_image("nowhere.png", STORED)
