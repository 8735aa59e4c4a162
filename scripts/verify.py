"""Follows an artefact back to the images that it was made of, and says what has changed since.

    python -m scripts.verify data/seg_masks/ID/raw.h5
    python -m scripts.verify ID                                  # a model
    python -m scripts.verify results/demo_seed42                 # a pipeline, a study, an evaluation

Exit code 0 if everything is as it was, else 1. Another version or commit than that of today is a note, no change.

Reads   masks, an embedding, a model by its id, or a folder of results; the models, masks and images that they name
Writes  nothing, but what it finds of the images' digests goes to <derived_dir>/<dataset>/digests.json
"""
import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segment_anything.checkpoints import CheckpointId
from segment_anything.embeddings import load_embedding
from segment_anything.registry import SAM_TYPES, default_checkpoint
from unet_training.checkpoint import read_origin
from unet_training.training_stage import Images, data_parameters
from utils import hdf5
from utils.cli import run_stage, stage_parser
from utils.datasets.annotated import AnnotatedImages, open_dataset
from utils.digests import digest_file
from utils.errors import InputError
from utils.mask_store import GROUP, MaskStore
from utils.names import name_some
from utils.paths import DATA, mask_file
from utils.provenance import describe_run
from utils.records import read_record
from utils.tracking.models import fetch_model

REMEDY = "restore it from a copy, or make it again"


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.verify", __doc__)
    parser.add_argument("artefact", help="a file of masks, an embedding, the id of a model, or a folder of results")
    parser.add_argument("--data_dir", type=Path, help="folder of all data sets (left out: the one that it was made in)")
    return parser


def main(args: argparse.Namespace) -> None:
    chain = Chain(args.data_dir)
    chain.verify(args.artefact)
    print(f"{chain.changes} of {chain.checked} links have changed" if chain.changes else
          f"nothing has changed in {chain.checked} links")
    if chain.changes:
        sys.exit(1)


class Chain:
    """What an artefact was made of, and what that was made of. Prints each link once."""

    def __init__(self, data_dir: Path | None):
        self.changes = self.checked = 0
        self._data_dir = data_dir
        self._seen: set[str] = set()

    def verify(self, artefact: str) -> None:
        """Raises InputError for what is no artefact."""
        path = Path(artefact)
        records = {"evaluation.json": self._evaluation, "results.json": self._results, "manifest.json": self._study,
                   "search.json": self._search}
        if path.is_dir():
            path = next((path / name for name in (*records, "model.json") if (path / name).is_file()), path)
        if path.name in records:
            records[path.name](path)
        elif path.suffix == ".h5" and path.is_file():
            self._hdf5(path)
        elif (path.parent / "model.json").is_file():
            self._model(path.parent.name)
        elif path.exists():
            raise InputError(f"{path}: is no artefact of this project; name a file of masks, an embedding, a model, or "
                             "a folder of results")
        else:
            self._model(artefact)

    def _hdf5(self, path: Path) -> None:
        try:
            with hdf5.open_hdf5(path, REMEDY) as file:
                labels = list(json.loads(file.attrs["labels"])) if GROUP in file else None
        except InputError as error:
            self._say(str(path), str(error))
            return
        if labels is None:
            self._embedding(path)
        else:
            self._masks(path, labels)

    def _masks(self, path: Path, labels: list[str]) -> None:
        store = MaskStore(path, labels)
        self._say(str(path))
        arguments = self._note_runs(path, *store.runs)
        if "dataset" in store.attributes:
            data = self._open(store.attributes["dataset"], arguments)
            self._compare(f"images of {path.name}", store.images, data, [], list(store.images))
        if "refine_params" in store.attributes:
            self._checkpoint(json.loads(store.attributes["refine_params"]), arguments)
        if "clearml_model_id" in store.attributes:
            self._model(store.attributes["clearml_model_id"])

    def _embedding(self, path: Path) -> None:
        origin = hdf5.read_origin(path)
        try:
            load_embedding(path, CheckpointId(origin.get("checkpoint", ""), origin.get("checkpoint_sha256", "")))
        except InputError as error:
            self._say(str(path), str(error))
            return
        self._say(str(path))
        with hdf5.open_hdf5(path, REMEDY) as file:
            arguments = self._note_runs(path, json.loads(file.attrs["provenance"]))
        data = self._open(arguments["dataset"], arguments)
        image = data.image_path(path.stem)
        same = image.is_file() and digest_file(image) == origin["image"]
        self._say(str(image), "" if same else "is another image by now, or gone")
        self._checkpoint({"sam_type": data.description.sam_type, "sha256": origin["checkpoint_sha256"]}, arguments)

    def _checkpoint(self, made_with: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        sam_type = arguments.get("sam_type") or made_with.get("sam_type")
        given = arguments.get("sam_checkpoint")
        path = Path(given) if given else default_checkpoint(sam_type, Path(arguments.get("data_dir", DATA)))
        if sam_type in SAM_TYPES and path.is_file():
            same = digest_file(path) == made_with["sha256"]
            self._say(str(path), "" if same else "isn't the checkpoint that was used")
        else:
            print(f"note: {path}: SAM's weights aren't here")

    def _model(self, model_id: str) -> None:
        if model_id in self._seen:
            return
        self._seen.add(model_id)
        try:
            model = fetch_model(model_id)
            weights = model.weights
            origin = read_origin(weights) if weights.suffix == ".pt" else {}
        except InputError as error:
            self._say(f"model {model_id}", str(error))
            return
        self._say(f"model {model_id}")
        if not origin:
            print(f"note: model {model_id} doesn't say of which images it was made")
        else:
            arguments = self._note_runs(weights, origin)
            labeled = [stem for stem, image in origin["images"].items() if image.count(" ") == 2]
            unlabeled = [stem for stem in origin["images"] if stem not in set(labeled)]
            if origin["images"]:  # an ensemble was made of networks alone
                data = self._open(model.parameters["dataset"], arguments)
                self._compare(f"images of model {model_id}", origin["images"], data, labeled, unlabeled)
        for other in origin.get("models", []):
            self._model(other)

    def _evaluation(self, path: Path) -> None:
        known = read_record(path, dict[str, Any])
        wrong = [name for name, digest in known["tables"].items()
                 if digest not in {digest_file(table) for table in path.parent.glob("*.csv")}]
        self._say(str(path.parent), f"its table {wrong[0]}.csv is another by now" if wrong else "")
        arguments, measured = self._note_runs(path, known["run"]), known["measured"]
        data = self._open(measured["dataset"], arguments)
        self._compare(f"images of {path.parent.name}", measured["images"], data, list(measured["images"]), [])
        model_id, variant = measured["clearml_model_id"], path.parent.name.partition("_")[2]
        self._model(model_id)
        masks = mask_file(data.derived_dir, model_id, variant)
        if masks.is_file():
            self._hdf5(masks)

    def _results(self, path: Path) -> None:
        for folder in read_record(path, dict[str, Any])["evaluations"]:
            self._evaluation(path.parent / folder / "evaluation.json")

    def _study(self, path: Path) -> None:
        manifest = read_record(path, dict[str, Any])
        arguments = manifest["arguments"]
        data = self._open(arguments["dataset"], arguments)
        tested = data_parameters(data, data.stems("test"))["data_sha256"]
        for result in manifest["results"]:
            self._note_runs(path, result["run"])
            self._say(f"test images of {result['method']}, n = {result['n']}, seed {result['seed']}",
                      "" if result["test_sha256"] == tested else "are others by now")
            self._model(result["model_id"])

    def _search(self, path: Path) -> None:
        known = read_record(path, dict[str, Any])
        inputs, arguments = known["inputs"], self._note_runs(path, known["run"])
        data = self._open(inputs["dataset"], arguments)
        same = data_parameters(data, data.stems("val"))["data_sha256"] == inputs["data_sha256"]
        self._say(f"validation images of {path.parent}", "" if same else "are others by now")
        self._model(path.parent.parent.name)

    def _open(self, dataset: str, arguments: Mapping[str, Any]) -> AnnotatedImages:
        data_dir = self._data_dir or Path(arguments.get("data_dir", DATA))
        data = open_dataset(dataset, data_dir)
        data.derived_dir = Path(arguments.get("derived_dir") or data_dir)
        return data

    def _compare(self, what: str, recorded: Mapping[str, str], data: AnnotatedImages, labeled: list[str],
                 unlabeled: list[str]) -> None:
        """Recorded origins of images with those of today."""
        there = {stem for stem in recorded if data.image_path(stem).is_file()}
        now = Images(data, [stem for stem in labeled if stem in there and data.has_ground_truth(stem)],
                     [stem for stem in unlabeled if stem in there]).origins
        changed = [stem for stem, origin in recorded.items() if now.get(stem) != origin]
        gone = [stem for stem in changed if stem not in now]
        told = f"{len(changed)} of {len(recorded)} are others by now ({name_some(changed)})" if changed else ""
        self._say(f"{len(recorded)} {what} in {data.folder}", told + (f", {len(gone)} of them gone" if gone else ""))

    def _note_runs(self, what: Path, *runs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Tells how and with what something was made, as far as that isn't what is here; returns the arguments."""
        today = describe_run()
        for run in runs:
            print(f"note: {what} was made by `{run['command']}`")
            others = [f"{name} {version}, here {today['versions'].get(name)}" for name, version in
                      run["versions"].items() if today["versions"].get(name) != version]
            if run["commit"] != today["commit"]:
                others.append(f"commit {run['commit'][:12]}, here {today['commit'][:12]}")
            if others:
                print(f"note: with {'; '.join(others)}")
        return runs[-1]["arguments"] if runs else {}

    def _say(self, link: str, change: str = "") -> None:
        self.checked += 1
        self.changes += bool(change)
        print(f"changed: {change if link in change else f'{link}: {change}'}" if change else f"unchanged: {link}")


if __name__ == "__main__":
    run_stage(main, get_args_parser())
