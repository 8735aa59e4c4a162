"""What is said where masks are missing: which there are, and the arguments that name them."""
import re
from types import SimpleNamespace

import numpy as np
import pytest

from unet_training import training_on_pseudo_labels
from unet_training.pseudo_labels import PSEUDO_LABELS, Raw
from unet_training.saved_masks import drop_unsure, masks_path, open_saved_masks
from utils.datasets.description import load_description
from utils.errors import InputError
from utils.mask_store import MaskStore, MaskWriter

LABELS = load_description("phantom").labels
SAVED = ["--pseudo_label sam --sam_type demo", "--pseudo_label raw",
         "--pseudo_label sam --sam_type vit_t --embeddings bf16 --prompt1st pos_points box --prompt2nd "
         "--ccl_selection largest",
         "--pseudo_label sam --sam_type demo --morphology paper --morphology_element disk --morphology_radius 3",
         "--pseudo_label random_walk --random_walk released --ccl_selection highest_probability",
         "--pseudo_label random_walk --random_walk active --walk_radius 3 --sigma 2.5 --laplace_lambda 0.5 "
         "--walk_seeds masks --ccl_selection none",
         "--pseudo_label nnunet --nnunet_encoding regions"]


@pytest.fixture
def model(tmp_path, monkeypatch) -> SimpleNamespace:
    for kind in ("RandomWalk", "NNUNetMasks"):
        monkeypatch.setattr(f"unet_training.pseudo_labels.{kind}.attributes", Raw.attributes)
    return SimpleNamespace(id="one", data=SimpleNamespace(description=load_description("phantom"), data_dir=tmp_path,
                                                    derived_dir=tmp_path))


def of_arguments(text: str, model: SimpleNamespace):
    parser = training_on_pseudo_labels.get_args_parser()
    args = parser.parse_args(["--dataset", "phantom", *text.split()])
    return PSEUDO_LABELS[args.pseudo_label].from_args(args, model.data)


def save(labels, model: SimpleNamespace) -> None:
    with MaskWriter(masks_path(labels, model), LABELS, labels.attributes(model)) as writer:
        writer.write("a", np.zeros((17, 8, 6), bool))


@pytest.mark.parametrize("arguments", SAVED)
def test_the_arguments_in_the_message_name_the_masks_that_are_there(model, arguments, tmp_path):
    checkpoint = tmp_path / "sam_checkpoints" / "mobile_sam.pt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    saved = of_arguments(arguments, model)
    save(saved, model)
    wanted = of_arguments(SAVED[SAVED[0] == arguments], model)
    with pytest.raises(InputError, match=r"no such masks; make them with `python -m \S+`; this model has") as caught:
        open_saved_masks(wanted, model)
    named = re.findall("`(--pseudo_label.*?)`", str(caught.value))
    assert [of_arguments(each, model).variant for each in named] == [saved.variant]
    assert open_saved_masks(of_arguments(named[0], model), model).stems == ["a"]


def test_other_models_that_have_such_masks_are_named(model):
    raw = of_arguments("--pseudo_label raw", model)
    save(raw, SimpleNamespace(id="two", data=model.data))
    with pytest.raises(InputError, match=r"one/raw\.h5: no such masks; .*; such masks are there of `--model_id two`"):
        open_saved_masks(raw, model)


def test_nothing_is_named_where_nothing_is(model):
    with pytest.raises(InputError, match=r"no such masks; make them with `python -m scripts\.save_segmentations`$"):
        open_saved_masks(of_arguments("--pseudo_label raw", model), model)


def test_the_least_sure_images_are_left_out_in_order(tmp_path):
    estimates = {"a": [0.9, np.nan], "b": [0.2, 0.4], "c": [np.nan, np.nan], "d": [0.5, 0.9], "e": [0.1, 0.7]}
    with MaskWriter(tmp_path / "sam.h5", ["left", "right"], {}) as writer:
        for stem, estimate in estimates.items():
            writer.write(stem, np.zeros((2, 8, 6), bool), np.array(estimate))
    store = MaskStore(tmp_path / "sam.h5", ["left", "right"])
    assert drop_unsure(["e", "d", "c", "b", "a"], store, 0.4) == ["e", "d", "a"]  # of c nothing is known, b has 0.3
    assert drop_unsure(["e", "d", "c", "b", "a"], store, 0.0) == ["e", "d", "c", "b", "a"]


def test_masks_without_estimates_leave_nothing_to_go_by(model):
    save(Raw(), model)
    with pytest.raises(InputError, match="no estimated Dice, which --drop_unsure goes by"):
        drop_unsure(["a"], open_saved_masks(Raw(), model), 0.5)
