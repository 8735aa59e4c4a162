"""What scripts.run_pipeline gives to ClearML's agents: of its stages those whose results aren't there yet."""
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts.evaluate import Evaluation, name_evaluation
from scripts.study.methods import Setting
from unet_training.hyper_params import FinalOptions, LossOptions, Schedule
from unet_training.models import TrainedModel
from unet_training.pseudo_labels import PseudoLabels
from unet_training.saved_masks import open_saved_masks
from unet_training.training_stage import find_trained
from utils.errors import InputError
from utils.options import option_values
from utils.tracking.models import name_result
from utils.tracking.queued_steps import Step


@dataclass(frozen=True)
class Way:
    """How pseudo labels are made and trained on, and how the table calls them and the final network."""

    refined: str
    final: str
    labels: PseudoLabels
    schedule: Schedule
    options: FinalOptions
    loss: LossOptions


@dataclass(frozen=True)
class Labeler:
    """A network: trained, or the one of a step to come, of which only its name is known."""

    name: str
    model: TrainedModel | None = None
    step: str = ""


@dataclass(frozen=True)
class Steps:
    """Collects the stages of a pipeline that are still to run. A stage whose result is there is none."""

    setting: Setting
    results_dir: Path
    found: list[Step] = field(default_factory=list)

    def add_all(self, ways: Sequence[Way], rounds: int) -> None:
        """All stages of scripts.run_pipeline, what others wait for first."""
        raw = self.setting.labels["raw"]
        initial = self.train_initial()
        masks = self.save_masks("raw", raw, initial)
        measured = [("initial", initial, raw, "test"), ("raw", initial, raw, "unlabeled", masks)]
        for way in ways:
            final = initial
            for number in range(rounds):
                of_round = f" {number + 1}" if rounds > 1 else ""
                labeler = final
                masks = self.save_masks(way.refined + of_round, way.labels, labeler)
                final = self.train_final(way.final + of_round, way, labeler, masks)
            if way.labels.kind != raw.kind:
                measured.append((way.refined, labeler, way.labels, "unlabeled", masks))
            measured.append((way.final, final, raw, "test"))
        for each in measured:
            self.evaluate(*each)

    def train_initial(self) -> Labeler:
        training = self.setting.initial_training()
        name = name_result(training.parameters)
        if model_id := find_trained(training):
            return Labeler(name, self.setting.load(model_id))
        return Labeler(name, step=self._add("initial", f"train {name}", training.module, {}))

    def save_masks(self, key: str, labels: PseudoLabels, labeler: Labeler) -> str:
        """Returns the key of the step; "" where all masks are there."""
        if labeler.model and has_masks(labels, labeler.model, self.setting):
            return ""
        return self._add(f"{key} masks", f"{labels.stage}, {labeler.name}", labels.made_by,
                         labels.arguments(self.setting.data), labeler, kind=labels.task_type)

    def train_final(self, key: str, way: Way, labeler: Labeler, masks: str) -> Labeler:
        """`masks` is the key of the step that makes them."""
        name = name_result({"stage": "final", "dataset": self.setting.data.description.name,
                            "num_train_samples": self.setting.num_labeled, "pseudo_label": way.labels.kind,
                            "architecture": self.setting.architecture.name})
        if labeler.model and not masks:
            training = self.setting.final_training(labeler.model, way.labels.kind, labels=way.labels,
                                                   schedule=way.schedule, options=way.options, loss=way.loss)
            if model_id := find_trained(training):
                return Labeler(name, self.setting.load(model_id))
        chosen = {**way.labels.arguments(self.setting.data), "final_epochs": None,
                  **option_values(way.schedule, way.options, way.loss)}
        return Labeler(name, step=self._add(key, f"train {name}", "unet_training.training_on_pseudo_labels", chosen,
                                            labeler, masks))

    def evaluate(self, key: str, labeler: Labeler, labels: PseudoLabels, split: str, masks: str = "") -> None:
        """On unlabeled images, where their ground truth is known."""
        if split == "unlabeled" and not self.setting.can_measure_unlabeled():
            return
        if labeler.model and not masks:
            evaluation = Evaluation(labeler.model, labels, split, self.setting.selection, self.results_dir)
            if evaluation.is_done():
                return
        self._add(f"{key} on {split}", name_evaluation(split, labeler.name, labels), "scripts.evaluate",
                  {**labels.arguments(self.setting.data), "split": split, "results_dir": self.results_dir}, labeler,
                  masks, kind="testing")

    def _add(self, key: str, name: str, module: str, chosen: Mapping[str, Any], labeler: Labeler | None = None,
             *after: str, kind: str = "training") -> str:
        """Returns the key of the step, or of one that does the same."""
        model_id = {"model_id": labeler.model.id if labeler.model else None} if labeler else {}
        chosen = {**chosen, "num_train_samples": self.setting.num_labeled, **model_id}
        step = Step(key, name, module, chosen, labeler.step if labeler else "", tuple(filter(None, after)), kind)
        for other in self.found:
            if replace(step, key=other.key) == other:
                return other.key
        self.found.append(step)
        return key


def has_masks(labels: PseudoLabels, model: TrainedModel, setting: Setting) -> bool:
    """Whether all masks are saved that the setting asks for."""
    with suppress(InputError):  # there are none, or others
        store = open_saved_masks(labels, model)
        return all(stem in store for stem in model.unlabeled_stems(setting.selection))
    return False
