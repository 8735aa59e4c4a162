"""nnU-Net's trainer, changed. nnU-Net finds these by their names, in the folder that `nnUNet_extTrainer` names."""
import os

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class ShorterTrainer(nnUNetTrainer):
    """Epochs and iterations an epoch are those that unet_training/nnunet/nnunet.py sets in the environment."""

    # nnU-Net reads the names of these arguments
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["NNUNET_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["NNUNET_ITERATIONS"])
        self.num_val_iterations_per_epoch = max(1, self.num_iterations_per_epoch // 5)  # nnU-Net's ratio


class BCETrainer(ShorterTrainer):
    """Binary cross-entropy alone, where nnU-Net adds a Dice loss. Only for regions, whose outputs are sigmoids."""

    def _build_loss(self) -> torch.nn.Module:
        loss = super()._build_loss()
        of_one_scale = loss.loss if self.enable_deep_supervision else loss
        of_one_scale.weight_dice = 0
        return loss
