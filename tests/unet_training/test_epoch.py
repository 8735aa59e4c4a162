import copy
import math

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import paper_way
from unet_training.epoch import (
    Averaged,
    bce_loss,
    random_affine,
    random_similarity,
    similarity,
    train_epoch,
    validate,
    warp,
)
from unet_training.hyper_params import LossOptions
from unet_training.networks.u_net import UNet
from unet_training.samplers import LabeledOnce
from utils.errors import InputError

CPU = torch.device("cpu")


def test_loss_equals_its_formula():
    torch.manual_seed(0)
    logits, ground_truth = torch.randn(2, 3, 5, 7).double(), (torch.rand(2, 3, 5, 7) < 0.3).double()
    weights = [2.0, 30.0, 1.0]
    total = 0.0
    pairs = zip(logits.ravel(), ground_truth.ravel(), strict=True)
    for (_, channel, _, _), (logit, target) in zip(np.ndindex(2, 3, 5, 7), pairs, strict=True):
        p = 1 / (1 + math.exp(-logit))
        total -= weights[channel] * target * math.log(p) + (1 - target) * math.log(1 - p)
    assert bce_loss(weights, CPU)(logits, ground_truth).item() == pytest.approx(total.item() / logits.numel(), rel=1e-6)


@pytest.mark.parametrize(("options", "weights"), [(LossOptions(), [2, 30, 1]),
                                                  (LossOptions(max_positive_weight=5.0), [2, 5, 1])])
def test_pos_weight_is_capped_only_where_asked(options, weights):
    assert options.build([2, 30, 1], CPU).pos_weight.ravel().tolist() == weights


def test_dice_is_added_over_the_pixels_of_the_whole_batch():
    torch.manual_seed(2)
    logits, masks = torch.randn(3, 2, 5, 7).double(), (torch.rand(3, 2, 5, 7) < 0.3).double()
    masks[1, 1] = 0  # a class that an image doesn't show
    dice = []
    for channel in range(2):
        p = np.array([1 / (1 + math.exp(-value)) for value in logits[:, channel].ravel().tolist()])
        y = masks[:, channel].ravel().numpy()
        dice.append((2 * np.dot(p, y) + 1) / (p.sum() + y.sum() + 1))
    loss = LossOptions(loss="bce_dice", max_positive_weight=1.0).build([5.0, 9.0], CPU)
    expected = bce_loss([1.0, 1.0], CPU)(logits, masks).item() + 1 - np.mean(dice)
    assert loss(logits, masks).item() == pytest.approx(expected, rel=1e-6)


def test_the_average_follows_the_weights_as_its_formula_says_and_answers_in_evaluation():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    averaged, expected = Averaged(network, decay=0.6), None
    for step in range(12):
        with torch.no_grad():
            network[0].weight.normal_()
            network[1].running_mean.normal_()
        values = [network[0].weight.detach().clone(), network[1].running_mean.clone()]
        averaged.update()
        kept = min(0.6, (1 + step) / (10 + step))
        expected = values if expected is None else [kept * a + (1 - kept) * b
                                                    for a, b in zip(expected, values, strict=True)]
    average = averaged.average.module
    assert torch.allclose(average[0].weight, expected[0], atol=1e-6)
    assert torch.allclose(average[1].running_mean, expected[1], atol=1e-6)
    images = torch.rand(1, 1, 3, 4)
    assert torch.equal(averaged.eval()(images), average(images))
    assert torch.equal(averaged.train()(images), network(images))
    assert not any(weight.requires_grad for weight in average.parameters())


@pytest.mark.parametrize(("mode", "order"), [("bilinear", 1), ("nearest", 0)])
def test_warp_equals_sampling_by_hand(mode, order):
    torch.manual_seed(1)
    height, width = 9, 14
    images, matrices = torch.rand(2, 3, height, width), random_affine(2, 0.3, CPU)
    warped = warp(images, matrices, mode)
    rows, columns = np.mgrid[:height, :width]
    x, y = (2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1  # pixel centers in [-1, 1]
    for image, matrix, result in zip(images.numpy(), matrices.double().numpy(), warped.numpy(), strict=True):
        from_x, from_y = np.tensordot(matrix, np.stack([x, y, np.ones_like(x)]), axes=1)
        coordinates = [((from_y + 1) * height - 1) / 2, ((from_x + 1) * width - 1) / 2]
        for channel in range(3):
            expected = map_coordinates(image[channel].astype(float), coordinates, order=order, mode="grid-constant")
            np.testing.assert_allclose(result[channel], expected, atol=1e-4)


def test_random_affine_scatters_about_identity():
    torch.manual_seed(0)
    matrices = random_affine(20_000, 0.03, CPU)
    torch.testing.assert_close(matrices.mean(dim=0), torch.eye(2, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(matrices.std(dim=0), torch.full((2, 3), 0.03), atol=1e-3, rtol=0)


def test_similarities_turn_scale_and_shift_as_opencv_does():
    height, width, angle, scale, shift = 40, 65, 20.0, 1.3, (0.1, -0.15)
    image = cv2.GaussianBlur(np.random.default_rng(0).random((height, width), np.float32), (0, 0), 2)
    matrices = similarity(torch.tensor([math.radians(angle)]), torch.tensor([scale]), torch.tensor([shift]),
                          (height, width))
    warped = warp(torch.from_numpy(image)[None, None], matrices, "bilinear")[0, 0].numpy()
    to_target = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
    to_target[:, 2] += shift[0] * width, shift[1] * height
    expected = cv2.warpAffine(image, to_target, (width, height))
    assert np.abs(expected - image).max() > 0.1
    np.testing.assert_allclose(warped, expected, atol=0.02)


def test_random_similarities_leave_four_of_five_images_and_spread_evenly():
    torch.manual_seed(0)
    matrices = random_similarity(torch.empty(20_000, 1, 30, 20)).double()
    same = (matrices == torch.eye(2, 3)).all(dim=(1, 2))
    assert same.double().mean() == pytest.approx(0.8, abs=0.01)
    cos, sin = matrices[~same, 0, 0], matrices[~same, 1, 0] * 30 / 20  # of pixels, over the scale
    scale, angle = 1 / torch.hypot(cos, sin), torch.rad2deg(torch.atan2(sin, cos))
    shift = -torch.linalg.solve(matrices[~same, :, :2], matrices[~same, :, 2]) / 2
    for values, low, high in ((scale, 0.7, 1.4), (angle, -25, 25), (shift[:, 0], -0.2, 0.2), (shift[:, 1], -0.2, 0.2)):
        quarters = torch.quantile(values, torch.tensor([0, 0.25, 0.5, 0.75, 1]).double())
        np.testing.assert_allclose(quarters, np.linspace(low, high, 5), atol=0.03 * (high - low))


def test_an_epoch_draws_the_matrices_that_it_is_told_to():
    """Moved by its whole width, every image is empty."""
    def away(images):
        return torch.tensor([[1.0, 0, 2], [0, 1, 0]]).expand(len(images), -1, -1)

    model = Threshold()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    statistics = train_epoch(model, batches(), bce_loss([1.0, 1.0], CPU), optimizer, CPU, 0.03, draw_matrices=away)
    assert statistics.dice.isnan().all()


class Threshold(nn.Module):
    """Logits that are the image itself plus one trainable number."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x.expand(-1, 2, -1, -1) + self.shift


def batches():
    torch.manual_seed(2)
    masks = torch.rand(3, 2, 6, 10) < 0.5
    masks[2, 1] = False
    images = torch.where(masks[:, :1], 4.0, -4.0)  # the first class is seen perfectly
    return [(images[:2], masks[:2]), (images[2:], masks[2:])]


def test_statistics_cover_all_images_of_all_batches():
    statistics = validate(Threshold(), batches(), bce_loss([1.0, 1.0], CPU), CPU)
    assert statistics.dice.shape == (3, 2)
    assert statistics.class_dice[0] == 1
    assert statistics.dice[2, 1].isnan()
    expected = np.mean([np.mean([1, statistics.dice[0, 1]]), np.mean([1, statistics.dice[1, 1]]), 1])
    assert statistics.mean_dice == pytest.approx(expected)
    pooled = [*statistics.dice[:2].ravel().tolist(), 1]  # the third image shows one class
    assert statistics.pooled_dice == pytest.approx(np.mean(pooled)) != statistics.mean_dice


def test_training_lowers_the_loss_and_validation_changes_nothing():
    model, loss = Threshold(), bce_loss([5.0, 5.0], CPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = validate(model, batches(), loss, CPU).loss
    assert model.shift == 0
    train_epoch(model, batches(), loss, optimizer, CPU, data_aug=0)
    assert validate(model, batches(), loss, CPU).loss < before


@pytest.mark.parametrize("bf16", [False, True])
def test_an_epoch_takes_the_steps_of_a_plain_loop(bf16):
    """Bit for bit in float32; near it, but not equal, with bfloat16."""
    torch.manual_seed(0)
    batches = [(torch.randn(2, 1, 48, 33), torch.rand(2, 3, 48, 33) < 0.2) for _ in range(3)]
    start, loss = UNet(3, base_width=4, n_last_channel=4), bce_loss([2.0, 30.0, 1.0], CPU)
    plain, ours = copy.deepcopy(start), copy.deepcopy(start)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0) for model in (plain, ours)]
    torch.manual_seed(1)
    losses = [paper_way.train_step(plain, *batch, loss, optimizers[0], CPU, 0.03)[0] for batch in batches]
    torch.manual_seed(1)
    statistics = train_epoch(ours, batches, loss, optimizers[1], CPU, 0.03, bf16)
    same = all(torch.equal(a, b) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))
    assert same == (not bf16)
    assert statistics.loss == pytest.approx(np.mean(losses), rel=0.02 if bf16 else 1e-6)
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())


class Reads(TorchDispatchMode):
    """Counts how often a number is read from a tensor, for which a GPU would be waited for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


def test_an_epoch_waits_for_no_step():
    """As many reads with six batches as with two."""
    model, loss, counts = UNet(2, base_width=2, n_last_channel=2), bce_loss([5.0, 5.0], CPU), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for number in (2, 6):
        some = [(torch.randn(2, 1, 32, 40), torch.rand(2, 2, 32, 40) < 0.5) for _ in range(number)]
        with Reads() as reads:
            train_epoch(model, some, loss, optimizer, CPU, 0.03)
        counts.append(reads.count)
    assert counts[0] == counts[1] == 1


@pytest.mark.parametrize("bound", [None, 0.1, 1e3])
def test_gradients_of_a_large_norm_are_scaled_down(bound):
    """With SGD at rate 1 a step is the gradient."""
    torch.manual_seed(0)
    batch = torch.randn(2, 1, 48, 33), torch.rand(2, 3, 48, 33) < 0.2
    model, loss = UNet(3, base_width=4, n_last_channel=4), bce_loss([2.0, 30.0, 1.0], CPU)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loss(model(batch[0]), batch[1].float()).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    norm = math.sqrt(sum((gradient.double() ** 2).sum().item() for gradient in gradients))
    assert norm > 0.2
    train_epoch(model, [batch], loss, torch.optim.SGD(model.parameters(), lr=1), CPU, 0, max_gradient_norm=bound)
    factor = min(1, (bound or norm) / norm)
    for parameter, start, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(start - parameter, factor * gradient, rtol=1e-3, atol=1e-5)


def test_half_a_batch_passes_once_over_the_labeled_images():
    torch.manual_seed(0)
    sampler, drawn = LabeledOnce(labeled=7, pseudo_labeled=5, batch_size=6), set()
    assert len(sampler) == 2
    for _ in range(30):
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [6, 6]
        labeled = [index for batch in batches for index in batch[:3]]
        assert len(set(labeled)) == 6 and set(labeled) < set(range(7))
        drawn.update(index for batch in batches for index in batch[3:])
    assert drawn == set(range(7, 12))
    for batch_size in (5, 16):
        with pytest.raises(InputError, match=f"--batch_size {batch_size}: .* even number of at most 14"):
            LabeledOnce(7, 5, batch_size)
