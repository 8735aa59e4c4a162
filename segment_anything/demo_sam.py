"""The demo SAM, type `demo`: SAM's own classes at a size that a CPU runs in a fraction of a second.

It is trained on random procedural shapes only (`python -m scripts.train_demo_sam`), so that the whole pipeline runs
without a download. It is no substitute for the published models.
"""
from functools import partial
from pathlib import Path

from torch import nn

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import Block

DEMO_SAM_WEIGHTS = Path(__file__).with_name("demo_sam.safetensors")
DEMO_SAM_NOTICE = ("made with the demo SAM (trained on random procedural shapes): it shows that the "
                   "pipeline works, its numbers say nothing about the published SAM")

IMAGE_SIZE = 384  # longest side of the encoder's input, pixels
PATCH_SIZE = 8  # the embedding is 48 x 48, the low-resolution logits and the mask prompt are 192 x 192
CHANNELS = 128
WINDOWS = (8, 8, 16, 8, 8, 16)  # side of the attention windows of each encoder block, patches
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # SAM's


def build_demo_sam(image_size: int = IMAGE_SIZE) -> Sam:
    """The demo SAM with random weights, in eval mode, on the CPU.

    With g = image_size / 8 its embedding is float32, (1, 128, g, g), its logits are (N, 1, 4g, 4g) for N prompts.
    """
    grid = image_size // PATCH_SIZE
    prompt_encoder = PromptEncoder(embed_dim=CHANNELS, image_embedding_size=(grid, grid),
                                   input_image_size=(image_size, image_size), mask_in_chans=16)
    # Higher frequencies than the published ones: so small a grid has to tell objects of two cells apart.
    prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(image_size / 128)
    transformer = TwoWayTransformer(depth=2, embedding_dim=CHANNELS, mlp_dim=256, num_heads=4)
    decoder = MaskDecoder(num_multimask_outputs=3, transformer=transformer, transformer_dim=CHANNELS,
                          iou_head_depth=3, iou_head_hidden_dim=CHANNELS)
    return Sam(_image_encoder(image_size), prompt_encoder, decoder, PIXEL_MEAN, PIXEL_STD).eval()


def _image_encoder(image_size: int) -> ImageEncoderViT:
    """Relative positions and windows only: shapes look the same everywhere, and parts of an image can be encoded."""
    norm = partial(nn.LayerNorm, eps=1e-6)
    encoder = ImageEncoderViT(img_size=image_size, patch_size=PATCH_SIZE, embed_dim=CHANNELS, depth=len(WINDOWS),
                              num_heads=4, mlp_ratio=3, out_chans=CHANNELS, norm_layer=norm, use_abs_pos=False)
    encoder.blocks = nn.ModuleList(Block(CHANNELS, num_heads=4, mlp_ratio=3, norm_layer=norm, use_rel_pos=True,
                                         window_size=window) for window in WINDOWS)
    return encoder
