"""Fine-tuning of SAM's mask decoder."""
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from scripts import evaluate, finetune_sam, plot_prediction, run_study, save_refined_segmentations
from segment_anything.checkpoints import CheckpointId, identify
from segment_anything.demo_sam import DEMO_SAM_WEIGHTS
from segment_anything.embeddings import compute_embedding, load_embedding
from segment_anything.options import Sam, SamOptions
from segment_anything.refinement.prompts import PROMPTS, extract_prompts
from segment_anything.refinement.refine import RefinementOptions, refine
from segment_anything.registry import get_sam_type, load_prompt_modules, load_sam
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from segment_anything.tuned_decoder import TunedDecoder
from tests.small_sam import register_small_sam
from tests.stage_runs import N, run
from unet_training.models import ModelOptions, TrainedModel, choose_record
from unet_training.sam_decoder import prompts, step, training
from unet_training.sam_decoder.examples import Augmentation, Example, _embed_augmented
from unet_training.sam_decoder.folds import FoldTraining, predict_held_out
from unet_training.sam_decoder.step import TrainableDecoder, losses, low_resolution, train_on
from unet_training.sam_decoder.training import DecoderTuning, TuningOptions, Validation
from utils.datasets.annotated import AnnotatedImages, open_dataset
from utils.dice import multilabel_dice
from utils.errors import InputError
from utils.files import read_grey
from utils.grey import STORED, GreyValues
from utils.mask_store import MaskStore
from utils.tracking.experiment import Experiment, start
from utils.tracking.models import fetch_model, find_models, store_model

CPU = torch.device("cpu")


def boxes_of(*corners: tuple[int, int, int, int], size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """Masks that are filled boxes x0, y0, x1, y1, inclusive."""
    masks = np.zeros((len(corners), *size), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, corners, strict=True):
        mask[y0:y1 + 1, x0:x1 + 1] = True
    return masks


def example_of(ground_truth: np.ndarray, predicted: np.ndarray | None = None) -> Example:
    probabilities = None if predicted is None else np.where(predicted, 0.9, 0.1).astype(np.float32)
    return Example(None, ground_truth, None if predicted is None else extract_prompts(predicted, probabilities))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The small SAM's checkpoint, and its embedding of one image that isn't square."""
    checkpoint = register_small_sam(monkeypatch, tmp_path)
    grey = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (110, 83), np.uint8), (0, 0), 2)
    return checkpoint, compute_embedding(load_sam("small", checkpoint), grey, "longest_side", identify(checkpoint))


def test_an_untrained_decoder_gives_the_logits_of_its_sam(small):
    checkpoint, embedding = small
    ours = TrainableDecoder(load_prompt_modules("small", checkpoint), "small", CPU)
    theirs = StoredEmbeddingDecoder.load("small", checkpoint)
    rng = np.random.default_rng(0)
    boxes, points, masks = rng.uniform(0, 100, (3, 4)), rng.uniform(0, 100, (3, 2, 2)), torch.randn(3, 32, 32)
    for asked in ((boxes,), (None, points, np.ones((3, 2))), (boxes, points, np.zeros((3, 2)), masks)):
        for mine, expected in zip(ours.decode(ours.prepare(embedding), *asked),
                                  theirs.decode(theirs.prepare([embedding]), *asked), strict=True):
            torch.testing.assert_close(mine.detach(), expected, rtol=0, atol=1e-5)


def test_gradients_reach_the_mask_decoder_alone(small):
    checkpoint, embedding = small
    decoder = TrainableDecoder(load_prompt_modules("small", checkpoint), "small", CPU)
    before = copy.deepcopy({name: module.state_dict() for name, module in decoder.modules.items()})
    optimizer = torch.optim.AdamW(decoder.trained.parameters(), 1e-2)
    example = example_of(*[boxes_of((5, 6, 30, 20), (20, 10, 50, 35))] * 2)
    assert train_on(example, embedding, decoder, np.zeros((0, 4)), optimizer, np.random.default_rng(0)) > 0
    for name, module in decoder.modules.items():
        moved = [not torch.equal(before[name][key], value) for key, value in module.state_dict().items()]
        assert any(moved) == (name == "mask_decoder")
    assert all(parameter.grad is None for parameter in decoder.modules["prompt_encoder"].parameters())
    empty = example_of(np.zeros((2, 40, 60), bool))
    assert np.isnan(train_on(empty, embedding, decoder, np.zeros((0, 4)), optimizer, np.random.default_rng(0)))


def test_losses_are_those_of_the_image_without_its_padding():
    rng = np.random.default_rng(0)
    logits, ground_truth, iou = rng.normal(size=(3, 32, 32)), rng.random((3, 32, 20)), rng.random(3)
    ours = losses(*map(torch.from_numpy, (logits, iou, ground_truth)))
    for number in range(3):
        inside, target = logits[number, :, :20], ground_truth[number]
        probability = 1 / (1 + np.exp(-inside))
        entropy = -(target * np.log(probability) + (1 - target) * np.log(1 - probability)).mean()
        dice = (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
        mask, true = inside > 0, target > 0.5
        error = iou[number] - (mask & true).sum() / (mask | true).sum()
        assert ours[number].item() == pytest.approx(entropy + 1 - dice + error ** 2)


@pytest.mark.parametrize("size", [(40, 20), (10, 12)])  # larger and smaller than the low resolution
def test_ground_truth_at_low_resolution(small, size):
    masks = np.random.default_rng(0).random((2, *size)) > 0.5
    ours = low_resolution(masks, small[1])
    assert ours.shape == (2, 32, 24)  # of an image of 128 x 97 pixels in an input of 128
    expected = [Image.fromarray(mask.astype(np.float32)).resize((24, 32), Image.Resampling.BILINEAR) for mask in masks]
    np.testing.assert_allclose(ours, np.stack(expected), atol=1e-5)


def test_boxes_are_the_networks_or_err_as_its_own_do(monkeypatch):
    truth = boxes_of((10, 8, 29, 17), (40, 20, 49, 39), (0, 0, 5, 5))
    seen = boxes_of((6, 9, 33, 15), (20, 20, 29, 39), (2, 2, 20, 4))  # the second beside its object
    example = example_of(truth, seen)
    np.testing.assert_array_equal(prompts.touched(example), [True, False, True])
    errors = prompts.box_errors([example, example_of(truth)])
    np.testing.assert_allclose(errors, [[-4 / 20, 1 / 10, 4 / 20, -2 / 10], [2 / 6, 2 / 6, 15 / 6, -1 / 6]])
    rng = np.random.default_rng(0)

    def draw(source: int, given: Example = example) -> np.ndarray:
        monkeypatch.setattr(prompts, "SOURCES", tuple(float(number == source) for number in range(4)))
        return np.stack([prompts.draw_prompts(given, errors[:1], rng).boxes for _ in range(2000)])

    exact, predicted = (extract_prompts(masks).boxes for masks in (truth, seen))
    np.testing.assert_array_equal(draw(prompts.PREDICTED)[:, [0, 2]], np.broadcast_to(predicted[[0, 2]], (2000, 2, 4)))
    np.testing.assert_allclose(draw(prompts.AS_PREDICTED)[0], [[6, 9, 33, 15], [38, 22, 51, 35], [0, 0.6, 6.2, 3.8]])
    for source, deviation in ((prompts.SLIGHTLY, 0.08), (prompts.STRONGLY, 0.25)):
        slight = draw(source, example_of(truth))
        np.testing.assert_allclose(slight[:, 0].mean(axis=0), exact[0], atol=0.5)
        np.testing.assert_allclose(slight[:, 0].std(axis=0), deviation * np.array([20, 10, 20, 10]), rtol=0.1)
        assert (slight >= 0).all() and (slight[..., 2] <= 59).all() and (slight[..., 3] <= 39).all()
    asked = prompts.draw_prompts(example, errors, rng)
    np.testing.assert_array_equal(asked.centroids[[0, 2]], extract_prompts(seen).centroids[[0, 2]])
    np.testing.assert_array_equal(asked.centroids[1], extract_prompts(truth).centroids[1])


def test_only_what_the_network_knows_is_asked_with_a_mask():
    valid, known = np.array([True] * 9 + [False]), np.arange(10) < 5
    rng, kinds, passes = np.random.default_rng(0), set(), []
    for _ in range(100):
        groups = list(prompts.draw_groups(valid, known, rng, 3))
        assert sorted(channel for channels, _, _ in groups for channel in channels) == list(range(9))
        for channels, names, twice in groups:
            assert len(channels) <= 3 and set(names) <= set(PROMPTS)
            assert "mask" not in names or known[channels].all()
            kinds.add(names)
            passes.append(twice)
    assert kinds == {*prompts.WITH_MASK, *prompts.WITHOUT_MASK}
    assert np.mean(passes) == pytest.approx(prompts.SECOND_PASS, abs=0.1)


def test_image_and_masks_are_moved_together_at_any_size_and_not_mirrored():
    mask = boxes_of((10, 30, 40, 90), size=(120, 80))
    change = Augmentation.draw("image", 1, 42, (120, 80))
    again, other = Augmentation.draw("image", 1, 42, (120, 80)), Augmentation.draw("image", 2, 42, (120, 80))
    assert torch.equal(change.matrix, again.matrix) and not torch.equal(change.matrix, other.matrix)
    assert torch.det(change.matrix[0, :, :2]) > 0
    for most, kind in ((255, np.uint8), (65535, np.uint16)):
        image = change.change_image((most * mask[0]).astype(kind))
        assert image.dtype == kind and (change.move(mask)[0] != (image > most // 2)).mean() < 0.02
    half = change.move(mask[:, ::2, ::2])
    assert (change.move(mask)[:, ::2, ::2] != half).mean() < 0.03 and (half != mask[:, ::2, ::2]).any()
    grey = Augmentation(torch.eye(2, 3)[None], 1.2).change_image(np.full((6, 8), 128, np.uint8))
    np.testing.assert_array_equal(grey, round(255 * (128 / 255) ** 1.2))


@pytest.mark.slow
def test_it_learns_what_an_object_is(phantom_data_dir, tmp_path):
    """Two phantoms, whose bones lie within others' outlines: the demo SAM draws them better after a few steps."""
    data = open_dataset("phantom", phantom_data_dir, (96, 64))
    sam, checkpoint = load_sam("demo", DEMO_SAM_WEIGHTS), identify(DEMO_SAM_WEIGHTS)
    decoder = TrainableDecoder(load_prompt_modules("demo", DEMO_SAM_WEIGHTS), "demo", CPU)
    optimizer = torch.optim.AdamW(decoder.trained.parameters(), 3e-4)
    pairs = []
    for stem in data.stems("train", 2):
        masks = data.mask(stem)[:4]
        embedding = compute_embedding(sam, read_grey(data.image_path(stem)), "longest_side", checkpoint)
        pairs.append((example_of(masks, masks), embedding))

    @torch.no_grad()
    def mean_dice() -> float:
        dice = []
        for example, embedding in pairs:
            boxes = extract_prompts(example.ground_truth).boxes * np.tile(
                np.divide(embedding.input_size, example.ground_truth.shape[1:])[::-1], 2)
            target = low_resolution(example.ground_truth, embedding)
            logits, _ = decoder.decode(decoder.prepare(embedding), boxes)
            dice.append(multilabel_dice(logits[:, :target.shape[1], :target.shape[2]] > 0, target > 0.5))
        return torch.cat(dice).nanmean().item()

    before, rng = mean_dice(), np.random.default_rng(0)
    for _ in range(6):
        for example, embedding in pairs:
            train_on(example, embedding, decoder, np.zeros((0, 4)), optimizer, rng)
    assert mean_dice() > before + 0.02


@pytest.fixture
def initial(workplace) -> TrainedModel:
    data_dir, model_id = workplace
    return TrainedModel.load(fetch_model(model_id), open_dataset("phantom", data_dir), CPU)


def started_from(initial: TrainedModel, model_id: str) -> TrainedModel:
    """As if its training had started from another network."""
    return replace(initial, record=replace(initial.record, parameters={**initial.record.parameters,
                                                                       "start_from": model_id}))


def test_each_image_is_predicted_by_a_network_that_has_not_seen_it(initial, monkeypatch):
    initial = started_from(initial, initial.id)
    stems, seen = initial.labeled_stems(), []

    def train_if_missing(fold: FoldTraining, device: torch.device) -> str:
        own = dict(initial.record.parameters)
        assert fold.parameters["start_from"] is None and not fold.input_models
        assert fold.schedule.epochs == own["epochs"] and fold.sampling.data_sample_per_epoch == 24
        assert fold.parameters["stage"] == "fold" and fold.parameters["num_train_samples"] == len(fold.stems)
        same = own.keys() - {"stage", "num_train_samples", "data_sha256", "start_from"}
        assert {name: fold.parameters.get(name) for name in same} == {name: own[name] for name in same}
        seen.append(fold.stems)
        return initial.id

    monkeypatch.setattr("unet_training.sam_decoder.folds.train_if_missing", train_if_missing)
    asked = []
    monkeypatch.setattr(TrainedModel, "probabilities",
                        lambda _, stems: asked.append(stems) or ((stem, np.zeros((17, 96, 64))) for stem in stems))
    assert list(predict_held_out(initial, 2)) == [stems[0], stems[2], stems[1]]
    assert (seen, asked) == ([[stems[1]], [stems[0], stems[2]]], [[stems[0], stems[2]], [stems[1]]])
    seen.clear()
    assert len(predict_held_out(initial, 9)) == 3 and [len(fold) for fold in seen] == [2, 2, 2]
    monkeypatch.setattr(TrainedModel, "labeled_stems", lambda _: stems[:1])
    assert predict_held_out(initial, 2) == {} == predict_held_out(initial, 0)


def test_networks_of_the_folds_start_from_random_weights(initial):
    """One that the initial network started from may have learned from the held-out images."""
    stems = initial.labeled_stems()[:1]
    plain, fold = (FoldTraining.like(each, stems).prepare(CPU).network.state_dict()
                   for each in (initial, started_from(initial, initial.id)))
    assert all(torch.equal(fold[name], value) for name, value in plain.items())
    assert any(not torch.equal(fold[name], value) for name, value in initial.network.student.state_dict().items())


@pytest.mark.slow
def test_the_demo_decoder_is_measured_as_its_masks_are(initial):
    """Of a decoder that has learned: masks as `refine` makes them with its weights, their Dice by the definition. The
    second image lacks classes, the last one has none."""
    rng, data = np.random.default_rng(0), initial.data
    sam, (first, second) = Sam("demo", DEMO_SAM_WEIGHTS), data.stems("val")[:2]
    sam.embed_missing(data, [first, second], CPU)
    stems, probabilities, ground_truth = [first, second, first], [], []
    for stem, shown in zip(stems, (17, 3, 0), strict=True):
        masks = data.mask(stem)
        noise = cv2.GaussianBlur(rng.random((96, 64, 17)), (0, 0), 3).transpose(2, 0, 1).astype(np.float32)
        probabilities.append((0.8 * masks + 2 * (noise - 0.5) + 0.1).clip(0.01, 0.99).astype(np.float32))
        ground_truth.append(masks & (np.arange(17) < shown)[:, None, None])
    modules = sam.load_prompt_modules()
    with torch.no_grad():
        for parameter in modules["mask_decoder"].parameters():
            parameter *= 1.05
    stored = StoredEmbeddingDecoder(copy.deepcopy(modules), get_sam_type("demo").decoder, sam.identity)
    decoder, pictures = TrainableDecoder(modules, "demo", CPU), []
    before = copy.deepcopy(decoder.trained.state_dict())
    experiment = SimpleNamespace(image=lambda *shown: pictures.append(shown))
    validation = Validation(initial, sam, stems, probabilities, ground_truth)
    measured = validation.measure(decoder, 0, experiment)

    asked = {"box": RefinementOptions(("box",), ()), "box + mask": RefinementOptions(("box", "mask"), ())}

    def expect(weights: StoredEmbeddingDecoder) -> dict[str, float]:
        means = {}
        for name, options in asked.items():
            dice = []
            for stem, predicted, truth in zip(stems[:2], probabilities, ground_truth, strict=False):
                masks = refine(predicted, sam.read_embedding(data, stem), weights, options).mask
                dice.append(np.mean([2 * (mask & true).sum() / (mask.sum() + true.sum())
                                     for mask, true in zip(masks, truth, strict=True) if true.any()]))
            means[name] = np.mean(dice)
        return means

    assert measured == pytest.approx(expect(stored), abs=1e-6) and measured["box"] != measured["box + mask"]
    assert measured["box"] != pytest.approx(expect(sam.load_decoder())["box"], abs=1e-3)
    assert all(torch.equal(before[name], value) for name, value in decoder.trained.state_dict().items())
    assert [series for _, series, *_ in pictures] == ["box", "ground truth", "box + mask", "ground truth"]


def test_an_augmented_embedding_is_of_the_changed_image(initial, tmp_path):
    """Read as the data set's grey values are meant, and changed before SAM sees it."""
    sam = Sam("demo", DEMO_SAM_WEIGHTS, grey=GreyValues(inverted=True))
    stem, path = initial.labeled_stems()[0], initial.data.image_path(initial.labeled_stems()[0])
    _embed_augmented(sam, initial.data, [stem], 2, 7, tmp_path, CPU)
    assert sorted(file.name for file in tmp_path.glob("*.h5")) == [f"{stem}_0.h5", f"{stem}_1.h5"]
    made = load_embedding(tmp_path / f"{stem}_1.h5", sam.identity)
    grey, model = read_grey(path, sam.grey), load_sam("demo", DEMO_SAM_WEIGHTS)
    changed = Augmentation.draw(stem, 1, 7, grey.shape).change_image(grey)
    expected = compute_embedding(model, changed, "longest_side", sam.identity)
    assert (made.original_size, made.input_size) == (expected.original_size, expected.input_size)
    torch.testing.assert_close(made.features["image"], expected.features["image"], rtol=0, atol=1e-3)
    unchanged = compute_embedding(model, grey, "longest_side", sam.identity)
    assert (made.features["image"] - unchanged.features["image"]).abs().max() > 0.1


@pytest.fixture
def tuning(initial, monkeypatch, tmp_path) -> DecoderTuning:
    """Of the small SAM, without folds; its validation says that each epoch is better than the one before."""
    monkeypatch.setattr(Validation, "measure", lambda self, decoder, epoch, experiment: {"box": epoch / 10})
    sam = Sam("small", register_small_sam(monkeypatch, tmp_path))
    return DecoderTuning(TuningOptions(epochs=3, images_per_epoch=4, folds=0, augmented=1), 7, sam, initial)


def show_labels_in(monkeypatch, *shown: str) -> None:
    """No mask of any other image shows one."""
    mask = AnnotatedImages.mask
    monkeypatch.setattr(AnnotatedImages, "mask", lambda self, stem: mask(self, stem) & (stem in shown))


def test_images_without_any_label_are_told_before_anything_is_computed(tuning, monkeypatch):
    monkeypatch.setattr(training, "load_examples", None)
    data, labeled = tuning.initial.data, tuning.initial.labeled_stems()
    with monkeypatch.context() as patch:
        show_labels_in(patch, *data.stems("val"))
        with pytest.raises(InputError, match=r"data set phantom: none of its labeled images .*\(3\) shows a label"):
            tuning.run()
    show_labels_in(monkeypatch, *labeled)
    with pytest.raises(InputError, match=r"data set phantom: none of its validation images \(\d+\) shows a label"):
        tuning.run_if_missing()


@pytest.mark.slow
def test_it_learns_from_the_images_that_show_a_label(tuning, monkeypatch):
    """Each epoch sees one, which may not be one of the others."""
    labeled, asked = tuning.initial.labeled_stems(), []
    monkeypatch.setattr(training, "train_on",
                        lambda example, *given: asked.append(example) or step.train_on(example, *given))
    show_labels_in(monkeypatch, labeled[1], tuning.initial.data.stems("val")[0])
    short = replace(tuning, options=replace(tuning.options, images_per_epoch=1))
    assert fetch_model(short.run()).parameters["num_train_samples"] == 3
    assert len(asked) == 3 and all(example.embedding.stem.startswith(labeled[1]) for example in asked)


@pytest.mark.parametrize(("stage", "arguments"), [
    (finetune_sam, N), (run_study, (*N, "--methods", "initial", "sam_finetuned", "--batch_size", "4"))])
def test_embeddings_that_are_not_kept_are_refused(workplace, tmp_path, monkeypatch, stage, arguments):
    """Before anything is trained."""
    monkeypatch.setattr("scripts.study.methods.train_if_missing", None)
    monkeypatch.setattr(DecoderTuning, "run", None)
    results = ("--results_dir", str(tmp_path)) if stage is run_study else ()
    with pytest.raises(InputError, match=r"--embeddings none: .* reads each embedding many times.*; leave out"):
        run(stage, workplace[0], *arguments, "--embeddings", "none", *results)


@contextmanager
def start_continued(tuning: DecoderTuning, *arguments, state: Path, **options) -> Iterator[Experiment]:
    """A run that continues the task of an interrupted one, which is noted beside the training's state."""
    assert state == tuning._state_file and state.exists()
    with start(*arguments, state=state, **options) as experiment:
        experiment.continued = True
        yield experiment


@pytest.mark.slow
def test_an_interrupted_run_ends_in_the_same_decoder(tuning, monkeypatch):
    curves = []
    monkeypatch.setattr(Experiment, "scalar", lambda _, *point: curves.append(point))
    whole = fetch_model(tuning.run())
    expected, steps = curves.copy(), iter(range(9))  # of twelve: in the third epoch

    def train_until_interrupted(*given) -> float:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step.train_on(*given)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_on", train_until_interrupted)
        with pytest.raises(KeyboardInterrupt):
            tuning.run()
    curves.clear()
    calls = []
    monkeypatch.setattr(training, "train_on", lambda *given: calls.append(given) or step.train_on(*given))
    with monkeypatch.context() as patch:  # as where a server has the task with its curves
        patch.setattr(training, "start", partial(start_continued, tuning))
        resumed = fetch_model(tuning.run())
    assert len(calls) == 4 and curves == [point for point in expected if point[-1] == 3]
    weights = [safetensors.torch.load_file(model.weights) for model in (whole, resumed)]
    own = load_prompt_modules("small", tuning.sam.checkpoint)["mask_decoder"].state_dict()
    assert weights[0].keys() == weights[1].keys() == own.keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in own)
    assert any(not torch.equal(weights[0][name], own[name]) for name in own)
    assert tuning.run_if_missing() == resumed.id


@pytest.mark.slow
def test_where_no_epoch_is_better_the_decoder_stays_as_it_was(tuning, monkeypatch):
    monkeypatch.setattr(Validation, "measure", lambda self, decoder, epoch, experiment: {"box": -epoch / 10})
    made = safetensors.torch.load_file(fetch_model(tuning.run()).weights)
    own = load_prompt_modules("small", tuning.sam.checkpoint)["mask_decoder"].state_dict()
    assert all(torch.equal(made[name], own[name]) for name in own)


def store_decoder(folder, checkpoint, **parameters) -> str:
    """A model that says of itself that it is a decoder of the small SAM."""
    weights = folder / "sam_decoder.safetensors"
    own = load_prompt_modules("small", checkpoint)["mask_decoder"].state_dict()
    safetensors.torch.save_file({name: 1.1 * value for name, value in own.items()}, weights)
    return store_model(weights, {"stage": "sam_decoder", "sam_type": "small", "sam_checkpoint": "small.pth",
                                 "sam_checkpoint_sha256": identify(checkpoint).sha256, "initial_model_id": "first",
                                 **parameters}, ("a",), (), "task")


def test_a_decoder_goes_with_the_sam_that_it_was_made_from(small, tmp_path, monkeypatch):
    checkpoint, embedding = small
    data = SimpleNamespace(description=SimpleNamespace(sam_type="demo", grey=STORED, name="phantom"), data_dir=tmp_path,
                           derived_dir=tmp_path)
    model_id = store_decoder(tmp_path, checkpoint)
    sam = Sam.choose(SamOptions(sam_checkpoint=checkpoint, sam_model_id=model_id), data)
    own = Sam("small", checkpoint)
    assert sam.type_name == "small" and sam.name == f"small_tuned_{model_id.removeprefix('offline-')[:8]}"
    assert sam.folder(data) == own.folder(data) and sam.identity == own.identity
    assert sam.parameters == {**own.parameters, "sam_model_id": model_id}
    assert sam.of_type("medsam", data).tuned is None
    modules = load_prompt_modules("small", checkpoint)
    modules["mask_decoder"].load_state_dict(safetensors.torch.load_file(fetch_model(model_id).weights))
    plain, decoder = TrainableDecoder(modules, "small", CPU), sam.load_decoder()
    box = np.array([[10.0, 20, 60, 90]])
    torch.testing.assert_close(decoder.decode(decoder.prepare([embedding]), box)[0],
                               plain.decode(plain.prepare(embedding), box)[0].detach(), rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="made from SAM type small, not vit_b; give --sam_type small"):
        Sam.choose(SamOptions("vit_b", checkpoint, sam_model_id=model_id), data)
    (tmp_path / "other").mkdir()
    other = Sam("small", register_small_sam(monkeypatch, tmp_path / "other", seed=1), tuned=sam.tuned)
    for use in (other.check_present, other.load_decoder, lambda: other.identity):
        with pytest.raises(InputError, match=r"made from the checkpoint small.pth \(sha256 .*give that one as"):
            use()
    with pytest.raises(InputError, match="is no mask decoder of SAM but of stage initial"):
        TunedDecoder.fetch(store_decoder(tmp_path, checkpoint, stage="initial"))
    with pytest.raises(InputError, match=r"name it with --sam_model_id, and with --model_id .* such as first"):
        TrainedModel.load(fetch_model(model_id), data, CPU)
    monkeypatch.setattr("segment_anything.tuned_decoder.read_state_dict", lambda path: {"weight": torch.zeros(3)})
    with pytest.raises(InputError, match="don't fit the mask decoder of SAM type small"):
        sam.load_decoder()
    assert TunedDecoder(model_id, "small", CheckpointId("small.pth", "f" * 64)) != sam.tuned


@pytest.mark.slow
def test_from_the_labeled_images_to_masks_of_the_fine_tuned_sam(workplace, tmp_path, monkeypatch, capsys):
    """Three labeled, two validation and two unlabeled phantoms; the last epoch counts as the best."""
    (data_dir, initial_id), stems = workplace, AnnotatedImages.stems
    data = open_dataset("phantom", data_dir)
    for stem in data.unlabeled_stems(3, True, 42)[2:]:
        data.image_path(stem).unlink()
    monkeypatch.setattr(AnnotatedImages, "stems", lambda self, split, num=None: stems(self, split, num)[
        :2 if split == "val" else None])
    monkeypatch.setattr(training, "_score", len)
    capsys.readouterr()
    short = ("--epochs", "1", "--images_per_epoch", "3", "--augmented", "1", "--lr", "1e-3")
    model_id = run(finetune_sam, data_dir, *N, *short)
    assert capsys.readouterr().out.splitlines()[-1] == f"model id: {model_id}"
    model = fetch_model(model_id)
    assert model.weights.suffix == ".safetensors" and model.parameters["initial_model_id"] == initial_id
    assert model.parameters["sam_checkpoint_sha256"] == identify(DEMO_SAM_WEIGHTS).sha256
    assert len(find_models(stage="fold")) == 2
    assert len(list((data_dir / "phantom" / "sam_embeddings" / "demo_augmented_42").glob("*.h5"))) == 3
    data = open_dataset("phantom", data_dir)
    assert choose_record(data, ModelOptions(num_train_samples=3), stage=None).id == initial_id
    asked = ("--prompt1st", "box", "mask", "--prompt2nd")
    own = run(save_refined_segmentations, data_dir, *N, *asked)
    tuned = ("--sam_model_id", model_id, *asked)
    path = run(save_refined_segmentations, data_dir, *N, *tuned)
    assert path.stem == f"{own.stem}_tuned_{model_id[8:16]}"
    stores = [MaskStore(file, data.description.labels) for file in (path, own)]
    assert [model_id in store.attributes["refine_params"] for store in stores] == [True, False]
    assert any((stores[0].mask(stem) != stores[1].mask(stem)).any() for stem in stores[0].stems)
    results = ("--results_dir", str(tmp_path))
    assert run(evaluate, data_dir, "--model_id", initial_id, "--split", "val", "--pseudo_label", "sam", *tuned,
               *results).count == 2
    stem = stores[0].stems[0]
    folder = run(plot_prediction, data_dir, "--model_id", initial_id, "--stem", stem, *tuned, *results)
    assert (folder / f"prompts_{stem}.png").stat().st_size > 1000
