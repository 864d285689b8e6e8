"""Write the Push-T demonstrations for machines without the library's readers.

    python -m benchmarks.gpu_suite.prepare --output prepared

Reads the demonstrations as `train_policy.py task=pusht` and `task=pusht_image` do, with their training episodes but
without mirror images, and writes prepared/pusht_state.npz and prepared/pusht_image.npz. Runs where everything is
installed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray

from benchmarks.gpu_suite.command import run_program
from benchmarks.gpu_suite.prepared import TASKS, Prepared, prepared_path, write_prepared
from benchmarks.gpu_suite.schedulers import DiffusionTable, TableRow
from drift_policy.cli import resolved
from drift_policy.config import parse_config
from drift_policy.errors import DataError
from drift_policy.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from drift_policy.task import Demonstrations, load_demonstrations
from drift_policy.training.config import TrainConfig
from drift_policy.training.run import build_policy_and_data

CONFIGS = Path(__file__).parents[2] / "configs"
SAMPLERS = {
    "ddpm_100": DiffusionHeadConfig(sampler="ddpm", num_inference_steps=100),
    "ddim_16": DiffusionHeadConfig(sampler="ddim", num_inference_steps=16),
}
_LARGEST_FILE = 50e6  # bytes: what is brought to the other machine stays small


def export_table(config: DiffusionHeadConfig) -> DiffusionTable:
    """Return the table of the scheduler that the diffusion head would use."""
    scheduler = DiffusionHead.make_scheduler(config)
    alphas: torch.Tensor = scheduler.alphas_cumprod
    times: list[int] = scheduler.timesteps.tolist()
    skipped = config.num_train_steps // config.num_inference_steps
    row = _ddpm_row if config.sampler == "ddpm" else _ddim_row
    # float32 throughout, in the order of diffusers: the results are then equal to the last digit.
    one = torch.ones((), dtype=alphas.dtype)
    rows = [row(time, alphas[time], alphas[time - skipped] if time >= skipped else one) for time in times]
    return DiffusionTable(config, alphas.numpy(), np.array(rows, dtype=np.float64))


def _ddpm_row(time: int, alpha: torch.Tensor, previous: torch.Tensor) -> TableRow:
    """Return the posterior mean and deviation of the step, formulas (6) and (7) of arXiv:2006.11239."""
    beta = 1 - alpha / previous
    deviation = ((1 - previous) / (1 - alpha) * beta).clamp(min=1e-20).sqrt()
    return TableRow(
        time=time,
        noise_part=float((1 - alpha).sqrt()),
        clean_part=float(alpha.sqrt()),
        from_clean=float(previous.sqrt() * beta / (1 - alpha)),
        from_chunk=float((alpha / previous).sqrt() * (1 - previous) / (1 - alpha)),
        from_predicted=0.0,
        from_fresh=float(deviation) if time > 0 else 0.0,
    )


def _ddim_row(time: int, alpha: torch.Tensor, previous: torch.Tensor) -> TableRow:
    """Return the deterministic step, formula (12) of arXiv:2010.02502."""
    return TableRow(
        time=time,
        noise_part=float((1 - alpha).sqrt()),
        clean_part=float(alpha.sqrt()),
        from_clean=float(previous.sqrt()),
        from_chunk=0.0,
        from_predicted=float((1 - previous).sqrt()),
        from_fresh=0.0,
    )


def prepare(config: TrainConfig, demonstrations: Demonstrations) -> Prepared:
    """Return what a training run with this configuration would train on."""
    policy, data = build_policy_and_data(config, demonstrations, torch.device("cpu"))
    windows = data.train
    return Prepared(
        metadata=policy.metadata,
        specs=policy.config.observations,
        observations={key: tensor.numpy() for key, tensor in windows.observations.items()},
        action=windows.action.numpy(),
        rows=windows.rows.numpy().astype(np.int32),
        n_obs_steps=policy.n_obs_steps,
        n_action_steps=policy.n_action_steps,
        ranges={key: _range(values) for key, values in windows.stats_arrays().items()},
        tables={name: export_table(sampler) for name, sampler in SAMPLERS.items()},
    )


def _range(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the smallest and the largest value of each column, [2, D]."""
    return np.stack([values.min(axis=0), values.max(axis=0)])


def shipped_config(task: str) -> TrainConfig:
    """Return what `python train_policy.py task=<task>` composes, for what was recorded and at the original horizon."""
    with initialize_config_dir(str(CONFIGS.resolve()), version_base="1.3"):
        # The suite compares heads and networks, without what a task adds to them; not every task names a symmetry.
        plain = ["++task.symmetry=null", "policy.mirrored=false", "task.horizon=16"]
        # The default name asks the running program, which is not train_policy.py.
        composed = compose("train", [f"task={task}", *plain, "name=prepared", "device=cpu"])
    return parse_config(TrainConfig, resolved(composed))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare the tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("prepared"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--data-path", default=None, help="demonstrations to use instead of searching for them")
    given = parser.parse_args(arguments)
    for task in given.tasks:
        config = shipped_config("pusht" if task == "state" else "pusht_image")
        demonstrations = load_demonstrations(config.task, given.data_path, True, print)
        path = prepared_path(given.output, task)
        write_prepared(path, prepare(config, demonstrations))
        size = path.stat().st_size
        print(f"{path}: {size / 1e6:.1f} MB", flush=True)
        if size > _LARGEST_FILE:
            raise DataError(f"{path} has {size / 1e6:.0f} MB, but at most {_LARGEST_FILE / 1e6:.0f} MB may travel.")


if __name__ == "__main__":
    run_program(main)
