"""Ctrl-C and termination signals, as terminals, schedulers and torchrun send them to the training program."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from drift_policy.cli import command_line
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.training.interrupt import InterruptGuard
from tests.helpers.programs import SHORT, TORCHRUN, start
from tests.helpers.pusht_data import random_pusht

ENDLESS = ["trainer.num_steps=100000", "trainer.rollout_every=0", "trainer.checkpoint_every=100000"]
ROLLOUTS = [  # its first rollout begins after two steps and would last for hours
    "trainer.log_every=1",
    "trainer.rollout_every=2",
    "rollout.asynchronous=true",
    "rollout.n_episodes=10000",
    "rollout.n_envs=2",
    "rollout.max_steps=300",
]
STREAM = ["trainer.data_placement=stream", "trainer.num_workers=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random demonstrations in the layout of Push-T."""
    path = tmp_path_factory.mktemp("stopping")
    write_zarr(path / "pusht.zarr", random_pusht(episodes=6))
    return path


def settings(folder: Path, name: str) -> list[str]:
    return ["task=pusht", *SHORT, f"data_path={folder}/pusht.zarr", f"output={folder}/runs", f"name={name}", *ENDLESS]


def stop_when_training(process: subprocess.Popen[str], run_dir: Path, number: signal.Signals, to_group: bool) -> str:
    """Signal a program that has begun to train, wait for its end, and return what it printed to stderr."""
    metrics = run_dir / "metrics.csv"
    deadline = time.monotonic() + 150
    try:
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
            assert time.monotonic() < deadline and process.poll() is None, process.communicate(timeout=5)
            time.sleep(0.1)
        (os.killpg if to_group else os.kill)(process.pid, number)
        return process.communicate(timeout=100)[1]
    finally:
        process.kill()


def saved_step(run_dir: Path) -> int:
    return int(json.loads((run_dir / "checkpoints" / "last" / "training.json").read_text())["step"])


@pytest.mark.parametrize(
    ("number", "placement", "to_group"),
    [
        pytest.param(signal.SIGINT, [], False, id="ctrl-c"),
        # As schedulers do it, and Ctrl-C too: the processes that prepare batches belong to the group.
        pytest.param(signal.SIGTERM, STREAM, True, id="terminated-group-with-streamed-data"),
        # Ctrl-C reaches the processes that simulate too.
        pytest.param(signal.SIGINT, ROLLOUTS, True, id="ctrl-c-in-rollouts"),
    ],
)
def test_a_signal_saves_and_says_how_to_resume(
    folder: Path, number: signal.Signals, placement: list[str], to_group: bool
) -> None:
    name = f"stopped_{number.name}_{len(placement)}"
    run_dir = folder / "runs" / "pusht" / name
    process = start("train_policy.py", *settings(folder, name), *placement, own_group=True)
    stderr = stop_when_training(process, run_dir, number, to_group)
    assert process.returncode == 130
    assert f"Stopped at step {saved_step(run_dir)}" in stderr and "resume=true" in stderr
    assert "Traceback" not in stderr


def test_torchrun_stops_all_processes_and_they_save_once(folder: Path) -> None:
    run_dir = folder / "runs" / "pusht" / "torchrun"
    arguments = [*settings(folder, "torchrun"), *STREAM]
    process = start(*TORCHRUN, "train_policy.py", *arguments, "trainer.sharding=fsdp2", own_group=True)
    stderr = stop_when_training(process, run_dir, signal.SIGTERM, to_group=False)
    step = saved_step(run_dir)
    assert stderr.count(f"Stopped at step {step}") == 1
    assert "Go on with: torchrun --nproc-per-node=2 train_policy.py task=pusht" in stderr
    assert "SIGKILL" not in stderr  # torchrun's last resort


def test_the_second_ctrl_c_interrupts_at_once() -> None:
    numbers, said = (signal.SIGINT, signal.SIGTERM), list[str]()
    before = [signal.getsignal(number) for number in numbers]
    with InterruptGuard(lambda: said.append("stopping")) as guard:
        assert not guard.is_requested
        signal.raise_signal(signal.SIGINT)
        assert guard.is_requested and said == ["stopping"]
        signal.raise_signal(signal.SIGTERM)  # of a scheduler, which is not impatient
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in numbers] == before


def test_an_interrupted_program_ends_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, command_line():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert "Interrupted." in capsys.readouterr().err
