"""Times the stages between the two trainings from disk to disk, and measures how much memory they need for how many images.

    python -m benchmarks.pipeline
    python -m benchmarks.pipeline --images 10086 --prompted 2

The images are the folder's, over and over under new names. In place of a trained U-Net stands one of random weights
whose answers are replaced by masks made from annotations. The paper's way works on the first images alone.

Reads   --image_folder (left out: benchmarks/inputs.py says which)
Writes  a temporary folder (--work_dir says where; 1.2 MB an image with the demo SAM, 4 MB with the others), and the
        table: --json FILE, and --record into benchmarks/RESULTS.md
"""  # noqa: E501 (its first line is the help's)
import argparse
import itertools
import re
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn

from benchmarks import paper_way
from benchmarks.inputs import add_input_arguments, choose_device, find_checkpoint, predictions
from benchmarks.measure import ReportOptions, Step, operations, report, speed
from segment_anything.embeddings import compute_embedding, embedding_path, load_embedding
from segment_anything.options import Sam
from segment_anything.refinement.refine import RefinementOptions
from segment_anything.registry import load_prompt_modules
from unet_training.checkpoint import Training
from unet_training.data import ImageDataset
from unet_training.models import TrainedModel
from unet_training.networks.u_net import UNet
from unet_training.pseudo_labels import PseudoLabels, Raw, SamRefined
from utils.cli import run_stage, stage_parser
from utils.datasets.annotated import AnnotatedImages, open_dataset
from utils.files import read_grey
from utils.mask_store import MaskStore, MaskWriter
from utils.memory import keep_freed_memory
from utils.options import add_options, options_from, positive_int
from utils.tracking.models import Model

BATCH = 16


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("benchmarks.pipeline", __doc__)
    add_input_arguments(parser)
    parser.set_defaults(images=100)
    parser.add_argument("--baseline_images", type=positive_int, default=3, help="how many the paper's way works on")
    parser.add_argument("--base_width", type=positive_int, default=8, help="channels of the U-Net's first level")
    parser.add_argument("--prompted", type=positive_int, metavar="N",
                        help="classes that an image shows, fewer for a shorter run (left out: all)")
    parser.add_argument("--work_dir", type=Path, help="where the temporary folder is made")
    add_options(parser, ReportOptions)
    return parser


def main(args: argparse.Namespace) -> list[Step]:
    """Returns the lines of the table."""
    device = choose_device(args.device)
    checkpoint = find_checkpoint(args.sam_type, args.sam_checkpoint)
    with tempfile.TemporaryDirectory(dir=args.work_dir) as name:
        data = copy_images(args.image_folder, args.images, Path(name))
        model = StandIn(len(data.description.labels), args.base_width, args.prompted, device)
        stems = data.unlabeled_stems(0, False, 0)
        ours = Ours(Sam(args.sam_type, checkpoint), data, model, device)
        measured = {stage: measure(getattr(ours, stage), stems) for stage in ("embeddings", "prediction", "refinement")}
        times = {stage: milliseconds for stage, (milliseconds, _) in measured.items()}
        steps = compare(ours, stems[:args.baseline_images], times)
    image = torch.zeros(1, 1, *data.description.input_size, device=device)
    network = speed(operations(model.u_net, image), measured["prediction"][0], device)
    memory = ", ".join(f"{stage} {megabytes:.0f} MB" for stage, (_, megabytes) in measured.items())
    prompted = f" --prompted {args.prompted}" if args.prompted else ""
    report(options_from(ReportOptions, args),
           f"pipeline --sam_type {args.sam_type} --images {args.images} --base_width {args.base_width}{prompted}",
           device,
           f"times per image; memory beyond what the process held before the stage, models included: {memory}; the "
           f"paper's way on {args.baseline_images} images; our prediction: {network}", steps)
    return steps


def copy_images(source: Path, count: int, folder: Path) -> AnnotatedImages:
    """A phantom data set of so many unlabeled images, links to those of `source`."""
    originals = sorted(source.glob("*.png"))
    data = open_dataset("phantom", folder)
    images = folder / "phantom" / data.description.image_folder
    images.mkdir(parents=True)
    for number in range(count):
        (images / f"copy_{number:05}.png").symlink_to(originals[number % len(originals)].resolve())
    return data


def measure(stage: Callable, stems: list[str]) -> tuple[float, float]:
    """Milliseconds per image, and megabytes of memory that the process took beyond what it held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before, start = peak_memory(), time.perf_counter()
    stage(stems)
    return 1e3 * (time.perf_counter() - start) / len(stems), peak_memory() - before


def peak_memory() -> float:
    """The most memory that the process has held, in megabytes."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3


class StandIn(nn.Module):
    """Computes as a U-Net does, and says what a trained one might, of equal images the same."""

    def __init__(self, classes: int, base_width: int, prompted: int | None, device: torch.device):
        super().__init__()
        self.u_net = UNet(classes, base_width, base_width).to(device).eval()
        answers = np.stack(list(itertools.islice(predictions(), 8)))
        if prompted:
            answers[:, :-prompted] = 0  # the last classes are those that all images show
        self.answers = torch.from_numpy(answers).logit(eps=1e-4).to(device)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.u_net(images)
        return self.answers[[zlib.crc32(image.cpu().numpy()) % len(self.answers) for image in images]]


class Ours:
    """The stages' own functions on all images."""

    def __init__(self, sam: Sam, data: AnnotatedImages, network: StandIn, device: torch.device):
        description = data.description
        training = Training(description.name, description.labels, description.input_size, 0, 1)
        record = Model("stand-in", {"num_train_samples": 0}, description.labels, (), "", 0, lambda: None)
        self.model = TrainedModel(record, network, training, data, device, BATCH)
        self.labels = SamRefined(sam, RefinementOptions())
        self.folder = data.data_dir

    def embeddings(self, stems: list[str]) -> None:
        self.labels.sam.embed_missing(self.model.data, stems, self.model.device)

    def prediction(self, stems: list[str]) -> None:
        self._write("raw", Raw(), stems)

    def refinement(self, stems: list[str]) -> None:
        self._write("refined", self.labels, stems)

    def _write(self, name: str, labels: PseudoLabels, stems: list[str]) -> None:
        with (writer := MaskWriter(self.folder / f"{name}.h5", self.model.data.description.labels, {})):
            writer.write_all(labels.compute(self.model, stems))


def compare(ours: Ours, stems: list[str], ours_ms: dict[str, float]) -> list[Step]:
    """The same by the paper's way, on a few images; times and differences."""
    model, chosen, folder = ours.model, ours.labels.sam, ours.folder
    device, network, identity = model.device, model.network, chosen.identity
    sam, preprocessing = chosen.load().to(device), chosen.preprocessing
    modules = [module.to(device) for module in load_prompt_modules(chosen.type_name, chosen.checkpoint).values()]
    images, theirs = ImageDataset(model.data, stems), {}

    def embed(stems: list[str]) -> None:
        for stem in stems:
            theirs[stem] = compute_embedding(sam, read_grey(model.data.image_path(stem)), preprocessing, identity)
            paper_way.save_embedding(folder / f"{stem}_gzip.h5", theirs[stem])

    def predict_one_by_one(_: list[str]) -> None:
        paper_way.predict(network, images, device, folder / "raw_gzip.h5")

    def refine(_: list[str]) -> None:
        with h5py.File(folder / "refined_gzip.h5", "w") as file, torch.inference_mode():
            for image, stem in (images[index] for index in range(len(images))):
                masks, _ = paper_way.refine(network(image[None].to(device)).sigmoid()[0], folder / f"{stem}_gzip.h5",
                                            theirs[stem], *modules, RefinementOptions())
                file.create_dataset(stem, data=masks, compression="gzip", compression_opts=9)

    baseline = {"embeddings": embed, "prediction": predict_one_by_one, "refinement": refine}
    keep_freed_memory(False)
    baseline_ms = {stage: measure(baseline[stage], stems)[0] for stage in ours_ms}
    stored = chosen.folder(model.data)
    loaded = {stem: load_embedding(embedding_path(stored, stem), identity).features["image"] for stem in stems}
    difference = max((loaded[stem] - theirs[stem].features["image"]).abs().max().item() for stem in stems)
    labels = model.data.description.labels
    changed = {stage: count_changed_pixels(folder / f"{name}_gzip.h5", MaskStore(folder / f"{name}.h5", labels), stems)
               for stage, name in (("prediction", "raw"), ("refinement", "refined"))}
    return [Step(stage, baseline_ms[stage], ours_ms[stage], difference if stage == "embeddings" else 0,
                 changed.get(stage, 0)) for stage in ours_ms]


def count_changed_pixels(theirs: Path, ours: MaskStore, stems: list[str]) -> int:
    with h5py.File(theirs) as file:
        return sum(int(np.count_nonzero(file[stem][()] != ours.mask(stem))) for stem in stems)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
