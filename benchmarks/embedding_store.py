"""Times writing and reading image embeddings: the paper's gzip-9 HDF5, read once for each prompt, and ours.

    python -m benchmarks.embedding_store
    python -m benchmarks.embedding_store --sam_type vit_t --sam_checkpoint mobile_sam.pt

Reading stands for the refinement of one image with 17 classes and two passes. Changed pixels are those of the refined
masks. The last line is what `--embeddings none` comes to: our reading in the baseline's place, our encoding in ours.

Reads   --image_folder (left out: benchmarks/inputs.py says which); annotations_train.xml
Writes  nothing, or the table: --json FILE, and --record into benchmarks/RESULTS.md
"""
import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import paper_way
from benchmarks.inputs import add_input_arguments, choose_device, describe, find_checkpoint, list_images, predictions
from benchmarks.measure import ReportOptions, Step, Stopwatch, report
from segment_anything.embeddings import compute_embedding, load_embedding, save_embedding
from segment_anything.fast.image_encoder import accelerate
from segment_anything.refinement.refine import RefinementOptions, refine
from segment_anything.registry import get_sam_type, load_sam
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from utils.cli import run_stage, stage_parser
from utils.files import read_grey
from utils.options import add_options, options_from

READS = 34  # 17 classes, two passes
NO_STORE = "encode in the place of reading, float32"


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("benchmarks.embedding_store", __doc__)
    add_input_arguments(parser)
    add_options(parser, ReportOptions)
    return parser


def main(args: argparse.Namespace) -> list[Step]:
    """Returns the lines of the table."""
    device, checkpoint = choose_device(args.device), find_checkpoint(args.sam_type, args.sam_checkpoint)
    paths = list_images(args.image_folder, args.images)
    sam, preprocessing = load_sam(args.sam_type, checkpoint).to(device), get_sam_type(args.sam_type).preprocessing
    accelerate(sam.image_encoder)
    decoder, watch = StoredEmbeddingDecoder.load(args.sam_type, checkpoint, device), Stopwatch(device)
    differences: dict[str, list[tuple[float, int]]] = {}
    pixels = 0
    with tempfile.TemporaryDirectory() as name:
        gzipped, ours = Path(name) / "gzip.h5", Path(name) / "ours.h5"
        for path, probabilities in zip(paths, predictions(), strict=False):
            embedding = compute_embedding(sam, read_grey(path), preprocessing, decoder.checkpoint)
            exact = refine(probabilities, embedding, decoder, RefinementOptions()).mask
            pixels += exact.size
            for dtype in (np.float32, np.float16):
                write, read = f"write, {dtype.__name__}", f"read for one refinement, {dtype.__name__}"
                watch.time(write, "baseline", paper_way.save_embedding, gzipped, embedding)
                watch.time(write, "ours", save_embedding, ours, embedding, dtype)
                watch.time(read, "baseline", lambda: [paper_way.read_embedding(gzipped) for _ in range(READS)])
                loaded = watch.time(read, "ours", load_embedding, ours, decoder.checkpoint)
                difference = (loaded.features["image"] - embedding.features["image"]).abs().max().item()
                masks = refine(probabilities, loaded, decoder, RefinementOptions()).mask
                for step in (write, read):
                    differences.setdefault(step, []).append((difference, int((masks != exact).sum())))
                sizes = gzipped.stat().st_size, ours.stat().st_size
                if dtype == np.float32:
                    watch.time(NO_STORE, "baseline", load_embedding, ours, decoder.checkpoint)
                    watch.time(NO_STORE, "ours", compute_embedding, sam, read_grey(path), preprocessing,
                               decoder.checkpoint)
    steps = [watch.step(step, max(value for value, _ in images), sum(pixels for _, pixels in images))
             for step, images in differences.items()]
    steps.append(watch.step(NO_STORE, 0, 0))
    report(options_from(ReportOptions, args), f"embedding_store --sam_type {args.sam_type}", device,
           f"{describe(paths)}; {pixels} mask pixels; bytes of the last image: gzip-9 {sizes[0]}, float16 {sizes[1]}",
           steps)
    return steps


if __name__ == "__main__":
    run_stage(main, get_args_parser())
