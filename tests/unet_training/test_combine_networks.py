"""An ensemble says the mean of what its members say, is found again, and teaches from its first member on."""
import pytest
import torch

from scripts import save_segmentations, verify
from tests.stage_runs import N, run
from unet_training import combine_networks, training
from unet_training.combine_networks import combine_if_missing
from unet_training.hyper_params import FinalOptions, LossOptions, Machine, Schedule
from unet_training.models import DataOptions, Selection, TrainedModel
from unet_training.pseudo_labels import Raw
from unet_training.training_on_pseudo_labels import FinalTraining
from utils.errors import InputError
from utils.tracking.models import fetch_model, find_models

TRAINED = ("--epochs", "1", "--batch_size", "4", "--base_width", "2", "--input_size", "48", "32",
           "--data_sample_per_epoch", "4")


@pytest.fixture(scope="module")
def members(workplace):
    """The data folder, and the ids of three networks of other seeds."""
    data_dir, _ = workplace
    return data_dir, [run(training, data_dir, *N, *TRAINED, "--seed", str(seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def load(workplace):
    data = DataOptions("phantom", workplace[0]).open()
    return lambda model_id: TrainedModel.load(fetch_model(model_id), data, torch.device("cpu"))


def test_its_logits_are_the_mean_and_any_stage_takes_its_id(members, load, capsys):
    data_dir, ids = members
    ensemble = combine_networks.main(combine_networks.get_args_parser().parse_args(["--model_ids", *ids]))
    images = torch.randn(2, 1, 48, 32)
    with torch.inference_mode():
        expected = sum(load(model_id).network(images) for model_id in ids) / 3
        assert torch.allclose(load(ensemble).network(images), expected, atol=1e-6)
    parameters = fetch_model(ensemble).parameters
    assert (parameters["stage"], parameters["model_ids"], parameters["num_train_samples"]) == ("ensemble", ids, 3)
    assert "seed" not in parameters  # they don't share it
    masks = run(save_segmentations, data_dir, *N, "--model_id", ensemble)
    assert masks.parent.name == ensemble
    assert load(run(training, data_dir, *N, *TRAINED, "--start_from", ensemble)).network.architecture == "u_net"
    verify.main(verify.get_args_parser().parse_args([str(masks), "--data_dir", str(data_dir)]))
    said = capsys.readouterr().out
    assert "nothing has changed" in said and all(f"unchanged: model {model_id}" in said for model_id in ids)


def test_it_is_combined_once(members):
    _, ids = members
    ensemble = combine_if_missing(ids[:2])
    assert combine_if_missing(ids[:2]) == ensemble != combine_if_missing(ids[1::-1])
    assert len([model for model in find_models(stage="ensemble") if model.parameters["model_ids"] == ids[:2]]) == 1


@pytest.mark.parametrize("other", [("--base_width", "3"), ("--num_train_samples", "2")])
def test_networks_of_another_size_or_other_images_are_refused(members, other):
    data_dir, ids = members
    odd = run(training, data_dir, *N, *TRAINED, *other)
    with pytest.raises(InputError, match=f"model id {odd}: differs from {ids[0]} in its architecture, its size or the "
                                         "data"):
        combine_if_missing([ids[0], odd])


def test_the_final_network_starts_from_its_first_member(members, load):
    data_dir, ids = members
    ensemble, first = load(combine_if_missing(ids)), load(ids[0]).network
    run(save_segmentations, data_dir, *N, "--model_id", ensemble.id)

    def prepare(from_scratch: bool):
        stage = FinalTraining(Schedule(batch_size=4), 42, ensemble, Raw(), Selection(), FinalOptions(from_scratch),
                              LossOptions(), Machine())
        return stage.prepare(torch.device("cpu")).network

    network = prepare(from_scratch=False)
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), first.parameters(), strict=True))
    network = prepare(from_scratch=True)
    assert network.config == first.config and not torch.equal(network.out.weight, first.out.weight)
