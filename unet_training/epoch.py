"""One epoch of training or validation; knows neither the tracker nor the command line."""
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from unet_training.distributed import draw_share, join_batches, join_shares, sum_over_processes
from utils.dice import image_dice, multilabel_dice
from utils.ranks import processes, rank


@dataclass(frozen=True)
class EpochStatistics:
    """loss: mean over batches; dice: (N, C), NaN where an image doesn't show the class (see utils.dice)."""

    loss: float
    dice: torch.Tensor

    @property
    def mean_dice(self) -> float:
        """Mean over images of each image's mean Dice, in [0, 1]: what an evaluation reports."""
        return image_dice(self.dice).nanmean().item()

    @property
    def pooled_dice(self) -> float:
        """Mean over all classes of all images alike, in [0, 1]: what the authors' curves show
        (unet_training/forward_func.py) and their search maximizes."""
        return self.dice.nanmean().item()

    @property
    def class_dice(self) -> list[float]:
        """Mean over images per class; NaN for a class that no image shows."""
        return self.dice.nanmean(dim=0).tolist()


def bce_loss(pos_weight: Iterable[float], device: torch.device) -> nn.BCEWithLogitsLoss:
    """Binary cross entropy on logits; `pos_weight` holds one weight per class."""
    return nn.BCEWithLogitsLoss(pos_weight=torch.tensor(list(pos_weight), device=device).view(-1, 1, 1))


class BCEDiceLoss(nn.Module):
    """Binary cross entropy on logits plus 1 - soft Dice, the mean over classes.

    The pixels of all images of a batch count together, so that a class has a gradient where an image doesn't show it,
    too; the 1 defines the Dice of a class that no image shows.
    """

    def __init__(self, pos_weight: Iterable[float], device: torch.device):
        """`pos_weight` as of `bce_loss`; the Dice has no weights."""
        super().__init__()
        self.bce = bce_loss(pos_weight, device)

    def forward(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Logits and masks, float (B, C, H, W), to a scalar."""
        probabilities = logits.sigmoid()
        both = sum_over_processes((probabilities * masks).sum(dim=(0, 2, 3)))
        total = sum_over_processes((probabilities + masks).sum(dim=(0, 2, 3)))
        return self.bce(logits, masks) + 1 - ((2 * both + 1) / (total + 1)).mean()


class Averaged(nn.Module):
    """A network that is trained, and the moving average of its weights, which answers in evaluation mode.

    After k steps a step keeps (1 + k) / (10 + k) of the average, but not more than `decay`: short trainings have an
    average that doesn't remember where they started.
    """

    def __init__(self, network: nn.Module, decay: float):
        super().__init__()
        self.decay = decay
        self.trained = network
        self.average = AveragedModel(network, avg_fn=self._mix, use_buffers=True).requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.trained(images) if self.training else self.average(images)

    def update(self) -> None:
        """To be called after every step."""
        self.average.update_parameters(self.trained)

    def _mix(self, average: torch.Tensor, value: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point():  # the number of batches that a batch norm has seen
            return value
        kept = min(self.decay, (1 + steps.item()) / (10 + steps.item()))
        return average.lerp(value, 1 - kept)


def random_affine(count: int, strength: float, device: torch.device) -> torch.Tensor:
    """Identity + N(0, strength) on all six entries, (count, 2, 3), in the normalized coordinates of `affine_grid`."""
    identity = torch.eye(2, 3, device=device)
    return identity + strength * torch.randn(count, 2, 3, device=device)


def random_similarity(images: torch.Tensor, probability: float = 0.2) -> torch.Tensor:
    """Matrices (B, 2, 3) for `warp` that turn, scale and shift images (B, K, H, W), each with this probability, or else
    leave them as they are.

    By up to 25 degrees, 0.7 to 1.4 times as large, by up to a fifth of each side, evenly distributed: the augmentation
    of the authors' unet_training/training_with_mixed_labels.py (branch master).
    """
    count, device = len(images), images.device
    angle, scale, along_x, along_y, chance = torch.rand(5, count, device=device)
    moved = similarity(math.radians(25) * (2 * angle - 1), 0.7 + 0.7 * scale,
                       0.4 * torch.stack([along_x, along_y], dim=1) - 0.2, images.shape[-2:])
    return torch.where((chance < probability)[:, None, None], moved, torch.eye(2, 3, device=device))


def similarity(angle: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Matrices (B, 2, 3) for `warp` under which an image turns counterclockwise about its center, grows, then shifts.

    Args:
        angle: (B,) in radians
        scale: (B,) factors
        shift: (B, 2), to the right and down, in widths and heights
        size: (H, W) of the image
    """
    height, width = size
    cos, sin = angle.cos() / scale, angle.sin() / scale
    back = torch.stack([cos, -sin * height / width, sin * width / height, cos], dim=1).view(-1, 2, 2)
    return torch.cat([back, back @ (-2 * shift[..., None])], dim=2)


def warp(images: torch.Tensor, matrices: torch.Tensor, mode: str) -> torch.Tensor:
    """Samples (B, K, H, W) floats at affinely moved positions; zeros outside. `mode`: bilinear or nearest."""
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


def logits_of(model: nn.Module, images: torch.Tensor, bf16: bool) -> torch.Tensor:
    """What the model makes of the images, as float32; `bf16`: convolutions in bfloat16, weights stay float32."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        return model(images).float()


def take_step(loss: torch.Tensor, model: nn.Module, optimizer: torch.optim.Optimizer,
              max_gradient_norm: float | None) -> None:
    """One step of the optimizer down the loss; gradients of a larger norm are scaled down to `max_gradient_norm`."""
    optimizer.zero_grad()
    loss.backward()
    if max_gradient_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), max_gradient_norm)
    optimizer.step()


def train_epoch(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], loss_function: nn.Module,
                optimizer: torch.optim.Optimizer, device: torch.device, data_aug: float, bf16: bool = False,
                max_gradient_norm: float | None = None,
                draw_matrices: Callable[[torch.Tensor], torch.Tensor] | None = None,
                after_step: Callable[[], None] | None = None) -> EpochStatistics:
    """One pass over `batches` of (B, 1, H, W) images and (B, C, H, W) bool masks.

    Args:
        data_aug: strength of the affine augmentation, see `random_affine`; 0 for none
        bf16: see `logits_of`; augmentation, loss and optimizer stay float32
        max_gradient_norm: see `take_step`; None for no bound. 1.0 in the authors' dental trainings, their mean teacher
            excepted (unet_training/forward_func.py of branch additional_ds)
        draw_matrices: with augmentation draws the matrices (B, 2, 3) of images, such as `random_similarity`; left out:
            `random_affine`
        after_step: is called after each step of the optimizer
    """
    def draw(images: torch.Tensor) -> torch.Tensor:
        return draw_matrices(images) if draw_matrices else random_affine(len(images), data_aug, device)

    model.train()
    losses, dice = [], []
    for images, masks in batches:
        images, masks = images.to(device), masks.to(device).float()
        if data_aug:
            matrices = draw_share(draw, images)
            images, masks = warp(images, matrices, "bilinear"), warp(masks, matrices, "nearest")
        logits = logits_of(model, images, bf16)
        loss = loss_function(logits, masks)
        take_step(loss, model, optimizer, max_gradient_norm)
        if after_step:
            after_step()
        losses.append(loss.detach())
        dice.append(multilabel_dice(logits.detach() > 0, masks > 0.5))
    mean_losses, all_dice = join_shares(torch.stack(losses), torch.cat(dice))
    return EpochStatistics(mean_losses.mean().item(), all_dice.cpu())


@torch.inference_mode()
def validate(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], loss_function: nn.Module,
             device: torch.device) -> EpochStatistics:
    """Loss and Dice on labeled images, as `train_epoch` without training. Several processes share the batches."""
    model.eval()
    losses, dice = [], []
    for images, masks in islice(batches, rank(), None, processes()):
        masks = masks.to(device)
        logits = model(images.to(device))
        losses.append(loss_function(logits, masks.float()))
        dice.append(multilabel_dice(logits > 0, masks))
    losses, dice = join_batches(losses, dice)
    return EpochStatistics(torch.stack(losses).mean().item(), torch.cat(dice).cpu())
