"""What the pipeline advises before it trains on refined masks; its presets, and what its help begins with."""
import re
from types import SimpleNamespace

import numpy as np
import pytest

from scripts import run_pipeline
from scripts.study import refinement_check
from scripts.study.refinement_check import LabelCheck, RefinementCheck, describe_drawn
from segment_anything.options import Sam
from segment_anything.refinement.refine import RefinementOptions
from unet_training.hyper_params import TRAININGS
from unet_training.nnunet.nnunet import NNUNetOptions
from unet_training.pseudo_labels import (
    NNUNetMasks,
    PseudoLabels,
    RandomWalk,
    Raw,
    Recommended,
    RecommendedOptions,
    SamRefined,
)
from utils.random_walk import RandomWalkOptions

SAM = Sam("demo", None)
REFINED, RECOMMENDED = SamRefined(SAM, RefinementOptions()), Recommended(SAM, RecommendedOptions())
WALK, NNUNET = RandomWalk(RandomWalkOptions(), "largest"), NNUNetMasks(NNUNetOptions(), 42)


def advice(before: float, after: float, found: int = 10, drawn: int = 10, labels: PseudoLabels = REFINED,
           held_out: float | None = None) -> str:
    row = LabelCheck("femur", 10, found, drawn, before, after, 0, 0)
    check = RefinementCheck("refined", 1, labels, 10, [row, row._replace(label="all labels")], held_out)
    return "; ".join(check.advise())


def test_advice_says_what_to_do():
    assert advice(80, 85) == "the refinement gains 5.0 points of Dice"
    worse = advice(80, 60)
    assert "by 20.0 points" in worse and "--refinement recommended" in worse and "--pseudo_label raw" in worse
    assert "--refinement recommended" not in advice(80, 60, labels=RECOMMENDED)
    honest = advice(80, 85, labels=RECOMMENDED, held_out=78)
    assert "makes masks worse, by 2.0 points" in honest and "the Dice of 78.0" in honest
    assert "finds 3 of 10" in advice(80, 85, found=3, drawn=3) and "--epochs" in advice(80, 85, found=3, drawn=3)
    assert "2 masks were drawn of the U-Net's 10; the others lie wholly under" in advice(80, 85, drawn=2)
    assert "train longer" in advice(20, 30)


@pytest.mark.parametrize("labels", [RECOMMENDED, WALK, NNUNET])
def test_advice_names_no_cause_that_is_not_known(labels):
    few = advice(80, 85, drawn=2, labels=labels)
    assert "the refinement makes 2 masks, the U-Net 10" in few and "under masks" not in few and "--epochs" not in few
    assert ("can't be refined" in advice(80, 85, found=3, drawn=3, labels=labels)) == (labels is WALK)


def test_only_of_sams_own_masks_it_is_told_why_some_are_missing(monkeypatch):
    masks = np.zeros((2, 3, 4, 5), bool)  # images, labels
    masks[0, :2] = masks[1, 1] = True
    estimates = {"a": np.array([0.9, np.nan, np.nan]), "b": np.array([np.nan, 0.8, np.nan])}
    store = SimpleNamespace(mask=lambda stem: masks["ab".index(stem)], estimated_dice=estimates.get)
    monkeypatch.setattr(refinement_check, "open_saved_masks", lambda *_: store)
    model = SimpleNamespace(data=SimpleNamespace(description=SimpleNamespace(labels=("femur", "tibia", "patella"))))
    assert describe_drawn(REFINED, model, "ab") == (
        "SAM drew 2 of 6 masks of 2 images; of 3 the U-Net found nothing; 1 of the U-Net's lie wholly under its masks "
        "of other labels, and stay as they are; none of 1 labels: patella")
    assert describe_drawn(RECOMMENDED, model, "ab") == (
        "3 of 6 masks of 2 images aren't empty; none of 1 labels: patella")
    assert describe_drawn(Raw(), model, "ab") == ""


def parse(*arguments: str):
    return run_pipeline.get_args_parser().parse_args(arguments)


def test_presets_give_what_is_not_given():
    assert vars(parse("--preset", "paper")) == {**vars(parse()), "given": frozenset({"preset"})}
    args = parse("--preset", "recommended")
    assert (args.refinement, args.rounds, args.initial_training) == ("recommended", 2, "paper")
    assert {name: getattr(args, name) for name in TRAININGS["recommended"]} == TRAININGS["recommended"]
    for order in (("--loss", "bce", "--preset", "recommended"), ("--preset", "recommended", "--loss", "bce")):
        args = parse(*order, "--rounds", "1")  # also what is a default
        assert (args.loss, args.rounds, args.ema, args.given) == ("bce", 1, 0.999, {"loss", "preset", "rounds"})
    assert parse("--preset", "recommended", "--training", "paper").train_from_scratch
    args = parse("--preset", "quick", "--epochs", "3")
    assert (args.epochs, args.sam_type, args.mixed) == (3, "medsam_lite", "half")


def test_the_help_begins_with_what_people_need():
    text = run_pipeline.get_args_parser().format_help()
    options = re.findall(r"^  (?:-\w, )?(--\w+)", text, re.MULTILINE)
    assert set(options[1:7]) == {"--dataset", "--preset", "--num_train_samples", "--sam_type", "--results_dir",
                                 "--gpu_id"}
    titles = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    assert len(titles) == len(set(titles)) and {"training", "initial network", "final network", "SAM"} <= set(titles)
    assert "--refinement recommended --training recommended --rounds 2" in " ".join(text.split())
