"""Lets SAM refine masks that come from elsewhere: of another network, or drawn roughly. No network is needed.

    python -m scripts.refine_masks --images FOLDER --masks FOLDER_OF_LABEL_MAPS --out DIR --sam_type medsam_lite
    python -m scripts.refine_masks --images FOLDER --masks COCO.json --out DIR --sam_type vit_b --prompt1st box mask

Each mask becomes prompts as that of the U-Net does in the paper. There are no probabilities, so the largest component
of a label is kept, unless --ccl_selection none keeps all. Images are taken as they are. A rerun does what is missing,
also of masks that have changed. Images that can't be read are listed at the end, with exit code 3.

Reads   FOLDER: PNG, JPEG, TIFF, BMP of 8 to 16 bits, DICOM; masks as scripts.init_dataset reads annotations: CVAT for
        images 1.1, COCO, labelme, label maps, one mask per label; files, folders, or a ZIP file; SAM's weights
Writes  as scripts.predict_folder: DIR/masks/, DIR/overlays/, DIR/masks.json with SAM's estimate of each mask's Dice
"""
import argparse
import hashlib
import json
import tempfile
from pathlib import Path

import msgspec

from scripts.mask_folder.writing import Made, MaskFolder, Recipe, name_masks
from scripts.own_data.annotations import (
    Wishes,
    find_masks,
    naming_originals,
    open_exports,
    read_exports,
)
from scripts.own_data.description import describe
from scripts.own_data.images import PREPARED, describe_left_out, list_images, take_in
from segment_anything.options import Sam, SamOptions
from segment_anything.refinement.refine import RefinementOptions
from unet_training.arrays import FEWER_BITS, refine
from unet_training.new_images import LoadedSam, read_image
from unet_training.pseudo_labels import SamRefined
from utils.cli import run_stage, select_device, stage_parser, tell
from utils.datasets.description import DatasetDescription
from utils.datasets.sources import SOURCES, Source
from utils.errors import InputError
from utils.grey import STORED
from utils.options import add_options, options_from
from utils.paths import DATA


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.refine_masks", __doc__)
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="the images")
    parser.add_argument("--masks", type=Path, nargs="+", required=True, metavar="EXPORT", help="their masks")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the refined masks")
    parser.add_argument("--labels", nargs="+", default=[], metavar="LABEL", help="as of scripts.init_dataset")
    parser.add_argument("--values", nargs="+", default=[], metavar="LABEL=VALUE", help="as of scripts.init_dataset")
    parser.add_argument("--attribute", metavar="NAME", help="as of scripts.init_dataset")
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder of SAM's weights")
    parser.add_argument("--gpu_id", type=int, help="GPU to use (left out: the first one, or the CPU)")
    add_options(parser.add_argument_group("SAM"), SamOptions, only=("sam_type", "sam_checkpoint", "sam_model_id"))
    add_options(parser.add_argument_group("refinement"), RefinementOptions, ccl_selection="largest")
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file that lists the masks. Exits with code 3 where an image couldn't be read."""
    sam = Sam.find(options_from(SamOptions, args), args.data_dir, "vit_h", FEWER_BITS)
    given = bool({"prompt1st", "prompt2nd"} & set(getattr(args, "given", ())))
    labels = SamRefined(sam, options_from(RefinementOptions, args)).with_own_prompts(given)
    loaded = LoadedSam(sam, select_device(args.gpu_id))
    wishes = Wishes(tuple(args.labels), args.attribute, values=tuple(args.values))
    with tempfile.TemporaryDirectory() as place:
        stems, source, names = read_masks(args.images, args.masks, args.out, wishes, Path(place))
        recipe = Recipe(names, {"masks": labels.variant, "made_with": json.dumps(labels.refine_params())},
                        f"SAM {sam.name}", labels.notice, Refiner(loaded, labels.options, source, stems),
                        lambda image: {"given": hashlib.sha256(source.content(stems[image])).hexdigest()})
        folder = MaskFolder(args.images, args.out, recipe, name_masks([Path(image) for image in stems]))
        folder.run()
    return folder.table


class Refiner:
    """Makes the masks of an image of those that are given; `stems` are those of the source, by image."""

    def __init__(self, sam: LoadedSam, options: RefinementOptions, source: Source, stems: dict[str, str]):
        self.sam, self.options, self.source, self.stems = sam, options, source, stems

    def __call__(self, image: str, path: Path) -> Made:
        """Raises InputError where the image isn't readable, or its mask."""
        grey, given = read_image(path, FEWER_BITS), self.source.mask(self.stems[image])
        height, width = grey.shape  # by which some tools round masks up
        refined = refine(given[:, :height, :width], grey, self.sam, self.options, grey=STORED)
        return Made(grey, refined.masks, refined.estimates)


def read_masks(folder: Path, masks: list[Path], out: Path, wishes: Wishes, place: Path
               ) -> tuple[dict[str, str], Source, tuple[str, ...]]:
    """Reads masks, with what that needs in the folder `place`, and prints what was understood.

    Returns:
        of each image with a mask its path in the folder -> its stem; what draws the masks by their stems; the labels
    Raises:
        InputError: there is no image or no mask, or what is there can't be read.
    """
    try:
        with naming_originals(place, masks):
            exports = open_exports(masks, place / "exports")
            new = place / "new" / PREPARED
            (new / "img").mkdir(parents=True)
            images = take_in(list_images(folder, [*find_masks(exports, folder), out]), new / "img")
            annotations = read_exports(exports, images, wishes, new)
            tell("images", [images.describe()])
            tell("masks", annotations.notes)
            tell("left out", describe_left_out(images.left_out, "images") + annotations.left_out)
            if not annotations.shown:
                raise InputError("--masks: none fits an image in --images; name masks after their images")
            table = describe(annotations, images, (1, 1), "vit_h", "scripts.refine_masks", 0, ())
            del table["metadata"]
            description = msgspec.convert({**table, "name": "masks", "has_splits": False}, DatasetDescription)
            source = SOURCES[type(description.masks)](description, new.parent)
    except InputError as error:
        raise InputError(str(error).replace("--annotations", "--masks")) from None
    return {images.images[stem].name: stem for stem in sorted(annotations.shown)}, source, description.labels


if __name__ == "__main__":
    run_stage(main, get_args_parser())
