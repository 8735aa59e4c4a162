"""What a GPU does, without one: PyTorch's fake tensors know shapes and devices, and refuse to mix devices."""
import cv2
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from segment_anything import embeddings
from segment_anything.checkpoints import CheckpointId
from segment_anything.embeddings import ImageEmbedding, compute_embedding, compute_embeddings
from segment_anything.fast.image_encoder import accelerate
from segment_anything.fast.mask_decoder import FastDecoder
from segment_anything.mask_decoder import PlainDecoder
from segment_anything.refinement.cleaning import clean_masks
from segment_anything.refinement.prompts import extract_prompts
from segment_anything.refinement.refine import RefinementOptions, decode_all
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from tests.segment_anything.test_refine import PROMPT_SETS, random_probabilities
from tests.small_sam import CHANNELS, PATCH, SIDE, build_small_sam
from unet_training.epoch import bce_loss, train_epoch, validate
from unet_training.hyper_params import Schedule
from unet_training.mean_teacher import MeanTeacher, augmented_logits
from unet_training.networks.u_net import UNet
from unet_training.prediction import predict

GPU = torch.device("cuda", 0)
CHECKPOINT = CheckpointId("small.pth", "0" * 64)


def fake_tensors() -> FakeTensorMode:
    """Networks are made before and moved to the GPU meanwhile, as fake ones can't be moved."""
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())


def small_modules() -> dict[str, torch.nn.Module]:
    sam = build_small_sam()
    return {"prompt_encoder": sam.prompt_encoder, "mask_decoder": sam.mask_decoder}


def test_devices_must_not_be_mixed():
    with fake_tensors(), pytest.raises(Exception, match="found at least two devices"):
        torch.zeros(2, device=GPU) + torch.zeros(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_are_embedded_there(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(embeddings, "map_threaded", lambda prepare, paths, threads: map(prepare, paths))
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path in paths:
        cv2.imwrite(str(path), np.zeros((30, 20), np.uint8))
    sam = build_small_sam()
    accelerate(sam.image_encoder, dtype)
    with fake_tensors():
        made = list(compute_embeddings(sam.to(GPU), paths, "longest_side", CHECKPOINT))
    maps = [embedding.features["image"] for embedding in made]
    assert [tuple(image.shape) for image in maps] == 5 * [(CHANNELS, SIDE // PATCH, SIDE // PATCH)]
    assert {(image.device.type, image.dtype) for image in maps} == {("cpu", torch.float32)}


@pytest.mark.parametrize("kind", [FastDecoder, PlainDecoder])
@pytest.mark.parametrize(("first", "second"), [names for names in PROMPT_SETS if "mask" not in names[0]])
def test_objects_are_decoded_there(first, second, kind):
    modules, embedding = small_modules(), {"image": torch.zeros(CHANNELS, SIDE // PATCH, SIDE // PATCH)}
    images = 3 * [ImageEmbedding(embedding, (96, 72), (128, 96), SIDE, CHECKPOINT)]
    prompts = [extract_prompts(clean_masks(random_probabilities(seed), "highest_probability")) for seed in range(3)]
    with fake_tensors():
        decoder = StoredEmbeddingDecoder(modules, kind, CHECKPOINT, GPU)
        decoded = decode_all(decoder, images, prompts, RefinementOptions(first, second))
        for number, (logits, iou) in decoded.items():
            masks = decoder.upscale(logits, images[number], (48, 36))
            assert masks.shape == (prompts[number].valid.sum(), 48, 36)
            assert masks.device == iou.device == GPU
    assert len(decoded) == 3


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("bf16", [False, True])
def test_a_network_is_trained_there(monkeypatch, bf16):
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)  # it wants a real one
    model = UNet(3, base_width=2, n_last_channel=2)
    with fake_tensors():
        batches = 2 * [(torch.zeros(2, 1, 32, 48), torch.zeros(2, 3, 32, 48, dtype=torch.bool))]
        optimizer = Schedule(1, 1e-3, "cosine", 0.03).optimizer(model.to(GPU))
        loss = bce_loss([1, 2, 3], GPU)
        assert train_epoch(model, batches, loss, optimizer, GPU, 0.03, bf16).dice.shape == (4, 3)
        assert validate(model, batches, loss, GPU).dice.shape == (4, 3)


def test_student_and_teacher_are_there():
    model = MeanTeacher(UNet(3, base_width=2, n_last_channel=2))
    with fake_tensors():
        model.to(GPU)
        images = torch.zeros(2, 1, 32, 48, device=GPU)
        student, teacher = (augmented_logits(each, images, 0.03) for each in (model.student, model))
        assert (student + teacher).device == GPU
        model.update_teacher()


def test_masks_are_computed_in_full_float32():
    sam, network = build_small_sam(), torch.nn.Conv2d(1, 2, 1)
    decoder, allowed = StoredEmbeddingDecoder(small_modules(), FastDecoder, CHECKPOINT), []
    for module in (sam.image_encoder, decoder.modules["prompt_encoder"], network):
        module.register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    embedding = compute_embedding(sam, np.zeros((30, 20), np.uint8), "longest_side", CHECKPOINT)
    decoder.decode(decoder.prepare([embedding]), boxes=np.array([[1, 2, 20, 30]]))
    list(predict(network, [(torch.zeros(1, 6, 4), "stem")], torch.device("cpu"), 1))
    assert allowed == [False, False, False] and torch.backends.cudnn.allow_tf32
