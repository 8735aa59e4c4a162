"""What is said where masks are missing: which there are, and the arguments that name them."""
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from segment_anything.checkpoints import identify
from segment_anything.demo_sam import DEMO_SAM_WEIGHTS
from segment_anything.tuned_decoder import TunedDecoder
from unet_training import training_on_pseudo_labels
from unet_training.pseudo_labels import PSEUDO_LABELS, Raw
from unet_training.saved_masks import check_unsure, drop_unsure, masks_path, name_arguments, open_saved_masks
from utils.datasets.description import load_description
from utils.errors import InputError
from utils.mask_store import MaskStore, MaskWriter
from utils.paths import mask_file

LABELS = load_description("phantom").labels
SAVED = ["--pseudo_label sam --sam_type demo", "--pseudo_label raw",
         "--pseudo_label sam --sam_type vit_t --embeddings bf16 --prompt1st pos_points box --prompt2nd "
         "--ccl_selection largest",
         "--pseudo_label sam --sam_type demo --morphology paper --morphology_element disk --morphology_radius 3",
         "--pseudo_label sam --refinement recommended --sam_type demo",
         "--pseudo_label sam --refinement recommended --sam_type medsam_lite --embeddings float16",
         "--pseudo_label sam --sam_type demo --sam_model_id offline-0123456789abcdef",
         "--pseudo_label sam --refinement recommended --sam_type demo --sam_model_id offline-0123456789abcdef",
         "--pseudo_label random_walk --random_walk released --ccl_selection highest_probability",
         "--pseudo_label random_walk --random_walk active --walk_radius 3 --sigma 2.5 --laplace_lambda 0.5 "
         "--walk_seeds masks --ccl_selection none",
         "--pseudo_label nnunet --nnunet_encoding regions"]


@pytest.fixture
def model(tmp_path, monkeypatch) -> SimpleNamespace:
    for kind in ("RandomWalk", "NNUNetMasks"):
        monkeypatch.setattr(f"unet_training.pseudo_labels.{kind}.attributes", Raw.attributes)
    monkeypatch.setattr("unet_training.pseudo_labels.Recommended.decided_by", lambda *_: {"validation": "0123"})
    monkeypatch.setattr("segment_anything.options.TunedDecoder.fetch", lambda model_id: TunedDecoder(
        model_id, "demo", identify(DEMO_SAM_WEIGHTS)))
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
    (tmp_path / "sam_checkpoints").mkdir()
    for checkpoint in ("mobile_sam.pt", "lite_medsam.pth"):
        (tmp_path / "sam_checkpoints" / checkpoint).touch()
    saved = of_arguments(arguments, model)
    save(saved, model)
    wanted = of_arguments(SAVED[SAVED[0] == arguments], model)
    with pytest.raises(InputError, match=r"no such masks; make them with `python -m \S+`; this model has") as caught:
        open_saved_masks(wanted, model)
    named = re.findall("`(--pseudo_label.*?)`", str(caught.value))
    assert [of_arguments(each, model).variant for each in named] == [saved.variant]
    assert open_saved_masks(of_arguments(named[0], model), model).stems == ["a"]


def test_masks_that_do_not_say_how_they_were_made_are_not_named(model):
    for name in ("sam_box_highest_probability_released_demo", "sam_recommended_other_bf16"):
        with MaskWriter(mask_file(model.data.derived_dir, model.id, name), LABELS, {}) as writer:
            writer.write("a", np.zeros((17, 8, 6), bool))
    with pytest.raises(InputError, match=r"no such masks; make them with `python -m scripts\.save_segmentations`$"):
        open_saved_masks(of_arguments("--pseudo_label raw", model), model)


def test_masks_of_a_checkpoint_of_ones_own_are_named_by_it(model, tmp_path):
    """However its digest begins."""
    sam = replace(of_arguments(SAVED[0], model).sam, weights="bf16bf16bf16")
    labels = replace(of_arguments("--pseudo_label sam --refinement recommended", model), sam=sam)
    with MaskWriter(masks_path(labels, model), LABELS, {"refine_params": json.dumps(
            {"name": "own.pth", "sha256": "bf16" * 16})}) as writer:
        writer.write("a", np.zeros((17, 8, 6), bool))
    assert name_arguments(masks_path(labels, model)) == ("--pseudo_label sam --refinement recommended --sam_type demo "
                                                         "--sam_checkpoint own.pth")


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


def test_masks_without_estimates_leave_nothing_to_go_by():
    with pytest.raises(InputError, match=r"--drop_unsure 0\.5: masks of kind raw have no estimated Dice"):
        check_unsure(Raw(), 0.5)
