"""What each process of `test_two_processes.py` does: python -m tests.training.two_processes FOLDER, started twice.

Starting costs more than training here, so both processes do all the runs, one after the other.
"""

import io
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from drift_policy.cli import command_line
from drift_policy.errors import UserError
from drift_policy.evaluation.rollout import EvaluationConfig
from drift_policy.training import run as run_module
from drift_policy.training.checkpoint import CheckpointStore
from drift_policy.training.config import RolloutConfig, TrainConfig
from drift_policy.training.run import train
from tests.helpers.point_task import point_training
from tests.helpers.training_runs import stop_before_step

STOPPED_IN_UPDATE = 3
MLP = {"name": "mlp", "width": 16, "depth": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "transformer": {"name": "transformer", "n_layer": 2, "n_head": 2, "n_emb": 16, "p_drop_attn": 0.0},
    "unet": {"name": "conditional_unet1d", "down_dims": [8, 16], "n_groups": 4, "diffusion_step_embed_dim": 8},
}
FSDP2 = {"sharding": "fsdp2"}
PARTS = {"gradient_accumulation_steps": 2}
LEARNED = {"learned_temperatures": True, "regression_weight": 1.0, "regression_steps": 9}


@dataclass(frozen=True)
class Run:
    """A training of two processes."""

    trainer: dict[str, Any] = field(default_factory=dict)  # settings that differ from `training`
    head: str = "drift"
    head_settings: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=lambda: MLP)
    resume: bool = False
    stop_signal: signal.Signals | None = None  # that one of the processes gets in the middle of an update
    stopped: int | str = 0  # the rank of that process, or "rollout" for the first one in the middle of a rollout
    folder: str | None = None  # name of the run's folder if it is shared with another run
    initial: str | None = None  # name of the run that it starts from


RUNS = {
    "ddp": Run({"rollout_every": 6}),
    "fsdp2": Run(FSDP2),
    "ddp_parts": Run(PARTS | {"data_placement": "stream", "num_workers": 2}),
    "fsdp2_parts": Run(FSDP2 | PARTS),
    "ddp_regression_parts": Run(PARTS, head="regression"),
    "ddp_learned": Run(head_settings=LEARNED),
    "fsdp2_learned": Run(FSDP2, head_settings=LEARNED),
    "fsdp2_transformer": Run(FSDP2, network=NETWORKS["transformer"]),
    "fsdp2_unet": Run(FSDP2, network=NETWORKS["unet"]),
    "ddp_stopped": Run(stop_signal=signal.SIGTERM, stopped=1),
    "fsdp2_stopped": Run(FSDP2, stop_signal=signal.SIGINT, stopped=0),
    "stopped_in_rollout": Run({"rollout_every": 6}, stop_signal=signal.SIGTERM, stopped="rollout"),
    "ddp_resumed": Run(resume=True),  # begun by one process
    "fsdp2_resumed": Run(FSDP2, resume=True),  # begun by one process
    "fsdp2_changed": Run(FSDP2 | {"batch_size": 8}, resume=True, folder="fsdp2"),
    "ddp_again": Run(folder="ddp"),
    "ddp_tuned": Run({"neighbours": 2}, initial="alone"),
    "fsdp2_tuned": Run(FSDP2 | {"neighbours": 2}, initial="alone"),
    "ddp_unfit": Run(network=MLP | {"depth": 1}, initial="alone"),
}


def training(folder: Path, name: str, run: Run, **trainer: Any) -> TrainConfig:
    """The configuration of a run; `trainer` are settings over those of the run."""
    settings = {"num_steps": 12, "log_every": 4, "validate_every": 6, "rollout_every": 0, "checkpoint_every": 100}
    head = {"name": run.head} | ({"samples_per_observation": 4} if run.head == "drift" else {}) | run.head_settings
    return point_training(
        folder,
        name=run.folder or name,
        policy={"head": head, "network": run.network},
        trainer=settings | run.trainer | trainer,
        rollout=RolloutConfig(n_episodes=2, start_seed=500, max_steps=4),
        evaluation=EvaluationConfig(n_episodes=1, max_steps=4),
        resume=run.resume,
        initial_ckpt=run.initial and str(folder / "runs" / "point" / run.initial),
    )


def perform(folder: Path, name: str, run: Run, rank: int) -> dict[str, Any]:
    """Do one run and return what this process printed, wrote and ended with."""
    written: list[str] = []
    console = Console(file=io.StringIO(), width=1000)
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        _record_writing(patch, written)
        patch.setattr(run_module, "write_artifacts", lambda *_: None)  # pictures take longer than these runs
        patch.setattr(run_module, "plot_curves", lambda *_: None)
        if run.stop_signal is not None:
            _plan_signal(patch, run.stop_signal, run.stopped, rank)
        try:
            with command_line():
                train(training(folder, name, run), [f"name={name}"], console)
        except SystemExit as end:
            code = int(end.code or 0)
        except UserError as error:
            raise AssertionError("the command line must end the program") from error
    return {"code": code, "console": console.file.getvalue(), "written": written}  # type: ignore[attr-defined]


def _record_writing(patch: pytest.MonkeyPatch, written: list[str]) -> None:
    places = [
        (CheckpointStore, "save_last"),
        (CheckpointStore, "save_scored"),
        (run_module, "record_settings"),
        (run_module, "make_trackers"),
        (run_module, "write_json"),
    ]
    for owner, name in places:
        original = getattr(owner, name)

        def recorded(*arguments: Any, _name: str = name, _original: Any = original) -> Any:
            written.append(_name)
            return _original(*arguments)

        patch.setattr(owner, name, recorded)


def _plan_signal(patch: pytest.MonkeyPatch, number: signal.Signals, stopped: int | str, rank: int) -> None:
    if stopped == rank:
        stop_before_step(patch, STOPPED_IN_UPDATE, lambda: os.kill(os.getpid(), number))
    elif stopped == "rollout" and rank == 0:
        original = run_module.rollout

        def rollout(policy: Any, make_env: Any, config: Any, on_decision: Any) -> Any:
            os.kill(os.getpid(), number)
            return original(policy, make_env, config, on_decision=on_decision)

        patch.setattr(run_module, "rollout", rollout)


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    outcomes = {}
    for name, run in RUNS.items():
        print(f"== {name}", file=sys.stderr, flush=True)
        outcomes[name] = perform(folder, name, run, rank)
    (folder / f"rank{rank}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
