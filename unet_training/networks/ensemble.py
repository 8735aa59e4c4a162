"""Several trained networks as one: the mean of their logits."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unet_training.networks.network import Network


class Ensemble(Network):
    """Networks of one architecture and size, each trained from another seed. It is combined, never trained itself."""

    architecture = "ensemble"

    def __init__(self, members: Sequence[Network]):
        super().__init__()
        first = members[0]
        self.members = nn.ModuleList(members)
        self.config = {"member": first.architecture, "member_config": first.config, "count": len(members),
                       "n_classes": first.config["n_classes"]}
        self.notice = first.notice

    @property
    def student(self) -> Network:
        return self.members[0]

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images) for member in self.members]).mean(dim=0)
