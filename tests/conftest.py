"""What several test modules share: real data, phantoms, those in the layout of GRAZ, own data, a trained model."""
import os
import shutil
import signal
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lxml import etree
from skimage.draw import polygon

from scripts import make_phantoms, save_refined_segmentations
from tests.stage_runs import SMALL, N, new_workplace, run
from unet_training.checkpoint import Training, save_checkpoint
from unet_training.networks.u_net import UNet
from utils.datasets.description import OWN
from utils.files import write_png
from utils.locks import exclusive
from utils.tracking.models import store_model

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("SAM_BURDEN_SHARED") or ROOT.parent / "shared")  # real weights and data
OWN_DESCRIPTION = """
labels = ["heart", "lung"]
input_size = [36, 60]
image_folder = "img"
prepare = "copy them"
unlabeled = "not_annotated"
sam_type = "vit_b"

[masks]
kind = "label_maps"
folder = "masks"
train = 4
val = 1
"""
LABELS, INPUT, MEAN, STD = ("heart", "lung"), (36, 60), 0.5, 0.3  # of `trained`


def pytest_configure(config: pytest.Config) -> None:
    """No test reaches a tracking server of the user's, or a GPU, which rounds in its own way. Stages can be
    interrupted, also where pytest runs in a shell's background, which ignores Ctrl-C. Decided once per process, before
    the first test."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["CLEARML_OFFLINE_MODE"] = "1"
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason=f"no real data in {SHARED}; SAM_BURDEN_SHARED names their folder"))


@pytest.fixture(scope="session", autouse=True)
def polygons_drawn_once() -> Iterator[None]:
    """Tests read the phantoms' outlines again and again; drawing them would be a fifth of their time."""
    @lru_cache(maxsize=4000)
    def draw(rows: bytes, columns: bytes, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        return polygon(np.frombuffer(rows).copy(), np.frombuffer(columns).copy(), shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skimage.draw.polygon", lambda rows, columns, shape=None: draw(
            *(np.asarray(values, float).tobytes() for values in (rows, columns)), shape))
        yield


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory) -> Path:
    """A folder that all processes of these tests share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def phantom_data_dir(shared_dir) -> Path:
    """A data folder with the phantoms' labeled images and 12 unlabeled ones, drawn once; leave it as it is."""
    folder, parser = shared_dir / "data", make_phantoms.get_args_parser()
    with exclusive(folder):
        make_phantoms.main(parser.parse_args(["--data_dir", str(folder), "--num_unlabeled", "12"]))
    return folder


@pytest.fixture(scope="session")
def trained_once(phantom_data_dir, shared_dir) -> Path:
    """A folder as `new_workplace` makes it, with a barely trained initial model, whose id is in the file `id`; leave it
    as it is."""
    folder = shared_dir / "trained_once"
    more = ("--epochs", "20", "--data_sample_per_epoch", "24", "--lr", "1e-2")  # enough for masks that differ
    with exclusive(folder):
        if not (folder / "id").exists():
            with new_workplace(phantom_data_dir, folder, *SMALL, *more) as (_, model_id):
                (folder / "id").write_text(model_id)
    return folder


@pytest.fixture(autouse=True)
def own_runs(tmp_path_factory, monkeypatch) -> None:
    """Sessions and models of a test stay out of the project, where its module doesn't choose another folder."""
    if "SAM_BURDEN_RUNS" not in os.environ:
        monkeypatch.setenv("SAM_BURDEN_RUNS", str(tmp_path_factory.mktemp("runs")))


@pytest.fixture
def shared() -> Path:
    """The folder of real weights and data; tests that use it carry the marker `shared`."""
    return SHARED


@pytest.fixture(scope="module")
def workplace(trained_once, tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """A data folder that may be written to and a barely trained initial model: yields the folder and the model's id."""
    folder = shutil.copytree(trained_once, tmp_path_factory.mktemp("workplace"), dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAM_BURDEN_RUNS", str(folder / "runs"))
        yield folder / "data", (folder / "id").read_text()


@pytest.fixture(scope="module")
def refined(workplace):
    data_dir, _ = workplace
    return run(save_refined_segmentations, data_dir, *N, "--model_id", workplace[1])


@pytest.fixture
def graz(phantom_data_dir, tmp_path, monkeypatch):
    """A data folder in the layout of GRAZPEDWRI-DX, with the phantoms in the place of its radiographs."""
    monkeypatch.setenv("SAM_BURDEN_RUNS", str(tmp_path / "runs"))
    folder = tmp_path / "data" / "graz"
    shutil.copytree(phantom_data_dir / "phantom" / "img_only_front_all_left", folder / "img_only_front_all_left")
    (folder / "annotations").mkdir()
    train = etree.parse(ROOT / "annotations_train.xml").getroot().findall("image")
    parts = {"train1": [image for image in train if image.get("subset") == "Train"][:20],
             "train2": [image for image in train if image.get("subset") == "Train"][20:],
             "val": [image for image in train if image.get("subset") == "Validation"],
             "test": etree.parse(ROOT / "annotations_test.xml").getroot().findall("image")}
    for name, images in parts.items():
        root = etree.Element("annotations")
        etree.SubElement(root, "version").text = "1.1"
        root.extend(images)
        etree.ElementTree(root).write(folder / "annotations" / f"annotations_{name}.xml")
    stems = [path.stem for path in (folder / "img_only_front_all_left").glob("*.png")]
    rows = [f"{stem},{'R' if 'WRI-R' in stem else 'L'},1" for stem in stems]
    (folder / "dataset.csv").write_text("\n".join(["filestem,laterality,projection", *rows]), encoding="utf-8-sig")
    return folder


@pytest.fixture
def own(tmp_path):
    """A data folder with six annotated images in `mine`; yields it, and the training images and label maps."""
    rng = np.random.default_rng(0)
    images, masks = (rng.integers(0, most, (6, 36, 60), np.uint8) for most in (256, 3))
    masks[0] = 0
    for number, pair in enumerate(zip(images, masks, strict=True)):
        for name, picture in zip(("img", "masks"), pair, strict=True):
            write_png(tmp_path / "mine" / name / f"{number}.png", picture)
    (tmp_path / "mine" / OWN).write_text(OWN_DESCRIPTION)
    return tmp_path, images[:4], masks[:4]


@pytest.fixture
def trained(own, tmp_path, monkeypatch) -> tuple[Path, str, UNet]:
    """The data folder of own data, and a network of random weights for it with its id."""
    data_dir, _, _ = own
    monkeypatch.setenv("SAM_BURDEN_RUNS", str(tmp_path / "runs"))
    measured = f"mean = {MEAN}\nstd = {STD}\nresize_dtype = \"float32\"\npos_weight = [1, 1]\n"
    (data_dir / "mine" / OWN).write_text(measured + OWN_DESCRIPTION.replace("vit_b", "demo"))
    torch.manual_seed(2)
    network = UNet(2, 4, 4).eval()
    network.out.weight.data *= 20  # far from the threshold
    save_checkpoint(tmp_path / "unet.pt", network, Training("mine", LABELS, INPUT, MEAN, STD))
    parameters = {"stage": "initial", "dataset": "mine", "num_train_samples": 4, "architecture": "u_net"}
    return data_dir, store_model(tmp_path / "unet.pt", parameters, LABELS, (), "task"), network


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with an image of 8 bits, one of 16 in a folder inside, and one of another size."""
    rng, folder = np.random.default_rng(5), tmp_path / "new"
    for name, size, dtype in (("a.png", (120, 90), np.uint8), ("p 1/b.TIF", (70, 133), np.uint16),
                              ("p 1/a.jpg", (36, 60), np.uint8)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        smooth = cv2.resize(rng.random((6, 5)), size[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)
        cv2.imwrite(str(folder / name), (smooth * np.iinfo(dtype).max).astype(dtype))
    return folder
