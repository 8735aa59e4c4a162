"""The fast decoder is the plain one's twin, and a type of SAM may bring several feature maps and a decoder of its own.
"""
import numpy as np
import pytest
import torch
from torch import nn

from segment_anything.checkpoints import CheckpointId
from segment_anything.demo_sam import DEMO_SAM_WEIGHTS
from segment_anything.fast.mask_decoder import FastDecoder
from segment_anything.mask_decoder import PlainDecoder, select_images
from segment_anything.modeling import Sam as SamModel
from segment_anything.options import Sam
from segment_anything.refinement.refine import RefinementOptions, refine
from segment_anything.registry import SAM_TYPES, SamType, load_prompt_modules
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from tests.segment_anything.test_options import data_in
from tests.small_sam import register_small_sam
from utils.files import write_png

BOXES = np.array([[3, 5, 60, 41], [20, 30, 90, 111], [0, 0, 127, 90]])
POINTS = np.array([[[30, 20], [99, 7]], [[60, 70], [5, 5]], [[64, 9], [12, 100]]])
LABELS = np.array([[1, 0]] * 3)


@pytest.fixture(params=["small", "demo"])
def twins(request, monkeypatch, tmp_path):
    """Both decoders with the same weights, and random features of three images."""
    checkpoint = DEMO_SAM_WEIGHTS if request.param == "demo" else register_small_sam(monkeypatch, tmp_path)
    modules, identity = load_prompt_modules(request.param, checkpoint), CheckpointId("", "")
    encoder = modules["prompt_encoder"]
    features = torch.randn(3, encoder.embed_dim, *encoder.image_embedding_size)
    return (*(StoredEmbeddingDecoder(modules, kind, identity)._decoder for kind in (PlainDecoder, FastDecoder)),
            {"image": features})


@pytest.mark.parametrize("numbers", [[0, 1, 2], [1, 1, 1], [2]])
@pytest.mark.parametrize(("boxes", "points", "mask"), [
    (True, False, False), (False, True, False), (True, True, False), (False, True, True), (True, False, True)])
@torch.inference_mode()
def test_the_fast_decoder_equals_the_plain_one(twins, numbers, boxes, points, mask):
    """Of objects of several images, and of one."""
    count, (plain, fast, features) = len(numbers), twins
    given = [torch.tensor(values[:count]).float() if asked else None
             for values, asked in ((BOXES, boxes), (POINTS, points), (LABELS, points))]
    side = 4 * features["image"].shape[-1]
    given.append(4 * torch.randn(count, side, side) if mask else None)
    results = [decoder(select_images(decoder.prepare(features), numbers), *given) for decoder in (plain, fast)]
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


class ToyEncoder(nn.Module):
    img_size = 32

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image):
        return {"image": self.scale * nn.functional.avg_pool2d(image, 8), "fine": self.scale * image[:, :1]}


class ToySam(nn.Module):
    """Two feature maps; its decoder segments what is bright in the finer one, whatever the prompt is."""

    def __init__(self):
        super().__init__()
        self.image_encoder, self.head = ToyEncoder(), nn.Linear(1, 1)

    device = property(lambda self: self.image_encoder.scale.device)
    preprocess = SamModel.preprocess
    pixel_mean, pixel_std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)


class ToyDecoder:
    upscales_at_once = False

    def __init__(self, head):
        self.head, self.calls = head, []

    def prepare(self, features):
        return {"coarse": features["image"].mean(1), "fine": features["fine"][:, 0]}

    def __call__(self, images, boxes, points, labels, masks):
        self.calls.append([None if given is None else tuple(given.shape) for given in (boxes, points, labels, masks)])
        count = len(boxes if boxes is not None else points)
        low = nn.functional.interpolate(images["fine"][:, None], (16, 16), mode="area")[:, 0].expand(count, -1, -1)
        return low - images["coarse"].amax() / 2, self.head(torch.zeros(count, 1))[:, 0]


def test_a_type_with_two_feature_maps_and_a_decoder_of_its_own(monkeypatch, tmp_path):
    """One entry of the registry: its embeddings are stored, and masks are refined by them."""
    made = []
    monkeypatch.setitem(SAM_TYPES, "toy", SamType(
        ToySam, "toy.pth", "the tests", decoder=lambda head: made.append(ToyDecoder(head)) or made[-1]))
    torch.save({"image_encoder.scale": torch.tensor(1.0), "head.weight": torch.zeros(1, 1),
                "head.bias": torch.tensor([0.5])}, tmp_path / "toy.pth")
    image = np.zeros((48, 64), np.uint8)
    image[12:36, 8:40] = 200
    write_png(tmp_path / "a.png", image)
    sam, data = Sam("toy", tmp_path / "toy.pth"), data_in(tmp_path)
    assert sam.embed_missing(data, ["a"], torch.device("cpu")) == 1
    embedding = sam.read_embedding(data, "a")
    assert {name: tuple(values.shape) for name, values in embedding.features.items()} == {
        "image": (3, 4, 4), "fine": (1, 32, 32)}
    probabilities = np.zeros((2, 48, 64), np.float32)
    probabilities[0, 20:30, 20:30], probabilities[1, :4, 60:] = 0.9, 0.8
    refined = refine(probabilities, embedding, sam.load_decoder(), RefinementOptions())
    for mask in refined.mask:  # whatever the U-Net said
        assert (mask != (image > 0)).mean() < 0.05
    np.testing.assert_allclose(refined.estimated_dice, 2 * 0.5 / 1.5)
    assert made[0].calls == [[(2, 4), None, None, None], [None, (2, 2, 2), (2, 2), (2, 16, 16)]]
