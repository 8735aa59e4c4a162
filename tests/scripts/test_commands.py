"""The stages as commands: their help, and those that the paper's README and ours give."""
import sys
from importlib import import_module

import pytest

from scripts import evaluate, save_refined_segmentations, save_segmentations
from tests.conftest import ROOT
from tests.stage_runs import SMALL
from unet_training import training, training_on_pseudo_labels
from utils.cli import run_stage
from utils.tracking.models import fetch_model

STAGES = ["scripts.make_phantoms", "scripts.copy_and_process_graz_imgs", "scripts.prepare_jsrt",
          "scripts.measure_dataset", "unet_training.training", "scripts.save_segmentations",
          "scripts.generate_img_embeddings", "scripts.save_refined_segmentations",
          "scripts.save_random_walk_segmentations", "unet_training.training_on_pseudo_labels",
          "unet_training.training_with_mean_teacher", "scripts.add_sam_agreement", "scripts.evaluate",
          "scripts.run_pipeline", "scripts.download_checkpoint", "scripts.train_demo_sam",
          "scripts.upload_offline_runs", "scripts.run_study", "scripts.plot_results", "scripts.search_refinement",
          "scripts.train_nnunet", "scripts.save_nnunet_segmentations", "scripts.plot_prediction",
          "scripts.plot_pseudo_labels", "scripts.import_checkpoint", "scripts.finetune_sam",
          "scripts.predict_folder", "scripts.export_annotations", "scripts.refine_masks", "scripts.export_onnx",
          "scripts.report", "scripts.merge_masks"]


@pytest.mark.parametrize("module", STAGES)
def test_help_says_what_a_stage_reads_and_writes(module, capsys):
    with pytest.raises(SystemExit) as stop:
        run_stage(lambda args: None, import_module(module).get_args_parser(), ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m {module}" in text and "Reads" in text and "Writes" in text


def test_importing_a_stage_runs_nothing(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["python", "--no-such-argument"])
    for module in STAGES:
        monkeypatch.delitem(sys.modules, module, raising=False)  # the other tests keep theirs
        assert import_module(module).main


@pytest.mark.slow
def test_paper_commands_run_on_graz(graz, capsys):
    def stage(module, *arguments):
        return module.main(module.get_args_parser().parse_args(["--data_dir", str(graz.parent), *arguments]))

    initial = stage(training, *SMALL)
    assert "successively_training_files_order.csv" in capsys.readouterr().err  # sorted stems are taken, and it says so
    raw = stage(save_segmentations)
    assert "500" in capsys.readouterr().err
    refined = stage(save_refined_segmentations, "--sam_type", "demo")
    final = stage(training_on_pseudo_labels, "--pseudo_label", "sam", "--prompt1st", "box", "--prompt2nd", "pos_points",
                  "neg_points", "--num_train_samples", "43", "--sam_type", "demo", "--epochs", "1", "--batch_size", "4")
    assert raw.parent == refined.parent == graz.parent / "seg_masks" / initial
    assert fetch_model(final).parameters["initial_model_id"] == initial
    assert stage(evaluate, "--model_id", final, "--results_dir", str(graz.parent)).count == 10


def test_paper_commands_parse():
    commands = {
        training: ["--gpu_id", "0"],
        save_segmentations: [],
        save_refined_segmentations: [],
        training_on_pseudo_labels: ["--gpu_id", "0", "--pseudo_label", "sam", "--prompt1st", "box", "--prompt2nd",
                                    "pos_points", "neg_points", "--num_train_samples", "43"],
    }
    for stage, arguments in commands.items():
        args = stage.get_args_parser().parse_args(arguments)
        assert args.dataset == "graz" and args.num_train_samples in (None, 43)  # which means 43, too
    args = training.get_args_parser().parse_args([])
    assert (args.epochs, args.lr, args.batch_size, args.data_sample_per_epoch, args.data_aug, args.seed,
            args.base_width, args.n_last_channel, args.lr_scheduler) == (350, 1e-3, 16, 48, 0.03, 42, 64, 64, "cosine")


def test_two_commands_of_the_readme():
    readme, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    assert "make demo" in readme and "make test" in readme
    assert "\ndemo:" in makefile and "\ntest:" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()
