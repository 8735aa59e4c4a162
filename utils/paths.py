"""Where files lie: names are made here, and checked where they are used."""
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the project's own files
WORK = ROOT if __package__ == "utils" else Path.cwd()  # where it was installed as `sam_burden`, nothing is written
DATA = WORK / "data"
RESULTS = WORK / "results"


def mask_file(data_dir: Path, model_id: str, kind: str) -> Path:
    """The saved segmentations of a model; `kind` is `raw` or the name of a refinement."""
    return data_dir / "seg_masks" / model_id / f"{kind}.h5"


def embedding_folder(data_dir: Path, dataset: str, sam_name: str) -> Path:
    """One file an image, `<stem>.h5`; `sam_name` is SAM's type, and what sets these apart from its usual embeddings."""
    return data_dir / dataset / "sam_embeddings" / sam_name


def nnunet_folder(data_dir: Path, dataset: str, n: int, input_size: tuple[int, int], seed: int) -> Path:
    """Every nnU-Net that was trained on the first n labeled images at that size (H, W)."""
    height, width = input_size
    return data_dir / dataset / "nnunet" / f"n{n}_{height}x{width}_seed{seed}"


def training_state(runs_dir: Path, fingerprint: str) -> Path:
    """What an interrupted training resumes from; `fingerprint` stands for its arguments."""
    return runs_dir / "unfinished" / f"{fingerprint}.pt"
