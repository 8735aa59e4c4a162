import pytest
import torch

from unet_training.checkpoint import Training, load_checkpoint, save_checkpoint
from unet_training.networks.u_net import UNet
from utils.errors import InputError

SIZE = (50, 38)
TRAINING = Training("phantom", ("radius", "ulna", "lunate"), SIZE, 0.4, 0.2)


def test_model_rebuilds_itself_from_its_file(tmp_path):
    model = UNet(3, base_width=4, n_last_channel=6).eval()
    save_checkpoint(tmp_path / "model.pt", model, TRAINING)
    loaded, training = load_checkpoint(tmp_path / "model.pt")
    assert training == TRAINING
    x = torch.randn(1, 1, 50, 38)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert not loaded.training


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(path)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="holds no network"):
        load_checkpoint(path)
    save_checkpoint(path, UNet(3, base_width=4), TRAINING)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"]["base_width"] = 8
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match="don't fit"):
        load_checkpoint(path)


def test_labels_must_be_those_of_the_data():
    TRAINING.check_labels(["radius", "ulna", "lunate"], "data set phantom")
    with pytest.raises(InputError, match="data set jsrt"):
        TRAINING.check_labels(["heart"], "data set jsrt")
