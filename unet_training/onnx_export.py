"""A trained U-Net with all that stands before and after it, as an ONNX file that other runtimes take."""
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from unet_training.checkpoint import Training
from unet_training.networks.network import Network
from unet_training.networks.u_net import UNet
from utils.errors import InputError
from utils.files import atomic_path
from utils.precision import full_float32

TOLERANCE = 1e-4  # between the two runtimes
OPSET = 17


class WholeImage(nn.Module):
    """Takes an image of any size, float32 (1, 1, H, W) in [0, 1] as files of its data set have it, divided by their
    largest value; gives probabilities, float32 (1, C, H, W).

    As `scripts.predict_folder`, but that the image is resized as floats throughout, which is what `resize_dtype` =
    "float32" of a data set does.
    """

    def __init__(self, network: Network, training: Training):
        super().__init__()
        self.network, self.trained_on = network, training
        self.inverted = (training.reading or "").endswith("_inverted")

    @full_float32()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[2], image.shape[3]
        grey = 1 - image if self.inverted else image
        seen = F.interpolate(grey, self.trained_on.input_size, mode="bilinear", align_corners=False)
        logits = self.network((seen - self.trained_on.mean) / self.trained_on.std)
        return F.interpolate(logits.sigmoid(), (height, width), mode="bilinear", align_corners=False)


def export_onnx(network: Network, training: Training, path: Path, told: dict[str, str]) -> float:
    """Writes an ONNX file with the input `image` and the output `probabilities` of `WholeImage`; `told` and the labels
    are its metadata.

    Returns:
        the largest difference to PyTorch's probabilities, of a smooth image
    Raises:
        InputError: the network is no U-Net, the packages onnx and onnxruntime aren't installed, or the file gives other
            probabilities.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise InputError(f"{path}: is written and checked by the packages onnx and onnxruntime; `python -m pip install "
                         "onnx onnxruntime`") from None
    if network.architecture != UNet.architecture:
        raise InputError(f"{path}: only U-Nets are exported, this is a network of the architecture "
                         f"{network.architecture}; name another --model_id")
    whole = WholeImage(network, training).eval()
    height, width = training.input_size
    coarse = torch.from_numpy(np.random.default_rng(0).random((1, 1, 9, 7), np.float32))
    sample = F.interpolate(coarse, (height + 37, width + 61), mode="bilinear")  # as smooth as radiographs
    any_size = {2: "height", 3: "width"}
    with atomic_path(path) as temporary:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of this exporter, and of what a trace fixes: the classes
            torch.onnx.export(whole, (sample,), str(temporary), input_names=["image"], output_names=["probabilities"],
                              dynamic_axes={"image": any_size, "probabilities": any_size}, opset_version=OPSET,
                              dynamo=False)  # the newer exporter needs one more package
            expected = whole(sample).numpy()
        model = onnx.load(temporary)
        onnx.helper.set_model_props(model, {"labels": json.dumps(training.labels, ensure_ascii=False), **told})
        onnx.checker.check_model(model)
        onnx.save(model, temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        difference = float(np.abs(session.run(None, {"image": sample.numpy()})[0] - expected).max())
        if not difference < TOLERANCE:
            raise InputError(f"{path}: onnxruntime's probabilities differ from PyTorch's by {difference:.1e}; use "
                             "other versions of onnx and onnxruntime")
    return difference
