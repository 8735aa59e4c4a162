"""Extends the installed `segment-anything` package of the same name.

Only what this project adds stands in this folder; everything else (`segment_anything.modeling`,
`segment_anything.utils`, ...) comes from the installed package, whose names can be imported from here as usual.
"""
from importlib import import_module
from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)

# not on demand: its function `build_sam` has to replace the module of the same name
from segment_anything.build_sam import (
    build_sam,
    build_sam_vit_b,
    build_sam_vit_h,
    build_sam_vit_l,
    sam_model_registry,
)

__all__ = ["SamAutomaticMaskGenerator", "SamPredictor", "build_sam", "build_sam_vit_b", "build_sam_vit_h",
           "build_sam_vit_l", "sam_model_registry"]
_ON_DEMAND = {"SamAutomaticMaskGenerator": "segment_anything.automatic_mask_generator",
              "SamPredictor": "segment_anything.predictor"}


def __getattr__(name: str) -> type:
    """Imports the classes that need torchvision, which takes seconds, when somebody asks for them."""
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ON_DEMAND[name]), name)
