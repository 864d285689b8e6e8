"""The real programs, run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A training of a few steps on a small network.
SHORT = [
    "device=cpu",
    "trainer.num_threads=1",
    "trainer.num_steps=20",
    "trainer.warmup_steps=2",
    "trainer.batch_size=16",
    "trainer.log_every=5",
    "trainer.validate_every=10",
    "trainer.rollout_every=10",
    "rollout.n_episodes=2",
    "rollout.max_steps=16",
    "evaluation.n_episodes=2",
    "evaluation.max_steps=16",
    "policy.network.width=16",
    "video_episodes=0",
]
# Two processes; port 0 lets torchrun bind a free one itself, so that nobody takes it in between.
TORCHRUN = [
    "-m",
    "torch.distributed.run",
    "--nproc-per-node=2",
    "--rdzv-backend=c10d",
    "--rdzv-endpoint=localhost:0",
]


def start(*arguments: str, own_group: bool = False, **variables: str) -> subprocess.Popen[str]:
    """Start python with these arguments in the repository's folder.

    Args:
        arguments: a program and its settings, or -m and a module.
        own_group: in a process group of its own, so that a test can signal the group.
        variables: of the environment.
    """
    environment = {**os.environ, "SDL_VIDEODRIVER": "dummy", "COLUMNS": "1000", "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=own_group,
    )


def run(script: str, *arguments: str, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    with start(script, *arguments, **variables) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess([script, *arguments], process.returncode, stdout, stderr)


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    """The error text, after checking that it is an error a user can read."""
    assert result.returncode != 0
    assert "Traceback" not in result.stderr + result.stdout
    return " ".join((result.stderr + result.stdout).replace("│", " ").split())
