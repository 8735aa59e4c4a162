"""nnU-Net's trainer at another length. nnU-Net finds it by its name, in the folder that `nnUNet_extTrainer` names."""
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
