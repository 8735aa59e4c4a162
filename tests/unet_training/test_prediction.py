"""Prediction side by side: order, equality, errors."""
import numpy as np
import pytest
import torch

from tests.torch_threads import torch_threads
from unet_training.networks.u_net import UNet
from unet_training.prediction import predict

CPU = torch.device("cpu")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet(3, base_width=4, n_last_channel=4).eval()


@pytest.mark.parametrize("threads", [1, 3])
def test_images_are_segmented_side_by_side_in_their_order_and_as_each_alone(network, threads):
    images = [(torch.rand(1, 48, 32), f"stem{number}") for number in range(7)]
    with torch_threads(1), torch.no_grad():
        expected = [network(image[None])[0].sigmoid().numpy() for image, _ in images]
    with torch_threads(threads):
        predicted = list(predict(network, images, CPU, 16))
    assert [stem for stem, _ in predicted] == [stem for _, stem in images]
    for (_, probabilities), alone in zip(predicted, expected, strict=True):
        assert probabilities.dtype == np.float32
        np.testing.assert_array_equal(probabilities, alone)


def test_an_image_that_cannot_be_read_is_an_error(network):
    class Images:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
            if index == 1:
                raise OSError("unreadable")
            return torch.rand(1, 48, 32), str(index)

    predicted = predict(network, Images(), CPU, 16)
    assert next(predicted)[0] == "0"
    with pytest.raises(OSError, match="unreadable"):
        next(predicted)
