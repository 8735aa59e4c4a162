"""Times the image encoder: the package's own in float32, and ours in float32 and in bfloat16.

    python -m benchmarks.encoder
    python -m benchmarks.encoder --sam_type vit_b --images 3

Where the weights of the type are missing they are random, which takes as long. With the real ones the masks of a whole
refinement are compared, too: changed pixels, and their Dice with those of the package's encoder.

Reads   --image_folder (left out: benchmarks/inputs.py says which); annotations_train.xml
Writes  nothing, or the table: --json FILE, and --record into benchmarks/RESULTS.md
"""
import argparse
import copy

import numpy as np
import torch

from benchmarks.inputs import add_input_arguments, describe, device_from, images_from, predictions
from benchmarks.measure import Step, Stopwatch, add_report_arguments, operations, report, speed
from segment_anything.checkpoints import CheckpointId
from segment_anything.embeddings import ImageEmbedding, compute_embedding
from segment_anything.fast_encoder import accelerate
from segment_anything.modeling import Sam
from segment_anything.registry import default_checkpoint, get_sam_type, load_sam
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from utils.cli import run_stage, stage_parser
from utils.files import read_grey
from utils.paths import DATA
from utils.refinement import RefinementOptions, refine

OURS = {"float32": torch.float32, "bf16 option": torch.bfloat16}
RANDOM = CheckpointId("random weights", "")


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("benchmarks.encoder", __doc__)
    add_input_arguments(parser)
    add_report_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> list[Step]:
    """Returns the lines of the table."""
    device = device_from(args)
    paths = images_from(args)
    checkpoint = args.sam_checkpoint or default_checkpoint(args.sam_type, DATA)
    upstream = load_sam(args.sam_type, checkpoint) if checkpoint.is_file() else random_sam(args.sam_type)
    ours = {f"image encoder {args.sam_type}, {precision}": fast_copy(upstream, dtype).to(device)
            for precision, dtype in OURS.items()}
    decoder = StoredEmbeddingDecoder.load(args.sam_type, checkpoint, device) if checkpoint.is_file() else None
    identity, preprocessing = decoder.checkpoint if decoder else RANDOM, get_sam_type(args.sam_type).preprocessing
    upstream, watch = upstream.to(device), Stopwatch(device)
    differences = {step: [] for step in ours}
    for path, probabilities in zip(paths, predictions(), strict=False):
        grey = read_grey(path)
        for step, sam in ours.items():
            theirs = watch.time(step, "baseline", compute_embedding, upstream, grey, preprocessing, identity)
            result = watch.time(step, "ours", compute_embedding, sam, grey, preprocessing, identity)
            differences[step].append(compare(theirs, result, probabilities, decoder))
    steps = [watch.step(step, max(each[0] for each in found), sum(each[1] for each in found))
             for step, found in differences.items()]
    count = operations(compute_embedding, upstream, grey, preprocessing, identity)
    notes = f"; ours in float32: {speed(count, steps[0].ours_ms, device)}"
    notes += "".join(f"; {step}: masks' Dice with upstream's {np.mean([each[2] for each in found]):.4f}"
                    for step, found in differences.items() if decoder)
    report(args, f"encoder --sam_type {args.sam_type}", device,
           f"{describe(paths)}; {'weights ' + identity.name if decoder else identity.name}{notes}", steps)
    return steps


def random_sam(sam_type: str) -> Sam:
    """The type's architecture with random weights, relative positions included, which upstream starts at zero."""
    torch.manual_seed(0)
    sam = get_sam_type(sam_type).build()
    for name, parameter in sam.image_encoder.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            parameter.data.normal_(std=0.02)
    return sam.requires_grad_(False)


def fast_copy(sam: Sam, dtype: torch.dtype) -> Sam:
    fast = copy.deepcopy(sam)
    accelerate(fast.image_encoder, dtype)
    return fast


def compare(theirs: ImageEmbedding, ours: ImageEmbedding, probabilities: np.ndarray,
            decoder: StoredEmbeddingDecoder | None) -> tuple[float, int, float]:
    """Largest difference of the embeddings; with a decoder, changed pixels and Dice of the refined masks."""
    difference = (theirs.embedding - ours.embedding).abs().max().item()
    if decoder is None:
        return difference, 0, float("nan")
    one, other = (refine(probabilities, each, decoder, RefinementOptions()).mask for each in (theirs, ours))
    return difference, int((one != other).sum()), float(2 * (one & other).sum() / (one.sum() + other.sum()))


if __name__ == "__main__":
    run_stage(main, get_args_parser())
