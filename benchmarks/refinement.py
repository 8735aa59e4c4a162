"""Times the refinement of one image, step by step, the paper's way (`benchmarks/paper_way.py`) and ours.

    python -m benchmarks.refinement
    python -m benchmarks.refinement --sam_type vit_t --sam_checkpoint mobile_sam.pt --record

Both work in turn on the same images, which repeats the measurement as often as there are images; the first one only
warms up. In the last two lines ours refines several copies of the image side by side, as the stages do with many images
on a CPU, and the time is that of one. The baseline of the very last one is the paper's refinement by our code, and its
difference that of the methods. Probabilities are made from the phantoms' annotations: 17 classes at 384 x 224, blurred,
with stray components.

Reads   annotations_train.xml; --image_folder (left out: benchmarks/inputs.py says which)
Writes  nothing, or the table: --json FILE, and --record into benchmarks/RESULTS.md
"""
import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks import paper_way
from benchmarks.inputs import add_input_arguments, choose_device, describe, find_checkpoint, list_images, predictions
from benchmarks.measure import ReportOptions, Step, Stopwatch, operations, report, speed
from segment_anything.checkpoints import identify
from segment_anything.embeddings import compute_embedding, load_embedding, save_embedding
from segment_anything.refinement.cleaning import clean_masks
from segment_anything.refinement.prompts import extract_prompts
from segment_anything.refinement.recommended import (
    PLAIN,
    PROMPT_SETS,
    Calibration,
    Estimate,
    refine_all_calibrated,
)
from segment_anything.refinement.refine import Refined, RefinementOptions, decode_all, refine_all
from segment_anything.registry import get_sam_type, load_prompt_modules, load_sam
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from utils.cli import run_stage, stage_parser
from utils.files import read_grey
from utils.options import add_options, options_from

OPTIONS = RefinementOptions()
DECODER = "mask decoder, both passes, all classes"
RECOMMENDED = "recommended refinement, beside the paper's by our code"


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("benchmarks.refinement", __doc__)
    add_input_arguments(parser)
    add_options(parser, ReportOptions)
    return parser


def main(args: argparse.Namespace) -> list[Step]:
    """Returns the lines of the table."""
    device = choose_device(args.device)
    checkpoint, paths = find_checkpoint(args.sam_type, args.sam_checkpoint), list_images(args.image_folder, args.images)
    bench = Bench(args.sam_type, checkpoint, device)
    with tempfile.TemporaryDirectory() as folder:
        for path, probabilities in zip(paths, predictions(), strict=False):
            bench.compare(read_grey(path), probabilities, Path(folder))
    steps = bench.steps()
    decoder_ms = next(step.ours_ms for step in steps if step.step == DECODER)
    report(options_from(ReportOptions, args), f"refinement --sam_type {args.sam_type}", device,
           f"{describe(paths)}; {bench.prompted / len(paths):.1f} classes prompted in an image; our mask decoder: "
           f"{speed(median(bench.operations), decoder_ms, device)}", steps)
    return steps


def neutral_calibration(classes: int) -> Calibration:
    """One that takes as long as any that validation images would give."""
    zeros = (0.0,) * classes
    return Calibration(zeros, PROMPT_SETS[-1], (0.5,) * classes, zeros, "highest_probability",
                       Estimate(PLAIN, zeros, zeros, (1.0,) * classes), (0.0, 0.0))


class Bench:
    """Runs both ways on one image after the other, and keeps times and differences."""

    def __init__(self, sam_type: str, checkpoint: Path, device: torch.device):
        self.sam = load_sam(sam_type, checkpoint).to(device)
        self.modules = [module.to(device) for module in load_prompt_modules(sam_type, checkpoint).values()]
        self.decoder = StoredEmbeddingDecoder.load(sam_type, checkpoint, device)
        self.preprocessing, self.checkpoint = get_sam_type(sam_type).preprocessing, identify(checkpoint)
        self.device, self.watch, self.prompted = device, Stopwatch(device), 0
        self.differences: dict[str, list[tuple[float, int]]] = {}
        self.operations: list[int] = []  # of our mask decoder
        self.side_by_side = 2 * torch.get_num_threads() if device.type == "cpu" else 1  # copies of the image for ours

    def compare(self, grey: np.ndarray, probabilities: np.ndarray, folder: Path) -> None:
        """One round of all steps; the results of each are compared."""
        embedding = compute_embedding(self.sam, grey, self.preprocessing, self.checkpoint)
        gzipped, plain = folder / "gzip.h5", folder / "plain.h5"
        paper_way.save_embedding(gzipped, embedding)
        save_embedding(plain, embedding)
        on_device = torch.from_numpy(probabilities).to(self.device)

        theirs, ours = self.time("mask cleaning", partial(paper_way.clean_masks, on_device),
                                 partial(clean_masks, probabilities))
        self.note("mask cleaning", 0, theirs.cpu().numpy() != ours)
        prompts = extract_prompts(ours)
        channels = np.flatnonzero(prompts.valid)
        self.prompted += len(channels)

        def read_for_every_prompt() -> torch.Tensor:
            return [paper_way.read_embedding(gzipped) for _ in range(2 * len(channels))][-1]

        theirs, ours = self.time("reading the embedding", read_for_every_prompt,
                                 partial(load_embedding, plain, self.checkpoint))
        self.note("reading the embedding", (theirs - ours.features["image"]).abs().max().item())

        stored = embedding.features["image"].to(self.device)
        theirs, ours = self.time(
            DECODER, lambda: [paper_way.two_passes(*self.modules, stored, prompts, channel, OPTIONS,
                                                   embedding.input_size) for channel in channels],
            lambda: decode_all(self.decoder, [embedding], [prompts], OPTIONS)[0])
        self.operations.append(operations(decode_all, self.decoder, [embedding], [prompts], OPTIONS))
        self.note(DECODER, max((a[0, 0] - b).abs().max().item() for (a, _), b in zip(theirs, ours[0], strict=True)))

        size, (logits, _) = probabilities.shape[1:], ours
        theirs, ours = self.time(
            "upscaling, all classes", lambda: [paper_way.upscale(low[None, None], embedding, size) for low in logits],
            lambda: self.decoder.upscale(logits, embedding, size) > 0)
        self.note("upscaling, all classes", 0, (torch.stack(theirs) != ours).cpu().numpy())

        theirs = self.watch.time("whole refinement", "baseline", paper_way.refine, on_device, gzipped, embedding,
                                 *self.modules, OPTIONS)
        ours, *_ = self.watch.time("whole refinement", "ours", self.refine_side_by_side, probabilities, plain,
                                   images=self.side_by_side)
        self.note("whole refinement", np.nanmax(np.abs(theirs[1] - ours.estimated_dice)), theirs[0] != ours.mask)

        paper, *_ = self.watch.time(RECOMMENDED, "baseline", self.refine_side_by_side, probabilities, plain,
                                    images=self.side_by_side)
        recommended, *_ = self.watch.time(RECOMMENDED, "ours", self.refine_side_by_side, probabilities, plain,
                                          refine_all_calibrated, neutral_calibration(len(probabilities)),
                                          images=self.side_by_side)
        self.note(RECOMMENDED, np.nan, paper.mask != recommended.mask)

    def refine_side_by_side(self, probabilities: np.ndarray, embedding: Path,
                            refine: Callable[..., Iterator[Refined]] = refine_all,
                            options: RefinementOptions | Calibration = OPTIONS) -> list[Refined]:
        """As the stages refine many images."""
        images = ((probabilities, load_embedding(embedding, self.checkpoint)) for _ in range(self.side_by_side))
        return list(refine(images, self.decoder, options))

    def time(self, step: str, baseline: Callable, ours: Callable) -> tuple:
        """The results of both."""
        return self.watch.time(step, "baseline", baseline), self.watch.time(step, "ours", ours)

    def note(self, step: str, difference: float, changed: np.ndarray | bool = False) -> None:
        self.differences.setdefault(step, []).append((float(difference), int(np.count_nonzero(changed))))

    def steps(self) -> list[Step]:
        """All lines; differences are the largest, changed pixels the sum over all images."""
        return [self.watch.step(step, max(value for value, _ in images), sum(pixels for _, pixels in images))
                for step, images in self.differences.items()]


if __name__ == "__main__":
    run_stage(main, get_args_parser())
