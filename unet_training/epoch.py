"""One epoch of training or validation; knows neither the tracker nor the command line."""
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from utils.dice import image_dice, multilabel_dice


@dataclass(frozen=True)
class EpochStatistics:
    """loss: mean over batches; dice: (N, C), NaN where an image doesn't show the class (see utils.dice)."""

    loss: float
    dice: torch.Tensor

    @property
    def mean_dice(self) -> float:
        """Mean over images of each image's mean Dice, in [0, 1]."""
        return image_dice(self.dice).nanmean().item()

    @property
    def class_dice(self) -> list[float]:
        """Mean over images per class; NaN for a class that no image shows."""
        return self.dice.nanmean(dim=0).tolist()


def bce_loss(pos_weight: Iterable[float], device: torch.device) -> nn.BCEWithLogitsLoss:
    """Binary cross entropy on logits with one positive weight per class (paper, section 2)."""
    return nn.BCEWithLogitsLoss(pos_weight=torch.tensor(list(pos_weight), device=device).view(-1, 1, 1))


def random_affine(count: int, strength: float, device: torch.device) -> torch.Tensor:
    """Identity + N(0, strength) on all six entries, (count, 2, 3), in the normalized coordinates of `affine_grid`."""
    identity = torch.eye(2, 3, device=device)
    return identity + strength * torch.randn(count, 2, 3, device=device)


def warp(images: torch.Tensor, matrices: torch.Tensor, mode: str) -> torch.Tensor:
    """Samples (B, K, H, W) floats at affinely moved positions; zeros outside. `mode`: bilinear or nearest."""
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


def logits_of(model: nn.Module, images: torch.Tensor, bf16: bool) -> torch.Tensor:
    """What the model makes of the images, as float32; `bf16`: convolutions in bfloat16, weights stay float32."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        return model(images).float()


def train_epoch(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], loss_function: nn.Module,
                optimizer: torch.optim.Optimizer, device: torch.device, data_aug: float,
                bf16: bool = False) -> EpochStatistics:
    """One pass over `batches` of (B, 1, H, W) images and (B, C, H, W) bool masks, with affine augmentation
    of strength `data_aug` (0: none). `bf16`: see `logits_of`; augmentation, loss and optimizer stay float32."""
    model.train()
    losses, dice = [], []
    for images, masks in batches:
        images, masks = images.to(device), masks.to(device).float()
        if data_aug:
            matrices = random_affine(len(images), data_aug, device)
            images, masks = warp(images, matrices, "bilinear"), warp(masks, matrices, "nearest")
        logits = logits_of(model, images, bf16)
        loss = loss_function(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        dice.append(multilabel_dice(logits.detach() > 0, masks > 0.5))
    return EpochStatistics(torch.stack(losses).mean().item(), torch.cat(dice).cpu())


@torch.inference_mode()
def validate(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], loss_function: nn.Module,
             device: torch.device) -> EpochStatistics:
    """Loss and Dice on labeled images, as `train_epoch` without training."""
    model.eval()
    losses, dice = [], []
    for images, masks in batches:
        masks = masks.to(device)
        logits = model(images.to(device))
        losses.append(loss_function(logits, masks.float()))
        dice.append(multilabel_dice(logits > 0, masks))
    return EpochStatistics(torch.stack(losses).mean().item(), torch.cat(dice).cpu())
