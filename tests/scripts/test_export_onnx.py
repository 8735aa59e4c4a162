"""The exported U-Net: onnxruntime against PyTorch, and the model card's own commands."""
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch

from scripts import evaluate, export_onnx
from tests.conftest import INPUT, LABELS, MEAN, STD
from unet_training.arrays import load_model
from unet_training.checkpoint import Training
from unet_training.onnx_export import export_onnx as export
from utils.errors import InputError


def run(model_id: str, out: Path, *more: str) -> Path:
    args = ["--model_id", model_id, "--out", str(out), *more]
    return export_onnx.main(export_onnx.get_args_parser().parse_args(args))


@pytest.mark.slow
def test_onnxruntime_gives_pytorchs_probabilities_at_any_size(trained, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the optional packages onnx and onnxruntime")
    network = trained[2]
    network.out.weight.data /= 5  # so steep an output makes much of the last digits
    export(network, Training("mine", LABELS, INPUT, MEAN, STD), tmp_path / "unet.onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "unet.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == list(LABELS)
    for size in ((36, 60), (90, 47), (33, 160)):
        image = torch.nn.functional.interpolate(torch.rand(1, 1, 8, 5), size, mode="bicubic").clamp(0, 1)
        with torch.no_grad():
            seen = torch.nn.functional.interpolate(image, INPUT, mode="bilinear")
            probabilities = network((seen - MEAN) / STD).sigmoid()
            expected = torch.nn.functional.interpolate(probabilities, size, mode="bilinear").numpy()
        result = session.run(None, {"image": image.numpy()})[0]
        assert result.shape == (1, 2, *size) and np.ptp(expected) > 0.3
        assert np.abs(result - expected).max() < 1e-5


@pytest.mark.slow
def test_the_card_says_what_is_known_and_how_to_load(trained, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="needs the optional packages onnx and onnxruntime")
    data_dir, model_id, network = trained
    args = ["--dataset", "mine", "--data_dir", str(data_dir), "--model_id", model_id, "--results_dir", str(tmp_path)]
    dice = evaluate.main(evaluate.get_args_parser().parse_args(args))
    run(model_id, tmp_path / "u.onnx", "--results_dir", str(tmp_path))
    card = (tmp_path / "u.onnx").with_suffix(".md").read_text(encoding="utf-8")
    assert f"- Dice {dice.mean:.2f} ± nan % over 1 test images\n" in card and "- labels: heart, lung\n" in card
    assert re.search(r"- u\.onnx: SHA-256 [0-9a-f]{64}\n", card) and "num_train_samples: 4" in card
    first, second = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(first, names := {})
    assert names["masks"].shape == (2, 700, 400) and names["masks"].dtype == bool
    grey = cv2.resize(np.random.default_rng(1).integers(0, 256, (7, 9), np.uint8), (70, 50))
    result = names["session"].run(None, {"image": (grey / np.float32(255))[None, None]})[0][0]
    assert np.abs(result - load_model(model_id, data_dir).predict(grey)).max() < 1e-3  # OpenCV's resizing
    exec(second.replace("sam_burden.", ""), names := {})
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(names["network"].state_dict()[name], tensor, rtol=0, atol=0)
    assert safetensors.torch.load_file(tmp_path / "u.safetensors").keys() == network.state_dict().keys()


def test_what_cant_be_exported(trained, tmp_path):
    with pytest.raises(InputError, match=r"must end in \.onnx"):
        run(trained[1], tmp_path / "unet.pt")
    with pytest.raises(InputError, match="offline-nothing"):
        run("offline-nothing", tmp_path / "unet.onnx")
