"""Two processes give what one gives, in DDP and with split weights, and only the first one writes and speaks."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.helpers.programs import TORCHRUN, start
from tests.helpers.training_runs import TIMED_COLUMNS, assert_near_state, progress_of, tensors_of
from tests.training.two_processes import LEARNED, MLP, NETWORKS, PARTS, RUNS, STOPPED_IN_UPDATE, Run, perform

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")

RANKS = (0, 1)
ALONE = {
    "alone": Run(),
    "alone_parts": Run(PARTS),
    "alone_tuned": Run({"neighbours": 2}, initial="alone"),
    "alone_regression": Run(head="regression"),
    "alone_learned": Run(head_settings=LEARNED),
    "alone_transformer": Run(network=NETWORKS["transformer"]),
    "alone_unet": Run(network=NETWORKS["unet"]),
}
SAME_COURSE = {
    "ddp": "alone",
    "fsdp2": "alone",
    "ddp_parts": "alone_parts",
    "fsdp2_parts": "alone_parts",
    "ddp_regression_parts": "alone_regression",
    "ddp_learned": "alone_learned",
    "fsdp2_learned": "alone_learned",
    "ddp_tuned": "alone_tuned",
    "fsdp2_tuned": "alone_tuned",
    "fsdp2_transformer": "alone_transformer",
    "fsdp2_unet": "alone_unet",
}
STOPPED = {"ddp_stopped": 10, "fsdp2_stopped": 10, "stopped_in_rollout": 6}
RESUMED = ("ddp_resumed", "fsdp2_resumed")


@dataclass(frozen=True)
class Results:
    """What all runs left."""

    folder: Path
    outcomes: list[dict[str, Any]]  # of each process, see `perform`
    errors: list[dict[str, str]]  # what each process printed to stderr in each run
    printed: list[str]  # what each process printed to stdout

    def run(self, name: str) -> Path:
        return self.folder / "runs" / "point" / name

    def metrics(self, name: str) -> list[dict[str, str]]:
        with (self.run(name) / "metrics.csv").open() as file:
            return list(csv.DictReader(file))


def start_two(folder: Path) -> list[tuple[str, str]]:
    """Do RUNS in two processes of torchrun, and return stdout and stderr of each."""
    logs = ["--redirects=3", f"--log-dir={folder / 'logs'}"]
    with start(*TORCHRUN, *logs, "-m", "tests.training.two_processes", str(folder)) as process:
        try:
            printed = process.communicate(timeout=200)
        finally:
            process.terminate()  # it ends the others
    assert process.returncode == 0, printed
    own = [next((folder / "logs").glob(f"*/attempt_0/{rank}")) for rank in RANKS]
    return [((path / "stdout.log").read_text(), (path / "stderr.log").read_text()) for path in own]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("two_processes")
    for name, run in ALONE.items():
        assert perform(folder, name, run, rank=0)["code"] == 0
    for name in RESUMED:
        assert perform(folder, name, Run(stop_signal=RUNS["ddp_stopped"].stop_signal), rank=0)["code"] == 130
    printed = start_two(folder)
    outcomes = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in RANKS]
    errors = [dict(part.split("\n", 1) for part in stderr.split("== ")[1:]) for _, stderr in printed]
    return Results(folder, outcomes, errors, [stdout for stdout, _ in printed])


@pytest.mark.parametrize("name", SAME_COURSE)
def test_two_processes_train_as_one_does(results: Results, name: str) -> None:
    assert [outcome[name]["code"] for outcome in results.outcomes] == [0, 0]
    # AdamW makes steps of rounding where a gradient is nearly zero, of which the larger networks have more.
    assert_near_state(results.run(name), results.run(SAME_COURSE[name]), 5e-6 if RUNS[name].network is MLP else 1e-4)


def test_accumulation_changes_the_drift_objective(results: Results) -> None:
    """The agreement above is not one of runs that hardly move: other statistics of the drift loss show."""
    whole, parts = tensors_of(results.run("alone")), tensors_of(results.run("alone_parts"))
    assert max(float((whole[name] - parts[name]).abs().max()) for name in whole) > 1e-3


@pytest.mark.parametrize("name", ["ddp", "fsdp2_parts"])
def test_metrics_are_means_over_processes_and_parts(results: Results, name: str) -> None:
    rows, alone = results.metrics(name), results.metrics(SAME_COURSE[name])
    assert [row["step"] for row in rows] == [row["step"] for row in alone] == ["4", "6", "8", "12"]
    for row, expected in zip(rows, alone, strict=True):
        columns = [key for key, value in expected.items() if value and key not in TIMED_COLUMNS]
        assert [float(row[key]) for key in columns] == pytest.approx(
            [float(expected[key]) for key in columns], rel=1e-3
        )


def test_only_the_first_process_writes_and_speaks(results: Results) -> None:
    first, other = results.outcomes
    assert first["ddp"]["written"] == [
        "record_settings",
        "make_trackers",
        "save_scored",
        "save_last",  # after the rollouts, at the end before them too
        "save_last",
        "save_scored",
        "save_last",
        "write_json",
    ]
    assert "on 2 processes (cpu)" in first["ddp"]["console"]
    assert "on 2 processes (cpu, weights split)" in first["fsdp2"]["console"]
    assert json.loads((results.run("ddp") / "manifest.json").read_text())["training"]["processes"] == 2
    assert {name: outcome["written"] for name, outcome in other.items()} == {name: [] for name in RUNS}
    assert {name: outcome["console"] for name, outcome in other.items()} == dict.fromkeys(RUNS, "")
    assert results.printed[1] == ""
    assert not [name for name, text in results.errors[1].items() if "╭" in text or "Traceback" in text]


@pytest.mark.parametrize("name", STOPPED)
def test_a_signal_to_one_process_stops_both_and_saves_once(results: Results, name: str) -> None:
    assert [outcome[name]["code"] for outcome in results.outcomes] == [130, 130]
    assert results.outcomes[0][name]["written"] == ["record_settings", "make_trackers", "save_last"]
    message = results.errors[0][name]
    assert f"Stopped at step {STOPPED[name]}" in message
    assert f"torchrun --nproc-per-node=2 train_policy.py name={name} resume=true" in message


def test_one_process_goes_on_with_what_two_began(results: Results) -> None:
    for name, step in STOPPED.items():
        assert progress_of(results.run(name))[0]["step"] == step
        trainer = {"rollout_every": 6} if name == "stopped_in_rollout" else {}
        torch.manual_seed(12345)  # the resumed process starts from another random state
        outcome = perform(results.folder, name, Run(trainer, resume=True), rank=0)
        assert outcome["code"] == 0
        assert_near_state(results.run(name), results.run("alone"), 5e-6)
        assert outcome["written"].count("save_scored") == (2 if trainer else 0)


@pytest.mark.parametrize("name", RESUMED)
def test_two_processes_go_on_with_what_one_began(results: Results, name: str) -> None:
    assert [outcome[name]["code"] for outcome in results.outcomes] == [0, 0]
    assert f"resume   from step {STOPPED_IN_UPDATE + 1}" in results.outcomes[0][name]["console"]
    assert_near_state(results.run(name), results.run("alone"), 5e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fsdp2_changed", "other values of trainer.batch_size."),
        ("ddp_again", "already holds a run"),
        ("ddp_unfit", "policy.network.depth is 1 here and 2 in the checkpoint"),
    ],
)
def test_an_error_ends_both_processes_and_is_told_once(results: Results, name: str, expected: str) -> None:
    assert [outcome[name]["code"] for outcome in results.outcomes] == [2, 2]
    assert expected in results.errors[0][name]
    assert "Traceback" not in results.errors[0][name]
