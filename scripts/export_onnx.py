"""Writes a U-Net for use without this project: as ONNX with its preprocessing inside, its weights, a model card.

    python -m scripts.export_onnx --model_id ID --out FILE.onnx

An image of any size goes in and probabilities of its size come out. Checked by onnxruntime against PyTorch.

Reads   a model by its id; what scripts.evaluate measured of it, if it did
Writes  FILE.onnx; beside it FILE.safetensors, the weights, and in Markdown the model card: data, digests, numbers,
        limits, how to load
"""
import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch

from segment_anything.registry import get_sam_type
from unet_training.checkpoint import Training, load_checkpoint, read_origin
from unet_training.onnx_export import export_onnx
from utils.cli import run_stage, stage_parser
from utils.digests import digest_file
from utils.errors import InputError
from utils.files import write_bytes
from utils.paths import RESULTS
from utils.records import read_record
from utils.tracking.models import Model, fetch_model

CARD = """# {id}

A U-Net that segments radiographs: the probability that a pixel belongs to each of {count} labels. Made with the
open reproduction of *SAM Carries the Burden* (arXiv:2411.12602).

## Data
{data}

## Numbers
{numbers}

## Limits
- Research software, no medical device: nobody has tested it for any decision about a patient.
- It knows radiographs like those of its data set: of that body part, view, and way to be taken. It doesn't say when an
  image is another one.
- Images are taken as they are. Where the data set shows all hands as left ones, mirror the right ones first.
- {reading}
- Labels may overlap; above a probability of 0.5 a pixel belongs to a label.
{notice}
## How to load
Images are grey, float32 (1, 1, H, W), of any size, from 0 to 1: the values of the file divided by the largest of its
type. They are resized to {height} x {width} pixels (H x W) as floats; where those of a data set are resized as whole
numbers, probabilities differ a little from those of scripts.predict_folder.

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{stem}.onnx")
image = np.random.rand(1, 1, 700, 400).astype(np.float32)    # your image
probabilities = session.run(None, {{"image": image}})[0]       # float32 (1, {count}, 700, 400)
masks = probabilities[0] > 0.5
```

The weights alone, for PyTorch:

```python
import json
from safetensors import safe_open
from sam_burden.unet_training.networks.registry import rebuild

with safe_open("{stem}.safetensors", "pt") as file:
    about = file.metadata()
    network = rebuild(about["architecture"], json.loads(about["config"]))
    network.load_state_dict({{name: file.get_tensor(name) for name in file.keys()}})
```

## Files
{files}
"""
READINGS = {"percentiles": "Stretch each image first, as those of its data set were: half a percent of the pixels are "
                           "black, and half a percent are white.",
            "bits": "Of images of 10, 12 or 14 bits in files of 16, divide by the largest value of so many bits.",
            "max": "Of files of 16 bits, divide by the data set's max_grey_value ({reading}) instead.",
            "": "Values are taken as the files have them."}


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.export_onnx", __doc__)
    parser.add_argument("--model_id", required=True, help="the network")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.onnx", help="where it is written")
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of what scripts.evaluate measured")
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the ONNX file."""
    if args.out.suffix != ".onnx":
        raise InputError(f"--out {args.out}: must end in .onnx")
    record = fetch_model(args.model_id)
    network, training = load_checkpoint(record.weights)
    told = {"model_id": record.id, "training": json.dumps(asdict(training), ensure_ascii=False)}
    difference = export_onnx(network, training, args.out, told)
    weights, card = args.out.with_suffix(".safetensors"), args.out.with_suffix(".md")
    about = {"architecture": network.architecture, "config": json.dumps(network.config), **told}
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    write_bytes(weights, safetensors.torch.save(tensors, about))
    files = {path.name: digest_file(path) for path in (args.out, weights)}
    text = write_card(record, training, list(describe_numbers(args.results_dir, training.dataset, record.id)),
                      args.out.stem, files)
    write_bytes(card, text.encode())
    print(f"{args.out}: differs from PyTorch by {difference:.1e} at most\n{weights}\n{card}")
    return args.out


def describe_numbers(results_dir: Path, dataset: str, model_id: str) -> Iterator[str]:
    """What was measured of a model, a line a split."""
    for path in sorted((results_dir / dataset / model_id).glob("*/evaluation.json")):
        dice = read_record(path, dict[str, Any])["dice"]
        split, _, masks = path.parent.name.partition("_")
        what = "" if masks == "raw" else f", of the masks {masks}"
        yield f"- Dice {dice['mean']:.2f} ± {dice['std']:.2f} % over {dice['count']} {split} images{what}"


def write_card(record: Model, training: Training, numbers: list[str], stem: str,
               files: dict[str, str]) -> str:
    """The model card as Markdown; `files` have their SHA-256."""
    origin = read_origin(record.weights)
    reading, sam = training.reading or "", record.parameters.get("sam_type")
    notice = get_sam_type(sam).notice if sam else ""
    kind = next(kind for kind in READINGS if kind in reading)
    facts = {"data set": training.dataset, "labels": ", ".join(training.labels),
             "mean, std of the input": f"{training.mean:g}, {training.std:g}", "how files were read": reading,
             "file of the checkpoint, SHA-256": digest_file(record.weights),
             **{name: value for name, value in record.parameters.items() if value not in (None, "", [])},
             **{name: origin[name] for name in ("command", "commit") if origin.get(name)}}
    return CARD.format(
        id=record.id, count=len(training.labels), stem=stem, height=training.input_size[0],
        width=training.input_size[1], reading=READINGS[kind].format(reading=reading),
        data="\n".join(f"- {name}: {value}" for name, value in facts.items()),
        numbers="\n".join(numbers) or "Nothing was measured; scripts.evaluate does.",
        notice=f"- Its pseudo labels were {notice}.\n" if notice else "",
        files="\n".join(f"- {name}: SHA-256 {digest}" for name, digest in files.items()))


if __name__ == "__main__":
    run_stage(main, get_args_parser())
