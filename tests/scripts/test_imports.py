"""What commands import before they know what to do, for `--help` say: nothing that takes long beside torch."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = {f"{path.parent.name}.{path.stem}" for folder in ("scripts", "unet_training")
            for path in (ROOT / folder).glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
WITHOUT_TORCH = {"scripts.copy_and_process_graz_imgs", "scripts.init_dataset", "scripts.make_phantoms",
                 "scripts.measure_dataset", "scripts.prepare_jsrt", "scripts.upload_offline_runs"}
SLOW = {"clearml", "matplotlib", "monai", "nnunetv2", "optuna", "pandas", "pycocotools", "pydicom", "requests", "scipy",
        "skimage", "timm", "torch._dynamo", "torchvision", "transformers"}
IMPORT = """
import sys
from importlib import import_module
slow = set(sys.argv[1].split(","))
for command in sys.argv[2:]:
    import_module(command)
    for name in sorted(slow & sys.modules.keys()):
        print(command, "imports", name)
        slow.remove(name)
"""


@pytest.mark.parametrize(("commands", "slow"), [(WITHOUT_TORCH, {"torch"}), (COMMANDS - WITHOUT_TORCH, SLOW)])
def test_commands_import_nothing_slow(commands, slow):
    assert commands and commands <= COMMANDS
    done = subprocess.run([sys.executable, "-c", IMPORT, ",".join(slow), *sorted(commands)], cwd=ROOT, check=True,
                          capture_output=True, text=True)
    assert done.stdout == ""
