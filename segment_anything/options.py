"""The SAM of a run: which type, whose weights, how precise.

    data = open_dataset("graz", Path("data"))
    sam = Sam.choose(SamOptions(sam_type="vit_t"), data)
    sam.embed_missing(data, data.stems("val"), device)
    decoder = sam.load_decoder(device)
    embedding = sam.read_embedding(data, data.stems("val")[0])
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segment_anything.checkpoints import CheckpointId, identify
from segment_anything.embeddings import (
    PRECISIONS,
    ImageEmbedding,
    embed,
    embedding_path,
    load_embedding,
    save_missing_embeddings,
)
from segment_anything.modeling import Sam as SamModel
from segment_anything.registry import (
    SAM_TYPES,
    check_present,
    check_type,
    default_checkpoint,
    get_sam_type,
    load_prompt_modules,
    load_sam,
)
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from segment_anything.tuned_decoder import TunedDecoder
from utils.datasets.annotated import AnnotatedImages
from utils.grey import STORED, GreyValues
from utils.options import option
from utils.overlap import map_threaded
from utils.paths import embedding_folder


@dataclass(frozen=True)
class EncoderOptions:
    """Which SAM, where its image encoder alone is used.

    Raises:
        InputError: there is no such type of SAM.
    """

    sam_type: str | None = option(None, f"which SAM, from {', '.join(SAM_TYPES)} (left out: vit_h, or demo for the "
                                        "phantoms)", metavar="TYPE")
    sam_checkpoint: Path | None = option(
        None, "its weights (left out: the file of the public name in <data_dir>/sam_checkpoints, or in <data_dir>)",
        type=Path, metavar="FILE")

    def __post_init__(self):
        if self.sam_type is not None:
            get_sam_type(self.sam_type)


@dataclass(frozen=True)
class SamOptions(EncoderOptions):
    """Which SAM, and how its image embeddings are kept."""

    embeddings: str = option("float32", "float16: half the size on disk; bf16: also computed in bfloat16 by a ViT, "
                             "much faster on a GPU and on some processors; none: nothing on disk, computed whenever "
                             "they are needed, same masks as float32", choices=(*PRECISIONS, "none"))
    sam_model_id: str | None = option(None, "a mask decoder that scripts.finetune_sam made, in the place of this SAM's "
                                            "own; says the --sam_type", metavar="ID")


@dataclass(frozen=True)
class Sam:
    """One SAM, and what it needs to know of the images.

    Attributes:
        type_name: a key of `SAM_TYPES`
        checkpoint: the file of its weights; it may not be there yet
        precision: of the image embeddings, one of `PRECISIONS`
        grey: how the values of the image files are meant, as in `read_grey`
        tuned: its mask decoder if that isn't its own
        weights: sets its results apart from those of other checkpoints of this type: the first digits of its SHA-256;
            "" for the published one, or the one at its usual place
        stored: whether `embeddings` keeps them on disk; results don't depend on it
    """

    type_name: str
    checkpoint: Path
    precision: str = "float32"
    grey: GreyValues = STORED
    tuned: TunedDecoder | None = None
    stored: bool = True
    weights: str = ""

    @classmethod
    def choose(cls, options: EncoderOptions, data: AnnotatedImages) -> "Sam":
        """The SAM that the options name, or else the data set's own. Raises InputError as `find`."""
        return cls.find(options, data.data_dir, data.description.sam_type, data.description.grey)

    @classmethod
    def find(cls, options: EncoderOptions, data_dir: Path, usual_type: str, grey: GreyValues = STORED) -> "Sam":
        """The SAM that the options name, or else the one of that type.

        Args:
            data_dir: where checkpoints lie that the options don't name
        Raises:
            InputError: the checkpoint that the options name isn't there, or `sam_model_id` is none of this type.
        """
        model_id = options.sam_model_id if isinstance(options, SamOptions) else None
        tuned = TunedDecoder.fetch(model_id) if model_id else None
        type_name = options.sam_type or (tuned.type_name if tuned else usual_type)
        if tuned:
            tuned.check_type(type_name)
        usual, weights = default_checkpoint(type_name, data_dir), ""
        if options.sam_checkpoint:
            check_present(type_name, options.sam_checkpoint)
            weights = identify(options.sam_checkpoint).sha256
            known = (get_sam_type(type_name).sha256, identify(usual).sha256 if usual.is_file() else None)
            weights = "" if weights in known else weights[:12]
        embeddings = options.embeddings if isinstance(options, SamOptions) else "float32"
        stored = embeddings != "none"
        return cls(type_name, options.sam_checkpoint or usual, embeddings if stored else "float32",
                   grey, tuned, stored, weights)

    def of_type(self, type_name: str, data: AnnotatedImages) -> "Sam":
        """Another type in the place of this one, with its weights at their usual place."""
        return replace(self, type_name=type_name, checkpoint=default_checkpoint(type_name, data.data_dir), tuned=None,
                       weights="")

    @property
    def name(self) -> str:
        """As its embeddings, and which mask decoder it has if that isn't its own."""
        return self.embeddings_name + (f"_{self.tuned.name}" if self.tuned else "")

    @property
    def embeddings_name(self) -> str:
        """The type, and what its embeddings have of their own: weights, precision, and how grey values are meant."""
        weights = f"_{self.weights}" if self.weights else ""
        precision = "" if self.precision == "float32" else f"_{self.precision}"
        return self.type_name + weights + precision + self.grey.name

    @property
    def notice(self) -> str:
        """What must be said wherever a result of this type is shown; "" if nothing."""
        return get_sam_type(self.type_name).notice

    @property
    def preprocessing(self) -> str:
        return get_sam_type(self.type_name).preprocessing

    @property
    def embedding_bytes(self) -> int:
        """About so many has an image's embedding on disk."""
        return get_sam_type(self.type_name).embedding_bytes // (1 if self.precision == "float32" else 2)

    def checkpoint_argument(self, data_dir: Path) -> Path | None:
        """`--sam_checkpoint` where it must be given: the file isn't at its usual place in `data_dir`."""
        return None if self.checkpoint == default_checkpoint(self.type_name, data_dir) else self.checkpoint

    @property
    def identity(self) -> CheckpointId:
        """Raises:
            InputError: the checkpoint isn't there, or is that of another type.
        """
        self.check_present()
        identity = identify(self.checkpoint)
        check_type(self.type_name, self.checkpoint, identity.sha256)
        return identity

    def check_present(self) -> None:
        """Raises:
            InputError: the checkpoint isn't there; the message says how to get it. Or it isn't the one that the mask
                decoder was made from.
        """
        check_present(self.type_name, self.checkpoint)
        if self.tuned:
            self.tuned.check_checkpoint(identify(self.checkpoint))

    @property
    def parameters(self) -> dict[str, Any]:
        """What tells one SAM from others in the tracker."""
        digest = {"sam_checkpoint_sha256": self.identity.sha256} if self.checkpoint.is_file() else {}
        tuned = {"sam_model_id": self.tuned.model_id} if self.tuned else {}
        return {"sam_type": self.type_name, "sam_checkpoint": self.checkpoint.name, "embeddings": self.precision,
                **digest, **tuned}

    def folder(self, data: AnnotatedImages) -> Path:
        """Of this SAM's embeddings of a data set, `<stem>.h5`."""
        return embedding_folder(data.derived_dir, data.description.name, self.embeddings_name)

    def read_embedding(self, data: AnnotatedImages, stem: str) -> ImageEmbedding:
        """Of one image. Raises InputError as `load_embedding`."""
        return load_embedding(embedding_path(self.folder(data), stem), self.identity)

    def embeddings(self, data: AnnotatedImages, stems: Sequence[str], device: torch.device) -> Iterator[ImageEmbedding]:
        """Of these images, in their order, the next one read or computed while the caller works: from the store, after
        what is missing there was computed at once, or computed one after the other. Errors as of `embed_missing`."""
        if self.stored:
            self.embed_missing(data, stems, device)
            return map_threaded(partial(self.read_embedding, data), stems)
        paths = [data.image_path(stem) for stem in stems]
        return embed(paths, self.type_name, self.checkpoint, device, self.precision, self.grey)

    def load(self) -> SamModel:
        """The whole model, as `load_sam` gives it."""
        return load_sam(self.type_name, self.checkpoint)

    def load_prompt_modules(self) -> dict[str, nn.Module]:
        """As the function of that name, with this SAM's mask decoder. Raises InputError as `load_sam`."""
        modules = load_prompt_modules(self.type_name, self.checkpoint)
        if self.tuned:
            self.check_present()
            self.tuned.load_into(modules["mask_decoder"])
        return modules

    def load_decoder(self, device: torch.device | str = "cpu") -> StoredEmbeddingDecoder:
        """What makes masks of stored embeddings; the image encoder isn't loaded. Raises InputError as `load_sam`."""
        modules = self.load_prompt_modules()
        return StoredEmbeddingDecoder(modules, get_sam_type(self.type_name).decoder, self.identity, device)

    def embed_missing(self, data: AnnotatedImages, stems: Sequence[str], device: torch.device) -> int:
        """Computes the embeddings of these images that aren't there, and says how many they were; errors as of
        `save_missing_embeddings`."""
        images = [(stem, data.image_path(stem)) for stem in stems]
        return save_missing_embeddings(images, self.folder(data), self.type_name, self.checkpoint, device,
                                       self.precision, self.grey, data.digests(stems))
