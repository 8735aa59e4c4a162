"""The demo SAM's training: shapes, simulated prompts, one step, the stage."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from skimage.measure import regionprops

from scripts import train_demo_sam
from scripts.demo_sam import step as demo_sam_training
from scripts.demo_sam.prompts import simulate_prompts, tight_box
from scripts.demo_sam.shapes import random_scene
from segment_anything.demo_sam import build_demo_sam
from utils.errors import InputError


def test_scenes_depend_on_the_seed_alone():
    one, same, other = (random_scene(np.random.default_rng(seed), 128) for seed in (3, 3, 4))
    assert np.array_equal(one.image, same.image)
    assert np.array_equal(one.masks, same.masks)
    assert one.image.shape != other.image.shape or not np.array_equal(one.image, other.image)


def test_scenes_vary_as_radiographs_do():
    scenes = [random_scene(np.random.default_rng((1, number)), 128) for number in range(40)]
    assert all(max(scene.image.shape) == 128 and scene.image.dtype == np.uint8 for scene in scenes)
    assert all(scene.masks.shape[1:] == scene.image.shape and scene.masks.any(axis=(1, 2)).all() for scene in scenes)
    heights, widths = zip(*(scene.image.shape for scene in scenes), strict=True)
    assert min(heights) < 100 and min(widths) < 100
    extent = np.concatenate([[np.ptp(tight_box(mask).reshape(2, 2), axis=0).max() / 128 for mask in scene.masks]
                             for scene in scenes])
    assert extent.min() < 0.1 and extent.max() > 0.6
    assert any((scene.masks.sum(axis=0) > 1).any() for scene in scenes)
    brighter = [scene.image[scene.masks.any(0)].mean() > scene.image[~scene.masks.any(0)].mean() for scene in scenes]
    assert np.mean(brighter) > 0.9


def test_tight_box_is_the_bounding_box():
    mask = random_scene(np.random.default_rng(5), 128).masks[0]
    top, left, bottom, right = regionprops(mask.astype(int))[0].bbox
    assert tight_box(mask).tolist() == [left, top, right - 1, bottom - 1]


def test_simulated_prompts_lie_where_they_say():
    masks = np.zeros((3, 60, 100), bool)
    masks[0, 10:50, 10:40] = masks[1, 20:40, 30:60] = masks[2, 5:20, 70:95] = True
    chosen = np.array([2, 0])
    coverage = demo_sam_training.low_resolution_coverage(masks[chosen], side=128, scale=2)
    assert coverage.sum(dim=(1, 2)).tolist() == [15 * 25 / 4, 40 * 30 / 4]
    for seed in range(30):
        prompts = simulate_prompts(np.random.default_rng(seed), masks, chosen, coverage.numpy())
        assert prompts.boxes.shape == (2, 4) and (prompts.boxes[:, :2] < prompts.boxes[:, 2:]).all()
        for own, row, labels in zip(chosen, prompts.points.astype(int), prompts.labels, strict=True):
            assert labels.tolist() == [1] + [0] * (len(row) - 1)
            assert masks[own, row[0, 1], row[0, 0]]
            assert all(np.delete(masks, own, axis=0)[:, y, x].any() for x, y in row[1:])
        agreement = (prompts.mask_logits[:, 0] > 0) == (coverage.numpy() > 0.5)
        assert agreement.mean() > 0.8


def test_loss_prefers_the_true_mask():
    ground_truth = torch.zeros(2, 32, 32)
    ground_truth[0, 4:10, 6:20] = ground_truth[1, 20:30, 1:4] = 1
    true_logits = 16 * ground_truth[:, None] - 8
    shifted = torch.roll(true_logits, 2, dims=-1)
    losses = [demo_sam_training._mask_losses(logits, ground_truth) for logits in (true_logits, shifted, -true_logits)]
    assert (losses[0] < 0.01).all() and (losses[0] < losses[1]).all() and (losses[1] < losses[2]).all()
    both, either = 6 * 12, 6 * 16
    assert demo_sam_training._true_iou(shifted, ground_truth)[0, 0].item() == pytest.approx(both / either)


def test_loss_looks_at_the_objects_surroundings():
    ground_truth = torch.zeros(1, 40, 40)
    ground_truth[0, 10:21, 15:20] = 1
    rows, columns = np.nonzero(demo_sam_training._surroundings(ground_truth)[0].numpy())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 24, 12, 22)


def test_part_of_the_input_gets_the_same_prompts():
    """A scene in a corner of the input, computed alone: the decoder sees the positions of that corner."""
    torch.manual_seed(0)
    sam = build_demo_sam()
    embedding = torch.randn(1, 128, 48, 48)
    scene = random_scene(np.random.default_rng(0), 128)
    ground_truth = demo_sam_training.low_resolution_coverage(scene.masks[:2], 128, 2)
    prompts = simulate_prompts(np.random.default_rng(0), scene.masks, np.arange(2), ground_truth.numpy())
    shifted = torch.from_numpy(prompts.boxes) + torch.tensor([64.0, 0, 64, 0])
    part = embedding[..., :16, 8:24]
    with torch.inference_mode():
        logits, quality = demo_sam_training.decode(sam, part, (0, 8), prompts, ("box",), ground_truth)
        sparse, dense = sam.prompt_encoder(points=None, boxes=shifted, masks=None)
        expected = sam.mask_decoder(image_embeddings=part, image_pe=sam.prompt_encoder.get_dense_pe()[..., :16, 8:24],
                                    sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense[..., :16, :16],
                                    multimask_output=False)
    assert logits.shape == (2, 4, 64, 64)
    torch.testing.assert_close((logits[:, :1], quality[:, :1]), expected)


@pytest.mark.slow
def test_steps_on_one_scene_lower_the_loss():
    torch.manual_seed(0)
    sam = build_demo_sam().train()
    optimizer = torch.optim.AdamW(sam.parameters(), lr=1e-3)
    losses = [demo_sam_training.training_step(sam, optimizer, 64, False, 1, 3, (0, 0), bfloat16=False)["loss"]
              for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def _train(output: Path, *more: str) -> None:
    arguments = ["--steps", "3", "--scene_size", "64", "--objects_per_image", "2", "--processes", "1",
                 "--no-bfloat16", "--output", str(output), *more]
    train_demo_sam.main(train_demo_sam.get_args_parser().parse_args(arguments))


@pytest.mark.slow
def test_interrupted_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train_demo_sam, "SAVE_EVERY", 1)
    _train(tmp_path / "whole.safetensors")

    step = demo_sam_training.training_step

    def interrupted_step(*args):
        if args[6][1] == 2:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(train_demo_sam, "training_step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "parts.safetensors")
    monkeypatch.setattr(train_demo_sam, "training_step", step)
    with pytest.raises(InputError, match="other settings"):
        _train(tmp_path / "parts.safetensors", "--seed", "1")
    _train(tmp_path / "parts.safetensors")
    whole, parts = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.safetensors", "whole.safetensors"]


@pytest.mark.slow
def test_weights_of_another_image_size_keep_their_frequencies_per_pixel(tmp_path: Path):
    _train(tmp_path / "small.safetensors", "--image_size", "256", "--steps", "1")
    _train(tmp_path / "large.safetensors", "--initial", str(tmp_path / "small.safetensors"), "--lr", "0")
    small, large = (load_file(tmp_path / f"{name}.safetensors") for name in ("small", "large"))
    changed = [name for name in small if not torch.equal(small[name], large[name])]
    assert changed == [train_demo_sam.POSITIONS]
    torch.testing.assert_close(large[changed[0]], 1.5 * small[changed[0]], rtol=1e-3, atol=1e-3)
    with safe_open(tmp_path / "large.safetensors", "pt") as file:
        assert json.loads(file.metadata()["initial"])["image_size"] == "256"
    _train(tmp_path / "mean.safetensors", "--initial", str(tmp_path / "large.safetensors"), "--lr", "0.1", "--average")
    _train(tmp_path / "end.safetensors", "--initial", str(tmp_path / "large.safetensors"), "--lr", "0.1")
    mean, end = (load_file(tmp_path / f"{name}.safetensors") for name in ("mean", "end"))
    for name in mean:
        expected = (large[name].float() + end[name].float()) / 2
        torch.testing.assert_close(mean[name].float(), expected, rtol=2e-3, atol=2e-3)
    (tmp_path / "none.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="none"):
        _train(tmp_path / "large.safetensors", "--initial", str(tmp_path / "none.safetensors"))


def _average_in_group(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    used, unused = torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))
    used.grad = torch.full((2, 3), float(rank + 1))
    if rank == 1:
        unused.grad = torch.ones(4)
    demo_sam_training._average_gradients([used, unused])
    torch.save([used.grad, unused.grad], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_average_their_gradients(tmp_path: Path):
    torch.multiprocessing.spawn(_average_in_group, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        used, unused = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(used, torch.full((2, 3), 1.5)) and torch.equal(unused, torch.full((4,), 0.5))
