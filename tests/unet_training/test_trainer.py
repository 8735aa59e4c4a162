import math
from argparse import ArgumentTypeError

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.fresh_process import printed, run_code
from unet_training import trainer
from unet_training.checkpoint import Training, load_checkpoint
from unet_training.epoch import bce_loss, train_epoch
from unet_training.hyper_params import Schedule
from unet_training.networks.u_net import UNet
from unet_training.trainer import Prepared, fit, publish
from utils.errors import InputError
from utils.files import save_tensors
from utils.options import positive_float

CPU = torch.device("cpu")
TRAIN_WITH_WORKERS = """
import multiprocessing, subprocess, time
from pathlib import Path

start_program = subprocess._fork_exec
def start_slowly(*arguments):
    time.sleep(0.3)  # between the opening of its pipes and its start
    return start_program(*arguments)

if __name__ == "__main__":
    subprocess._fork_exec = start_slowly
    import psutil, torch
    from torch.utils.data import DataLoader, TensorDataset
    from tests.unet_training.test_trainer import CPU, TRAINING
    from unet_training.data import EpochLoader
    from unet_training.epoch import bce_loss, train_epoch
    from unet_training.hyper_params import Schedule
    from unet_training.networks.u_net import UNet
    from unet_training.trainer import Prepared, fit
    from utils.tracking.experiment import start

    counts = []
    def count_workers():
        server = multiprocessing.forkserver._forkserver._forkserver_pid
        counts.append(len(psutil.Process(server).children()))

    def run_epoch(*arguments):
        statistics = train_epoch(*arguments)
        count_workers()
        return statistics

    data = TensorDataset(torch.rand(4, 1, 32, 48), torch.rand(4, 2, 32, 48) < 0.5)
    model = UNet(2, base_width=2, n_last_channel=2)
    with start("training", {}) as experiment:
        batches = EpochLoader(data, 2, num_workers=2, shuffle=True)
        fit(Prepared(model, model, batches, DataLoader(data, 2), bce_loss([1.0, 2.0], CPU), TRAINING,
                     run_epoch=run_epoch), Schedule(2), CPU, experiment, Path("never"))
        count_workers()
    print(f"workers: {counts[0]} while it trains, {counts[-1]} afterwards")
    print("session is closed")
"""
LABELS = ("left", "right")
TRAINING = Training("phantom", LABELS, (32, 48), 0.4, 0.2)


class RecordingExperiment:
    """Keeps what a tracker would show."""

    def __init__(self):
        self.continued, self.scalars, self.values, self.images = False, {}, {}, []

    def scalar(self, title, series, value, step):
        self.scalars[title, series, step] = value

    def single_value(self, name, value):
        self.values[name] = value

    def image(self, title, series, image, step):
        self.images.append((series, image.shape, step))

    def save_model(self, weights, labels):
        self.saved = load_checkpoint(weights)
        return "model-1"


def run(state_file, epochs=6, stop_after=None, compile=False, lr=1e-2, model=None):
    """Trains a tiny U-Net on two bright squares; `stop_after` interrupts it after so many epochs."""
    torch.manual_seed(0)
    masks = torch.zeros(4, 2, 32, 48, dtype=torch.bool)
    masks[:, 0, 4:20, 2:18], masks[:, 1, 10:30, 26:44] = True, True
    images = masks.any(dim=1, keepdim=True).float() + 0.1 * torch.randn(4, 1, 32, 48)
    data = TensorDataset(images, masks)
    model, experiment = model or UNet(2, base_width=2, n_last_channel=2), RecordingExperiment()
    calls = iter(range(epochs if stop_after is None else stop_after))

    def run_epoch(*arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return train_epoch(*arguments)

    prepared = Prepared(model, model, DataLoader(data, 2, shuffle=True), DataLoader(data, 4),
                        bce_loss([1.0, 2.0], CPU), TRAINING, run_epoch=run_epoch)
    fit(prepared, Schedule(epochs, lr, compile=compile), CPU, experiment, state_file)
    return model, experiment


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_every_epoch_is_reported(tmp_path):
    _, experiment = run(tmp_path / "state.pt")
    rates = [experiment.scalars["learning rate", "lr", epoch] for epoch in range(6)]
    expected = [1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi * epoch / 6)) / 2 for epoch in range(6)]
    assert rates == pytest.approx(expected)
    titles = ("loss", "Dice in %", "Dice in %, pooled")
    curves = {(title, series) for title in titles for series in ("train", "validation")}
    curves |= {("Dice in %, validation, per class", label) for label in LABELS} | {("learning rate", "lr")}
    assert {key[:2] for key in experiment.scalars} == curves
    assert experiment.values["Dice in %, validation"] == experiment.scalars["Dice in %", "validation", 5] > 1
    assert experiment.scalars["loss", "train", 5] < experiment.scalars["loss", "train", 0]
    assert ("prediction", (32, 48, 3), 5) in experiment.images


def test_the_network_is_compiled_where_asked(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: (compiled.append(function), function)[1])
    plain, _ = run(tmp_path / "state.pt", epochs=1)
    assert not compiled
    same, experiment = run(tmp_path / "state.pt", epochs=1, compile=True)
    assert len(compiled) == 1 and compiled[0].__self__ is same
    publish(experiment, same, TRAINING, tmp_path / "state.pt")
    assert same_weights(plain, experiment.saved[0])


def test_interrupted_training_ends_in_the_same_model(tmp_path, monkeypatch):
    whole, experiment = run(tmp_path / "whole.pt")
    monkeypatch.setattr(trainer, "SECONDS_BETWEEN_STATES", 0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state.pt", stop_after=3)
    monkeypatch.undo()
    resumed, resumed_experiment = run(tmp_path / "state.pt")
    assert same_weights(whole, resumed)
    assert resumed_experiment.scalars == experiment.scalars


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_loses_no_finished_epoch(tmp_path, monkeypatch, interruption):
    """In the middle of an epoch, which has changed weights, optimizer and random numbers by then."""
    whole, experiment = run(tmp_path / "whole.pt")
    step, steps = torch.optim.AdamW.step, iter(range(5))

    def interrupt(optimizer, *arguments):
        step(optimizer, *arguments)
        if next(steps, None) is None:
            raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupt)
        with pytest.raises(interruption):
            run(tmp_path / "state.pt")
    resumed, resumed_experiment = run(tmp_path / "state.pt")
    assert same_weights(whole, resumed) and resumed_experiment.scalars == experiment.scalars


def test_the_random_numbers_of_the_gpu_that_trains_go_on(tmp_path, monkeypatch):
    gpus = [torch.tensor([number], dtype=torch.uint8) for number in range(2)]  # each with a generator of its own
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: gpus[device.index].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: gpus[device.index].copy_(state))
    model, second = UNet(2, base_width=2, n_last_channel=2), torch.device("cuda", 1)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    save_tensors(tmp_path / "state.pt", trainer.copy_state(model, optimizer, scheduler, [], second))
    for gpu in gpus:
        gpu.fill_(9)
    trainer.resume(tmp_path / "state.pt", model, optimizer, scheduler, second)
    assert [gpu.item() for gpu in gpus] == [9, 1]


def test_published_model_is_the_trained_one_and_ends_the_training(tmp_path):
    state_file = tmp_path / "state.pt"
    model, experiment = run(state_file, epochs=1)
    state_file.write_bytes(b"unfinished")
    assert publish(experiment, model, TRAINING, state_file) == "model-1"
    saved, saved_training = experiment.saved
    assert saved_training == TRAINING
    assert same_weights(saved, model)
    assert not state_file.exists()


def test_foreign_state_is_refused(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"something else")
    with pytest.raises(InputError, match="delete it"):
        run(tmp_path / "state.pt")


def test_a_training_that_diverges_ends_with_a_line(tmp_path):
    with pytest.raises(InputError, match=r"diverged in epoch \d+ .*--lr"):
        run(tmp_path / "state.pt", lr=positive_float("1e30"))
    with pytest.raises(ArgumentTypeError):  # beyond float32's range in the optimizer
        positive_float("1e38")


def test_a_weight_that_is_not_finite_ends_a_training(tmp_path):
    """Also one on which the loss doesn't depend."""
    model = UNet(2, base_width=2, n_last_channel=2)
    model.register_buffer("unused", torch.tensor([0.0, math.inf]))
    with pytest.raises(InputError, match="weights not finite"):
        run(tmp_path / "state.pt", model=model)
    with pytest.raises(InputError, match="weights not finite"):
        publish(RecordingExperiment(), model, TRAINING, tmp_path / "state.pt")


@pytest.mark.slow
def test_workers_end_before_the_session_does(tmp_path):
    """While the tracker's thread starts git, which is made to take long, processes that read images are started."""
    output = run_code(TRAIN_WITH_WORKERS, folder=tmp_path, runs=tmp_path / "runs")
    assert printed("workers", output) == "2 while it trains, 0 afterwards"
    assert "session is closed" in output
