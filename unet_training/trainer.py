"""Training over all epochs: reports every one, resumes what was interrupted, publishes the result."""
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from tqdm import tqdm

from unet_training.checkpoint import Network, Training, is_finite, save_checkpoint
from unet_training.data import EpochLoader
from unet_training.distributed import agree_on_random_numbers, average_gradients
from unet_training.epoch import EpochStatistics, train_epoch, validate
from unet_training.hyper_params import Schedule
from unet_training.networks.lraspp import FeatureHead
from unet_training.networks.u_net import UNet
from utils.errors import InputError
from utils.files import explain_damage, load_tensors, save_tensors
from utils.overlay import overlay, to_grey
from utils.ranks import rank
from utils.tracking.experiment import Experiment

SECONDS_BETWEEN_STATES = 30
DEBUG_IMAGES = 5


@dataclass(frozen=True)
class Prepared:
    """What `fit` takes, and what comes of it.

    Attributes:
        network: what is published
        model: what is trained: the network, or what holds it or is part of it
        train_batches, val_batches, loss, run_epoch, shown: see `fit`
        training: what the checkpoint says of its data
        max_gradient_norm: see `epoch.take_step`
    """

    network: Network
    model: nn.Module
    train_batches: Iterable
    val_batches: Iterable
    loss: nn.Module
    training: Training
    max_gradient_norm: float | None = None
    run_epoch: Callable[..., EpochStatistics] = train_epoch
    shown: torch.Tensor | None = None


def fit(prepared: Prepared, schedule: Schedule, device: torch.device, experiment: Experiment,
        state_file: Path) -> None:
    """Trains the model in place; as it is after the last epoch it is the result (the paper's section on training).

    Batches are pairs of images (B, 1, H, W) and bool masks (B, C, H, W), or what `run_epoch` takes. Loss, Dice,
    learning rate, the Dice of each class and a few predictions go to `experiment`. `state_file` holds the training
    while it is unfinished. `shown`, (1, H, W), is the first validation image, where batches hold something else in the
    place of images.

    Raises:
        InputError: a loss or a weight isn't finite any more; or `state_file` is of another model.
    """
    model, labels = prepared.model, prepared.training.labels
    if schedule.compile:
        for network in model.modules():
            if isinstance(network, UNet | FeatureHead):
                network.compile()
    optimizer = schedule.optimizer(model)
    scheduler = schedule.scheduler(optimizer)
    history = resume(state_file, model, optimizer, scheduler, device)
    for epoch, record in enumerate([] if experiment.continued else history):
        _report(experiment, record, labels, epoch)
    progress = tqdm(range(len(history), schedule.epochs), desc="training", unit="epoch",
                    initial=len(history), total=schedule.epochs, disable=rank() > 0)
    trained = average_gradients(model, device)
    agree_on_random_numbers(device)
    with _ending_workers(prepared.train_batches), \
            Unsaved(state_file, model, optimizer, scheduler, history, device) as state:
        for epoch in progress:
            lr = optimizer.param_groups[0]["lr"]
            statistics = prepared.run_epoch(trained, prepared.train_batches, prepared.loss, optimizer, device,
                                            schedule.data_aug, schedule.bf16, prepared.max_gradient_norm)
            validation = validate(model, prepared.val_batches, prepared.loss, device)
            check_finite(epoch, model, {"loss": statistics.loss, "validation loss": validation.loss})
            scheduler.step()
            history.append(_record(statistics, validation, lr))
            _report(experiment, history[-1], labels, epoch)
            progress.set_postfix(loss=f"{statistics.loss:.3f}", val_dice=f"{validation.mean_dice:.3f}")
            if epoch % max(1, schedule.epochs // DEBUG_IMAGES) == 0 or epoch == schedule.epochs - 1:
                _report_prediction(experiment, prepared, device, epoch)  # which draws random numbers
            state.note()
    _report_result(experiment, history[-1])


class Unsaved:
    """The state after the last epoch, for `resume`: written from time to time, and at once where a training is
    interrupted, in the middle of an epoch: by Ctrl-C, a job scheduler's SIGTERM or an abort in the tracker's web UI.

    A context manager around the epochs.
    """

    def __init__(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
                 scheduler: torch.optim.lr_scheduler.LRScheduler, history: list[dict], device: torch.device):
        self._path, self._made_of = path, (model, optimizer, scheduler, history, device)
        self._state, self._saved = None, time.monotonic()

    def note(self) -> None:
        """That an epoch has ended; of several processes the first one writes."""
        if rank():
            return
        self._state = copy_state(*self._made_of)
        if time.monotonic() - self._saved > SECONDS_BETWEEN_STATES:
            self._save()

    def _save(self) -> None:
        save_tensors(self._path, self._state)
        self._state, self._saved = None, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit) and self._state:
            self._save()


@contextmanager
def _ending_workers(batches: Iterable) -> Iterator[None]:
    """Processes that read images end before the tracker's session does."""
    try:
        yield
    finally:
        if isinstance(batches, EpochLoader):
            batches.close()


def check_finite(epoch: int, model: nn.Module, losses: Mapping[str, float]) -> None:
    """Raises an InputError after an epoch, counted from 0, in which a training has diverged."""
    if all(map(math.isfinite, losses.values())) and is_finite(model):
        return
    told = ", ".join(f"{name} {loss:g}" for name, loss in losses.items())
    raise InputError(f"the training diverged in epoch {epoch + 1} ({told}, weights {'' if is_finite(model) else 'not '}"
                     "finite): there is no model; give a smaller --lr, or --max_gradient_norm 1")


def publish(experiment: Experiment, model: Network, training: Training, state_file: Path,
            origin: Mapping[str, Any] | None = None) -> str:
    """Hands the trained model to the tracker and returns its id; the training is finished then.

    Args:
        origin: what made it
    Raises:
        InputError: a weight isn't finite.
    """
    if not is_finite(model):
        raise InputError("the trained network has weights not finite, so it isn't kept; give a smaller --lr")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "bone_segmentator.pt"
        save_checkpoint(weights, model, training, origin)
        model_id = experiment.save_model(weights, training.labels)
    state_file.unlink(missing_ok=True)
    return model_id


def _record(train: EpochStatistics, validation: EpochStatistics, lr: float) -> dict:
    return {"lr": lr, "loss": {"train": train.loss, "validation": validation.loss},
            "dice": {"train": train.pooled_dice, "validation": validation.pooled_dice},
            "dice per image": {"train": train.mean_dice, "validation": validation.mean_dice},
            "class_dice": validation.class_dice}


def _report(experiment: Experiment, record: dict, labels: tuple[str, ...], epoch: int) -> None:
    for series in ("train", "validation"):
        experiment.scalar("loss", series, record["loss"][series], epoch)
        experiment.scalar("Dice in %", series, 100 * record["dice per image"][series], epoch)
        experiment.scalar("Dice in %, pooled", series, 100 * record["dice"][series], epoch)
    experiment.scalar("learning rate", "lr", record["lr"], epoch)
    for label, value in zip(labels, record["class_dice"], strict=True):
        experiment.scalar("Dice in %, validation, per class", label, 100 * value, epoch)


def _report_result(experiment: Experiment, record: dict) -> None:
    experiment.single_value("Dice in %, validation", 100 * record["dice per image"]["validation"])
    experiment.single_value("loss, validation", record["loss"]["validation"])


@torch.inference_mode()
def _report_prediction(experiment: Experiment, prepared: Prepared, device: torch.device, epoch: int) -> None:
    images, mask = (tensor[:1] for tensor in next(iter(prepared.val_batches)))
    prediction = prepared.model(images.to(device))[0].cpu() > 0
    grey = to_grey((images[0] if prepared.shown is None else prepared.shown)[0].cpu().numpy())
    experiment.image("validation image", "prediction", overlay(grey, prediction.numpy()), epoch)
    experiment.image("validation image", "ground truth", overlay(grey, mask[0].cpu().numpy()), epoch)


def copy_state(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler,
               history: list[dict], device: torch.device) -> dict[str, Any]:
    """What `resume` needs, as it is now, in the memory of the CPU."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
             "random": torch.get_rng_state(), "history": list(history)}
    if device.type == "cuda":
        state["cuda_random"] = torch.cuda.get_rng_state(device)
    return _copy(state)


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value


def resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
           scheduler: torch.optim.lr_scheduler.LRScheduler, device: torch.device) -> list[dict]:
    """Loads an unfinished training of the same parameters and returns its epochs' records; [] without one.

    Raises:
        InputError: the file is another one.
    """
    if not path.exists():
        return []
    with explain_damage(path, "not an unfinished training of this model", "delete it to start anew"):
        state = load_tensors(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"])
        if "cuda_random" in state and device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"], device)
        history = list(state["history"])
    print(f"resuming after epoch {len(history)} of an interrupted training ({path})")
    return history
