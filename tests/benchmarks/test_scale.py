"""What stages cost is extrapolated from what was measured."""
import shutil

import pytest

from benchmarks import scale
from benchmarks.scale import Cost, Measured, describe_check, describe_scales, tell_size, tell_time


def test_costs_are_those_of_a_line_through_two_runs():
    few, more = Measured(3 + 2 * 10, 500 * 10), Measured(3 + 2 * 30, 500 * 30)
    cost = Cost.between(few, more, (10, 30), shared=True)
    assert (cost.own, cost.seconds, cost.size) == (3, 2, 500)
    assert [cost.predict(101, workers) for workers in (1, 8, 64)] == [3 + 2 * 101, 3 + 2 * 13, 3 + 2 * 2]
    assert Cost.between(few, more, (10, 30), shared=False).predict(101, 64) == 3 + 2 * 101


def test_what_is_predicted_stands_beside_what_was_measured():
    costs = {"raw masks": Cost(3, 2, 500, True), "merging": Cost(0, 0.5, 0, False)}
    *_, total = describe_check(costs, {"raw masks": Measured(246, 0), "merging": Measured(25, 0)}, 100)
    assert total == "| all | 253.0 | 271.0 | 1.07 |"
    lines = describe_scales(costs)
    assert "| raw masks | 23.1 d | 2.9 d | 8.7 h | 500.0 MB |" in lines
    assert "| merging | 5.8 d | 5.8 d | 5.8 d |  |" in lines
    assert "| all | 28.9 d | 8.7 d | 6.1 d | 500.0 MB |" in lines


@pytest.mark.parametrize(("seconds", "text"), [(59.4, "59 s"), (60, "1.0 min"), (5400, "1.5 h"), (216000, "2.5 d")])
def test_times_are_told_in_units_of_people(seconds, text):
    assert tell_time(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, ""), (1500, "2 kB"), (2.5e9, "2.5 GB"), (4.2e12, "4.2 TB")])
def test_sizes_are_told_in_units_of_disks(count, text):
    assert tell_size(count) == text


@pytest.mark.slow
def test_real_stages_are_measured_on_phantoms(phantom_data_dir, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(scale.make_phantoms, "main", lambda args: shutil.copytree(phantom_data_dir, args.data_dir))
    arguments = ["--images", "4", "5", "--check", "6", "--base_width", "2", "--work_dir", str(tmp_path)]
    ratios = scale.main(scale.get_args_parser().parse_args(arguments))
    assert set(ratios) == {*scale.SHARED, scale.MERGE} and min(ratios.values()) > 0
    text = capsys.readouterr().out
    assert "1,000,000 images" in text and "measured / predicted" in text
    assert not list(tmp_path.iterdir())
