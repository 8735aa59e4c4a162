"""SAM image embeddings, computed once per image and kept on disk (scripts/generate_img_embeddings.py of the
authors' code).

One HDF5 file per image, `<folder>/<stem>.h5`: dataset `embedding` (the feature map "image"), float32 or float16
(D, h, w), uncompressed because that reads fastest; further feature maps, of a type that has them, under their own
names; attributes `original_size`, `input_size`, `encoder_input_size`, `checkpoint`, `checkpoint_sha256`, and
`preprocessing` unless it is "longest_side". The file's first line (`utils/hdf5.py`) says of which image it is.
"""
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import h5py
import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from segment_anything.checkpoints import CheckpointId, identify
from segment_anything.fast.image_encoder import accelerate
from segment_anything.modeling import Sam
from segment_anything.registry import check_present, get_sam_type, load_sam
from segment_anything.resize import fit_longest_side, resize_longest_side
from utils.digests import digest_file
from utils.errors import InputError
from utils.files import read_grey
from utils.grey import STORED, GreyValues
from utils.hdf5 import new_hdf5, open_hdf5, read_origin
from utils.locks import check_writable, exclusive
from utils.memory import most_that_fit
from utils.overlap import batched, map_side_by_side, map_threaded
from utils.precision import full_float32
from utils.provenance import describe_run
from utils.ranks import current_shard

PRECISIONS = ("float32", "float16", "bf16")
IMAGES_AT_ONCE = {"cpu": 1, "cuda": 4}  # in the encoder; more don't pay on a CPU
MOST_MEMORY = 2 * 2 ** 30  # bytes that an image of 1024 pixels takes in the largest encoder (ViT-H)
DEFAULT_PREPROCESSING = "longest_side"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std of red, green and blue in [0, 1]


@dataclass(frozen=True)
class ImageEmbedding:
    """What the image encoder makes of one image.

    Attributes:
        features: float32 on the CPU, (D, h, w) each; SAM 1 has "image": (256, 64, 64) alone
        original_size: (H, W) of the image in pixels
        input_size: (H, W) that the image takes up in the encoder's input, before padding
        encoder_input_size: side of the encoder's square input in pixels
        checkpoint: the weights that it was computed with
        preprocessing: of the image, a key of `PREPROCESSINGS`
    """

    features: dict[str, torch.Tensor]
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    encoder_input_size: int
    checkpoint: CheckpointId
    preprocessing: str = DEFAULT_PREPROCESSING


def to_8_bit(grey: np.ndarray) -> np.ndarray:
    """uint16 (H, W) -> uint8, 65535 becomes 255, rounded; uint8 stays as it is."""
    return grey if grey.dtype == np.uint8 else ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)


def encoder_input(sam: Sam, grey: np.ndarray, preprocessing: str) -> tuple[torch.Tensor, tuple[int, int]]:
    """Brings a grey image into the form that the image encoder was trained on.

    Args:
        grey: uint8 or uint16, (H, W), at the original resolution
        preprocessing: a key of `PREPROCESSINGS`
    Returns:
        float32, (1, 3, S, S) on the model's device, and the `input_size` (H, W)
    """
    return PREPROCESSINGS[preprocessing](sam, to_8_bit(grey))


def _fit_longest_side(sam: Sam, grey: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
    """SAM's: the longest side fills the input; SAM's mean and std, zeros to the right and below."""
    # the three channels are equal, so the package's resize sees one of them
    pixels = resize_longest_side(grey, sam.image_encoder.img_size)
    colors = torch.from_numpy(pixels).to(sam.device).expand(1, 3, -1, -1)
    return sam.preprocess(colors), pixels.shape


def _fit_longest_side_min_max(sam: Sam, grey: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
    """LiteMedSAM's: the longest side fills the input, averaged over areas as 8-bit numbers; the minimum becomes 0, the
    maximum 1, zeros to the right and below."""
    side = sam.image_encoder.img_size
    height, width = fit_longest_side(grey.shape, side)
    pixels = torch.zeros(side, side)
    pixels[:height, :width] = _scale_min_max(cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA))
    return pixels.expand(1, 3, -1, -1).to(sam.device), (height, width)


def _squash(sam: Sam, grey: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
    """MedSAM's: cubic to the whole square, then its minimum becomes 0, its maximum 1.

    Resized as 8-bit numbers by OpenCV, as in scripts/generate_img_embeddings.py of the authors' code.
    """
    side = sam.image_encoder.img_size
    pixels = _scale_min_max(cv2.resize(grey, (side, side), interpolation=cv2.INTER_CUBIC))
    return pixels.expand(1, 3, -1, -1).to(sam.device), (side, side)


def _scale_min_max(pixels: np.ndarray) -> torch.Tensor:
    """uint8 -> float32 in [0, 1]; where all are equal, 0."""
    pixels = pixels.astype(np.float64)
    return torch.from_numpy((pixels - pixels.min()) / max(np.ptp(pixels), 1e-8)).float()


def _squash_imagenet(sam: Sam, grey: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
    """SAM 2's: linearly to the whole square, averaging over pixels where the image shrinks; ImageNet's mean and std."""
    side = sam.image_encoder.img_size
    scaled = torch.from_numpy(grey)[None, None].to(sam.device) / 255
    pixels = F.interpolate(scaled, (side, side), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values, device=sam.device).view(3, 1, 1) for values in IMAGENET)
    return (pixels - mean) / std, (side, side)


PREPROCESSINGS = {"longest_side": _fit_longest_side, "longest_side_min_max": _fit_longest_side_min_max,
                  "squash": _squash, "squash_imagenet": _squash_imagenet}  # of uint8 (H, W)


class _Prepared(NamedTuple):
    """An image before the encoder: the latter two as `encoder_input` returns them."""

    original_size: tuple[int, int]
    pixels: torch.Tensor
    input_size: tuple[int, int]


def compute_embedding(sam: Sam, grey: np.ndarray, preprocessing: str, checkpoint: CheckpointId) -> ImageEmbedding:
    """Embeds one grey image, uint8 or uint16, (H, W), on the model's device."""
    prepared = _Prepared(grey.shape, *encoder_input(sam, grey, preprocessing))
    return _encode(sam, [prepared], preprocessing, checkpoint)[0]


def compute_embeddings(sam: Sam, paths: Sequence[Path], preprocessing: str, checkpoint: CheckpointId,
                       grey: GreyValues = STORED) -> Iterator[ImageEmbedding]:
    """Embeds image files, whose values are meant as `grey` says, in their order: on a CPU side by side as far
    as the memory suffices, on a GPU several at once while the next ones are read."""
    def prepare(path: Path) -> _Prepared:
        image = read_grey(path, grey)
        return _Prepared(image.shape, *encoder_input(sam, image, preprocessing))

    def embed(path: Path) -> ImageEmbedding:
        return compute_embedding(sam, read_grey(path, grey), preprocessing, checkpoint)

    at_once = IMAGES_AT_ONCE[sam.device.type]
    if at_once == 1:
        fitting = most_that_fit(MOST_MEMORY * max(sam.image_encoder.img_size, 512) ** 2 // 1024 ** 2)
        yield from map_side_by_side(embed, paths, min(torch.get_num_threads(), fitting))
        return
    images = map_threaded(prepare, paths, threads=at_once)
    for batch in batched(images, at_once):
        yield from _encode(sam, batch, preprocessing, checkpoint)


@full_float32()
@torch.inference_mode()
def _encode(sam: Sam, images: Sequence[_Prepared], preprocessing: str, checkpoint: CheckpointId
            ) -> list[ImageEmbedding]:
    encoded = sam.image_encoder(torch.cat([image.pixels for image in images]))
    maps = encoded if isinstance(encoded, dict) else {"image": encoded}
    maps = {name: values.cpu() for name, values in maps.items()}
    return [ImageEmbedding({name: values[number] for name, values in maps.items()}, image.original_size,
                           image.input_size, sam.image_encoder.img_size, checkpoint, preprocessing)
            for number, image in enumerate(images)]


def embedding_path(folder: Path, stem: str) -> Path:
    """Where the embedding of an image lies in the folder of its SAM type."""
    return folder / f"{stem}.h5"


def save_embedding(path: Path, embedding: ImageEmbedding, dtype: type = np.float32,
                   origin: Mapping[str, str] | None = None) -> None:
    """Writes one embedding as numbers of that type, complete or not at all.

    Args:
        origin: see `describe_origin`
    Raises:
        InputError: it holds a number that isn't finite.
    """
    with np.errstate(over="ignore"):
        stored = {name: values.numpy().astype(dtype, copy=False) for name, values in embedding.features.items()}
    if not all(np.isfinite(values).all() for values in stored.values()):
        raise InputError(f"{path}: SAM gives numbers that aren't finite; give --embeddings float32, or another "
                         "checkpoint")
    with new_hdf5(path, origin or {}) as file:
        for name, values in stored.items():
            file["embedding" if name == "image" else name] = values
        file.attrs["original_size"] = embedding.original_size
        file.attrs["input_size"] = embedding.input_size
        file.attrs["encoder_input_size"] = embedding.encoder_input_size
        file.attrs["checkpoint"] = embedding.checkpoint.name
        file.attrs["checkpoint_sha256"] = embedding.checkpoint.sha256
        if embedding.preprocessing != DEFAULT_PREPROCESSING:
            file.attrs["preprocessing"] = embedding.preprocessing
        file.attrs["provenance"] = json.dumps(describe_run())


def load_embedding(path: Path, checkpoint: CheckpointId) -> ImageEmbedding:
    """Reads one embedding.

    Raises:
        InputError: the file is missing or damaged, or was computed with another checkpoint than `checkpoint`.
        OSError: it can't be accessed.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such embedding; make it with `python -m scripts.generate_img_embeddings`")
    with open_hdf5(path, "move it away and run `python -m scripts.generate_img_embeddings`") as file:
        check_same_checkpoint(path, _checkpoint_of(file), checkpoint)
        original_size, input_size = (tuple(file.attrs[name].tolist()) for name in ("original_size", "input_size"))
        features = {"image" if name == "embedding" else name: torch.from_numpy(dataset[()]).float()
                    for name, dataset in file.items()}
        if not all(bool(values.isfinite().all()) for values in features.values()):
            raise ValueError("it holds a number that isn't finite")
        return ImageEmbedding(features, original_size, input_size, int(file.attrs["encoder_input_size"]),
                              checkpoint, file.attrs.get("preprocessing", DEFAULT_PREPROCESSING))


def _checkpoint_of(file: h5py.File) -> CheckpointId:
    return CheckpointId(file.attrs["checkpoint"], file.attrs["checkpoint_sha256"])


def check_same_checkpoint(what: Path | str, used: CheckpointId, asked: CheckpointId) -> None:
    """Raises:
        InputError: the embedding `what` is of another checkpoint than the one that is asked for.
    """
    if used.sha256 != asked.sha256:
        raise InputError(f"{what}: this embedding was computed with the checkpoint {used}, but {asked} is asked for; "
                         "use that checkpoint, or remove the embedding's folder to compute its embeddings anew")


def save_missing_embeddings(images: Sequence[tuple[str, Path]], folder: Path, sam_type: str, checkpoint: Path,
                            device: torch.device, precision: str = "float32", grey: GreyValues = STORED,
                            digests: Mapping[str, str] | None = None) -> int:
    """Computes the embeddings that are not there yet, one file per image. SAM is loaded only if one is missing. One of
    another image, or of one that was read or preprocessed in another way, counts as missing.

    Args:
        images: stem and image file of each
        folder: of this SAM type and precision, holds `<stem>.h5`
        precision: "float32"; "float16" halves the files; "bf16" does so, and computes a ViT's blocks in bfloat16
        grey: how the values of the image files are meant, as in `read_grey`
        digests: stem -> what stands for its pixels (left out: the SHA-256 of its file)
    Returns:
        how many were computed
    Raises:
        InputError: the checkpoint or an image can't be used, or an embedding there is of another checkpoint.
        OSError: something can't be read or written.
    """
    check_present(sam_type, checkpoint)
    digests = digests or {stem: digest_file(path) for stem, path in images}
    origins = {stem: describe_origin(digests[stem], identify(checkpoint), get_sam_type(sam_type).preprocessing, grey)
               for stem, _ in images}
    with exclusive(current_shard().to_lock(folder)):
        missing = [(stem, path) for stem, path in images
                   if not is_embedded(embedding_path(folder, stem), origins[stem])]
        if missing:
            check_writable(folder)
            stored = np.float32 if precision == "float32" else np.float16
            embeddings = embed([path for _, path in missing], sam_type, checkpoint, device, precision, grey)
            named = zip((stem for stem, _ in missing), embeddings, strict=True)
            progress = tqdm(named, f"SAM embeddings ({sam_type})", len(missing), unit="image")
            for _ in map_threaded(lambda each: save_embedding(embedding_path(folder, each[0]), each[1], stored,
                                                              origins[each[0]]), progress):
                pass
    return len(missing)


def describe_origin(digest: str, checkpoint: CheckpointId, preprocessing: str = DEFAULT_PREPROCESSING,
                    grey: GreyValues = STORED) -> dict[str, str]:
    """What an embedding is made of: `digest` stands for the image's pixels as they are stored."""
    return {"image": digest, "reading": f"{preprocessing}{grey.name}", "checkpoint": checkpoint.name,
            "checkpoint_sha256": checkpoint.sha256}


def embed(paths: Sequence[Path], sam_type: str, checkpoint: Path, device: torch.device, precision: str = "float32",
          grey: GreyValues = STORED) -> Iterator[ImageEmbedding]:
    """Loads SAM, and embeds image files as they are asked for; arguments and errors as of `save_missing_embeddings`."""
    sam = load_sam(sam_type, checkpoint).to(device)
    accelerate(sam.image_encoder, torch.bfloat16 if precision == "bf16" else torch.float32)
    return compute_embeddings(sam, paths, get_sam_type(sam_type).preprocessing, identify(checkpoint), grey)


def is_embedded(path: Path, origin: Mapping[str, str]) -> bool:
    """Whether an embedding of this origin (`describe_origin`) lies there, by the first line of its file alone. Raises
    an InputError for one of another checkpoint, OSError where it can't be told."""
    made_of = read_origin(path)
    if "checkpoint_sha256" not in made_of:
        return False
    checkpoints = (CheckpointId(of["checkpoint"], of["checkpoint_sha256"]) for of in (made_of, origin))
    check_same_checkpoint(path, *checkpoints)
    return (made_of.get("image"), made_of.get("reading")) == (origin["image"], origin["reading"])
