"""The accelerated encoder blocks against the package's own."""
import copy

import pytest
import torch
from torch.nn import functional as F

from segment_anything.demo_sam import DEMO_SAM_WEIGHTS
from segment_anything.fast import image_encoder as fast_encoder
from segment_anything.fast.image_encoder import FastBlock, accelerate
from segment_anything.modeling.image_encoder import Block
from segment_anything.registry import load_sam
from tests.small_sam import SIDE, build_small_sam


def block(window_size: int, size: tuple[int, int], **options: bool) -> Block:
    torch.manual_seed(0)
    made = Block(24, num_heads=3, window_size=window_size, input_size=size, **options).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if "rel_pos" in name or "bias" in name:
            parameter.normal_()
    return made


@pytest.mark.parametrize("attend", [fast_encoder._attend_on_cpu, F.scaled_dot_product_attention])  # the latter on a GPU
@pytest.mark.parametrize("size", [(6, 9), (8, 8), (5, 7)])
@pytest.mark.parametrize("window_size", [0, 4])
@pytest.mark.parametrize("options", [{"use_rel_pos": True}, {}, {"use_rel_pos": True, "qkv_bias": True}])
def test_a_block_equals_the_packages_block(monkeypatch, size, window_size, options, attend):
    monkeypatch.setattr(fast_encoder, "_attend_on_cpu", attend)
    monkeypatch.setattr(fast_encoder, "QUERIES", 20)
    upstream = block(window_size, size, **options)
    tokens = torch.randn(2, *size, 24)
    expected = upstream(tokens)
    torch.testing.assert_close(FastBlock(upstream, torch.float32)(tokens), expected, rtol=1e-5, atol=1e-5)


def test_the_embedded_sams_encoder_gives_the_same_and_nearly_so_in_bfloat16():
    encoder = load_sam("demo", DEMO_SAM_WEIGHTS).image_encoder
    image = torch.randn(1, 3, encoder.img_size, encoder.img_size)
    expected = encoder(image)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1 * expected.std().item())):
        fast = copy.deepcopy(encoder)
        accelerate(fast, dtype)
        assert fast.state_dict().keys() == encoder.state_dict().keys()
        embedding = fast(image)
        assert embedding.dtype == torch.float32
        difference = (embedding - expected).abs()
        assert difference.max() < tolerance if dtype == torch.float32 else 0 < difference.mean() < tolerance


@torch.inference_mode()
def test_tiny_vit_gives_the_same_without_batch_norms():
    from segment_anything.tiny_vit import TinyVitEncoder
    torch.manual_seed(0)
    encoder = TinyVitEncoder(img_size=64, patch_size=1).eval()
    for name, tensor in encoder.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if "running_var" in name else tensor.normal_(std=0.2)
    image, fast = torch.randn(2, 3, 64, 64), copy.deepcopy(encoder)
    accelerate(fast)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    torch.testing.assert_close(fast(image), encoder(image), rtol=1e-5, atol=1e-5)


def test_an_encoder_of_images_that_are_no_square_equals_the_packages():
    encoder = build_small_sam().image_encoder
    encoder.pos_embed = None
    for name, parameter in encoder.named_parameters():
        if "rel_pos" in name:
            parameter.data.normal_()
    fast, image = copy.deepcopy(encoder), torch.randn(2, 3, SIDE, 99)
    accelerate(fast, input_size=image.shape[2:])
    with torch.no_grad():
        torch.testing.assert_close(fast(image), encoder(image), rtol=1e-4, atol=1e-5)


def test_other_encoders_stay_as_they_are():
    encoder = torch.nn.Conv2d(3, 4, 1)
    accelerate(encoder, torch.bfloat16)
    assert encoder.weight.dtype == torch.float32
