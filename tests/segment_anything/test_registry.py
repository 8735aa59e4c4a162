"""The package extension, the registry and strict loading."""
import os
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import segment_anything.modeling
from segment_anything.checkpoints import identify
from segment_anything.options import Sam
from segment_anything.registry import SAM_TYPES, SamType, default_checkpoint, load_prompt_modules, load_sam
from tests.small_sam import build_small_sam, register_small_sam
from utils.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_folder_extends_the_installed_package_here_and_nowhere_else(tmp_path):
    assert Path(segment_anything.__file__) == ROOT / "segment_anything" / "__init__.py"
    installed = Path(segment_anything.modeling.__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    imported = subprocess.run([sys.executable, "-c", "import segment_anything; print(segment_anything.__file__)"],
                              cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert Path(imported.strip()) == installed / "__init__.py"


def test_public_names_come_from_the_package():
    from segment_anything import SamPredictor, build_sam, sam_model_registry
    assert SamPredictor.__module__ == "segment_anything.predictor"
    assert sam_model_registry["vit_h"] is build_sam is SAM_TYPES["vit_h"].build


def test_default_checkpoints():
    assert default_checkpoint("vit_h", Path("d")) == Path("d/sam_checkpoints/sam_vit_h_4b8939.pth")
    assert default_checkpoint("demo", Path("d")).parent == ROOT / "segment_anything"


def test_a_checkpoint_directly_in_the_data_folder_is_taken_where_the_usual_one_is_not(tmp_path):
    directly, usual = tmp_path / "sam_vit_h_4b8939.pth", tmp_path / "sam_checkpoints" / "sam_vit_h_4b8939.pth"
    directly.touch()
    assert default_checkpoint("vit_h", tmp_path) == directly
    usual.parent.mkdir()
    usual.touch()
    assert default_checkpoint("vit_h", tmp_path) == usual


def test_weights_are_loaded_and_frozen(monkeypatch, tmp_path):
    checkpoint = register_small_sam(monkeypatch, tmp_path)
    published = torch.load(checkpoint, weights_only=True)
    sam = load_sam("small", checkpoint)
    assert not sam.training
    assert not any(parameter.requires_grad for parameter in sam.parameters())
    assert {key: value.tolist() for key, value in sam.state_dict().items()} == {
        key: value.tolist() for key, value in published.items()}


def test_prompt_modules_hold_the_same_weights_and_the_encoder_has_no_memory(monkeypatch, tmp_path):
    checkpoint = register_small_sam(monkeypatch, tmp_path)
    built = []
    build = SAM_TYPES["small"].build
    monkeypatch.setitem(SAM_TYPES, "small", SamType(lambda: built.append(build()) or built[-1], "small.pth", ""))
    modules = load_prompt_modules("small", checkpoint)
    sam = load_sam("small", checkpoint)
    assert modules.keys() == {"prompt_encoder", "mask_decoder"}
    for name, module in modules.items():
        assert not module.training
        for key, tensor in getattr(sam, name).state_dict().items():
            assert torch.equal(module.state_dict()[key], tensor), key
    assert all(parameter.is_meta for parameter in built[0].image_encoder.parameters())


def test_half_precision_safetensors_become_float32(monkeypatch, tmp_path):
    state_dict = torch.load(register_small_sam(monkeypatch, tmp_path), weights_only=True)
    half = {key: tensor.half() for key, tensor in state_dict.items()}
    safetensors.torch.save_file(half, tmp_path / "small.safetensors")
    sam = load_sam("small", tmp_path / "small.safetensors").state_dict()
    mask_decoder = load_prompt_modules("small", tmp_path / "small.safetensors")["mask_decoder"]
    decoder = {f"mask_decoder.{key}": tensor for key, tensor in mask_decoder.state_dict().items()}
    for key, tensor in [*sam.items(), *decoder.items()]:
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, half[key].float()), key


LOADERS = pytest.mark.parametrize("load", [load_sam, load_prompt_modules])


@LOADERS
@pytest.mark.parametrize(("sam_type", "message"), [
    ("vit_b", r"no such SAM checkpoint; run `python -m scripts\.download_checkpoint vit_b`, or .* by hand"),
    ("medsam", r"no such SAM checkpoint; get medsam_vit_b\.pth by hand from .*MedSAM")])
def test_a_missing_checkpoint_names_the_way_to_it(monkeypatch, tmp_path, load, sam_type, message):
    monkeypatch.setitem(SAM_TYPES, sam_type, SamType(**{**vars(SAM_TYPES[sam_type]), "build": build_small_sam}))
    with pytest.raises(InputError, match=message):
        load(sam_type, default_checkpoint(sam_type, tmp_path))


class Attack:
    """Unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@LOADERS
@pytest.mark.parametrize("kind", ["text", "empty", "bytes", "truncated", "object", "list", "safetensors"])
def test_a_file_that_is_no_checkpoint(monkeypatch, tmp_path, load, kind):
    good = register_small_sam(monkeypatch, tmp_path).read_bytes()
    path = tmp_path / ("bad.safetensors" if kind == "safetensors" else "bad.pth")
    contents = {"text": b"<html>Not found</html>", "empty": b"", "bytes": bytes(range(256)) * 9,
                "truncated": good[:len(good) // 2], "safetensors": good}
    if kind in contents:
        path.write_bytes(contents[kind])
    else:
        torch.save(Attack(tmp_path / "attacked") if kind == "object" else [1, 2], path)
    with pytest.raises(InputError, match=r"bad\.(pth|safetensors): (not a readable checkpoint|holds no state dict)"):
        load("small", path)
    assert not (tmp_path / "attacked").exists()


@LOADERS
def test_a_checkpoint_of_another_architecture(monkeypatch, tmp_path, load):
    checkpoint = register_small_sam(monkeypatch, tmp_path)
    state_dict = torch.load(checkpoint, weights_only=True)
    state_dict["image_encoder.blocks.9.norm1.weight"] = torch.zeros(3)  # prompt modules alone would fit
    state_dict["image_encoder.pos_embed"] = torch.zeros(1, 4, 4, 24)
    del state_dict["image_encoder.neck.0.weight"]
    torch.save(state_dict, tmp_path / "other.pth")
    with pytest.raises(InputError) as caught:
        load("small", tmp_path / "other.pth")
    message = str(caught.value)
    assert "other.pth: not a checkpoint of SAM type small" in message
    assert "1 tensors are missing, e.g. image_encoder.neck.0.weight" in message
    assert "1 are unknown, e.g. image_encoder.blocks.9.norm1.weight" in message
    assert "image_encoder.pos_embed: (1, 4, 4, 24) instead of (1, 8, 8, 24)" in message


def test_identity_is_name_and_content(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"abc")
    found = identify(tmp_path / "a.pth")
    assert found.name == "a.pth"
    assert found.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.shared
def test_mobile_sam_is_not_vit_b(shared):
    with pytest.raises(InputError, match="not a checkpoint of SAM type vit_b"):
        load_prompt_modules("vit_b", shared / "weights" / "mobile_sam.pt")


def small_state(monkeypatch, tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    path = register_small_sam(monkeypatch, tmp_path)
    return path, torch.load(path, weights_only=True)


@pytest.mark.parametrize("wrap", [
    lambda state: {f"module.{name}": value for name, value in state.items()},  # DataParallel
    lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},  # MedSAM's fine-tuning
    lambda state: {"state_dict": state, "best": np.float32(0.5), "losses": [np.float64(1), np.int64(2)]},
    lambda state: {"state_dict": {"loss.weight": torch.ones(2), **{f"sam.{name}": value for name, value in
                                                                   state.items()}},
                   "pytorch-lightning_version": "2.0", "epoch": 1, "global_step": 5},  # Lightning
    lambda state: {"model": {"module": {f"module.model.{name}": value for name, value in state.items()}}},
    lambda state: OrderedDict(state) | {"step": 7},
    lambda state: {name: value.bfloat16().float() for name, value in state.items()},  # nothing to take off
])
def test_what_a_training_wrapped_weights_in_is_taken_off(monkeypatch, tmp_path, capsys, wrap):
    path, state = small_state(monkeypatch, tmp_path)
    wrapped = wrap(state)
    torch.save(wrapped, path)
    loaded = load_sam("small", path).state_dict()
    expected = wrapped if wrapped.keys() == state.keys() else state
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], expected[name]) for name in state)
    assert set(load_prompt_modules("small", path)) == {"prompt_encoder", "mask_decoder"}
    assert ("SAM's weights are taken out of" in capsys.readouterr().err) == (wrapped.keys() != state.keys())


class Harmful:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(("content", "message"), [
    ({"model": Harmful()}, "not a readable checkpoint .*save its state dict alone"),
    ({"state_dict": {"a": 1}}, "holds no state dict of tensors; .*save model.state_dict"),
    ({"epoch": 3}, "holds no state dict"), ([torch.ones(2)], "holds no state dict"),
])
def test_what_holds_no_weights_is_refused_and_nothing_runs(monkeypatch, tmp_path, capsys, content, message):
    path, _ = small_state(monkeypatch, tmp_path)
    torch.save(content, path)
    with pytest.raises(InputError, match=message):
        load_sam("small", path)
    assert "ran" not in capsys.readouterr().out


def test_weights_that_are_damaged_or_not_finite_are_refused(monkeypatch, tmp_path):
    path, state = small_state(monkeypatch, tmp_path)
    content = path.read_bytes()
    at = content.index(state["mask_decoder.iou_token.weight"].numpy().tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1:])
    for load in (load_sam, load_prompt_modules):
        with pytest.raises(InputError, match=r"small\.pth: not a readable checkpoint .* is damaged"):
            load("small", path)
    state["mask_decoder.iou_token.weight"][0, 0] = float("inf")
    torch.save(state, path)
    for load in (load_sam, load_prompt_modules):
        with pytest.raises(InputError, match="isn't finite"):
            load("small", path)


def test_the_published_checkpoint_of_another_type_is_told(monkeypatch, tmp_path):
    path, _ = small_state(monkeypatch, tmp_path)
    register_small_sam(monkeypatch, tmp_path, "other")
    monkeypatch.setitem(SAM_TYPES, "other", replace(SAM_TYPES["other"], sha256=identify(path).sha256))
    sam = Sam("small", path)
    with pytest.raises(InputError, match="is the published checkpoint of SAM type other; give --sam_type other"):
        _ = sam.identity
    assert Sam("other", path).identity.sha256 == identify(path).sha256  # as the message says
