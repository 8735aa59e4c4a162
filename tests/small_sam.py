"""A tiny SAM of the package's own classes with random weights: same code as the real ones, in milliseconds."""
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from segment_anything.fast.mask_decoder import FastDecoder
from segment_anything.mask_decoder import Decoder
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.registry import SAM_TYPES, SamType

SIDE, PATCH, CHANNELS = 128, 16, 32


def build_small_sam() -> Sam:
    grid = SIDE // PATCH
    return Sam(
        ImageEncoderViT(img_size=SIDE, patch_size=PATCH, embed_dim=24, depth=2, num_heads=2, out_chans=CHANNELS,
                        use_rel_pos=True, window_size=4, global_attn_indexes=(1,)),
        PromptEncoder(CHANNELS, (grid, grid), (SIDE, SIDE), mask_in_chans=16),
        MaskDecoder(transformer_dim=CHANNELS, transformer=TwoWayTransformer(2, CHANNELS, 4, 64)),
        pixel_mean=[120, 110, 100], pixel_std=[50, 60, 70]).eval()


def register_small_sam(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str = "small", seed: int = 0,
                       preprocessing: str = "longest_side", decoder: Callable[..., Decoder] = FastDecoder) -> Path:
    """Makes SAM type `name` known and returns a checkpoint of it, in the format of the published ones."""
    monkeypatch.setitem(SAM_TYPES, name, SamType(build_small_sam, f"{name}.pth", "the tests", decoder=decoder,
                                                 preprocessing=preprocessing))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sam = build_small_sam()
        for parameter in sam.prompt_encoder.parameters():  # as large as trained ones, so that prompts matter
            parameter.data.normal_()
    torch.save(sam.state_dict(), folder / f"{name}.pth")
    return folder / f"{name}.pth"
