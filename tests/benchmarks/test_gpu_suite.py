"""The GPU suite on a CPU with toy sizes: prepared files, trainings in pieces, and their scores."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu_suite import command, prepare, score, train, training
from benchmarks.gpu_suite.pieces import PIECE_BYTES, PieceWriter, as_stored, num_bytes, read_pieces
from benchmarks.gpu_suite.policies import Sizes, policy_config, trainer_config
from benchmarks.gpu_suite.prepared import TASKS, prepared_path, read_prepared, write_prepared
from benchmarks.gpu_suite.training import Training
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.sources import ResolvedData
from drift_policy.errors import CheckpointError, ConfigurationError, DataError
from drift_policy.task import Demonstrations
from drift_policy.task_files import task_env
from drift_policy.training.run import build_policy_and_data
from tests.helpers.prepared_data import prepared_demonstrations, write_demonstrations
from tests.helpers.pusht_data import random_pusht_columns

CPU = torch.device("cpu")
TINY = ["--device", "cpu", "--batch-size", "8", "--down-dims", "16", "--step-embedding", "8", "--log-every", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared demonstrations."""
    return write_demonstrations(tmp_path_factory.mktemp("prepared"))


def run_training(folder: Path, output: Path, *arguments: str) -> dict[str, Any]:
    """Train with toy sizes and return the record."""
    train.main(["--prepared", str(folder), "--output", str(output), "--name", "test", *TINY, *arguments])
    return json.loads((output / "test.json").read_text())


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a training of two seeds, with two checkpoints each."""
    output = tmp_path_factory.mktemp("returned")
    arguments = ["--task", "state", "--head", "drift", "--seeds", "3", "5", "--steps", "6", "--fractions", "0.5", "1"]
    run_training(folder, output, *arguments)
    return output


# Prepared files


@pytest.mark.parametrize("task", TASKS)
def test_a_prepared_file_gives_back_what_was_written(task: str, folder: Path) -> None:
    written, read = prepared_demonstrations(task), read_prepared(prepared_path(folder, task))
    assert (read.metadata, read.specs, read.n_obs_steps, read.n_action_steps, read.horizon) == (
        *(written.metadata, written.specs, written.n_obs_steps, written.n_action_steps),
        16,
    )
    for name in ("observations", "ranges"):
        for key, value in getattr(written, name).items():
            found = getattr(read, name)[key]
            assert found.dtype == value.dtype and np.array_equal(found, value)
    for name, table in written.tables.items():
        assert read.tables[name].config == table.config
        assert np.array_equal(read.tables[name].steps, table.steps)
        assert np.array_equal(read.tables[name].alphas, table.alphas)
    assert np.array_equal(read.action, written.action) and np.array_equal(read.rows, written.rows)


def test_preparing_keeps_windows_and_normaliser_of_the_library(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ends = np.array([40, 75, 120])
    columns: dict[str, np.ndarray] = {**random_pusht_columns(int(ends[-1]))}
    columns["img"] = rng.integers(256, size=(ends[-1], 96, 96, 3), dtype=np.uint8)
    demonstrations = Demonstrations(ReplayBuffer(columns, ends), ResolvedData(Path("random"), "path", "random"))
    for task in ("pusht", "pusht_image"):
        config = prepare.shipped_config(task)
        policy, data = build_policy_and_data(config, demonstrations, CPU)
        write_prepared(tmp_path / "file.npz", prepare.prepare(config, demonstrations))
        prepared = read_prepared(tmp_path / "file.npz")
        numbers = np.arange(len(data.train))
        assert config.task.symmetry is None and not policy.config.mirrored
        assert 0 < len(numbers) == len(prepared.rows) < 120 - 3 * 7, "the validation episode is left out"
        expected, batch = data.train.batch(numbers), prepared.windows(CPU).batch(numbers)
        assert torch.equal(batch["action"], expected["action"]) and batch["obs"].keys() == expected["obs"].keys()
        for key, value in expected["obs"].items():
            assert batch["obs"][key].dtype == value.dtype and torch.equal(batch["obs"][key], value)
        for name, buffer in policy.normalizer.named_buffers():
            assert torch.equal(dict(prepared.normalizer().named_buffers())[name], buffer)
        assert prepared.specs == policy.config.observations and prepared.metadata == policy.metadata


@pytest.mark.skipif("DRIFT_POLICY_DATA" not in os.environ, reason="DRIFT_POLICY_DATA names no folder with Push-T")
def test_the_real_states_become_a_small_file(tmp_path: Path) -> None:
    prepare.main(["--output", str(tmp_path), "--tasks", "state"])
    prepared = read_prepared(prepared_path(tmp_path, "state"))
    assert prepared.rows.shape == (23_804, 16) and prepared.observations["obs"].shape == (25_650, 20)
    assert prepared_path(tmp_path, "state").stat().st_size < 4e6


def test_unusable_files_are_refused_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing: run python -m benchmarks\.gpu_suite\.prepare"):
        read_prepared(tmp_path / "none.npz")
    content = prepared_path(folder, "state").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"cut\.npz is damaged .*: prepare it again"):
        read_prepared(tmp_path / "cut.npz")
    np.savez(tmp_path / "other.npz", facts=np.array(json.dumps({"format": 0})))
    with pytest.raises(DataError, match="has format 0, but this suite reads 1"):
        read_prepared(tmp_path / "other.npz")
    np.savez(tmp_path / "objects.npz", facts=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="damaged"):
        read_prepared(tmp_path / "objects.npz")


# Pieces


def write_pieces(folder: Path, sizes: Sequence[Sequence[int]], limit: int) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Write one group of float16 tensors after the other; return all tensors and the last index."""
    writer, everything, index = PieceWriter(folder, "weights", limit), {}, []
    for group, lengths in enumerate(sizes):
        tensors = {f"t{i}": torch.randn(length).half() for i, length in enumerate(lengths)}
        everything |= {f"{group}/{name}": tensor for name, tensor in tensors.items()}
        index = [vars(piece) for piece in writer.add(str(group), tensors)]
    return everything, index


@given(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=6), min_size=1, max_size=4))
def test_pieces_stay_below_the_limit_and_join_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    everything, index = write_pieces(folder, sizes, limit=100)
    joined = read_pieces(folder, index)
    assert joined.keys() == everything.keys()
    assert all(torch.equal(joined[name], tensor) for name, tensor in everything.items())
    assert {piece["file"] for piece in index} == {path.name for path in folder.iterdir()}
    for piece in index:
        assert num_bytes(read_pieces(folder, [piece])) <= 100
    assert len(index) <= 2 * num_bytes(everything) / 100 + 1, "two successive pieces hold more than one limit"


def test_a_piece_of_full_size_may_travel(tmp_path: Path) -> None:
    _, index = write_pieces(tmp_path, [[PIECE_BYTES // 200] * 100 + [8] * 300], PIECE_BYTES)
    assert len(index) == 2 and all(piece["bytes"] < 16_000_000 for piece in index)


def test_changed_and_missing_pieces_are_noticed(tmp_path: Path) -> None:
    _, index = write_pieces(tmp_path, [[20, 20, 20]], limit=50)
    path = tmp_path / index[1]["file"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.1\.safetensors has .* bytes, sha256 .*, but should be"):
        read_pieces(tmp_path, index)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"weights\.1\.safetensors is missing: bring back all pieces"):
        read_pieces(tmp_path, index)


def test_a_tensor_larger_than_a_piece_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="t0 has 102 bytes, but a piece holds 100"):
        write_pieces(tmp_path, [[51]], limit=100)


# Trainings


def test_a_training_leaves_a_complete_record(trained: Path) -> None:
    record = json.loads((trained / "test.json").read_text())
    assert {"command", "commit", "machine", "versions", "policy", "metadata", "trainer", "pieces"} <= record.keys()
    assert "--seeds 3 5" in record["command"] and record["not_started"] == []
    assert record["parameters"] > 0 and record["trainer"]["batch_size"] == 8
    assert [run["seed"] for run in record["runs"]] == [3, 5]
    for run in record["runs"]:
        assert (run["ended"], run["steps"], run["planned_steps"]) == ("steps", 6, 6)
        assert [entry["step"] for entry in run["checkpoints"]] == [3, 6]
        seconds = [entry["seconds"] for entry in run["checkpoints"]]
        assert 0 < seconds[0] < seconds[1] <= run["seconds"]
        assert [row["step"] for row in run["log"]] == [2, 4, 6]
        assert all(np.isfinite(list(row.values())).all() and row["action_mse"] > 0 for row in run["log"])
        assert run["samples_per_s"] > 0 and 0 < run["data_wait"] < 1 and run["peak_memory_mb"] is None
    assert sorted(path.name for path in trained.iterdir()) == ["test.0.safetensors", "test.json"]


def test_the_stored_weights_are_the_averages_of_the_trainer_itself(folder: Path, trained: Path) -> None:
    record, tensors = score.read_training(trained / "test.json")
    prepared = read_prepared(prepared_path(folder, "state"))
    sizes = Sizes(down_dims=[16], step_embedding=8)
    config = trainer_config("unet", False, num_steps=6, batch_size=8, precision="bfloat16")
    run = Training(prepared, prepared.windows(CPU), policy_config(prepared, "drift", sizes), config, seed=5)
    for _ in range(6):
        run.advance()
    policy = score.rebuild_policy(record, tensors, "5/6")
    parameters = {name for name, _ in policy.named_parameters()}
    rebuilt = as_stored(policy.state_dict(), parameters)
    averaged = as_stored(run.ema.policy.state_dict(), parameters)
    assert rebuilt.keys() == averaged.keys()
    assert all(torch.equal(rebuilt[name], averaged[name]) for name in averaged)
    assert rebuilt["normalizer.scale_obs"].dtype == torch.float32, "the normaliser is not rounded"
    assert not torch.equal(tensors["5/3/head.network.output.1.weight"], tensors["5/6/head.network.output.1.weight"])


def test_the_number_of_steps_is_lowered_to_the_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seeds of the image policy, planned to end in time and with a complete schedule of the learning rate."""
    monkeypatch.setattr(training, "WARM_STEPS", 2)
    monkeypatch.setattr(train, "PLANNED_AT", 6)
    started = time.perf_counter()
    arguments = ["--task", "image", "--head", "diffusion", "--network", "transformer", "--layers", "1", "--width", "8"]
    arguments += ["--image-backbone", "small_cnn", "--steps", "1000000", "--time-budget-s", "5", "--seeds", "0", "1"]
    record = run_training(folder, tmp_path, *arguments)
    assert time.perf_counter() - started < 7
    first, second = record["runs"]
    assert 6 <= first["planned_steps"] == second["planned_steps"] < 100_000
    for run in record["runs"]:
        assert run["ended"] in ("steps", "time")  # "time" if this machine slowed down after the planning
        assert run["checkpoints"][-1]["step"] == run["steps"] <= run["planned_steps"]
        assert run["log"][-1]["noise_mse"] > 0


def test_a_training_that_is_too_slow_stops_in_good_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is over before the speed is known: what was reached is stored, and the other seed is named."""
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    advance = Training.advance

    def slow_advance(self: Training) -> None:
        advance(self)
        clock.now += 2.0

    monkeypatch.setattr(command, "time", clock)
    monkeypatch.setattr(Training, "advance", slow_advance)
    arguments = ["--task", "state", "--head", "drift", "--time-budget-s", "4.1", "--seeds", "0", "1", "2"]
    record = run_training(folder, tmp_path, *arguments, "--fractions", "0.5", "1")
    # A seed gets its share of what is left, 1.3 s, then 1.0 s, and an update takes 2 s; then 3 % are kept to end.
    assert [(run["ended"], run["steps"]) for run in record["runs"]] == [("time", 1), ("time", 1)]
    assert record["not_started"] == [2] and record["time_used_s"] == 4.0
    assert [[entry["step"] for entry in run["checkpoints"]] for run in record["runs"]] == [[1], [1]]
    assert len(read_pieces(tmp_path, record["pieces"])) > 10


def test_a_diverged_training_is_recorded(folder: Path, tmp_path: Path) -> None:
    arguments = ["--learning-rate", "1e30", "--warmup-steps", "0", "--steps", "6", "--precision", "float32"]
    record = run_training(folder, tmp_path, "--task", "state", "--head", "diffusion", *arguments, "--seeds", "0", "1")
    assert len(record["runs"]) == 2
    for run in record["runs"]:
        assert run["ended"].startswith("The training diverged before step") and run["checkpoints"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--down-dims", "256", "512"], r"has 1\d\.\d M parameters, but at most 8 M can be brought back"),
        (
            ["--fractions", "0.5", "1", "--max-megabytes", "0.05"],
            r"2 checkpoints have 0 MB, but --max-megabytes is 0.05",
        ),
        (["--batch-size", "100"], r"--batch-size 100 is larger than the 44 training windows"),
        (["--seeds", "1", "1"], r"--seeds \[1, 1\] names a seed twice"),
    ],
)
def test_what_cannot_be_brought_back_is_refused_before_training(
    folder: Path, tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "MOST_PARAMETERS", 8_000_000)
    with pytest.raises(ConfigurationError, match=message):
        run_training(folder, tmp_path, "--task", "state", "--head", "drift", *arguments)
    assert not any(tmp_path.iterdir())


# Scores


def test_checkpoints_are_rolled_out_by_the_test_protocol(trained: Path, tmp_path: Path) -> None:
    score.main([str(trained / "test.json"), "--output", str(tmp_path), "--episodes", "2", "--max-steps", "16"])
    result = json.loads((tmp_path / "test.json").read_text())
    assert {"command", "commit", "machine", "versions", "training", "summary", "protocol"} <= result.keys()
    assert result["protocol"]["start_seed"] == 100_000 and result["protocol"]["n_episodes"] == 2
    assert [(row["seed"], row["step"]) for row in result["checkpoints"]] == [(3, 3), (3, 6), (5, 3), (5, 6)]
    for row in result["checkpoints"]:
        assert [episode["seed"] for episode in row["episodes"]] == [100_000, 100_001]
        assert row["seconds"] > 0 and 0 <= row["score"]["mean"] <= 1
    assert result["summary"]["last_checkpoints"]["score"]["n"] == 4
    assert result["training"]["runs"][0]["samples_per_s"] > 0


def test_the_time_to_the_target_score_is_that_of_the_first_checkpoint_that_reached_it() -> None:
    def row(seed: int, step: int, value: float) -> dict[str, Any]:
        episodes = [{"score": value, "success": False}] * 2
        return {"seed": seed, "step": step, "seconds": 10.0 * step, "score": {"mean": value}, "episodes": episodes}

    rows = [row(0, 1, 0.8), row(0, 2, 0.85), row(0, 3, 0.7), row(1, 1, 0.84), row(1, 2, 0.5)]
    summary = score.summarize(rows)
    assert summary["seconds_to_target_score"] == {"0": 20.0, "1": None}
    assert summary["best_of_checkpoints"] == {"0": 0.85, "1": 0.84}
    assert summary["average_of_checkpoints"]["1"] == pytest.approx(0.67)
    assert summary["last_checkpoints"]["score"]["mean"] == pytest.approx(0.6)


def test_records_that_do_not_fit_are_refused(trained: Path, tmp_path: Path) -> None:
    record, tensors = score.read_training(trained / "test.json")
    with pytest.raises(CheckpointError, match="The checkpoint 5/7 does not fit its policy"):
        score.rebuild_policy(record, tensors, "5/7")
    with pytest.raises(CheckpointError, match=r"task '\.\./x', which is not one of .*pusht, pusht_image"):
        task_env(score.TASKS, "../x")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"broken\.json is not the record of a training"):
        score.read_training(tmp_path / "broken.json")
