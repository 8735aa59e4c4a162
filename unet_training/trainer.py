"""Training over all epochs: reports each one, and goes on where an interrupted run stopped."""
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from unet_training.checkpoint import Network, Training, save_checkpoint
from unet_training.epoch import EpochStatistics, train_epoch, validate
from unet_training.hyper_params import Schedule
from unet_training.networks.lraspp import FeatureHead
from unet_training.networks.u_net import UNet
from utils.errors import InputError
from utils.files import atomic_path
from utils.overlay import overlay, to_grey
from utils.tracking.experiment import Experiment

SECONDS_BETWEEN_STATES = 30
DEBUG_IMAGES = 5


def fit(model: nn.Module, train_batches: Iterable, val_batches: Iterable, loss_function: nn.Module, schedule: Schedule,
        device: torch.device, experiment: Experiment, labels: tuple[str, ...], state_file: Path,
        run_epoch: Callable[..., EpochStatistics] | None = None, shown: torch.Tensor | None = None) -> None:
    """Trains `model` in place; the model after the last epoch is the result (paper, section 2).

    Batches are pairs of images (B, 1, H, W) and bool masks (B, C, H, W). Loss, Dice, learning rate, the Dice of each
    class and a few predictions go to `experiment`. `state_file` holds the training while it is unfinished. `run_epoch`
    stands for `train_epoch`, with batches as it takes them. `shown`, (1, H, W), is the first validation image, where
    batches hold something else in the place of images.
    """
    if schedule.compile:
        for network in (each for each in model.modules() if isinstance(each, UNet | FeatureHead)):
            network.compile()
    optimizer = schedule.optimizer(model)
    scheduler = schedule.scheduler(optimizer)
    history = _resume(state_file, model, optimizer, scheduler, device)
    for epoch, record in enumerate(history):
        _report(experiment, record, labels, epoch)
    saved = time.monotonic()
    progress = tqdm(range(len(history), schedule.epochs), desc="training", unit="epoch",
                    initial=len(history), total=schedule.epochs)
    for epoch in progress:
        lr = optimizer.param_groups[0]["lr"]
        train = (run_epoch or train_epoch)(model, train_batches, loss_function, optimizer, device, schedule.data_aug,
                                           schedule.bf16)
        validation = validate(model, val_batches, loss_function, device)
        scheduler.step()
        history.append(_record(train, validation, lr))
        _report(experiment, history[-1], labels, epoch)
        progress.set_postfix(loss=f"{train.loss:.3f}", val_dice=f"{validation.mean_dice:.3f}")
        if epoch % max(1, schedule.epochs // DEBUG_IMAGES) == 0 or epoch == schedule.epochs - 1:
            _report_prediction(experiment, model, val_batches, device, epoch, shown)
        if time.monotonic() - saved > SECONDS_BETWEEN_STATES:
            _save_state(state_file, model, optimizer, scheduler, history, device)
            saved = time.monotonic()


def publish(experiment: Experiment, model: Network, training: Training, state_file: Path) -> str:
    """Hands the trained model to the tracker and returns its id; the training is finished then."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "bone_segmentator.pt"
        save_checkpoint(weights, model, training)
        model_id = experiment.save_model(weights, training.labels)
    state_file.unlink(missing_ok=True)
    return model_id


def fingerprint(parameters: Mapping) -> str:
    """A short name for a run's parameters: the same ones go on with the same unfinished training."""
    text = json.dumps(dict(parameters), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _record(train: EpochStatistics, validation: EpochStatistics, lr: float) -> dict:
    return {"lr": lr, "loss": {"train": train.loss, "validation": validation.loss},
            "dice": {"train": train.mean_dice, "validation": validation.mean_dice},
            "class_dice": validation.class_dice}


def _report(experiment: Experiment, record: dict, labels: tuple[str, ...], epoch: int) -> None:
    for title in ("loss", "dice"):
        for series, value in record[title].items():
            experiment.scalar(title, series, value, epoch)
    experiment.scalar("learning rate", "lr", record["lr"], epoch)
    experiment.histogram("validation dice per class", record["class_dice"], labels, epoch)


@torch.inference_mode()
def _report_prediction(experiment: Experiment, model: nn.Module, val_batches: Iterable, device: torch.device,
                       epoch: int, shown: torch.Tensor | None) -> None:
    images, mask = (each[:1] for each in next(iter(val_batches)))
    prediction = model(images.to(device))[0].cpu() > 0
    grey = to_grey((images[0] if shown is None else shown)[0].cpu().numpy())
    experiment.image("validation image", "prediction", overlay(grey, prediction.numpy()), epoch)
    experiment.image("validation image", "ground truth", overlay(grey, mask[0].cpu().numpy()), epoch)


def _save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
                scheduler: torch.optim.lr_scheduler.LRScheduler, history: list[dict], device: torch.device) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
             "random": torch.get_rng_state(), "history": history}
    if device.type == "cuda":
        state["cuda_random"] = torch.cuda.get_rng_state(device)
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
            scheduler: torch.optim.lr_scheduler.LRScheduler, device: torch.device) -> list[dict]:
    """Loads an unfinished training of the same parameters and returns its epochs' records; [] without one."""
    if not path.exists():
        return []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
    except Exception as error:  # whatever the bytes of a foreign file provoke
        raise InputError(f"{path}: not an unfinished training of this model ({type(error).__name__}); "
                         "delete it to start anew") from None
    torch.set_rng_state(state["random"])
    if "cuda_random" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda_random"], device)
    print(f"going on after epoch {len(state['history'])} of an interrupted training ({path})")
    return state["history"]
