"""nnU-Net on the labeled images: its data sets, its commands, its predictions as masks.

    <data_dir>/<dataset>/nnunet/n<N>_<H>x<W>_seed<seed>/nnunet_<encoding>[_<epochs>x<iterations>]/
        export.json                       tells where the data sets came from; there once they are complete
        raw/, preprocessed/, results/     nnU-Net's own folders; a data set for each table of label_tables.py
        trained_<number>                  there once the training on a data set is complete

is where it trains. What is left of it is a model, a ZIP archive of export.json and of what a prediction needs of
results/.
Images are exported at the network's input size, at which this project keeps all masks, so masks come back exactly.
"""
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from unet_training.nnunet.label_tables import ENCODINGS, Encoding, decode, decode_regions, encode, list_regions
from unet_training.nnunet.trusted import check_plans
from utils.datasets.annotated import AnnotatedImages, read_scaled
from utils.errors import InputError
from utils.files import atomic_path, explain_damage, read_grey, write_png
from utils.options import option, positive_int
from utils.overlap import batched
from utils.tracking.models import Model

RECORD = "export.json"
CHECKPOINT = "fold_all/checkpoint_final.pth"
FOR_PREDICTION = ("network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes")
OF_ITS_LOG = [np._core.multiarray.scalar, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i8"))]
EPOCHS, ITERATIONS = 1000, 250  # nnU-Net's own
IMAGES_AT_ONCE = 100  # so that an interrupted prediction loses little
TRAINERS = Path(__file__).parent / "trainer"
PROCESSES, PREDICTING = (str(min(own, os.cpu_count() or 1)) for own in (8, 3))  # nnU-Net's own, on fewer cores fewer


@dataclass(frozen=True)
class NNUNetOptions:
    """What an nnU-Net is trained with, beside its images."""

    nnunet_encoding: str = option(
        "combinations", "labels that overlap: a class for each combination, an nnU-Net for each group without, or an "
        "output for each label, learned with Dice and BCE, or as the paper's with BCE alone", choices=tuple(ENCODINGS))
    nnunet_epochs: int = option(EPOCHS, "epochs of nnU-Net", type=positive_int)
    nnunet_iterations: int = option(ITERATIONS, "batches in one of them", type=positive_int)

    def __post_init__(self) -> None:
        if self.nnunet_encoding not in ENCODINGS:
            raise InputError(f"nnunet_encoding {self.nnunet_encoding!r}: is none of {', '.join(ENCODINGS)}")
        for name in ("nnunet_epochs", "nnunet_iterations"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise InputError(f"{name} {value!r}: is not a positive number")

    @classmethod
    def of(cls, model: Model) -> "NNUNetOptions":
        """Those that a tracked model was trained with. Raises InputError: it is no nnU-Net."""
        if model.parameters.get("stage") != "nnunet":
            raise InputError(f"model id {model.id}: is no nnU-Net; give the id that scripts.train_nnunet printed")
        return cls(**{field.name: model.parameters[field.name] for field in fields(cls)})

    @property
    def variant(self) -> str:
        """Names nnU-Net's masks, and the length of its training unless that is nnU-Net's own."""
        length = "" if self._own_length else f"_{self.nnunet_epochs}x{self.nnunet_iterations}"
        return f"nnunet_{self.nnunet_encoding}{length}"

    @property
    def encoding(self) -> Encoding:
        return ENCODINGS[self.nnunet_encoding]

    @property
    def trainer(self) -> str:
        """nnU-Net's own, or one of trainer/trainers.py."""
        return self.encoding.trainer or ("nnUNetTrainer" if self._own_length else "ShorterTrainer")

    def dataset_name(self, number: int) -> str:
        """nnU-Net's name of the data set of that number, from 1."""
        return f"Dataset{number:03}_{self.nnunet_encoding}"

    def model_folder(self, number: int) -> PurePosixPath:
        """Where nnU-Net keeps what it learned from that data set, inside `NNUNet.folder`."""
        return PurePosixPath("results", self.dataset_name(number), f"{self.trainer}__nnUNetPlans__2d")

    @property
    def _own_length(self) -> bool:
        return (self.nnunet_epochs, self.nnunet_iterations) == (EPOCHS, ITERATIONS)


@dataclass(frozen=True)
class NNUNet:
    """nnU-Net in the configuration 2d on all labeled images, without cross-validation; `folder` holds nnU-Net's own."""

    folder: Path
    data: AnnotatedImages
    options: NNUNetOptions
    device: torch.device

    def train(self, stems: list[str]) -> None:
        """Exports these labeled images and trains on them, as far as that is missing.

        An interrupted training resumes at nnU-Net's last checkpoint, of which it writes one in 50 epochs.

        Raises:
            InputError: nnU-Net isn't installed, or fails; the folder was made from other images or labels.
        """
        for number in range(1, len(self.export(stems)) + 1):
            finished = self.folder / f"trained_{number}"
            if not finished.exists():
                self._run("nnUNetv2_plan_and_preprocess", "-d", number, "-c", "2d", "-np", PROCESSES, "-npfp",
                          PROCESSES, "--clean")
                self._run("nnUNetv2_train", number, "2d", "all", *self._training_arguments(), "--c")
                finished.touch()

    def pack(self, archive: Path) -> None:
        """Writes what `unpack` reads, once the training is complete."""
        tables = _read_tables(_read_json(self.folder / RECORD))
        with zipfile.ZipFile(archive, "w") as file:
            file.write(self.folder / RECORD, RECORD)
            for number in range(1, len(tables) + 1):
                model = self.options.model_folder(number)
                for name in ("dataset.json", "plans.json"):
                    file.write(self.folder / model / name, str(model / name))
                with torch.serialization.safe_globals(OF_ITS_LOG):
                    state = torch.load(self.folder / model / CHECKPOINT, map_location="cpu", weights_only=True)
                with file.open(str(model / CHECKPOINT), "w", force_zip64=True) as entry:
                    torch.save({name: value for name, value in state.items() if name in FOR_PREDICTION}, entry)

    def predict(self, stems: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (stem, masks), bool, (C, H, W) at the input size. Raises InputError as `train`."""
        tables = _read_tables(_read_json(self.folder / RECORD))
        for batch in batched(stems, IMAGES_AT_ONCE):
            with tempfile.TemporaryDirectory() as scratch:
                yield from self._predict(batch, tables, Path(scratch))

    def _predict(self, stems: Sequence[str], tables: Sequence[np.ndarray],
                 scratch: Path) -> Iterator[tuple[str, np.ndarray]]:
        write_images(scratch / "images", self.data, stems)
        folders = [scratch / str(number) for number in range(1, len(tables) + 1)]
        for number, folder in enumerate(folders, 1):
            self._run("nnUNetv2_predict", "-i", scratch / "images", "-o", folder, "-d", number, "-c", "2d", "-f", "all",
                      *self._training_arguments(), *(["--save_probabilities"] if self.options.encoding.regions else []))
        read = _read_regions if self.options.encoding.regions else _read_classes
        for stem in stems:
            masks = [read(folder, stem, table) for folder, table in zip(folders, tables, strict=True)]
            yield stem, np.any(masks, axis=0)

    def export(self, stems: list[str]) -> list[np.ndarray]:
        """Writes the data sets if they aren't there, and returns their tables (label_tables.py)."""
        record, labels = self.folder / RECORD, list(self.data.description.labels)
        origin = {"labels": labels, "stems": stems, "encoding": self.options.nnunet_encoding,
                  "epochs": self.options.nnunet_epochs, "iterations": self.options.nnunet_iterations}
        if record.exists():
            with explain_damage(record, "a damaged record", f"move {self.folder} away to start anew"):
                known = _read_json(record)
                tables = _read_tables(known)
            if {**known, **origin} != known:
                raise InputError(f"{record}: nnU-Net was trained on other labeled images or labels than these; move "
                                 "its folder away to start anew")
            return tables
        masks = [self.data.mask(stem) for stem in stems]
        tables = [table for table in self.options.encoding.make_tables(masks) if len(table) > 1]
        if not tables:
            raise InputError(f"{self.data.folder}: no mask of the {len(masks)} labeled images shows a label, from "
                             "which nnU-Net can't learn; take more labeled images")
        shutil.rmtree(self.folder, ignore_errors=True)
        for number, table in enumerate(tables, 1):
            folder = self.folder / "raw" / self.options.dataset_name(number)
            write_images(folder / "imagesTr", self.data, stems)
            for stem, mask in zip(stems, masks, strict=True):
                write_png(folder / "labelsTr" / f"{stem}.png", encode(mask, table))
            description = describe_dataset(table, labels, len(masks), self.options.encoding.regions)
            write_json(folder / "dataset.json", description)
        write_json(record, {**origin, "tables": [table.astype(int).tolist() for table in tables]})
        return tables

    def _training_arguments(self) -> tuple[str, ...]:
        return "-tr", self.options.trainer, "-device", self.device.type

    def _run(self, name: str, *arguments: object) -> None:
        command = [find_command(name), *map(str, arguments)]
        print(" ".join([name, *command[1:]]), flush=True)
        if code := subprocess.run(command, env=self._make_environment(), check=False).returncode:
            raise InputError(f"{name} failed with exit code {code}; what it says stands above")

    def _make_environment(self) -> dict[str, str]:
        names = ("raw", "preprocessed", "results")
        folders = {f"nnUNet_{name}": str((self.folder / name).absolute()) for name in names}
        processes = {"nnUNet_def_n_proc": PROCESSES, "nnUNet_npp": PREDICTING, "nnUNet_nps": PREDICTING}
        environment = {**processes, **os.environ, **folders, "nnUNet_extTrainer": str(TRAINERS),
                       "NNUNET_EPOCHS": str(self.options.nnunet_epochs),
                       "NNUNET_ITERATIONS": str(self.options.nnunet_iterations)}
        if self.device.type == "cuda":  # nnU-Net takes the first one that it sees
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            index = self.device.index or 0
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[index] if visible else str(index)
        return environment


@contextmanager
def unpack(archive: Path, data: AnnotatedImages, device: torch.device) -> Iterator[NNUNet]:
    """The nnU-Net that `NNUNet.pack` wrote, for predictions on a data set of the same labels.

    nnU-Net unpickles checkpoints, and calls what its plans name: it gets neither as they are, but written anew from
    what was read of them without harm.

    Raises:
        InputError: the file is no such archive, it might run something, or its labels are others.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            record, options = _extract(archive, folder)
        except InputError as error:
            raise InputError(f"{archive}: {error}") from None
        except Exception as error:  # whatever the bytes of any file lead to
            raise InputError(f"{archive}: holds no nnU-Net ({type(error).__name__}); give the id that "
                             "scripts.train_nnunet printed") from error
        if record["labels"] != list(data.description.labels):
            raise InputError(f"{archive}: the labels of this nnU-Net are not those of {data.folder}; use models and "
                             "data of the same data set")
        yield NNUNet(folder, data, options, device)


def _extract(archive: Path, folder: Path) -> tuple[dict, NNUNetOptions]:
    """Writes what an archive holds, checked, and returns its record and options. Raises whatever its bytes lead to."""
    with zipfile.ZipFile(archive) as file:
        record = json.loads(file.read(RECORD))
        options = NNUNetOptions(record["encoding"], record["epochs"], record["iterations"])
        tables = _read_tables(record)
        models = [options.model_folder(number) for number in range(1, len(tables) + 1)]
        known = [str(model / name) for model in models for name in ("dataset.json", "plans.json", CHECKPOINT)]
        if strangers := sorted(set(file.namelist()) - {RECORD, *known}):
            raise InputError(f"holds {strangers[0]!r}, which is no part of an nnU-Net; use archives that "
                             "scripts.train_nnunet made")
        write_json(folder / RECORD, record)
        for number, (model, table) in enumerate(zip(models, tables, strict=True), 1):
            description = describe_dataset(table, record["labels"], len(record["stems"]), options.encoding.regions)
            plans = json.loads(file.read(str(model / "plans.json")))
            check_plans(plans, options.dataset_name(number))
            state = torch.load(io.BytesIO(file.read(str(model / CHECKPOINT))), map_location="cpu", weights_only=True)
            if (state["trainer_name"], state["init_args"]["configuration"]) != (options.trainer, "2d"):
                raise InputError(f"its checkpoint is for the trainer {state['trainer_name']!r}, not for "
                                 f"{options.trainer}; use archives that scripts.train_nnunet made")
            (folder / model / CHECKPOINT).parent.mkdir(parents=True)
            write_json(folder / model / "dataset.json", description)
            write_json(folder / model / "plans.json", plans)
            torch.save(state, folder / model / CHECKPOINT)
    return record, options


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_tables(record: dict) -> list[np.ndarray]:
    """The tables of an export.json, each bool, (K + 1, C). Raises ValueError if they aren't of its labels."""
    tables = [np.array(table, dtype=bool) for table in record["tables"]]
    if not all(table.ndim == 2 and table.shape[1] == len(record["labels"]) for table in tables):
        raise ValueError("tables that are not of the labels")
    return tables


def _read_classes(folder: Path, stem: str, table: np.ndarray) -> np.ndarray:
    """The mask of a predicted label map, bool, (C, H, W)."""
    return decode(read_grey(folder / f"{stem}.png"), table)


def _read_regions(folder: Path, stem: str, table: np.ndarray) -> np.ndarray:
    """The mask of predicted probabilities, bool, (C, H, W). In nnU-Net's label map of regions only one of them is left.

    nnU-Net keeps them as float32, (R, 1, H, W), of the whole image as it was given.
    """
    with np.load(folder / f"{stem}.npz") as file:
        return decode_regions(file["probabilities"][:, 0], table)


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


def describe_dataset(table: np.ndarray, labels: Sequence[str], num_images: int, regions: bool) -> dict:
    """What nnU-Net must know of a data set. Names carry a number, as nnU-Net gives some names a meaning.

    Args:
        table: bool, (K + 1, C)
        labels: C names
        num_images: in the data set
        regions: whether the network's outputs are the labels that occur, instead of the classes
    """
    description = {"channel_names": {"0": "radiograph"}, "numTraining": num_images, "file_ending": ".png"}
    if regions:
        classes = {f"{label} {labels[label]}": numbers for label, numbers in list_regions(table).items()}
        # only for the label map, of which _read_regions makes no use
        description["regions_class_order"] = [numbers[0] for numbers in classes.values()]
    else:
        names = [" + ".join(np.array(labels)[row]) for row in table]
        classes = {f"{number} {names[number]}": number for number in range(1, len(table))}
    return {**description, "labels": {"background": 0, **classes}}


def write_json(path: Path, content: dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
