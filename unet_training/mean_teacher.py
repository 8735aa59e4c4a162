"""Mean teacher, the paper's comparison: a student learns from labeled images and from its own moving average (Tarvainen
and Valpola 2017; unet_training/forward_func.py of the authors' branch master)."""
import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from unet_training.epoch import EpochStatistics, logits_of, random_affine, take_step, warp
from utils.dice import multilabel_dice

ALPHA = 0.996


class MeanTeacher(nn.Module):
    """A student that is trained and a teacher that follows it; answers as the teacher does, who is the result.

    Args:
        initial: what both start from; becomes the student
        alpha: share of the teacher that a step keeps, in [0, 1]
    """

    def __init__(self, initial: nn.Module, alpha: float = ALPHA):
        super().__init__()
        self.alpha = alpha
        self.student = initial
        self.teacher = copy.deepcopy(initial).requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) normalized grey values -> (B, C, H, W) logits."""
        return self.teacher(images)

    @torch.no_grad()
    def update_teacher(self) -> None:
        """teacher = alpha * teacher + (1 - alpha) * student."""
        for teacher, student in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            teacher.lerp_(student, 1 - self.alpha)


def mean_teacher_epoch(model: MeanTeacher, batches: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
                       loss_function: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device,
                       data_aug: float, bf16: bool = False,
                       max_gradient_norm: float | None = None) -> EpochStatistics:
    """One pass over `batches` of (B, 1, H, W) images, (B, C, H, W) bool masks, and (B,) bool: whether the mask counts.

    The loss is `loss_function` of the student where images are labeled, plus the mean squared error between the
    logits of student and teacher everywhere. Both see the images under an affine augmentation of their own, and their
    logits are warped back. The Dice is the student's on the labeled images. The other arguments are those of
    `train_epoch`.
    """
    model.train()
    losses, dice = [], []
    for images, masks, labeled in batches:
        images, masks = images.to(device), masks[labeled].to(device)
        student = augmented_logits(model.student, images, data_aug, bf16)
        with torch.no_grad():
            teacher = augmented_logits(model.teacher, images, data_aug, bf16)
        loss, taught = F.mse_loss(student, teacher), student[labeled]
        if len(taught):
            loss = loss + loss_function(taught, masks.float())
            dice.append(multilabel_dice(taught.detach() > 0, masks))
        take_step(loss, model.student, optimizer, max_gradient_norm)
        model.update_teacher()
        losses.append(loss.detach())
    dice = dice or [torch.full(masks.shape[1:2], torch.nan)[None]]  # the last, incomplete batch held all labeled ones
    return EpochStatistics(torch.stack(losses).mean().item(), torch.cat(dice).cpu())


def augmented_logits(model: nn.Module, images: torch.Tensor, data_aug: float, bf16: bool = False) -> torch.Tensor:
    """Logits, float32, of images under a random affine augmentation (0: none), moved back to where the images are."""
    if not data_aug:
        return logits_of(model, images, bf16)
    matrices = random_affine(len(images), data_aug, images.device)
    return warp(logits_of(model, warp(images, matrices, "bilinear"), bf16), inverse(matrices), "bilinear")


def inverse(matrices: torch.Tensor) -> torch.Tensor:
    """The affine maps (B, 2, 3) that undo others."""
    last_row = torch.tensor([[[0.0, 0.0, 1.0]]], device=matrices.device).expand(len(matrices), 1, 3)
    return torch.linalg.inv(torch.cat([matrices, last_row], dim=1))[:, :2]
