"""What an archive's plans.json may make nnU-Net import and call: what nnU-Net writes there itself, and nothing else.

nnU-Net looks up the names in its plans with `pydoc.locate`, or in its own folders, and calls what it gets.
"""
from collections.abc import Iterator
from typing import Any

from utils.errors import InputError

RESAMPLING = {"resample_data_or_seg_to_shape"}
NAMES = {
    "network_class_name": {"dynamic_network_architectures.architectures.unet.PlainConvUNet",
                           "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"},
    "conv_op": {"torch.nn.modules.conv.Conv2d"},
    "norm_op": {"torch.nn.modules.instancenorm.InstanceNorm2d", "torch.nn.modules.batchnorm.BatchNorm2d"},
    "dropout_op": {"torch.nn.modules.dropout.Dropout2d"},
    "nonlin": {"torch.nn.LeakyReLU", "torch.nn.ReLU"},
    "_kw_requires_import": {"conv_op", "norm_op", "dropout_op", "nonlin"},
    "normalization_schemes": {"ZScoreNormalization"},
    "resampling_fn_data": RESAMPLING,
    "resampling_fn_seg": RESAMPLING,
    "resampling_fn_probabilities": RESAMPLING,
    "preprocessor_name": {"DefaultPreprocessor"},
    "image_reader_writer": {"NaturalImage2DIO"},
    "label_manager": {"LabelManager"},
    "experiment_planner_used": {"ExperimentPlanner"},
    "plans_name": {"nnUNetPlans"},
    "data_identifier": {"nnUNetPlans_2d"},
}


def check_plans(plans: Any, dataset_name: str) -> None:
    """Checks that every text in nnU-Net's plans is one of `NAMES`; numbers, switches and nothing may stand anywhere.

    Args:
        plans: content of a plans.json
        dataset_name: of the data set that the plans are for

    Raises:
        InputError: the plans hold another text.
    """
    names = {**NAMES, "dataset_name": {dataset_name}}
    for key, text in _list_texts(plans):
        if text not in names.get(key, ()):
            raise InputError(f"its plans.json says {key} = {text!r}, which nnU-Net itself wouldn't write and might "
                             "run; use archives that scripts.train_nnunet made")


def _list_texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in the content of a JSON file, after the nearest key above it."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _list_texts(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _list_texts(item, name)
