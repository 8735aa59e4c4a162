"""What a process does that torchrun started, or that works on a shard."""
import sys

import pytest
import torch
from torch.utils.data import BatchSampler

from unet_training.distributed import share_batches
from utils.cli import run_stage, select_device, stage_parser
from utils.errors import InputError
from utils.left_out import leave_out
from utils.ranks import WHOLE, Shard, current_shard, processes, rank, work_on


@pytest.fixture
def second_of_two(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


def test_a_scheduler_that_sets_a_rank_is_no_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert (processes(), rank(), Shard.choose(None)) == (1, 0, WHOLE)


def test_a_rank_is_a_shard(second_of_two):
    assert Shard.choose(None) == Shard(2, 2)
    with pytest.raises(InputError, match="torchrun shares the work among its processes; leave it out"):
        Shard.choose("1/2")


def test_a_stage_that_does_not_share_its_work_refuses_torchrun(second_of_two, capsys):
    parser = stage_parser("some.stage", "What it does.")
    with pytest.raises(SystemExit) as end:
        run_stage(lambda args: pytest.fail("it ran"), parser, [])
    assert end.value.code == 2 and "start it without torchrun" in capsys.readouterr().err


def test_the_first_process_alone_prints(second_of_two, capsys):
    parser = stage_parser("some.stage", "What it does.")
    run_stage(lambda args: print("out", file=sys.stderr) or print("model id: 1"), parser, [], shared=True)
    assert capsys.readouterr() == ("", "out\n")


def test_each_process_has_a_gpu_of_its_own(second_of_two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device(None) == torch.device("cuda", 1)
    with pytest.raises(InputError, match="leave out --gpu_id"):
        select_device(0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--nproc_per_node at most 1"):
        select_device(None)


def test_batches_are_shared_evenly_or_not_at_all(second_of_two):
    batches = BatchSampler(range(7), 4, drop_last=False)
    shares = iter(share_batches(batches))
    assert next(shares) == [1, 3]
    with pytest.raises(InputError, match="can't share a batch of 3 images evenly; give --batch_size"):
        next(shares)


def test_without_torchrun_batches_are_whole():
    batches = BatchSampler(range(7), 4, drop_last=False)
    assert share_batches(batches) is batches


def test_shards_neither_wait_for_each_other_nor_overwrite_each_others_lists(tmp_path):
    paths = {shard.to_lock(tmp_path / "raw.h5") for shard in (WHOLE, Shard(1, 2), Shard(2, 2), Shard(2, 3))}
    assert len(paths) == 4 and tmp_path / "raw.h5" in paths
    for number in (1, 2):
        with work_on(Shard(number, 2)):
            leave_out({f"{number}": "not readable"} if number == 1 else {}, tmp_path)
    assert current_shard() == WHOLE
    assert [path.name for path in tmp_path.iterdir()] == ["left_out_1of2.csv"]
