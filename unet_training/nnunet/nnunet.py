"""nnU-Net on the labeled images: its data sets, its commands, its predictions as masks (paper, section 7).

    <data_dir>/<dataset>/nnunet/n<N>_<H>x<W>_seed<seed>/nnunet_<encoding>[_<epochs>x<iterations>]/
        export.json                       tells where the data sets came from; there once they are complete
        raw/, preprocessed/, results/     nnU-Net's own folders; one data set, or with `groups` one for each group
        trained_<number>                  there once the training on a data set is complete

is where it trains. What is left of it is a model, a ZIP archive of export.json and what prediction needs of results/.
Images are exported at the network's input size, at which this project keeps all masks, so masks come back exactly.
"""
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unet_training.nnunet.label_tables import ENCODINGS, decode, encode
from utils.datasets.annotated import AnnotatedImages, read_scaled
from utils.errors import InputError
from utils.files import atomic_path, read_grey, write_png
from utils.overlap import batched

RECORD = "export.json"
CHECKPOINT = "checkpoint_final.pth"
FOR_PREDICTION = ("network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes")
OF_ITS_LOG = [np._core.multiarray.scalar, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i8"))]
EPOCHS, ITERATIONS = 1000, 250  # nnU-Net's own
IMAGES_AT_ONCE = 100  # so that an interrupted prediction loses little
TRAINERS = Path(__file__).parent / "trainer"
PROCESSES, PREDICTING = (str(min(own, os.cpu_count() or 1)) for own in (8, 3))  # nnU-Net's own, on fewer cores fewer


@dataclass(frozen=True)
class NNUNet:
    """nnU-Net in the configuration 2d on all labeled images, without cross-validation.

    folder: with nnU-Net's own ones; epochs, iterations: length of a training and of an epoch
    """

    folder: Path
    data: AnnotatedImages
    encoding: str
    epochs: int
    iterations: int
    device: torch.device

    def train(self, stems: list[str]) -> None:
        """Exports these labeled images and trains on them, as far as that is missing.

        An interrupted training goes on from nnU-Net's last checkpoint, of which it writes one in 50 epochs.

        Raises:
            InputError: nnU-Net isn't installed, or fails; the folder was made from other images or labels.
        """
        for number in range(1, len(self.export(stems)) + 1):
            finished = self.folder / f"trained_{number}"
            if not finished.exists():
                self._run("nnUNetv2_plan_and_preprocess", "-d", number, "-c", "2d", "-np", PROCESSES, "-npfp",
                          PROCESSES, "--clean")
                self._run("nnUNetv2_train", number, "2d", "all", *self._how(), "--c")
                finished.touch()

    def pack(self, archive: Path) -> None:
        """Writes what `unpack` reads, once the training is complete."""
        results = self.folder / "results"
        with zipfile.ZipFile(archive, "w") as file:
            for path in (self.folder / RECORD, *results.rglob("dataset.json"), *results.rglob("plans.json")):
                file.write(path, path.relative_to(self.folder))
            for path in results.rglob(CHECKPOINT):
                with torch.serialization.safe_globals(OF_ITS_LOG):
                    state = torch.load(path, map_location="cpu", weights_only=True)
                with file.open(str(path.relative_to(self.folder)), "w", force_zip64=True) as entry:
                    torch.save({name: value for name, value in state.items() if name in FOR_PREDICTION}, entry)

    def predict(self, stems: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (stem, masks), bool, (C, H, W) at the input size. Raises InputError as `train`."""
        tables = _tables(json.loads((self.folder / RECORD).read_text(encoding="utf-8")))
        for some in batched(stems, IMAGES_AT_ONCE):
            with tempfile.TemporaryDirectory() as scratch:
                yield from self._predict(some, tables, Path(scratch))

    def _predict(self, stems: Sequence[str], tables: Sequence[np.ndarray],
                 scratch: Path) -> Iterator[tuple[str, np.ndarray]]:
        write_images(scratch / "images", self.data, stems)
        folders = [scratch / str(number) for number in range(1, len(tables) + 1)]
        for number, folder in enumerate(folders, 1):
            self._run("nnUNetv2_predict", "-i", scratch / "images", "-o", folder, "-d", number, "-c", "2d", "-f", "all",
                      *self._how())
        for stem in stems:
            yield stem, np.any([decode(read_grey(folder / f"{stem}.png"), table)
                                for folder, table in zip(folders, tables, strict=True)], axis=0)

    def export(self, stems: list[str]) -> list[np.ndarray]:
        """Writes the data sets if they aren't there, and returns their tables (label_tables.py)."""
        record, labels = self.folder / RECORD, list(self.data.description.labels)
        origin = {"labels": labels, "stems": stems, "encoding": self.encoding, "epochs": self.epochs,
                  "iterations": self.iterations}
        if record.exists():
            known = json.loads(record.read_text(encoding="utf-8"))
            if {**known, **origin} != known:
                raise InputError(f"{record}: nnU-Net was trained on other labeled images or labels than these; move "
                                 "its folder away to start anew")
            return _tables(known)
        masks = [self.data.mask(stem) for stem in stems]
        tables = [table for table in ENCODINGS[self.encoding](masks) if len(table) > 1]
        if not tables:
            raise InputError(f"{self.data.folder}: no mask of the {len(masks)} labeled images shows a label, from "
                             "which nnU-Net can't learn; take more labeled images")
        shutil.rmtree(self.folder, ignore_errors=True)
        for number, table in enumerate(tables, 1):
            folder = self.folder / "raw" / f"Dataset{number:03}_{self.encoding}"
            write_images(folder / "imagesTr", self.data, stems)
            for stem, mask in zip(stems, masks, strict=True):
                write_png(folder / "labelsTr" / f"{stem}.png", encode(mask, table))
            write_json(folder / "dataset.json", dataset_json(table, labels, len(masks)))
        write_json(record, {**origin, "tables": [table.astype(int).tolist() for table in tables]})
        return tables

    def _how(self) -> tuple[str, ...]:
        own_length = (self.epochs, self.iterations) == (EPOCHS, ITERATIONS)
        return "-tr", "nnUNetTrainer" if own_length else "ShorterTrainer", "-device", self.device.type

    def _run(self, name: str, *arguments: object) -> None:
        command = [find_command(name), *map(str, arguments)]
        print(" ".join([name, *command[1:]]), flush=True)
        if code := subprocess.run(command, env=self._environment(), check=False).returncode:
            raise InputError(f"{name} failed with exit code {code}; what it says stands above")

    def _environment(self) -> dict[str, str]:
        names = ("raw", "preprocessed", "results")
        folders = {f"nnUNet_{name}": str((self.folder / name).absolute()) for name in names}
        processes = {"nnUNet_def_n_proc": PROCESSES, "nnUNet_npp": PREDICTING, "nnUNet_nps": PREDICTING}
        environment = {**processes, **os.environ, **folders, "nnUNet_extTrainer": str(TRAINERS),
                       "NNUNET_EPOCHS": str(self.epochs), "NNUNET_ITERATIONS": str(self.iterations)}
        if self.device.type == "cuda":  # nnU-Net takes the first one that it sees
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            index = self.device.index or 0
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[index] if visible else str(index)
        return environment


@contextmanager
def unpack(archive: Path, data: AnnotatedImages, device: torch.device) -> Iterator[NNUNet]:
    """The nnU-Net that `NNUNet.pack` wrote, for predictions on a data set of the same labels.

    nnU-Net unpickles its checkpoints, so they are first seen to hold nothing that could do harm.

    Raises:
        InputError: the file is no such archive, or its labels are others.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            zipfile.ZipFile(archive).extractall(folder)
            known = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            for checkpoint in folder.rglob(CHECKPOINT):
                torch.load(checkpoint, map_location="cpu", weights_only=True)
        except (OSError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            raise InputError(f"{archive}: holds no nnU-Net ({type(error).__name__}); give the id that "
                             "scripts.train_nnunet printed") from None
        if known["labels"] != list(data.description.labels):
            raise InputError(f"{archive}: the labels of this nnU-Net are not those of {data.folder}; use models and "
                             "data of the same data set")
        yield NNUNet(folder, data, known["encoding"], known["epochs"], known["iterations"], device)


def _tables(record: dict) -> list[np.ndarray]:
    return [np.array(table, dtype=bool) for table in record["tables"]]


def find_command(name: str = "nnUNetv2_train") -> str:
    """nnU-Net's command of that name, beside the running Python. Raises InputError if it isn't installed."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise InputError(f"{path}: no such command; install nnU-Net with `pip install -r requirements_nnunet.txt`")
    return str(path)


def write_images(folder: Path, data: AnnotatedImages, stems: Sequence[str]) -> None:
    """Images as nnU-Net wants them: grey, 8 bit, at the network's input size."""
    for stem in stems:
        grey = 255 * read_scaled(data.image_path(stem), data.description)
        write_png(folder / f"{stem}_0000.png", np.rint(grey).astype(np.uint8))


def dataset_json(table: np.ndarray, labels: Sequence[str], num_images: int) -> dict:
    """What nnU-Net must know of a data set. Names carry the class's number, as nnU-Net gives some names a meaning."""
    classes = {f"{number} {' + '.join(np.array(labels)[row])}": number for number, row in enumerate(table) if number}
    return {"channel_names": {"0": "radiograph"}, "numTraining": num_images, "file_ending": ".png",
            "labels": {"background": 0, **classes}}


def write_json(path: Path, content: dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
