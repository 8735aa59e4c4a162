"""The mean teacher's parts against computations by hand."""
import copy

import pytest
import torch
from torch.nn import functional as F

from unet_training.epoch import bce_loss, random_affine, warp
from unet_training.mean_teacher import MeanTeacher, augmented_logits, inverse, mean_teacher_epoch
from unet_training.networks.u_net import UNet

CPU = torch.device("cpu")


def smooth_images(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    return F.interpolate(torch.randn(count, channels, 4, 5), (height, width), mode="bicubic")


def test_warping_back_is_the_identity_inside():
    torch.manual_seed(0)
    images, matrices = smooth_images(3, 2, 60, 90), random_affine(3, 0.05, CPU)
    back = warp(warp(images, matrices, "bilinear"), inverse(matrices), "bilinear")
    inside = (..., slice(12, -12), slice(18, -18))
    assert (warp(images, matrices, "bilinear")[inside] - images[inside]).abs().max() > 0.3
    torch.testing.assert_close(back[inside], images[inside], atol=0.03, rtol=0)
    torch.testing.assert_close(inverse(inverse(matrices)), matrices)


def test_logits_under_augmentation_lie_where_the_image_does():
    """With a model that answers with its input, they are the image."""
    torch.manual_seed(0)
    images = smooth_images(2, 1, 60, 90)
    logits = augmented_logits(torch.nn.Identity(), images, 0.05)
    torch.testing.assert_close(logits[..., 12:-12, 18:-18], images[..., 12:-12, 18:-18], atol=0.03, rtol=0)
    assert torch.equal(augmented_logits(torch.nn.Identity(), images, 0.0), images)


def test_bfloat16_moves_no_pixel(monkeypatch):
    """Only the network computes in it: the augmentation's coordinates would be a pixel off."""
    grids = []
    monkeypatch.setattr(F, "grid_sample", lambda images, grid, **_: (grids.append(grid.dtype), images)[1])
    seen = []
    network = torch.nn.Conv2d(1, 2, 1)
    network.register_forward_hook(lambda _, inputs, logits: seen.append(logits.dtype))
    batch = torch.zeros(2, 1, 8, 6), torch.ones(2, 2, 8, 6, dtype=torch.bool), torch.tensor([True, False])
    model = MeanTeacher(network)
    mean_teacher_epoch(model, [batch], bce_loss([1, 1], CPU), torch.optim.SGD(model.parameters()), CPU, 0.03, bf16=True)
    assert set(seen) == {torch.bfloat16} and set(grids) == {torch.float32}


@pytest.mark.parametrize(("labeled", "alpha", "bound"), [
    ([True, False, True], 0.996, None), ([False, False, False], 0.996, None), ([True, False, True], 0.9, 0.05)])
def test_a_step_equals_one_by_hand(labeled, alpha, bound):
    torch.manual_seed(0)
    model = MeanTeacher(UNet(2, 2, 2), alpha) if alpha != 0.996 else MeanTeacher(UNet(2, 2, 2))
    loss_function = bce_loss([2.0, 3.0], CPU)
    for parameter in model.teacher.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))
    images, masks = torch.randn(3, 1, 32, 48), torch.rand(3, 2, 32, 48) < 0.3
    labeled = torch.tensor(labeled)
    start = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = (images[:1], masks[:1], torch.tensor([True]))  # so that some image of the epoch is labeled
    statistics = mean_teacher_epoch(model, [(images, masks, labeled), first], loss_function, optimizer, CPU, 0.0,
                                    max_gradient_norm=bound)
    expected, optimizer = start, torch.optim.SGD(start.student.parameters(), lr=0.1)
    losses = []
    for some, ground_truth, counts in ((images, masks, labeled), first):
        student, teacher = expected.student(some), expected.teacher(some).detach()
        loss = ((student - teacher) ** 2).mean()
        if counts.any():
            loss = loss + loss_function(student[counts], ground_truth[counts].float())
        optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in expected.student.parameters()]
        norm = sum((gradient ** 2).sum() for gradient in gradients).sqrt()
        if bound:
            assert norm > bound
            for gradient in gradients:
                gradient *= bound / norm
        optimizer.step()
        losses.append(loss.item())
        with torch.no_grad():
            for t, s in zip(expected.teacher.parameters(), expected.student.parameters(), strict=True):
                t.copy_(alpha * t + (1 - alpha) * s)
    assert statistics.loss == pytest.approx(sum(losses) / 2, rel=1e-5)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert torch.equal(model(images), model.teacher(images))
