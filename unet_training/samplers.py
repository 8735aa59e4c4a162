"""How batches mix labeled and pseudo-labeled images."""
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from utils.errors import InputError


class HalfAndHalf(Sampler[list[int]]):
    """Batches for a `ConcatDataset` of labeled and pseudo-labeled images.

    Half of each batch is drawn from the labeled ones with replacement, the other half passes once over the others in
    random order; whole batches only.
    """

    def __init__(self, labeled: int, pseudo_labeled: int, batch_size: int):
        """Numbers of images. A batch of an odd size has one pseudo-labeled image more. Raises InputError for a batch
        that has no place for both."""
        if batch_size < 2:
            raise InputError(f"--batch_size {batch_size}: half of a batch are labeled images; give 2 or more")
        self.labeled, self.pseudo_labeled = labeled, pseudo_labeled
        self.share = batch_size // 2
        self.rest = batch_size - self.share

    def __len__(self) -> int:
        return self.pseudo_labeled // self.rest

    def __iter__(self) -> Iterator[list[int]]:
        order = self.labeled + torch.randperm(self.pseudo_labeled)
        for batch in order[:len(self) * self.rest].view(-1, self.rest):
            yield [*torch.randint(self.labeled, (self.share,)).tolist(), *batch.tolist()]


class LabeledOnce(Sampler[list[int]]):
    """Batches for a `ConcatDataset` of labeled and pseudo-labeled images: half of each batch passes once over the
    labeled ones in random order, the other half is drawn from the others with replacement; whole batches only.

    The mixed training of the authors (unet_training/training_with_mixed_labels.py of branch master).
    """

    def __init__(self, labeled: int, pseudo_labeled: int, batch_size: int):
        """Numbers of images. Raises InputError for a batch size that is odd, or more than twice the labeled images."""
        if batch_size % 2 or batch_size > 2 * labeled:
            raise InputError(f"--batch_size {batch_size}: half of a batch are labeled images, of which there are "
                             f"{labeled}; give an even number of at most {2 * labeled}")
        self.labeled, self.pseudo_labeled, self.half = labeled, pseudo_labeled, batch_size // 2

    def __len__(self) -> int:
        return self.labeled // self.half

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.labeled)[:len(self) * self.half]
        for batch in order.view(-1, self.half):
            drawn = self.labeled + torch.randint(self.pseudo_labeled, (self.half,))
            yield [*batch.tolist(), *drawn.tolist()]


def mix_batches(mixed: str, labeled: int, pseudo_labeled: int, batch_size: int) -> HalfAndHalf | LabeledOnce:
    """Batches of so many images, in the way that `FinalOptions.mixed` names. Raises InputError as they do."""
    return {"half": HalfAndHalf, "released": LabeledOnce}[mixed](labeled, pseudo_labeled, batch_size)
