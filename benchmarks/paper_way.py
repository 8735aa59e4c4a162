"""The plain baseline: as the paper's code goes about it, for benchmarks and tests alone."""
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import cg
from torch import nn
from torch.nn import functional as F

from segment_anything.embeddings import ImageEmbedding
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.refinement.prompts import ClassPrompt, Prompts, extract_prompts, select_prompt
from segment_anything.refinement.refine import RefinementOptions
from utils.precision import full_float32

LABEL_ITERATIONS = 384  # of the max pooling that spreads component labels


def clean_masks(probabilities: torch.Tensor) -> torch.Tensor:
    """Keeps the component of the highest mean probability; (C, H, W) -> bool (C, H, W).

    Components are found by iterated 3x3 max pooling of pixel numbers. A component through which a number needs more
    than `LABEL_ITERATIONS` steps falls apart.
    """
    masks = probabilities > 0.5
    number = torch.arange(1, masks[0].numel() + 1, dtype=torch.float32, device=masks.device).view(masks.shape[1:])
    labels = (number * masks)[:, None]
    for _ in range(LABEL_ITERATIONS):
        labels = F.max_pool2d(labels, 3, stride=1, padding=1) * masks[:, None]
    for mask, label, probability in zip(masks, labels[:, 0], probabilities, strict=True):
        components = [label == value for value in label.unique() if value > 0]
        if components:
            mask[:] = max(components, key=lambda component: probability[component].double().mean().item())
    return masks


def dilate(masks: torch.Tensor, side: int = 8) -> torch.Tensor:
    """Dilation by a square of `side` pixels, bool, (C, H, W): a convolution shifts the masks by every pixel of the
    square, one channel each, of which the maximum is taken, as by kornia."""
    before, behind = (side - 1) // 2, side // 2
    padded = F.pad(masks.float(), (before, behind, before, behind))[:, None]
    shifts = torch.eye(side * side, device=masks.device).view(-1, 1, side, side)
    return F.conv2d(padded, shifts).max(dim=1).values > 0


def save_embedding(path: Path, embedding: ImageEmbedding) -> None:
    """HDF5, gzip level 9."""
    with h5py.File(path, "w") as file:
        features = embedding.features["image"].numpy()
        file.create_dataset("embedding", data=features, compression="gzip", compression_opts=9)


def read_embedding(path: Path) -> torch.Tensor:
    """(D, h, w); read anew for every prompt."""
    with h5py.File(path, "r") as file:
        return torch.from_numpy(file["embedding"][()])


@full_float32()
@torch.inference_mode()
def decode(prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder, embedding: torch.Tensor, prompt: ClassPrompt,
           mask_input: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """One prompt through the package's modules: logits (1, 1, 4h, 4w) and predicted IoU (1, 1)."""
    device = embedding.device
    points = None if prompt.points is None else (
        torch.as_tensor(prompt.points, dtype=torch.float32, device=device)[None],
        torch.as_tensor(prompt.labels, dtype=torch.float32, device=device)[None])
    box = None if prompt.box is None else torch.as_tensor(prompt.box, dtype=torch.float32, device=device)[None]
    sparse, dense = prompt_encoder(points=points, boxes=box, masks=mask_input)
    return mask_decoder(image_embeddings=embedding[None], image_pe=prompt_encoder.get_dense_pe(),
                        sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=False)


def upscale(logits: torch.Tensor, embedding: ImageEmbedding, size: tuple[int, int]) -> torch.Tensor:
    """As SAM's `postprocess_masks`, then the nearest-exact resize to the masks' size; bool (H, W)."""
    side = (embedding.encoder_input_size, embedding.encoder_input_size)
    square = F.interpolate(logits, side, mode="bilinear", align_corners=False)
    cropped = square[..., :embedding.input_size[0], :embedding.input_size[1]]
    mask = F.interpolate(cropped, embedding.original_size, mode="bilinear", align_corners=False) > 0
    return F.interpolate(mask.float(), size, mode="nearest-exact")[0, 0] > 0


def two_passes(prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder, embedding: torch.Tensor, prompts: Prompts,
               channel: int, options: RefinementOptions, input_size: tuple[int, int]
               ) -> tuple[torch.Tensor, torch.Tensor]:
    """Both passes of one class: logits (1, 1, 4h, 4w) and predicted IoU (1, 1); `input_size` is the embedding's."""
    modules = prompt_encoder, mask_decoder
    first = decode(*modules, embedding, select_prompt(prompts, channel, options.prompt1st, input_size))
    second = select_prompt(prompts, channel, options.prompt2nd, input_size)
    return first if second.empty else decode(*modules, embedding, second, first[0])


def refine(probabilities: torch.Tensor, embedding_file: Path, embedding: ImageEmbedding, prompt_encoder: PromptEncoder,
           mask_decoder: MaskDecoder, options: RefinementOptions) -> tuple[np.ndarray, np.ndarray]:
    """The whole refinement of one image: masks, bool (C, H, W), and estimated Dice (C,). Of `embedding` only the sizes
    are used: its values are read from `embedding_file`, once for each prompt."""
    masks = clean_masks(probabilities)
    dilate(masks)  # the released code computes this, and goes on with what it had before
    prompts = extract_prompts(masks.cpu().numpy())
    estimates = np.full(len(masks), np.nan)
    for channel in np.flatnonzero(prompts.valid):
        for _ in range(2):
            features = read_embedding(embedding_file).to(probabilities.device)
        logits, iou = two_passes(prompt_encoder, mask_decoder, features, prompts, channel, options,
                                 embedding.input_size)
        masks[channel] = upscale(logits, embedding, masks.shape[1:])
        estimates[channel] = 2 * iou.item() / (1 + iou.item())
    return masks.cpu().numpy(), estimates


def train_step(model: nn.Module, images: torch.Tensor, masks: torch.Tensor, loss_function: nn.Module,
               optimizer: torch.optim.Optimizer, device: torch.device, data_aug: float) -> tuple[float, list[float]]:
    """One step on a batch as `unet_training.epoch.train_epoch` takes it; waits for the loss and each class's Dice."""
    model.train()
    images, masks = images.to(device), masks.to(device).float()
    matrices = torch.eye(2, 3, device=device) + data_aug * torch.randn(len(images), 2, 3, device=device)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    masks = F.grid_sample(masks, grid, mode="nearest", align_corners=False)
    optimizer.zero_grad()
    logits = model(images)
    loss = loss_function(logits, masks)
    loss.backward()
    optimizer.step()
    predicted, ground_truth = logits.detach().sigmoid() > 0.5, masks > 0.5
    dice = [2 * (p & t).sum().item() / max(1, (p.sum() + t.sum()).item())
            for p, t in zip(predicted.unbind(1), ground_truth.unbind(1), strict=True)]
    return loss.item(), dice


@torch.inference_mode()
def predict(model: nn.Module, images: Sequence[tuple[torch.Tensor, str]], device: torch.device, path: Path) -> None:
    """Masks of one image after the other, into HDF5 of gzip level 9, a data set per stem."""
    model.eval()
    with h5py.File(path, "w") as file:
        for image, stem in (images[index] for index in range(len(images))):
            with full_float32():
                mask = model(image[None].to(device)).sigmoid()[0] > 0.5
            file.create_dataset(stem, data=mask.cpu().numpy(), compression="gzip", compression_opts=9)


def random_walk(grey: np.ndarray, seeded: np.ndarray, seeds: np.ndarray, sigma: float,
                tolerance: float = 1e-5) -> np.ndarray:
    """As `utils.random_walk.random_walk`: the graph edge by edge of the whole image, and conjugate gradients for one
    class after the other, until the residual is `tolerance` of the right side."""
    index = np.arange(grey.size).reshape(grey.shape)
    edges = np.concatenate([np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], axis=1),
                            np.stack([index[:-1].ravel(), index[1:].ravel()], axis=1)])
    weights = np.exp(-np.diff(grey.ravel()[edges], axis=1)[:, 0] ** 2 / sigma ** 2)
    incidence = sparse.coo_array((np.tile([1.0, -1.0], len(edges)), (np.arange(len(edges)).repeat(2), edges.ravel())),
                                 (len(edges), grey.size)).tocsc()
    laplacian = (incidence.T @ sparse.diags_array(weights) @ incidence + 1e-5 * sparse.eye_array(grey.size)).tocsr()
    free, fixed = np.flatnonzero(~seeded), np.flatnonzero(seeded)
    inner, outer = laplacian[free][:, free], laplacian[free][:, fixed]
    return np.stack([cg(inner, -outer @ seed.ravel()[fixed].astype(float), rtol=tolerance)[0] for seed in seeds])
