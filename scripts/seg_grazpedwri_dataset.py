"""The radiographs of GRAZPEDWRI-DX with their bones, as a PyTorch data set (paper, section 1).

    from scripts.seg_grazpedwri_dataset import SegGrazPedWriDataset
    train = SegGrazPedWriDataset("train", num_train_samples=5)
    image, mask = train[0]    # float32 (1, 384, 224) normalized, bool (17, 384, 224)

Reads data/graz/img_only_front_all_left/<stem>.png, annotations/*.xml, dataset.csv and the lists of stems beside them.
The sample data have the same form: `SegGrazPedWriDataset("train", dataset="phantom")`.
"""
from collections.abc import Sequence
from pathlib import Path

from unet_training.data import LabeledDataset
from utils.datasets.annotated import open_dataset
from utils.paths import DATA


class SegGrazPedWriDataset(LabeledDataset):
    """Frontal radiographs of one split, right hands mirrored, with one binary mask per bone (bones overlap)."""

    def __init__(self, split: str, num_train_samples: int | None = None, data_dir: Path = DATA,
                 dataset: str = "graz", input_size: Sequence[int] | None = None):
        """The first `num_train_samples` training images, or all of "train", "val" or "test".

        Raises:
            InputError: images or annotations are missing or wrong, or there are fewer images.
        """
        data = open_dataset(dataset, data_dir, input_size)
        super().__init__(data, data.stems(split, num_train_samples if split == "train" else None))
        self.labels = data.description.labels
