"""LeRobot's own programs, run as a user runs them, with a policy of small parts."""

import os
import subprocess
import sys
from pathlib import Path

SIZE = 96  # of the images of Push-T
# Small parts, so that a step takes milliseconds.
SMALL = [
    "--policy.type=drift",
    "--policy.device=cpu",
    "--policy.push_to_hub=false",
    "--policy.network_settings={width: 16, depth: 1}",
    "--policy.head_settings={samples_per_observation: 4}",
    "--policy.image_backbone=small_cnn",
    "--batch_size=4",
    "--num_workers=0",
    "--wandb.enable=false",
    "--eval_freq=0",
    "--log_freq=1",
]


def run_lerobot(program: str, arguments: list[str], folder: Path) -> str:
    """Run `lerobot-train` or `lerobot-eval` as a user does, without a network, and return what it prints."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "SDL_VIDEODRIVER": "dummy"}
    module = f"lerobot.scripts.{program.replace('-', '_')}"
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return result.stdout + result.stderr
