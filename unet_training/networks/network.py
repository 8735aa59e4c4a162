"""What every architecture offers; the others know nothing else of it."""
import argparse
from typing import Any, ClassVar, Self

from torch import nn

from utils.datasets.annotated import AnnotatedImages
from utils.options import options_from


class Network(nn.Module):
    """Takes (B, 1, H, W) normalized grey values, gives (B, C, H, W) logits: one independent logit per class.

    Attributes:
        architecture: its name in files and on the command line
        options: the dataclass of its options
        config: the arguments of its constructor, of plain values; its file keeps them
        notice: what must be said wherever its results are shown
        features_name: names what its frozen part, `encode`, makes of an image; `head` is all the rest. "" without one
    """

    architecture: ClassVar[str]
    options: ClassVar[type]
    config: dict[str, Any]
    notice: str = ""
    features_name: str = ""

    @property
    def student(self) -> "Network":
        """What a network that continues this one's training starts from."""
        return self

    @classmethod
    def options_from_args(cls, args: argparse.Namespace, data: AnnotatedImages) -> Any:
        """Its options as the arguments, or else the data set, say."""
        return options_from(cls.options, args)

    @classmethod
    def build(cls, n_classes: int, input_size: tuple[int, int], mean: float, std: float, options: Any) -> Self:
        """A new network with random weights.

        Args:
            n_classes: output channels
            input_size: (H, W) of the images
            mean, std: with which they are normalized
            options: of the class `options`
        """
        raise NotImplementedError
