"""Fine-tunes SAM's mask decoder on the labeled images, so that it draws what this data set calls an object.

    python -m scripts.finetune_sam --gpu_id 0
    python -m scripts.finetune_sam --dataset phantom --num_train_samples 5
    python -m scripts.save_refined_segmentations --sam_model_id ID --prompt1st box mask --prompt2nd

The decoder (4 of SAM's up to 640 million parameters) learns on stored image embeddings; all else stays as it is. It is
asked what it will be asked: boxes, points and masks as initial networks predict them of images that they haven't seen
(--folds of them are trained for this, as the initial one), and boxes of the ground truth that err likewise. The epoch
with the best Dice on the validation images is kept, which is 0, SAM as it was, if none is better. Prints
`model id: <id>` as its last line; --sam_model_id takes that id wherever a SAM is named. An interrupted run resumes.

Reads   a model by its id, the labeled and the validation images and their masks, SAM's weights
Writes  a model, known by its id: on the ClearML server, or in runs/ without one; and so the networks of the folds;
        data/<dataset>/sam_embeddings/<sam type>/<stem>.h5 of these images, <sam type>_augmented_<seed>/ of their
        augmented versions
"""
import argparse

from segment_anything.options import Sam, SamOptions
from unet_training.models import (
    ModelOptions,
    TrainedModel,
    add_batch_argument,
    add_common_arguments,
    add_seed_argument,
)
from unet_training.sam_decoder.training import DecoderTuning, TuningOptions
from utils.cli import run_stage, stage_parser
from utils.options import add_options, options_from


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.finetune_sam", __doc__)
    add_common_arguments(parser)
    add_seed_argument(parser)
    add_options(parser, ModelOptions)
    add_batch_argument(parser)
    add_options(parser.add_argument_group("SAM"), SamOptions)
    add_options(parser.add_argument_group("fine-tuning"), TuningOptions)
    return parser


def main(args: argparse.Namespace) -> str:
    """Returns the id of the fine-tuned decoder."""
    initial = TrainedModel.from_args(args)
    sam = Sam.choose(options_from(SamOptions, args), initial.data)
    return DecoderTuning(options_from(TuningOptions, args), args.seed, sam, initial).run()


if __name__ == "__main__":
    run_stage(main, get_args_parser())
