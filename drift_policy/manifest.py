"""Facts about a run that make it possible to repeat and to compare: command, commit, machine, versions."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import drift_policy

# Names the commit of a copy without its history, as it is copied to another machine.
COMMIT_VARIABLE = "DRIFT_POLICY_COMMIT"
_PACKAGES = (
    "torch",
    "numpy",
    "gymnasium",
    "gym-pusht",
    "pymunk",
    "mujoco",
    "gymnasium-robotics",
    "robosuite",
    "pybullet",
    "zarr",
    "diffusers",
)

# Module -> package of the simulators, whose releases decide what an episode scores.
_SIMULATORS = {
    "gym_pusht": "gym-pusht",
    "pymunk": "pymunk",
    "mujoco": "mujoco",
    "gymnasium_robotics": "gymnasium-robotics",
    "robosuite": "robosuite",
    "pybullet": "pybullet",
}


def describe_run(script: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return command, commit, date, machine and versions of the running program.

    Args:
        script: the program as python is given it, for example "train_policy.py" or "-m benchmarks.tables".
        overrides: its command-line arguments.
    """
    return {
        "command": shlex.join(["python", *shlex.split(script), *overrides]),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": {
            "drift-policy": drift_policy.__version__,
            "python": platform.python_version(),
            **_versions(_PACKAGES),
        },
    }


def simulator_versions() -> dict[str, str]:
    """Return package -> version of the simulators that are loaded: of the environment, once that was made."""
    return _versions([package for module, package in _SIMULATORS.items() if module in sys.modules])


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` readably; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def _commit() -> str | None:
    """Return the commit of the source tree, marked if files differ from it; None for an installed package."""
    root = Path(drift_policy.__file__).parent.parent
    if not (root / ".git").exists():  # installed elsewhere, perhaps inside the checkout of another project
        return os.environ.get(COMMIT_VARIABLE)
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-modified" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def _machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _versions(packages: Sequence[str]) -> dict[str, str]:
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue  # an optional package that this run did not need
    return versions
