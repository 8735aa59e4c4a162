"""The benchmarks run, write what they say, and find our way and the paper's to give the same."""
import json
import os
import signal

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from benchmarks import (
    bf16_dice,
    embedding_store,
    encoder,
    measure,
    paper_way,
    pipeline,
    random_walk,
    refinement,
    refinement_parts,
    shared_machine,
    training,
)
from scripts import evaluate
from scripts.evaluate import Summary
from segment_anything.refinement.cleaning import apply_morphology, clean_masks
from unet_training.networks.registry import Architecture
from utils.datasets.annotated import AnnotatedImages
from utils.errors import InputError


def test_the_papers_way_of_cleaning_keeps_the_same_component():
    probabilities = np.random.default_rng(0).random((3, 14, 23), dtype=np.float32)
    np.testing.assert_array_equal(paper_way.clean_masks(torch.from_numpy(probabilities)), clean_masks(probabilities))


def test_the_papers_way_of_dilating_is_one():
    masks = np.random.default_rng(0).random((2, 40, 33)) > 0.99
    expected = apply_morphology(masks, "dilation", "square", 8)
    np.testing.assert_array_equal(paper_way.dilate(torch.from_numpy(masks)), expected)


@pytest.mark.slow
def test_refinement_changes_no_mask(phantom_data_dir, tmp_path):
    images = phantom_data_dir / "phantom" / "img_only_front_all_left"
    file = tmp_path / "steps.json"
    args = ["--image_folder", str(images), "--images", "2", "--json", str(file)]
    *steps, recommended = refinement.main(refinement.get_args_parser().parse_args(args))
    assert [step.step for step in steps][-1] == "whole refinement"
    assert recommended.step == refinement.RECOMMENDED and recommended.changed_pixels > 0  # another method
    assert all(step.changed_pixels == 0 for step in steps)
    assert all(step.max_abs_diff < 1e-4 for step in steps)
    lines = json.loads(file.read_text())
    assert set(lines[0]) == {"step", "baseline_ms", "ours_ms", "ratio", "max_abs_diff", "changed_pixels"}
    assert lines[0]["ratio"] == pytest.approx(lines[0]["baseline_ms"] / lines[0]["ours_ms"])


@pytest.mark.slow
@pytest.mark.parametrize(("module", "arguments", "equal"), [
    (encoder, [], ["image encoder demo, float32"]),
    (encoder, ["--beside", "demo"], ["image encoder demo, beside demo"]),
    (embedding_store, [], ["write, float32", "read for one refinement, float32", embedding_store.NO_STORE]),
    (random_walk, ["--radius", "3"], ["random walk, all classes"]),
    (pipeline, ["--baseline_images", "1"], ["embeddings", "prediction", "refinement"]),
])
def test_other_stages_give_the_same_where_nothing_was_asked_to_differ(phantom_data_dir, module, arguments, equal):
    images = phantom_data_dir / "phantom" / "img_only_front_all_left"
    parser = module.get_args_parser()
    steps = module.main(parser.parse_args(["--image_folder", str(images), "--images", "2", *arguments]))
    assert set(equal) <= {step.step for step in steps}
    for step in steps:
        assert min(step.baseline_ms, step.ours_ms) > 0
        assert step.step not in equal or step.changed_pixels <= (2 if module is random_walk else 0)


@pytest.mark.slow
def test_each_part_of_the_recommended_refinement_is_left_out_alone(workplace, capsys, monkeypatch):
    data_dir, model_id = workplace
    parts = {name: refinement_parts.PARTS[name] for name in ("without SAM", "all of it")}  # in this order
    monkeypatch.setattr(refinement_parts, "PARTS", parts)
    monkeypatch.setattr(refinement_parts, "DRAWS", 2)
    monkeypatch.setattr(refinement_parts.recommended, "PROMPT_SETS", (("box",),))  # takes less time
    arguments = ["--dataset", "phantom", "--data_dir", str(data_dir), "--model_id", model_id]

    def run(module, *more):
        return module.main(module.get_args_parser().parse_args([*arguments, *more]))

    rows = run(refinement_parts)
    raw, whole = rows[refinement_parts.RAW], rows["all of it"]
    assert f"| all of it | {whole[0]:.2f} | {whole[1]:.2f} |" in capsys.readouterr().out
    to = "--results_dir", str(data_dir / "results"), "--split"
    assert raw[0] == pytest.approx(run(evaluate, *to, "val").mean)
    assert raw[1] == pytest.approx(run(evaluate, *to, "unlabeled").mean)
    refined = "--pseudo_label", "sam", "--refinement", "recommended"
    assert whole[1] == pytest.approx(run(evaluate, *to, "unlabeled", *refined).mean)  # no constant stayed changed
    assert rows["without SAM"] != whole

    of_three = run(refinement_parts, "--validation", "3", "--images", "2")
    assert [name.partition(",")[0] for name in of_three] == [refinement_parts.RAW, "all of it",
                                                             *2 * ["3 validation images"]]
    mean, worst = list(of_three.values())[2:]
    assert mean.unlabeled >= worst.unlabeled
    with pytest.raises(InputError, match="--validation 300: the data set has"):
        run(refinement_parts, "--validation", "3", "300")

    monkeypatch.setattr(refinement_parts, "ESTIMATES", {name: refinement_parts.ESTIMATES[name]
                                                        for name in ("SAM's own alone", "all of it")})
    _, of_sam, whole = run(refinement_parts, "--estimate", "--images", "2").values()
    assert of_sam[:2] == whole[:2] and of_sam.masks != whole.masks

    monkeypatch.setattr(AnnotatedImages, "has_ground_truth", lambda data, stem: stem in data.stems("val"))  # one's own
    monkeypatch.setattr(refinement_parts, "PARTS", {"all of it": refinement_parts.PARTS["all of it"]})
    assert np.isnan(run(refinement_parts)["all of it"].unlabeled)


def test_correlations_are_those_of_the_masks_that_count():
    rng = np.random.default_rng(2)
    dice, estimated = rng.random((2, 30, 3))
    dice[:5, 0] = estimated[7:9, 1] = np.nan
    dice[3] = np.nan
    shown = ~np.isnan(dice + estimated)
    over_masks, of_class, over_images = refinement_parts.correlate_masks(dice, estimated)
    assert over_masks == pytest.approx(pearsonr(dice[shown], estimated[shown]).statistic)
    assert of_class == pytest.approx(np.mean([pearsonr(dice[shown[:, c], c], estimated[shown[:, c], c]).statistic
                                              for c in range(3)]))
    pairs = [(dice[i][shown[i]].mean(), estimated[i][shown[i]].mean()) for i in range(30) if shown[i].any()]
    assert over_images == pytest.approx(pearsonr(*zip(*pairs, strict=True)).statistic)


@pytest.mark.slow
def test_training_in_float32_ends_in_the_same_weights(phantom_data_dir):
    arguments = ["--data_dir", str(phantom_data_dir), "--rounds", "1", "--base_width", "2", "--images", "2",
                 "--input_size", "64", "48"]
    steps = {step.step: step for step in training.main(training.get_args_parser().parse_args(arguments))}
    assert steps["training step, float32"].max_abs_diff == 0 < steps["training step, bf16 option"].max_abs_diff


@pytest.mark.slow
def test_a_shared_machine_is_measured_idle_and_busy(phantom_data_dir, capsys):
    images = phantom_data_dir / "phantom" / "img_only_front_all_left"
    arguments = ["--image_folder", str(images), "--images", "2", "--rounds", "1", "--base_width", "2",
                 "--batch_size", "1", "--input_size", "64", "48"]
    steps = shared_machine.main(shared_machine.get_args_parser().parse_args(arguments))
    assert [step.step for step in steps] == [f"{stage}, {situation}" for stage in shared_machine.STAGES
                                             for situation in ("idle", "one core busy")]
    assert all(step.baseline_ms > 0 < step.ours_ms for step in steps)
    assert all(step.max_abs_diff == step.changed_pixels == 0 for step in steps if not step.step.startswith("training"))
    assert "extrapolated linearly" in capsys.readouterr().out


def test_the_neighbor_keeps_one_core_busy_until_it_is_ended():
    before = os.sched_getaffinity(0)
    with shared_machine.busy_neighbor() as neighbor:
        assert os.sched_getaffinity(neighbor.pid) == {max(before)}
        assert neighbor.poll() is None
    assert neighbor.returncode == -signal.SIGKILL
    assert os.sched_getaffinity(0) == before


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """Records a step of a benchmark, measured on a device, and yields the file's text."""
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(measure, "processor", lambda device: {"cpu": "Core", "cuda": "GPU"}[device.type])
    options = measure.ReportOptions(record=True)

    def record(benchmark: str, step: str, device: str = "cpu", ours: float = 2) -> str:
        measure.report(options, benchmark, torch.device(device), "what", [measure.Step(step, 4, ours, 0.5, 7)])
        return measure.RESULTS.read_text()
    return record


def test_a_recorded_section_replaces_its_older_self_alone(recorded):
    for benchmark, step in (("b", "old"), ("a", "kept"), ("b", "new")):
        text = recorded(benchmark, step)
    assert text.count("## python -m benchmarks.") == 2
    assert "old" not in text
    assert text.index("| kept | 4.00 | 2.00 | 2.00 |") < text.index("| new |")


def test_what_has_a_target_is_summed_up_by_processor(recorded):
    for device, ours in (("cpu", 2), ("cuda", 1)):
        recorded("pipeline", "upscaling", device)
        recorded("pipeline --images 3", "prediction", device, ours)
    summary = recorded("a", "upscaling").split("\n## ")[0]
    assert [line for line in summary.splitlines() if "(" in line] == [
        "| prediction | 2.00 | 3 |  | 5 | 5.0e-01 | 7 | pipeline --images 3 (Core) |",
        "| prediction |  | 3 | 4.00 | 5 | 5.0e-01 | 7 | pipeline --images 3 (GPU) |"]


def test_operations_are_those_of_the_products_and_speed_names_the_machines_own():
    convolution = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert measure.operations(convolution, torch.zeros(2, 3, 7, 9)) == 2 * (2 * 5 * 7 * 9) * (3 * 3 * 3)
    assert measure.operations(torch.mm, torch.zeros(4, 6), torch.zeros(6, 8)) == 2 * 4 * 6 * 8
    assert measure.speed(3e9, 100, torch.device("cpu")).startswith("3.0 GFLOP at 30 GFLOP/s, a large product reaches ")


def test_bf16_is_trained_and_measured_beside_float32_and_other_roundings(monkeypatch, capsys):
    trained = []

    def train(args):
        network = Architecture("u_net", args.seed).build(None)
        weights = [each.abs().sum().item() for each in network.parameters()]
        trained.append((args.seed, args.bf16, args.epochs, weights))
        return str(60 + 3 * args.seed * args.bf16)

    def build(architecture, description):
        torch.manual_seed(architecture.options)
        return torch.nn.Conv2d(1, 2, 3)

    monkeypatch.setenv("SAM_BURDEN_RUNS", "as before")
    monkeypatch.setattr(bf16_dice.training, "main", train)
    monkeypatch.setattr(Architecture, "build", build)
    monkeypatch.setattr(bf16_dice.evaluate, "main", lambda args: Summary(float(args.model_id), 1, 2))
    step, = bf16_dice.main(bf16_dice.get_args_parser().parse_args(["--seeds", "1", "2", "--epochs", "3"]))
    assert [each[:3] for each in trained] == [(1, False, 3), (1, True, 3), (1, False, 3), (2, False, 3), (2, True, 3),
                                              (2, False, 3)]
    for (*_, once), (*_, again), (*_, nudged) in (trained[:3], trained[3:]):
        assert once == again != nudged == pytest.approx(once, rel=1e-5)
    assert step.max_abs_diff == 6
    assert ("mean test Dice 60.00 and 64.50, differences by seed +3.00, +6.00; of float32 from weights 1e-06 larger "
            "+0.00, +0.00") in capsys.readouterr().out
