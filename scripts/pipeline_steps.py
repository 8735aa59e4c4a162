"""What ClearML's agents are given of scripts.run_pipeline and scripts.run_study: the stages that are still to run."""
import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from scripts.evaluate import Evaluation
from scripts.study.methods import Setting, Stages, headline
from segment_anything.tuned_decoder import TunedDecoder
from unet_training.combine_networks import describe_ensemble, find_ensemble
from unet_training.models import TrainedModel
from unet_training.nnunet.training import find_nnunet
from unet_training.pseudo_labels import NNUNetMasks, PseudoLabels
from unet_training.sam_decoder.training import DecoderTuning
from unet_training.saved_masks import open_saved_masks
from unet_training.training_stage import TrainingStage, find_trained
from utils.errors import InputError
from utils.options import is_options, option_values
from utils.tracking.models import Model, name_result
from utils.tracking.queued_steps import Step, refer_to, run_steps


@dataclass(frozen=True)
class Steps(Stages):
    """Runs no stage, but collects as steps those whose results aren't there yet, what others wait for first.

    A network that is still to be trained is a record alone, whose id refers to the step that trains it.

    Attributes:
        found: the steps by their keys; several settings may share them
        made_by: (what, id of the model, variant of its masks) -> key of the step that has them "saved", or what they
            need "trained"
        ending: of the keys, which tells settings apart
    """

    found: dict[str, Step] = field(default_factory=dict)
    made_by: dict[tuple[str, str, str], str] = field(default_factory=dict)
    ending: str = ""
    run_here: ClassVar[bool] = False

    def begin(self, title: str) -> None:
        """Nothing does."""

    def train(self, training: TrainingStage) -> TrainedModel:
        given, data = vars(training), self.setting.data
        initial, labels, reliable = (given.get(name) for name in ("initial", "labels", "reliable"))
        number = initial.num_labeled if initial else len(training.stems)
        made = {"stage": training.tags[0], "dataset": data.description.name, "num_train_samples": number}
        options = option_values(*filter(is_options, given.values()))
        chosen, needs = {"final_epochs": None, "seed": training.seed, **options}, []
        if not initial:
            made["architecture"] = chosen["architecture"] = training.architecture.name
        if labels:
            made["pseudo_label"] = labels.kind
            chosen |= labels.arguments(data)
            needs = [("saved", initial.id, labels.variant)]
        if reliable:
            chosen |= reliable.agreement.arguments(data)
            needs = [("saved", reliable.model.id, reliable.agreement.variant)]
        chosen["num_train_samples"] = number
        step = self._describe(f"train {name_result(made)}", training.module, chosen, initial, needs)
        if not step.parents and (model_id := find_trained(training)):
            return self.setting.load(model_id)
        return self._expect(step, made)

    def combine(self, models: Sequence[TrainedModel]) -> TrainedModel:
        model_ids, made = [model.id for model in models], describe_ensemble([model.record for model in models])
        step = self._describe(f"combine {name_result(made)}", "unet_training.combine_networks",
                              {"model_ids": model_ids}, None, kind="data_processing")
        if not step.parents and (model_id := find_ensemble(model_ids)):
            return self.setting.load(model_id)
        return self._expect(step, made)

    def tune(self, tuning: DecoderTuning) -> TunedDecoder:
        sam = tuning.sam
        chosen = {**sam.parameters, "sam_checkpoint": sam.checkpoint_argument(self.setting.data.data_dir),
                  **option_values(tuning.options)}
        name = f"train {name_result(tuning.parameters)} {sam.type_name}"
        step = self._describe(name, "scripts.finetune_sam", chosen, tuning.initial)
        if not step.parents and (model_id := find_trained(tuning)):
            return TunedDecoder.fetch(model_id)
        return TunedDecoder(refer_to(self._add(step)), sam.type_name, sam.identity)

    def prepare(self, labels: PseudoLabels, model: TrainedModel) -> PseudoLabels:
        if isinstance(labels, NNUNetMasks):
            try:
                find_nnunet(labels.options, labels.seed, model)
            except InputError:  # there is none
                made = {"stage": "nnunet", "dataset": model.data.description.name,
                        "num_train_samples": model.num_labeled}
                self.made_by["trained", model.id, labels.variant] = self._add(self._describe(
                    f"train {name_result(made)}", "scripts.train_nnunet", labels.parameters, model))
        return labels

    def save_masks(self, labels: PseudoLabels, model: TrainedModel) -> None:
        self.prepare(labels, model)
        step = self._describe(f"{labels.stage}, {name_result(model.record.parameters)}", labels.made_by,
                              labels.arguments(self.setting.data), model, [("trained", model.id, labels.variant)],
                              labels.task_type)
        if step.parents or not has_masks(labels, model, self.setting):
            self.made_by["saved", model.id, labels.variant] = self._add(step)

    def measure(self, evaluation: Evaluation) -> None:
        model, labels = evaluation.model, evaluation.labels
        needs = [("trained", model.id, labels.variant)]
        if evaluation.split == "unlabeled":
            needs.append(("saved", model.id, labels.variant))
        chosen = {**labels.arguments(self.setting.data), "split": evaluation.split,
                  "results_dir": evaluation.results_dir, "surface_tolerance": evaluation.surface_tolerance}
        step = self._describe(evaluation.title, "scripts.evaluate", chosen, model, needs, "testing")
        if step.parents or not evaluation.is_done():
            self._add(step)

    def _describe(self, name: str, module: str, chosen: Mapping[str, Any], model: TrainedModel | None,
                  needs: Sequence[tuple[str, str, str]] = (), kind: str = "training") -> Step:
        """A step that takes the model, after those that make what else it `needs`."""
        own = {"model_id": model.id, "num_train_samples": model.num_labeled} if model else {}
        after = dict.fromkeys(self.made_by[need] for need in needs if need in self.made_by)
        return Step(name.replace(".", "_") + self.ending, name, module, {"seed": self.setting.seed, **chosen, **own},
                    tuple(after), kind)

    def _expect(self, step: Step, made: Mapping[str, Any]) -> TrainedModel:
        """The network that a step will have made with these parameters."""
        data = self.setting.data
        record = Model(refer_to(self._add(step)), dict(made), data.description.labels, (), "", 0, None)
        return TrainedModel(record, None, None, data, self.setting.device)

    def _add(self, step: Step) -> str:
        """Returns the key of the step, with a number where another one has it, or of a step that does the same."""
        for key, other in self.found.items():
            if step == other:
                return key
        keys = itertools.chain([step.key], (f"{step.key} ({number})" for number in itertools.count(2)))
        key = next(key for key in keys if key not in self.found)
        self.found[key] = replace(step, key=key)
        return key


def has_masks(labels: PseudoLabels, model: TrainedModel, setting: Setting) -> bool:
    """Whether all masks are saved that the setting asks for."""
    with suppress(InputError):  # there are none, or others
        store = open_saved_masks(labels, model)
        return all(stem in store for stem in model.unlabeled_stems(setting.selection))
    return False


def run_by_agents(steps: Steps, queue: str, tag: str) -> None:
    """Waits until agents have run them all. Raises InputError as `run_steps`."""
    headline(f"{len(steps.found)} stages to queue {queue}")
    if steps.found:
        run_steps(tag, list(steps.found.values()), queue, tag)
