"""Times the image encoder: the package's own in float32, and ours in float32 and in bfloat16.

    python -m benchmarks.encoder
    python -m benchmarks.encoder --sam_type vit_b --images 3
    python -m benchmarks.encoder --sam_type sam2_t --beside vit_h vit_b --images 2

With --beside our encoders of those types stand in the baseline's place, all with random weights.

Where the weights of the type are missing they are random, which takes as long. With the real ones the masks of a whole
refinement are compared, too: changed pixels, how near to zero their logits are, and the masks' Dice.

Reads   --image_folder (left out: benchmarks/inputs.py says which); annotations_train.xml
Writes  nothing, or the table: --json FILE, and --record into benchmarks/RESULTS.md
"""
import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.inputs import add_input_arguments, choose_device, describe, list_images, predictions
from benchmarks.measure import ReportOptions, Step, Stopwatch, operations, report, speed
from segment_anything.checkpoints import CheckpointId
from segment_anything.embeddings import ImageEmbedding, compute_embedding
from segment_anything.fast.image_encoder import accelerate
from segment_anything.modeling import Sam
from segment_anything.refinement.refine import RefinementOptions, clean_and_prompt, decode_all
from segment_anything.registry import SAM_TYPES, default_checkpoint, get_sam_type, load_sam
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from utils.cli import run_stage, stage_parser
from utils.files import read_grey
from utils.options import add_options, options_from
from utils.paths import DATA

OURS = {"float32": torch.float32, "bf16 option": torch.bfloat16}
RANDOM = CheckpointId("random weights", "")


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("benchmarks.encoder", __doc__)
    add_input_arguments(parser)
    parser.add_argument("--beside", nargs="+", choices=tuple(SAM_TYPES), metavar="TYPE",
                        help="time our encoders of these types, and of --sam_type, with random weights")
    add_options(parser, ReportOptions)
    return parser


def main(args: argparse.Namespace) -> list[Step]:
    """Returns the lines of the table."""
    device = choose_device(args.device)
    paths = list_images(args.image_folder, args.images)
    if args.beside:
        steps, counts = compare_types(args.sam_type, args.beside, paths, device)
        command = f"encoder --sam_type {args.sam_type} --beside {' '.join(args.beside)}"
        report(options_from(ReportOptions, args), command, device, f"{describe(paths)}; {RANDOM.name}; {counts}", steps)
        return steps
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
    steps = [watch.step(step, max(image.embedding for image in images), sum(image.changed for image in images))
             for step, images in differences.items()]
    count = operations(compute_embedding, upstream, grey, preprocessing, identity)
    notes = f"; ours in float32: {speed(count, steps[0].ours_ms, device)}"
    notes += "".join(f"; {step}: masks' Dice with upstream's {np.mean([image.dice for image in images]):.4f}, changed "
                     f"pixels have logits of at most {max(image.logit for image in images):.1e}"
                     for step, images in differences.items() if decoder)
    report(options_from(ReportOptions, args), f"encoder --sam_type {args.sam_type}", device,
           f"{describe(paths)}; {'weights ' + identity.name if decoder else identity.name}{notes}", steps)
    return steps


def compare_types(sam_type: str, others: Sequence[str], paths: Sequence[Path], device: torch.device
                  ) -> tuple[list[Step], str]:
    """A line for each other type, in the baseline's place, and how many operations each encoder takes."""
    sams, watch = {name: random_sam(name).to(device) for name in (sam_type, *others)}, Stopwatch(device)
    for sam in sams.values():
        accelerate(sam.image_encoder)
    for path in paths:
        for name, sam in sams.items():
            watch.time(name, "ours", compute_embedding, sam, read_grey(path), get_sam_type(name).preprocessing, RANDOM)
    counts = [f"{name} {encoder_operations(name) / 1e9:.0f} GFLOP" for name in sams]
    ours = watch.milliseconds(sam_type, "ours")
    return [Step(f"image encoder {sam_type}, beside {name}", watch.milliseconds(name, "ours"), ours, 0, 0)
            for name in others], ", ".join(counts)


def encoder_operations(sam_type: str) -> int:
    """As `measure.operations`, of one image; nothing is computed."""
    with torch.device("meta"), torch.inference_mode():
        encoder = get_sam_type(sam_type).build().image_encoder
        return operations(encoder, torch.zeros(1, 3, encoder.img_size, encoder.img_size))


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


class Difference(NamedTuple):
    """embedding: largest difference; of the refined masks: changed pixels, their largest |logit|, and Dice."""

    embedding: float
    changed: int = 0
    logit: float = 0
    dice: float = float("nan")


def compare(theirs: ImageEmbedding, ours: ImageEmbedding, probabilities: np.ndarray,
            decoder: StoredEmbeddingDecoder | None) -> Difference:
    """Without a decoder of the embeddings alone."""
    difference = (theirs.features["image"] - ours.features["image"]).abs().max().item()
    if decoder is None:
        return Difference(difference)
    upstream = logits(probabilities, theirs, decoder)
    one, other = upstream > 0, logits(probabilities, ours, decoder) > 0
    changed = np.abs(upstream[one != other])
    return Difference(difference, len(changed), changed.max(initial=0),
                      float(2 * (one & other).sum() / (one.sum() + other.sum())))


def logits(probabilities: np.ndarray, embedding: ImageEmbedding, decoder: StoredEmbeddingDecoder) -> np.ndarray:
    """Those whose signs are the refined masks, (K, H, W) for the K prompted classes."""
    options = RefinementOptions()
    _, prompts = clean_and_prompt(probabilities, options)
    low, _ = decode_all(decoder, [embedding], [prompts], options)[0]
    return decoder.upscale(low, embedding, probabilities.shape[1:]).cpu().numpy()


if __name__ == "__main__":
    run_stage(main, get_args_parser())
