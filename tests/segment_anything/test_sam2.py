"""SAM 2 against the whole model of `transformers`, which is optional, and its sizes against timm's."""
import importlib.util
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as vision

from segment_anything import sam2
from segment_anything.checkpoints import identify
from segment_anything.embeddings import compute_embedding, encoder_input
from segment_anything.options import Sam
from segment_anything.refinement.agreement import AgreementOptions, mask_prompt, sam_agreement
from segment_anything.refinement.refine import RefinementOptions, refine
from segment_anything.registry import SAM_TYPES, check_present, load_prompt_modules, load_sam
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from tests.conftest import SHARED
from tests.fresh_process import run_code
from tests.segment_anything.test_embeddings import radiograph
from tests.segment_anything.test_options import data_in
from utils.errors import InputError
from utils.files import write_png

HERE = importlib.util.find_spec("transformers") is not None
pytestmark = pytest.mark.skipif(not HERE, reason="needs `python -m pip install -r requirements_sam2.txt`")
SIZE = (150, 333)
BOXES = np.array([[80.0, 48, 420, 300], [500, 10, 1020, 800], [3, 600, 90, 1000]])
POINTS = np.array([[[200.0, 150], [900, 130]], [[700, 400], [30, 100]], [[50, 800], [1000, 3]]])
LABELS = np.array([[1, 0], [1, 1], [0, 1]])
PROMPTS = pytest.mark.parametrize(("boxes", "points", "masks"), [
    (True, False, False), (False, True, False), (True, True, False), (False, True, True), (True, False, True)])


def small_oracle(seed: int = 0):
    """All of `transformers`' model, with a narrow encoder and random weights, none of them zero."""
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig
    channels = [8, 16, 32, 64]
    backbone = Sam2HieraDetConfig(hidden_size=8, blocks_per_stage=[1, 1, 2, 1], global_attention_blocks=[3],
                                  embed_dim_per_stage=channels)
    vision_config = Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=channels[::-1])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Sam2Model(Sam2Config(vision_config=vision_config)).eval()
        for name, tensor in model.state_dict().items():
            if "layer_norm" not in name:
                tensor.normal_(std=1 if "embed" in name else 0.1)
    return model


@pytest.fixture(scope="module", params=["small", pytest.param("sam2_t", marks=[pytest.mark.shared, pytest.mark.slow])])
def both(request, tmp_path_factory):
    """The name of a type, its checkpoint, and the oracle with the same weights and its maps of one image."""
    from transformers import Sam2Config, Sam2Model
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "small":
            patch.setitem(sam2.SIZES, "small", sam2.Hiera(8, 1, (1, 1, 2, 1), (3,)))
            patch.setitem(SAM_TYPES, "small", SAM_TYPES["sam2_t"].__class__(
                **{**vars(SAM_TYPES["sam2_t"]), "build": lambda: sam2.build_sam2("small")}))
            oracle, checkpoint = small_oracle(), tmp_path_factory.mktemp("sam2") / "small.safetensors"
            safetensors.torch.save_file(oracle.state_dict(), checkpoint)
        else:
            folder = SHARED / "weights" / "sam2_hiera_tiny"
            checkpoint = folder / "model.safetensors"
            oracle = Sam2Model(Sam2Config.from_dict(json.loads((folder / "config.json").read_text()))).eval()
            oracle.load_state_dict(safetensors.torch.load_file(checkpoint))
        sam, grey = load_sam(request.param, checkpoint), radiograph(*SIZE)
        pixels, _ = encoder_input(sam, grey, "squash_imagenet")
        embedding = compute_embedding(sam, grey, "squash_imagenet", identify(checkpoint))
        decoder = StoredEmbeddingDecoder.load(request.param, checkpoint)
        yield SimpleNamespace(name=request.param, checkpoint=checkpoint, oracle=oracle, pixels=pixels,
                              maps=oracle.get_image_embeddings(pixels), embedding=embedding, decoder=decoder)


@torch.inference_mode()
def ask(both, boxes: bool, points: bool, masks: torch.Tensor | None = None):
    """Their logits and predicted IoU, and ours."""
    given = [values if asked else None for values, asked in ((BOXES, boxes), (POINTS, points), (LABELS, points))]
    boxes, points, labels = (None if values is None else torch.tensor(values)[:, None] for values in given)
    theirs = both.oracle(
        image_embeddings=[values.expand(len(BOXES), -1, -1, -1) for values in both.maps], multimask_output=False,
        input_boxes=None if boxes is None else boxes.float(), input_labels=labels,
        input_points=None if points is None else points.float(),
        input_masks=None if masks is None else masks[:, None].clamp(-32, 32))
    ours = both.decoder.decode(both.decoder.prepare([both.embedding]), *given, mask_inputs=masks)
    return (theirs.pred_masks[:, 0, 0], theirs.iou_scores[:, 0, 0]), ours


def assert_close(theirs, ours) -> None:
    for expected, actual in zip(theirs, ours, strict=True):
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_an_image_is_squashed_and_normalized(both):
    scaled = torch.from_numpy(np.repeat(radiograph(*SIZE)[None], 3, axis=0)).float() / 255
    expected = vision.normalize(vision.resize(scaled, [1024, 1024], antialias=True), [0.485, 0.456, 0.406],
                                [0.229, 0.224, 0.225])
    torch.testing.assert_close(both.pixels[0], expected, rtol=0, atol=1e-5)
    assert (both.embedding.original_size, both.embedding.input_size) == (SIZE, (1024, 1024))


def test_the_maps_equal_those_of_transformers(both):
    assert list(both.embedding.features) == ["image", "stride_8", "stride_4"]
    for expected, actual in zip(both.maps[::-1], both.embedding.features.values(), strict=True):
        torch.testing.assert_close(actual[None], expected, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_a_box_gives_the_mask_of_the_whole_model(both):
    theirs = both.oracle(pixel_values=both.pixels, input_boxes=torch.tensor(BOXES[None]).float(),
                         multimask_output=False)
    ours = both.decoder.decode(both.decoder.prepare([both.embedding]), boxes=BOXES)
    assert_close((theirs.pred_masks[0, :, 0], theirs.iou_scores[0, :, 0]), ours)


@PROMPTS
def test_prompts_give_the_masks_of_transformers(both, boxes, points, masks):
    logits = 30 * torch.randn(3, 256, 256, generator=torch.Generator().manual_seed(1)) if masks else None
    theirs, ours = ask(both, boxes, points, logits)
    assert_close(theirs, ours)


def test_an_unstable_mask_is_replaced_by_the_best_of_three(both):
    _, single = ask(both, False, True)
    with pytest.MonkeyPatch.context() as patch:
        for decoder in (both.oracle.mask_decoder, both.decoder.modules["mask_decoder"]):
            patch.setattr(decoder, "dynamic_multimask_stability_thresh", 1.1)  # no mask is so stable
        theirs, ours = ask(both, False, True)
    assert_close(theirs, ours)
    assert not torch.isclose(single[1], ours[1]).all()


def test_logits_are_upscaled_in_one_step(both):
    (logits, _), _ = ask(both, True, False)
    expected = F.interpolate(logits[:, None], SIZE, mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(both.decoder.upscale(logits, both.embedding), expected, rtol=0, atol=1e-4)


def test_a_mask_prompt_fills_the_square(both):
    shown = np.zeros((60, 100), bool)
    shown[:30, 50:] = True
    logits = mask_prompt(shown, both.embedding)
    assert logits.shape == (256, 256)
    np.testing.assert_array_equal(logits > 0, cv2.resize(shown.astype(np.uint8), (256, 256),
                                                         interpolation=cv2.INTER_NEAREST_EXACT) > 0)
    assert (logits != 0).all()


def test_stored_maps_are_refined_and_the_released_agreement_is_refused(both, tmp_path):
    data, sam = data_in(tmp_path), Sam(both.name, both.checkpoint)
    write_png(tmp_path / "a.png", radiograph(*SIZE))
    assert sam.embed_missing(data, ["a"], torch.device("cpu")) == 1
    embedding = sam.read_embedding(data, "a")
    assert all(torch.allclose(values, both.embedding.features[name], atol=1e-4)  # another number of threads
               for name, values in embedding.features.items())
    probabilities = np.zeros((2, 60, 100), np.float32)
    probabilities[0, 20:40, 30:70], probabilities[1, :14, 60:] = 0.9, 0.8
    refined = refine(probabilities, embedding, both.decoder, RefinementOptions())
    assert refined.mask.shape == probabilities.shape and np.isfinite(refined.estimated_dice).all()
    assert np.isfinite(sam_agreement(probabilities, embedding, both.decoder)).all()
    with pytest.raises(InputError, match="--agreement released: needs a SAM that is built as the first one"):
        sam_agreement(probabilities, embedding, both.decoder, AgreementOptions("released"))


@pytest.mark.parametrize(("size", "name"), [("t", "tiny"), ("s", "small"), ("b", "base_plus"), ("l", "large")])
def test_sizes_are_timms(size, name):
    with torch.device("meta"):
        ours = sam2.build_sam2(size).image_encoder
        theirs = timm.create_model(f"sam2_hiera_{name}", features_only=True).model
    assert ours.backbone.pos_embed.shape == theirs.pos_embed.shape
    assert ours.backbone.pos_embed_window.shape == theirs.pos_embed_window.shape
    for one, other in zip(ours.backbone.blocks, theirs.blocks, strict=True):
        assert one.window_size == (other.window_size[0] if other.is_windowed else 0)
        assert (one.dim_out, one.attn.num_attention_heads) == (other.dim_out, other.attn.num_heads)


@pytest.mark.shared
def test_the_tiny_configuration_is_the_published_one(shared):
    from transformers import Sam2Config
    published = Sam2Config.from_dict(json.loads((shared / "weights/sam2_hiera_tiny/config.json").read_text()))
    with torch.device("meta"):
        built = sam2.build_sam2("t")
    for ours, theirs in ((built.image_encoder.backbone.config, published.vision_config.backbone_config),
                         (built.image_encoder.neck.config, published.vision_config),
                         (built.mask_decoder.config, published.mask_decoder_config)):
        for name in ("blocks_per_stage", "embed_dim_per_stage", "num_attention_heads_per_stage",
                     "window_size_per_stage", "global_attention_blocks", "window_positional_embedding_background_size",
                     "backbone_channel_list", "fpn_top_down_levels", "fpn_hidden_size", "layer_norm_eps",
                     "dynamic_multimask_stability_thresh", "dynamic_multimask_stability_delta"):
            assert getattr(ours, name, None) == getattr(theirs, name, None), name


def test_a_published_file_also_holds_what_is_of_videos():
    from transformers import Sam2VideoConfig, Sam2VideoModel
    with torch.device("meta"):
        published, ours = Sam2VideoModel(Sam2VideoConfig()).state_dict(), sam2.build_sam2("t").state_dict()
    assert len(published) > len(ours)
    assert {key: value.shape for key, value in sam2.from_transformers(published).items()} == {
        key: value.shape for key, value in ours.items()}


def test_another_size_is_refused(both):
    with pytest.raises(InputError, match=r"not a checkpoint of SAM type sam2_l .* are missing, e\.g\. image_encoder"):
        load_prompt_modules("sam2_l", both.checkpoint)


def test_without_transformers_the_command_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sam2, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"SAM 2: .* transformers isn't .* `python -m pip install -r requirements_s"):
        check_present("sam21_b", tmp_path / "sam21_b.safetensors")


@pytest.mark.slow
def test_nothing_is_asked_of_the_network(tmp_path):
    output = run_code('from segment_anything.sam2 import build_sam2\nbuild_sam2("t")\n', folder=tmp_path, runs=tmp_path)
    assert "network:" not in output
