"""Trains the demo SAM on random procedural shapes and writes its weights.

    python -m scripts.train_demo_sam --image_size 256 --scene_size 128 --steps 2600 --output data/first.safetensors
    python -m scripts.train_demo_sam --initial data/first.safetensors
    python -m scripts.train_demo_sam --steps 60 --warmup_steps 10 --decay_steps 20 --output data/trial.safetensors

The first two lines take about half an hour each on two CPU cores, the third one is a trial of a minute. The weights in
the repository were made by six runs, each from the weights of the one before; their metadata give the settings.
Prints the running loss and the Dice of the two passes on the training shapes.

Reads   random shapes that it draws itself, and with --initial the weights to go on from
Writes  segment_anything/demo_sam.safetensors (float16, with how it was trained in its metadata), and meanwhile
        <output>.resume.pt beside it, from which an interrupted run resumes
"""
import argparse
import json
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from scripts.demo_sam.step import training_step
from segment_anything.demo_sam import DEMO_SAM_NOTICE, DEMO_SAM_WEIGHTS, IMAGE_SIZE, build_demo_sam
from segment_anything.modeling import Sam
from utils.cli import run_stage, select_device, stage_parser
from utils.errors import InputError
from utils.files import explain_damage, load_tensors, save_tensors, write_bytes
from utils.options import add_options, option, options_from

SAVE_EVERY = 100  # steps
FULL_SIZE_EVERY = 8  # steps; the others see parts of the input
POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


@dataclass(frozen=True)
class Plan:
    """How many steps, and what they see; it may change between an interrupted run and the one that resumes it, where
    the steps already done stay the same."""

    steps: int = option(2400, "optimizer steps", type=int)
    scene_size: int = option(256, "longest side of most scenes, which lie anywhere in the encoder's input, in pixels; "
                                  f"every {FULL_SIZE_EVERY}th step fills it", type=int)
    warmup_steps: int = option(60, "steps in which the learning rate rises", type=int)
    decay_steps: int = option(1000, "last steps, in which it falls to 0", type=int)

    def step(self, number: int) -> tuple[float, bool, bool]:
        """A step's share of the highest learning rate, whether its scenes fill the input, and whether they are hard."""
        rise = (number + 1) / self.warmup_steps
        fall = (self.steps - number) / self.decay_steps
        return min(1.0, rise, fall), (number + 1) % FULL_SIZE_EVERY == 0, number % 2 == 1


@dataclass(frozen=True)
class Recipe:
    """What each step does."""

    image_size: int = option(IMAGE_SIZE, "side of the encoder's input in pixels", type=int)
    batch_size: int = option(1, "scenes per step and process", type=int)
    objects_per_image: int = option(10, "objects asked for in each image, at most", type=int)
    lr: float = option(8e-4, "highest learning rate", type=float)
    weight_decay: float = option(0.02, "AdamW's weight decay", type=float)
    seed: int = option(0, "seed of weights, shapes and prompts", type=int)
    processes: int = option(2, "processes of one thread each that share the work (on the CPU)", type=int)
    bfloat16: bool = option(True, "mixed precision; much slower on processors without bfloat16 instructions")


@dataclass(frozen=True)
class Run:
    """A training: from which weights (None: random ones) to which file; `average` writes the mean of both."""

    plan: Plan
    recipe: Recipe
    initial: Path | None
    average: bool
    output: Path
    device: torch.device


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.train_demo_sam", __doc__)
    parser.add_argument("--initial", type=Path, help="weights to go on from, also of another --image_size")
    parser.add_argument("--average", action="store_true",
                        help="write the mean of the trained weights and the --initial ones, which generalize better")
    add_options(parser, Plan)
    add_options(parser, Recipe)
    parser.add_argument("--gpu_id", type=int, help="GPU to use; left out: the first one, else the CPU")
    parser.add_argument("--output", type=Path, default=DEMO_SAM_WEIGHTS, help="file to write")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.average and not args.initial:
        raise InputError("--average: there is nothing to average with; name weights with --initial")
    run = Run(options_from(Plan, args), options_from(Recipe, args), args.initial, args.average, args.output,
              select_device(args.gpu_id))
    read_begun(run)  # a wrong one is reported here, not by a process further down
    if run.recipe.processes == 1 or run.device.type == "cuda":
        train(run, rank=0)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train_in_process, (run, f"file://{folder}/rendezvous"),
                                    nprocs=run.recipe.processes)


def train_in_process(rank: int, run: Run, rendezvous: str) -> None:
    """One of several processes of one thread each."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=run.recipe.processes)
    try:
        train(run, rank)
    finally:
        torch.distributed.destroy_process_group()


def train(run: Run, rank: int) -> None:
    """All steps, or those that an interrupted run left; the process of rank 0 writes the weights."""
    plan, recipe = run.plan, run.recipe
    torch.manual_seed(recipe.seed)
    sam = build_demo_sam(recipe.image_size).to(run.device).train()
    if run.initial:
        sam.load_state_dict(initial_weights(run.initial, recipe.image_size)[0])
    optimizer = torch.optim.AdamW(sam.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    first, running = 0, {}
    if state := read_begun(run):
        first = state["steps_done"]
        sam.load_state_dict(state["sam"])
        optimizer.load_state_dict(state["optimizer"])
    with tqdm(range(first, plan.steps), initial=first, total=plan.steps, desc="demo SAM", mininterval=2,
              disable=rank > 0) as bar:
        for step in bar:
            share, full_size, hard = plan.step(step)
            optimizer.param_groups[0]["lr"] = recipe.lr * share
            result = training_step(sam, optimizer, recipe.image_size if full_size else plan.scene_size, hard,
                                   recipe.batch_size, recipe.objects_per_image, (recipe.seed, step, rank),
                                   recipe.bfloat16)
            running = {name: 0.98 * running.get(name, value) + 0.02 * value for name, value in result.items()}
            bar.set_postfix({name: f"{value:.3f}" for name, value in running.items()}, refresh=False)
            if rank == 0 and ((step + 1) % SAVE_EVERY == 0 or step + 1 == plan.steps):
                save(run, sam, optimizer, step + 1)
    if rank == 0 and run.average:
        initial, _ = initial_weights(run.initial, recipe.image_size)
        sam.load_state_dict({name: (value + initial[name]) / 2 for name, value in sam.state_dict().items()})
        save(run, sam, optimizer, plan.steps)
    if rank == 0:
        resume_file(run.output).unlink(missing_ok=True)
        print(f"{run.output}: trained for {plan.steps} steps, "
              + ", ".join(f"{name} {value:.3f}" for name, value in running.items()))


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


def resume_file(output: Path) -> Path:
    return output.with_name(output.name + ".resume.pt")


def save(run: Run, sam: Sam, optimizer: torch.optim.Optimizer, steps_done: int) -> None:
    """Writes the weights, and what an interrupted run resumes from."""
    weights = {name: tensor.detach().half().cpu().contiguous() for name, tensor in sam.state_dict().items()}
    settings = {**asdict(run.plan), **asdict(run.recipe)}
    metadata = {"trained_by": "python -m scripts.train_demo_sam", "trained_on": "random procedural shapes only",
                "notice": DEMO_SAM_NOTICE, "torch": torch.__version__, "steps_done": steps_done, **settings}
    if run.initial:
        metadata["average"] = str(run.average)
        metadata["initial"] = json.dumps(initial_weights(run.initial, run.recipe.image_size)[1])
    write_bytes(run.output, safetensors.torch.save(weights, {name: str(value) for name, value in metadata.items()}))
    state = {"sam": sam.state_dict(), "optimizer": optimizer.state_dict(), "steps_done": steps_done, **settings}
    save_tensors(resume_file(run.output), state)


def read_begun(run: Run) -> dict | None:
    """The state of an interrupted run, if there is one.

    Raises:
        InputError: its steps would have been others with this plan and recipe.
    """
    path = resume_file(run.output)
    if not path.exists():
        return None
    with explain_damage(path, "not an unfinished training", "delete it to start anew"):
        state = load_tensors(path)
    begun = Plan(**{field.name: state[field.name] for field in fields(Plan)})
    same_steps = all(begun.step(step) == run.plan.step(step) for step in range(state["steps_done"]))
    if not same_steps or any(state[name] != value for name, value in asdict(run.recipe).items()):
        raise InputError(f"{path}: is of a run with other settings; give those again, or remove the file to start anew")
    return state


if __name__ == "__main__":
    run_stage(main, get_args_parser())
