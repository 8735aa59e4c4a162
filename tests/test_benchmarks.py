"""The benchmarks run, write what they say, and find our way and the paper's to give the same."""
import json

import numpy as np
import pytest
import torch

from benchmarks import measure, paper_way, refinement
from utils.mask_cleaning import clean_masks


def test_the_papers_way_of_cleaning_keeps_the_same_component():
    probabilities = np.random.default_rng(0).random((3, 14, 23), dtype=np.float32)
    np.testing.assert_array_equal(paper_way.clean_masks(torch.from_numpy(probabilities)), clean_masks(probabilities))


def test_refinement_changes_no_mask(phantom_data_dir, tmp_path):
    images = phantom_data_dir / "phantom" / "img_only_front_all_left"
    file = tmp_path / "steps.json"
    args = ["--image_folder", str(images), "--images", "2", "--json", str(file)]
    steps = refinement.main(refinement.get_args_parser().parse_args(args))
    assert [step.step for step in steps][-1] == "whole refinement"
    assert all(step.changed_pixels == 0 for step in steps)
    assert all(step.max_abs_diff < 1e-4 for step in steps)
    lines = json.loads(file.read_text())
    assert set(lines[0]) == {"step", "baseline_ms", "ours_ms", "ratio", "max_abs_diff", "changed_pixels"}
    assert lines[0]["ratio"] == pytest.approx(lines[0]["baseline_ms"] / lines[0]["ours_ms"])


def test_a_recorded_section_replaces_its_older_self_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "RESULTS.md")
    args = measure.argparse.Namespace(json=None, record=True)
    for benchmark, step in (("b", "old"), ("a", "kept"), ("b", "new")):
        measure.report(args, benchmark, torch.device("cpu"), "what", [measure.Step(step, 4, 2, 0, 0)])
    text = measure.RESULTS.read_text()
    assert text.count("## python -m benchmarks.") == 2
    assert "old" not in text
    assert text.index("| kept | 4.00 | 2.00 | 2.00 |") < text.index("| new |")
