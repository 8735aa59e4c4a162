"""One training step of the demo SAM: scenes, two passes of prompts as in the refinement, losses."""
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.demo_sam.prompts import ObjectPrompts, simulate_prompts
from scripts.demo_sam.shapes import Scene, random_scene
from segment_anything.modeling import Sam

# What SAM is given, and how often. The box comes first and points with the first pass's logits second, as in use.
FIRST_PASS = {("box",): 0.66, ("points",): 0.12, ("box", "points"): 0.08, ("mask",): 0.07, ("points", "mask"): 0.07}
SECOND_PASS = {("points", "mask"): 0.75, ("box", "points", "mask"): 0.1, ("box", "mask"): 0.05, ("mask",): 0.1}
MULTIMASK_WEIGHT = 0.3
GRADIENT_NORM = 1.0


def training_step(sam: Sam, optimizer: torch.optim.Optimizer, side: int, hard: bool, batch_size: int,
                  objects_per_image: int, seed: tuple[int, ...], bfloat16: bool) -> dict[str, float]:
    """Draws `batch_size` scenes of `side` pixels from `seed`, encodes each once, asks for its objects twice, and steps.

    A scene smaller than the encoder's input lies anywhere in it, and only that part is computed. Inside a process group
    the gradients are averaged over the processes.

    Returns:
        loss, and the mean Dice after the first and the second pass
    """
    rng = np.random.default_rng(seed)
    device = sam.pixel_mean.device
    scenes = [random_scene(rng, side, hard) for _ in range(batch_size)]
    images = torch.stack([encoder_input(sam, scene.image, side) for scene in scenes])
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        embeddings = sam.image_encoder(images)
        results = [_two_passes(sam, embedding[None], scene, objects_per_image, rng)
                   for embedding, scene in zip(embeddings, scenes, strict=True)]
    losses, dice_first, dice_second = (torch.stack(values).mean() for values in zip(*results, strict=True))
    optimizer.zero_grad(set_to_none=True)
    losses.backward()
    if torch.distributed.is_initialized():
        _average_gradients(list(sam.parameters()))
    torch.nn.utils.clip_grad_norm_(sam.parameters(), GRADIENT_NORM)
    optimizer.step()
    return {"loss": losses.item(), "dice 1": dice_first.item(), "dice 2": dice_second.item()}


def _average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Over all processes, in one message; a parameter that a step does not use has gradient 0."""
    flat = torch.cat([(torch.zeros_like(each) if each.grad is None else each.grad).flatten() for each in parameters])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for each, gradient in zip(parameters, flat.split([each.numel() for each in parameters]), strict=True):
        each.grad = gradient.view_as(each)


def encoder_input(sam: Sam, image: np.ndarray, side: int) -> Tensor:
    """A grey uint8 (H, W) image of the encoder's scale as RGB, normalized, padded: float32, (3, side, side)."""
    grey = torch.from_numpy(image).to(sam.pixel_mean.device, torch.float32).expand(3, *image.shape)
    return F.pad((grey - sam.pixel_mean) / sam.pixel_std, (0, side - image.shape[1], 0, side - image.shape[0]))


def low_resolution_coverage(masks: np.ndarray, side: int, scale: int) -> Tensor:
    """bool (K, H, W) -> float32 (K, side / scale, side / scale): how much of each coarse pixel lies inside."""
    height, width = masks.shape[1:]
    padded = F.pad(torch.from_numpy(masks).float(), (0, side - width, 0, side - height))
    return F.avg_pool2d(padded, scale)


def decode(sam: Sam, embedding: Tensor, place: tuple[int, int], prompts: ObjectPrompts, given: tuple[str, ...],
           mask_logits: Tensor) -> tuple[Tensor, Tensor]:
    """All masks that the decoder has for K objects of one image.

    Args:
        embedding: (1, D, g, g), of a part of the encoder's input whose first cell is `place` (row, column)
        given: which of the prompts "box", "points", "mask" it gets
        mask_logits: (K, 1, 4g, 4g), used if "mask" is given
    Returns:
        logits (K, 4, 4g, 4g) and predicted IoU (K, 4)
    """
    device, grid = embedding.device, embedding.shape[-1]
    shift = torch.tensor(place[::-1]) * (sam.image_encoder.img_size / sam.prompt_encoder.image_embedding_size[0])
    boxes = (torch.from_numpy(prompts.boxes) + shift.repeat(2)).to(device)
    points = ((torch.from_numpy(prompts.points) + shift).to(device), torch.from_numpy(prompts.labels).to(device))
    sparse, dense = sam.prompt_encoder(points=points if "points" in given else None,
                                       boxes=boxes if "box" in given else None,
                                       masks=mask_logits if "mask" in given else None)
    rows, columns = (slice(first, first + grid) for first in place)
    image_pe = sam.prompt_encoder.get_dense_pe()[..., rows, columns]
    return sam.mask_decoder.predict_masks(image_embeddings=embedding, image_pe=image_pe,
                                          sparse_prompt_embeddings=sparse,
                                          dense_prompt_embeddings=dense[..., :grid, :grid])


def _two_passes(sam: Sam, embedding: Tensor, scene: Scene, most: int, rng: np.random.Generator
                ) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of both passes over up to `most` objects of a scene, and their mean Dice."""
    chosen = rng.permutation(len(scene.masks))[:most]
    whole, grid = sam.prompt_encoder.image_embedding_size[0], embedding.shape[-1]
    place = tuple(int(first) for first in rng.integers(0, whole - grid + 1, 2))
    patch = sam.image_encoder.img_size // whole
    ground_truth = low_resolution_coverage(scene.masks[chosen], grid * patch, patch // 4)
    prompts = simulate_prompts(rng, scene.masks, chosen, ground_truth.numpy())
    ground_truth = ground_truth.to(embedding.device)
    damaged = torch.from_numpy(prompts.mask_logits).to(embedding.device)

    logits, quality = decode(sam, embedding, place, prompts, _pick(rng, FIRST_PASS), damaged)
    loss, dice_first = _single_mask_loss(logits[:, :1].float(), quality[:, :1].float(), ground_truth)
    loss = loss + MULTIMASK_WEIGHT * _best_mask_loss(logits[:, 1:].float(), quality[:, 1:].float(), ground_truth)

    first_logits = logits[:, :1].detach().float()
    again, quality = decode(sam, embedding, place, prompts, _pick(rng, SECOND_PASS), first_logits)
    loss_second, dice_second = _single_mask_loss(again[:, :1].float(), quality[:, :1].float(), ground_truth)
    return loss + loss_second, dice_first, dice_second


def _pick(rng: np.random.Generator, chances: dict[tuple[str, ...], float]) -> tuple[str, ...]:
    return list(chances)[rng.choice(len(chances), p=list(chances.values()))]


def _single_mask_loss(logits: Tensor, quality: Tensor, ground_truth: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss of the single-mask output (K, 1, S, S), and its mean Dice."""
    iou = _true_iou(logits, ground_truth)
    loss = _mask_losses(logits, ground_truth).mean() + F.mse_loss(quality, iou)
    return loss, (2 * iou / (1 + iou)).mean()


def _best_mask_loss(logits: Tensor, quality: Tensor, ground_truth: Tensor) -> Tensor:
    """Loss of the best of several masks per object (K, M, S, S), so that they may stand for different readings."""
    return _mask_losses(logits, ground_truth).amin(dim=1).mean() + F.mse_loss(quality, _true_iou(logits, ground_truth))


def _mask_losses(logits: Tensor, ground_truth: Tensor) -> Tensor:
    """Cross entropy per pixel of the object's surroundings, and the soft Dice loss; (K, M, S, S) -> (K, M).

    A mean over the image would drown small objects, and with them the stray pixels far away from them.
    """
    target = ground_truth[:, None].expand_as(logits)
    near = _surroundings(ground_truth)[:, None]
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = entropy.sum(dim=(-2, -1)) / near.sum(dim=(-2, -1))
    probability = logits.sigmoid()
    overlap = 2 * (probability * target).sum(dim=(-2, -1))
    dice = (overlap + 1) / (probability.sum(dim=(-2, -1)) + target.sum(dim=(-2, -1)) + 1)
    return entropy + 1 - dice


def _surroundings(ground_truth: Tensor) -> Tensor:
    """1.0 inside the object's box, grown by 40 % on each side and at least 3 pixels, else 0.0; (K, S, S)."""
    sides = []
    for axis in (1, 2):
        hit = ground_truth.amax(dim=axis) > 0
        place = torch.arange(hit.shape[1], device=ground_truth.device).expand_as(hit)
        first = torch.where(hit, place, place.shape[1]).amin(dim=1)
        last = torch.where(hit, place, -1).amax(dim=1)
        margin = (0.4 * (last - first)).clamp(min=3)
        sides.append((place >= (first - margin)[:, None]) & (place <= (last + margin)[:, None]))
    columns, rows = sides
    return (rows[:, :, None] & columns[:, None, :]).float()


def _true_iou(logits: Tensor, ground_truth: Tensor) -> Tensor:
    """(K, M, S, S) -> (K, M)."""
    mask, target = logits > 0, ground_truth[:, None] > 0.5
    both = (mask & target).sum(dim=(-2, -1))
    return both / (mask | target).sum(dim=(-2, -1)).clamp(min=1)
