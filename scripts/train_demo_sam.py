"""Trains the embedded small SAM on random procedural shapes and writes its weights.

    python -m scripts.train_demo_sam --image_size 256 --scene_size 128 --steps 2600 --output data/first.safetensors
    python -m scripts.train_demo_sam --initial data/first.safetensors
    python -m scripts.train_demo_sam --steps 60 --warmup_steps 10 --decay_steps 20 --output data/trial.safetensors

The first two lines take about half an hour each on two CPU cores, the third one is a trial of a minute. The weights in
the repository were made by six runs, each from the weights of the one before; their metadata give the settings.
Prints the running loss and the Dice of the two passes on the training shapes.

Reads   random shapes that it draws itself, and with --initial the weights to go on from
Writes  segment_anything/demo_sam.safetensors (float16, with how it was trained in its metadata), and meanwhile
        <output>.resume.pt beside it, from which an interrupted run goes on
"""
import argparse
import json
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from scripts.demo_sam.step import training_step
from segment_anything.demo_sam import DEMO_SAM_NOTICE, DEMO_SAM_WEIGHTS, IMAGE_SIZE, build_demo_sam
from segment_anything.modeling import Sam
from utils.cli import run_stage, select_device, stage_parser
from utils.errors import InputError
from utils.files import atomic_path

SAVE_EVERY = 100  # steps
FULL_SIZE_EVERY = 8  # steps; the others see parts of the input
RECIPE = ("image_size", "batch_size", "objects_per_image", "lr", "weight_decay", "seed", "processes", "bfloat16")
POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
PLAN = ("steps", "scene_size", "warmup_steps", "decay_steps")


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.train_demo_sam", __doc__)
    parser.add_argument("--initial", type=Path, help="weights to go on from, also of another --image_size")
    parser.add_argument("--average", action="store_true",
                        help="write the mean of the trained weights and the --initial ones, which generalize better")
    parser.add_argument("--image_size", type=int, default=IMAGE_SIZE, help="side of the encoder's input in pixels")
    parser.add_argument("--scene_size", type=int, default=256,
                        help="longest side of most scenes, which lie anywhere in the encoder's input, in pixels; "
                             f"every {FULL_SIZE_EVERY}th step fills it")
    parser.add_argument("--steps", type=int, default=2400, help="optimizer steps")
    parser.add_argument("--warmup_steps", type=int, default=60, help="steps in which the learning rate rises")
    parser.add_argument("--decay_steps", type=int, default=1000, help="last steps, in which it falls to 0")
    parser.add_argument("--batch_size", type=int, default=1, help="scenes per step and process")
    parser.add_argument("--objects_per_image", type=int, default=10, help="objects asked for in each image, at most")
    parser.add_argument("--lr", type=float, default=8e-4, help="highest learning rate")
    parser.add_argument("--weight_decay", type=float, default=0.02, help="AdamW's weight decay")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, shapes and prompts")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True,
                        help="mixed precision; much slower on processors without bfloat16 instructions")
    parser.add_argument("--processes", type=int, default=2,
                        help="processes of one thread each that share the work (on the CPU)")
    parser.add_argument("--gpu_id", type=int, help="GPU to use; left out: the first one, else the CPU")
    parser.add_argument("--output", type=Path, default=DEMO_SAM_WEIGHTS, help="file to write")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.average and not args.initial:
        raise InputError("--average: there is nothing to average with; name weights with --initial")
    _begun_run(args)  # a wrong one is told here, not by a process further down
    if args.processes == 1 or select_device(args.gpu_id).type == "cuda":
        _train(args, rank=0)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_worker, (args, f"file://{folder}/rendezvous"), nprocs=args.processes)


def _worker(rank: int, args: argparse.Namespace, rendezvous: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=args.processes)
    try:
        _train(args, rank)
    finally:
        torch.distributed.destroy_process_group()


def _train(args: argparse.Namespace, rank: int) -> None:
    torch.manual_seed(args.seed)
    sam = build_demo_sam(args.image_size).to(select_device(args.gpu_id)).train()
    if args.initial:
        sam.load_state_dict(initial_weights(args.initial, args.image_size)[0])
    optimizer = torch.optim.AdamW(sam.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    first, running = 0, {}
    if state := _begun_run(args):
        first = state["steps_done"]
        sam.load_state_dict(state["sam"])
        optimizer.load_state_dict(state["optimizer"])
    with tqdm(range(first, args.steps), initial=first, total=args.steps, desc="small SAM", mininterval=2,
              disable=rank > 0) as bar:
        for step in bar:
            share, full_size, hard = _plan(vars(args), step)
            optimizer.param_groups[0]["lr"] = args.lr * share
            result = training_step(sam, optimizer, args.image_size if full_size else args.scene_size, hard,
                                   args.batch_size, args.objects_per_image, (args.seed, step, rank), args.bfloat16)
            running = {name: 0.98 * running.get(name, value) + 0.02 * value for name, value in result.items()}
            bar.set_postfix({name: f"{value:.3f}" for name, value in running.items()}, refresh=False)
            if rank == 0 and ((step + 1) % SAVE_EVERY == 0 or step + 1 == args.steps):
                _save(args, sam, optimizer, step + 1)
    if rank == 0 and args.average:
        initial, _ = initial_weights(args.initial, args.image_size)
        sam.load_state_dict({name: (value + initial[name]) / 2 for name, value in sam.state_dict().items()})
        _save(args, sam, optimizer, args.steps)
    if rank == 0:
        _resume_file(args.output).unlink(missing_ok=True)
        print(f"{args.output}: trained for {args.steps} steps, "
              + ", ".join(f"{name} {value:.3f}" for name, value in running.items()))


def _plan(settings: dict, step: int) -> tuple[float, bool, bool]:
    """A step's share of the highest learning rate, whether its scenes fill the input, and whether they are hard."""
    rise = (step + 1) / settings["warmup_steps"]
    fall = (settings["steps"] - step) / settings["decay_steps"]
    return min(1.0, rise, fall), (step + 1) % FULL_SIZE_EVERY == 0, step % 2 == 1


def initial_weights(path: Path, image_size: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The weights of an earlier run, float32, with its metadata.

    Those of another image size keep their positional frequencies per pixel.

    Raises:
        InputError: there is no such file of weights.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no dict)
        weights[POSITIONS] *= image_size / int(metadata["image_size"])
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path}: no weights that this stage wrote ({error}); give another file") from None
    return weights, metadata


def _resume_file(output: Path) -> Path:
    return output.with_name(output.name + ".resume.pt")


def _save(args: argparse.Namespace, sam: Sam, optimizer: torch.optim.Optimizer, steps_done: int) -> None:
    weights = {name: tensor.detach().half().cpu().contiguous() for name, tensor in sam.state_dict().items()}
    settings = {name: getattr(args, name) for name in (*PLAN, *RECIPE)}
    metadata = {"trained_by": "python -m scripts.train_demo_sam", "trained_on": "random procedural shapes only",
                "notice": DEMO_SAM_NOTICE, "torch": torch.__version__, "steps_done": steps_done, **settings}
    if args.initial:
        metadata["average"] = str(args.average)
        metadata["initial"] = json.dumps(initial_weights(args.initial, args.image_size)[1])
    with atomic_path(args.output) as temporary:
        save_file(weights, temporary, {name: str(value) for name, value in metadata.items()})
    state = {"sam": sam.state_dict(), "optimizer": optimizer.state_dict(), "steps_done": steps_done, **settings}
    with atomic_path(_resume_file(args.output)) as temporary:
        torch.save(state, temporary)


def _begun_run(args: argparse.Namespace) -> dict | None:
    """The state of an interrupted run, if there is one.

    `--steps` and the like may have changed, as long as the steps already done would have been the same.

    Raises:
        InputError: they would not.
    """
    path = _resume_file(args.output)
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    same_steps = all(_plan(state, step) == _plan(vars(args), step) for step in range(state["steps_done"]))
    if not same_steps or any(state[name] != getattr(args, name) for name in RECIPE):
        raise InputError(f"{path}: is of a run with other settings; give those again, or remove the file to start anew")
    return state


if __name__ == "__main__":
    run_stage(main, get_args_parser())
