"""Extends the installed `segment-anything` package of the same name.

Only what this project adds stands in this folder; everything else (`segment_anything.modeling`,
`segment_anything.utils`, ...) comes from the installed package.
"""
from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)

from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
from segment_anything.build_sam import (
    build_sam,
    build_sam_vit_b,
    build_sam_vit_h,
    build_sam_vit_l,
    sam_model_registry,
)
from segment_anything.predictor import SamPredictor

__all__ = ["SamAutomaticMaskGenerator", "SamPredictor", "build_sam", "build_sam_vit_b", "build_sam_vit_h",
           "build_sam_vit_l", "sam_model_registry"]
