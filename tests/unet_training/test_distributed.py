"""Two processes of torchrun give what one process gives."""
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from scripts import merge_masks, save_refined_segmentations, save_segmentations
from tests.fresh_process import run_python
from tests.stage_runs import SMALL, N, run
from unet_training import training, training_on_pseudo_labels
from utils.tracking.experiment import Experiment
from utils.tracking.models import fetch_model

SCRIPT = """
import json, sys
from importlib import import_module
from pathlib import Path
from utils import cli
from utils.ranks import rank
from utils.tracking.experiment import Experiment

folder, *stages = sys.argv[1:]
leave, cli._leave = cli._leave, lambda code: None  # not before the last stage has ended
curves, keep = {}, Experiment.scalar
Experiment.scalar = lambda self, *point: curves.update({repr(point[:2] + point[3:]): point[2]})
for number, stage in enumerate(json.loads(Path(stages[0]).read_text())):
    module = import_module(stage[0])
    curves.clear()
    cli.run_stage(module.main, module.get_args_parser(), stage[1:], shared=True)
    if curves:
        (Path(folder) / f"curves_{number}_rank{rank()}.json").write_text(json.dumps(curves))
leave(0)
"""
TRAININGS = {
    "initial": (training, [*N, *SMALL, "--data_aug", "0.1", "--max_gradient_norm", "0.5"]),
    "final": (training_on_pseudo_labels, [*N, "--epochs", "2", "--batch_size", "4", "--pseudo_label", "raw"]),
    "mixed": (training_on_pseudo_labels, [*N, "--epochs", "2", "--batch_size", "4", "--pseudo_label", "raw",
                                          "--training", "recommended"]),  # batch sampler, Dice in the loss, average
}
UNLABELED = 5
MASKS = {"raw": (save_segmentations, []), "sam": (save_refined_segmentations, ["--prompt1st", "box", "--prompt2nd"])}


def arguments(data_dir: Path, module, options: list[str], model_id: str) -> list[str]:
    own = [] if module is training else ["--model_id", model_id]
    return ["--dataset", "phantom", "--data_dir", str(data_dir), *options, *own]


@pytest.fixture(scope="module")
def by_two(workplace, tmp_path_factory):
    """A folder with what torchrun's processes left: their curves, and masks in `derived`."""
    data_dir, model_id = workplace
    for image in sorted((data_dir / "phantom" / "img_only_front_all_left").glob("*.png"))[UNLABELED - 12:]:
        image.unlink()  # of the last twelve, which nobody annotated
    run(save_segmentations, data_dir, *N, "--model_id", model_id)
    folder = tmp_path_factory.mktemp("two")
    stages = [[module.__name__, *arguments(data_dir, module, options, model_id)]
              for module, options in TRAININGS.values()]
    stages += [[module.__name__, *arguments(data_dir, module, [*N, *options], model_id), "--derived_dir",
                str(folder / "derived")] for module, options in MASKS.values()]
    (folder / "stages.json").write_text(json.dumps(stages))
    (folder / "stage.py").write_text(SCRIPT)
    runs = data_dir.parent / "runs"
    output = run_python(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                         str(folder / "stage.py"), str(folder), str(folder / "stages.json")], runs=runs)
    return folder, output


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_losses_of_two_processes_are_those_of_one(workplace, by_two, name, monkeypatch):
    curves, (module, options) = {}, TRAININGS[name]
    monkeypatch.setattr(Experiment, "scalar",
                        lambda self, *point: curves.update({repr(point[:2] + point[3:]): point[2]}))
    data_dir, model_id = workplace
    module.main(module.get_args_parser().parse_args(arguments(data_dir, module, options, model_id)))
    number = list(TRAININGS).index(name)
    assert not (by_two[0] / f"curves_{number}_rank1.json").exists()  # the first one alone tracks
    together = json.loads((by_two[0] / f"curves_{number}_rank0.json").read_text())
    losses = [key for key in curves if "loss" in key]
    assert together.keys() == curves.keys() and len(losses) == 2 * 2  # of training and validation, two epochs
    assert [together[key] for key in losses] == pytest.approx([curves[key] for key in losses], abs=1e-4)
    first = [key for key in curves if "learning rate" not in key and key.endswith("0)")]
    assert [together[key] for key in first] == pytest.approx([curves[key] for key in first], rel=5e-3, abs=2e-3)


@pytest.mark.slow
def test_the_first_process_alone_prints_and_publishes(by_two):
    ids = [line.removeprefix("model id: ") for line in by_two[1].splitlines() if line.startswith("model id: ")]
    assert len(set(ids)) == len(ids) == len(TRAININGS)
    assert all(fetch_model(model_id).weights.is_file() for model_id in ids)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_two_processes_and_of_shards_are_those_of_one(workplace, by_two, kind, tmp_path):
    data_dir, model_id = workplace
    module, options = MASKS[kind]

    def save(folder: Path, *shard: str) -> Path:
        return run(module, data_dir, *N, "--model_id", model_id, *options, "--derived_dir", str(folder), *shard)

    alone = save(tmp_path / "alone")
    shards = {save(tmp_path / "shards", "--shard", f"{number}/2") for number in (2, 1)}
    merged, = shards
    assert not merged.exists()
    merge_masks.main(merge_masks.get_args_parser().parse_args([str(merged)]))
    of_two = by_two[0] / "derived" / alone.relative_to(tmp_path / "alone")
    assert_same_masks(alone, merged)
    assert_same_masks(alone, of_two)


def assert_same_masks(ours: Path, theirs: Path) -> None:
    """To the bit, attributes and estimates included."""
    with h5py.File(ours) as one, h5py.File(theirs) as other:
        assert dict(one.attrs) == dict(other.attrs)
        assert one["segmentation_mask"].keys() == other["segmentation_mask"].keys()
        assert len(one["segmentation_mask"]) == UNLABELED
        for stem, mask in one["segmentation_mask"].items():
            again = other["segmentation_mask"][stem]
            np.testing.assert_array_equal(mask[()], again[()])
            assert mask.attrs.keys() == again.attrs.keys()
            for name in mask.attrs:
                np.testing.assert_array_equal(mask.attrs[name], again.attrs[name])
