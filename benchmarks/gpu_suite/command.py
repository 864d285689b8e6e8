"""What the programs of the suite share: arguments, a time budget, errors without tracebacks."""

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from drift_policy.device import choose_device
from drift_policy.errors import UserError


class Budget:
    """Wall-clock time that a program may take, from its start on.

    Args:
        seconds: all of it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = time.perf_counter()

    def left(self) -> float:
        """Return the seconds that are left; negative once they are used up."""
        return self.seconds - (time.perf_counter() - self._started)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every measuring program takes."""
    parser.add_argument("--prepared", type=Path, default=Path("prepared"), help="folder that `prepare` wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for what is to be brought back")
    parser.add_argument("--device", default="auto", help="cuda, cpu, ...; auto is a GPU where there is one")
    parser.add_argument(
        "--time-budget-s", type=positive_number, default=540.0, help="seconds after which the program has ended"
    )


def positive_number(text: str) -> float:
    """Read an argument that must be above zero."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be a positive number, but is {text}")
    return value


def positive_integer(text: str) -> int:
    """Read an argument that must be a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but is {text}")
    return value


def open_device(name: str) -> torch.device:
    """Return the device and reset what is counted on it."""
    device = choose_device(name)
    reset_peak_memory(device)
    return device


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of memory."""
    if device.type == "cuda":
        gc.collect()  # modules and their hooks refer to each other
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float | None:
    """Return the largest memory of PyTorch on a GPU since the last reset, in 10^6 bytes; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None


def run_program(main: Callable[[], None]) -> None:
    """Run a program; what a user can act on ends it with one line.

    The console of `drift_policy.cli` needs packages that a bare machine lacks.
    """
    try:
        main()
    except UserError as error:
        print(f"{error.title}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
