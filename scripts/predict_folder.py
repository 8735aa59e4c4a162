"""Masks of all images in a folder, at each image's own size.

    python -m scripts.predict_folder --model_id ID --images FOLDER --out DIR
    python -m scripts.predict_folder --model_id ID --images FOLDER --out DIR --refine --refinement recommended

PNG, JPEG, TIFF and BMP of 8 to 16 bits, and DICOM by the package pydicom; folders inside keep their
place. Images are taken as they are: where the data set mirrors some (right hands of GRAZPEDWRI-DX), mirror those of
other sources before. A rerun does what is missing. Images that can't be read are listed at the end, with exit code 3.

Reads   a model by its id, its data set, the images; with `--refine` SAM's weights
Writes  DIR/masks/<image>.png, a label map (value v: the v-th label), or where labels overlap
        DIR/masks/<image>.<label>.png, white on black; DIR/overlays/<image>.png with a legend; DIR/masks.json:
        of each image its size, its files, of each label the area in pixels and with SAM the estimated Dice; and the
        images that failed. Of DICOM also the areas in mm² where it says how large a pixel is, and where the package
        highdicom is installed DIR/dicom_seg/<image>.dcm, a DICOM segmentation
"""
import argparse
from dataclasses import replace
from pathlib import Path

from scripts.mask_folder.writing import Made, MaskFolder, Recipe, name_images
from unet_training.models import DataOptions, TrainedModel
from unet_training.new_images import Predictor
from unet_training.pseudo_labels import Raw, SamRefined
from utils.cli import run_stage, select_device, stage_parser
from utils.options import add_options, options_from
from utils.tracking.models import fetch_model


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.predict_folder", __doc__)
    parser.add_argument("--model_id", required=True, help="the network")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="the images")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the masks")
    parser.add_argument("--refine", action="store_true", help="let SAM refine the masks")
    add_options(parser, DataOptions, only=("data_dir",))
    parser.add_argument("--gpu_id", type=int, help="GPU to use (left out: the first one, or the CPU)")
    SamRefined.add_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file that lists the masks. Exits with code 3 where an image couldn't be read."""
    record = fetch_model(args.model_id)
    data = replace(options_from(DataOptions, args), dataset=record.parameters["dataset"]).open()
    model = TrainedModel.load(record, data, select_device(args.gpu_id))
    labels = SamRefined.from_args(args, model.data) if args.refine else Raw()
    predictor = Predictor(model, labels)

    def make(image: str, source: Path) -> Made:
        grey = predictor.read(source)
        return Made(grey, *predictor.predict(grey, source))

    made = {"model_id": model.id, "masks": labels.variant, "made_with": labels.attributes(model)}
    recipe = Recipe(model.data.description.labels, made, model.id, labels.notice, make)
    folder = MaskFolder(args.images, args.out, recipe, name_images(args.images, args.out))
    folder.run()
    return folder.table


if __name__ == "__main__":
    run_stage(main, get_args_parser())
