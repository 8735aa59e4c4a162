"""Mask decoders that were fine-tuned, known by a model's id."""
from dataclasses import dataclass
from typing import Self

from torch import nn

from segment_anything.checkpoints import CheckpointId, read_state_dict
from utils.errors import InputError
from utils.tracking.models import fetch_model

STAGE = "sam_decoder"  # of the models, in the tracker


@dataclass(frozen=True)
class TunedDecoder:
    """A fine-tuned mask decoder, and the SAM that it was made from: with another one it means nothing.

    Attributes:
        model_id: of its weights, a state dict of SAM's module `mask_decoder`
        type_name: of that SAM
        checkpoint: of that SAM
    """

    model_id: str
    type_name: str
    checkpoint: CheckpointId

    @classmethod
    def fetch(cls, model_id: str) -> Self:
        """Raises InputError where there is no such model, or it is another kind of model."""
        parameters = fetch_model(model_id).parameters
        if parameters.get("stage") != STAGE:
            raise InputError(f"--sam_model_id {model_id}: is no mask decoder of SAM but of stage "
                             f"{parameters.get('stage')}; give the id that scripts.finetune_sam printed")
        checkpoint = CheckpointId(parameters["sam_checkpoint"], parameters["sam_checkpoint_sha256"])
        return cls(model_id, parameters["sam_type"], checkpoint)

    @property
    def name(self) -> str:
        """Short, for names of files."""
        return f"tuned_{self.model_id.removeprefix('offline-')[:8]}"

    def check_type(self, type_name: str) -> None:
        """Raises InputError where it was made from another type of SAM."""
        if type_name != self.type_name:
            raise InputError(f"--sam_model_id {self.model_id}: was made from SAM type {self.type_name}, not "
                             f"{type_name}; give --sam_type {self.type_name}, or another decoder")

    def check_checkpoint(self, checkpoint: CheckpointId) -> None:
        """Raises InputError where it was made from other weights."""
        if checkpoint.sha256 != self.checkpoint.sha256:
            raise InputError(f"--sam_model_id {self.model_id}: was made from the checkpoint {self.checkpoint}, not "
                             f"{checkpoint}; give that one as --sam_checkpoint, or run scripts.finetune_sam with this "
                             "one")

    def load_into(self, mask_decoder: nn.Module) -> None:
        """Raises InputError where the weights can't be read."""
        weights = fetch_model(self.model_id).weights
        state_dict = read_state_dict(weights)
        try:
            mask_decoder.load_state_dict(state_dict)
        except RuntimeError as error:
            raise InputError(f"{weights}: its weights don't fit the mask decoder of SAM type {self.type_name} "
                             f"({str(error).splitlines()[0].removesuffix(':')}); run scripts.finetune_sam again"
                             ) from None
