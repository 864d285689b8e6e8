"""A run that is interrupted and resumed ends in exactly the state of one that was not."""

import csv
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from omegaconf import OmegaConf
from rich.console import Console

from drift_policy import load_policy
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.errors import CheckpointError, ConfigurationError, UserError
from drift_policy.training.folder_guard import claimed_folder, refuse_changes
from drift_policy.training.run import train
from drift_policy.training.run_folder import check_settings, course_of_a_run, record_settings
from tests.helpers.point_task import point_demonstrations, point_training
from tests.helpers.training_runs import (
    TIMED_COLUMNS,
    assert_same_state,
    press_ctrl_c,
    progress_of,
    stop_before_step,
    tensors_of,
)

QUIET = Console(quiet=True)
EMA_OFFSETS = "ema.head.temperature_offsets"


FACTS = {"date", "machine", "versions", "commit"}  # of a part, beside its command and where it went on from
HEADS: dict[str, dict[str, Any]] = {
    "drift": {"name": "drift"},
    "schedule": {"name": "drift", "regression_weight": 3.0, "regression_steps": 15},
    "learned": {"name": "drift", "learned_temperatures": True},
    "diffusion": {"name": "diffusion", "num_train_steps": 5, "num_inference_steps": 5},
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("step", [7, 10])
def test_ctrl_c_and_resume_is_bit_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, step: int) -> None:
    policy = {"head": HEADS[head], "network": {"name": "mlp", "width": 16, "depth": 1, "dropout": 0.1}}
    whole = train(point_training(tmp_path / "whole", policy=policy), [], QUIET)

    stop_before_step(monkeypatch, step, press_ctrl_c)
    with pytest.raises(UserError, match=rf"Stopped at step {step + 1}; .*resume=true"):
        train(point_training(tmp_path / "parts", policy=policy), ["task=point"], QUIET)
    torch.manual_seed(12345)  # the resumed process starts from another random state
    parts = train(point_training(tmp_path / "parts", policy=policy, resume=True), [], QUIET)
    assert_same_state(whole, parts)
    if head == "learned":
        saved = tensors_of(parts)
        assert bool((saved["policy.head.temperature_offsets"] != 0).all())
        assert torch.equal(load_policy(parts / "checkpoints/last").head.temperature_offsets, saved[EMA_OFFSETS])  # type: ignore[arg-type]


def test_resume_auto_starts_a_run_and_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(point_training(tmp_path / "whole"), [], QUIET)
    same_command = point_training(tmp_path / "parts", resume="auto")
    stop_before_step(monkeypatch, 7, press_ctrl_c)
    with pytest.raises(UserError, match="Stopped at step 8"):
        train(same_command, [], QUIET)
    assert_same_state(whole, train(same_command, [], QUIET))
    with pytest.raises(ConfigurationError, match="started with other values of seed"):
        train(replace(same_command, seed=1), [], QUIET)
    with pytest.raises(ConfigurationError, match="resume must be true, false or auto, but is 'maybe'"):
        train(replace(same_command, resume="maybe"), [], QUIET)


def test_ctrl_c_in_the_last_update_stops_before_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = {"num_steps": 6, "rollout_every": 0}
    stop_before_step(monkeypatch, 5, press_ctrl_c)
    with pytest.raises(UserError, match="Stopped at step 6"):
        train(point_training(tmp_path, trainer=trainer), [], QUIET)
    run = train(point_training(tmp_path, trainer=trainer, resume=True), [], QUIET)
    assert json.loads((run / "manifest.json").read_text())["training"]["steps"] == 6


def test_crash_between_checkpoints_resumes_from_the_last_one_bit_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(point_training(tmp_path / "whole"), [], QUIET)

    def crash() -> None:
        raise MemoryError

    stop_before_step(monkeypatch, 13, crash)
    with pytest.raises(MemoryError):
        train(point_training(tmp_path / "parts"), [], QUIET)
    assert json.loads((tmp_path / "parts/runs/point/test/checkpoints/last/training.json").read_text())["step"] == 10
    parts = train(point_training(tmp_path / "parts", resume=True), [], QUIET)
    assert_same_state(whole, parts)
    with (whole / "metrics.csv").open() as one, (parts / "metrics.csv").open() as other:
        rows, other_rows = list(csv.DictReader(one)), list(csv.DictReader(other))
    strip = [{key: value for key, value in row.items() if key not in TIMED_COLUMNS} for row in rows]
    assert strip == [{key: value for key, value in row.items() if key not in TIMED_COLUMNS} for row in other_rows]


def test_a_crash_while_checkpoints_are_swapped_leaves_a_resumable_run(tmp_path: Path) -> None:
    run = train(point_training(tmp_path), [], QUIET)
    before = progress_of(run)
    (run / "checkpoints" / "last").rename(run / "checkpoints" / "last.old")
    resumed = train(point_training(tmp_path, resume=True), [], QUIET)
    assert progress_of(resumed) == before


def test_a_checkpoint_that_is_gone_is_no_longer_among_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash after a better one took its place and before the table was saved leaves such a row."""
    stop_before_step(monkeypatch, 12, press_ctrl_c)
    with pytest.raises(UserError, match="Stopped at step"):
        train(point_training(tmp_path), [], QUIET)
    checkpoints = tmp_path / "runs/point/test/checkpoints"
    state = json.loads((checkpoints / "last/training.json").read_text())
    state["best"].insert(0, {"folder": "step_00000001", "step": 1, "score": 99.0})
    (checkpoints / "last/training.json").write_text(json.dumps(state))
    run = train(point_training(tmp_path, resume=True), [], QUIET)
    kept = [row["folder"] for row in json.loads((checkpoints / "index.json").read_text())["scores"]]
    assert len(kept) == 2 and all((checkpoints / folder).is_dir() for folder in kept)
    assert json.loads((run / "manifest.json").read_text())["training"]["checkpoints"][0]["folder"] == kept[0]


def test_resume_with_other_settings_is_refused(tmp_path: Path) -> None:
    train(point_training(tmp_path), [], QUIET)
    with pytest.raises(
        ConfigurationError, match=r"trainer\.batch_size\. trainer\.batch_size was 16, now 8\. Resume it"
    ):
        train(point_training(tmp_path, resume=True, trainer={"batch_size": 8}), [], QUIET)
    with pytest.raises(
        ConfigurationError,
        match=r"num_steps was 20, now 40\. The learning rate follows.*longer or shorter.*initial_ckpt=",
    ):
        train(point_training(tmp_path, resume=True, trainer={"num_steps": 40}), [], QUIET)


def test_a_run_goes_on_elsewhere_with_the_settings_that_do_not_change_its_course(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(point_training(tmp_path / "whole"), [], QUIET)
    stop_before_step(monkeypatch, 7, press_ctrl_c)
    with pytest.raises(UserError, match="Stopped at step 8"):
        train(point_training(tmp_path / "parts"), [], QUIET)
    elsewhere = point_training(
        tmp_path / "parts",
        resume=True,
        device="auto",
        trainer={"checkpoint_every": 3, "log_every": 2, "num_threads": torch.get_num_threads()},
    )
    elsewhere.rollout = replace(elsewhere.rollout, n_envs=2, asynchronous=True)
    assert_same_state(whole, train(elsewhere, [], QUIET))


@pytest.mark.parametrize(
    ("before", "now", "has_gpu", "is_free"),
    [
        ("cuda", "cuda:1", False, True),
        ("auto", "cuda:1", True, True),
        ("cpu", "auto", False, True),
        ("cpu", "auto", True, False),
        ("cpu", "cuda", True, False),
    ],
)
def test_a_run_stays_on_its_kind_of_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, now: str, has_gpu: bool, is_free: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    config = point_training(tmp_path)
    record_settings(tmp_path, course_of_a_run(replace(config, device=before)))
    settings = course_of_a_run(replace(config, device=now))
    if is_free:
        check_settings(tmp_path, settings)
    else:
        with pytest.raises(ConfigurationError, match="started with other values of device"):
            check_settings(tmp_path, settings)


def test_what_a_task_says_of_policies_and_where_its_data_are_may_change(tmp_path: Path) -> None:
    config = point_training(tmp_path)
    record_settings(tmp_path, course_of_a_run(config))
    dataset = replace(config.task.dataset, hint="elsewhere", url="https://example.org/point.zip")
    check_settings(
        tmp_path,
        course_of_a_run(replace(config, task=replace(config.task, kernel="energy", control_hz=5.0, dataset=dataset))),
    )
    with pytest.raises(ConfigurationError, match=r"other values of task\.horizon\."):
        check_settings(tmp_path, course_of_a_run(replace(config, task=replace(config.task, horizon=9))))


def test_a_run_that_is_older_than_some_settings_is_resumed_as_it_was(tmp_path: Path) -> None:
    policy = {
        "num_candidates": 1,
        "mirrored": False,
        "head": {"name": "drift", "kernel": "affinity", "regression_steps": None},
        "network": {"name": "mlp", "width": 16, "depth": 1, "dropout": 0.0},
        "image_backbone": {"name": "small_cnn"},  # of no use to a policy without cameras
    }
    run = train(point_training(tmp_path, policy=policy), [], QUIET)
    settings = OmegaConf.load(run / "config.yaml")
    for name in ("symmetry", "kernel", "dropout", "mirrored", "num_candidates", "constant_range"):
        del settings["task"][name]
    for name in ("neighbours", "time_shifts", "positive_copies", "observation_noise", "betas"):
        del settings["trainer"][name]
    for name in ("num_candidates", "mirrored", "image_backbone"):
        del settings["policy"][name]
    del settings["task"]["env"]["phases"], settings["task"]["observations"]["obs"]["crop"]
    del settings["rollout"]["mirrored"]
    del settings["policy"]["head"]["kernel"], settings["policy"]["network"]["dropout"]
    OmegaConf.save(settings, run / "config.yaml")
    train(point_training(tmp_path, policy=policy, resume=True), [], QUIET)

    policy["head"]["kernel"] = "energy"  # type: ignore[index]  # a mapping
    with pytest.raises(ConfigurationError, match=r"other values of policy\.head\.kernel, trainer\.time_shifts\."):
        train(point_training(tmp_path, policy=policy, resume=True, trainer={"time_shifts": 1}), [], QUIET)


def test_a_manifest_records_every_part_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> None:
        raise MemoryError

    for step, how, overrides in ((7, press_ctrl_c, ["a=1"]), (9, crash, ["b=2"])):  # the second saves nothing
        stop_before_step(monkeypatch, step, how)
        with pytest.raises((UserError, MemoryError)):
            train(point_training(tmp_path, resume="auto"), overrides, QUIET)
    run = train(point_training(tmp_path, resume=True), ["c=3"], QUIET)
    manifest = json.loads((run / "manifest.json").read_text())
    commands = [(part["command"].split()[-1], part["from_step"]) for part in manifest["parts"]]
    assert commands == [("a=1", 0), ("c=3", 8)]
    assert all(part.keys() == FACTS | {"command", "from_step"} for part in manifest["parts"])
    last = manifest["parts"][-1]
    assert {name: manifest[name] for name in FACTS} == {name: last[name] for name in FACTS}

    (run / "parts.json").unlink()  # as a run of an older release
    train(point_training(tmp_path, resume=True), ["d=4"], QUIET)
    assert [part["from_step"] for part in json.loads((run / "manifest.json").read_text())["parts"]] == [20]
    (run / "parts.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"parts\.json cannot be read .*delete it"):
        train(point_training(tmp_path, resume=True), [], QUIET)


def test_a_run_in_one_part_has_one(tmp_path: Path) -> None:
    manifest = json.loads((train(point_training(tmp_path), [], QUIET) / "manifest.json").read_text())
    assert [part["from_step"] for part in manifest["parts"]] == [0]


@pytest.mark.parametrize("part", ["trainer", "policy.head"])
def test_settings_that_exist_no_more_are_not_resumed(tmp_path: Path, part: str) -> None:
    run = train(point_training(tmp_path), [], QUIET)
    settings = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(settings, f"{part}.removed", 3)
    OmegaConf.save(settings, run / "config.yaml")
    with pytest.raises(ConfigurationError, match=rf"other values of {part}\.removed\."):
        train(point_training(tmp_path, resume=True), [], QUIET)


def test_stored_settings_that_are_none_are_reported(tmp_path: Path) -> None:
    run = train(point_training(tmp_path), [], QUIET)
    (run / "config.yaml").write_text("- 1\n")
    with pytest.raises(CheckpointError, match="holds no settings"):
        train(point_training(tmp_path, resume=True), [], QUIET)


def test_resume_on_other_demonstrations_is_refused(tmp_path: Path) -> None:
    train(point_training(tmp_path), [], QUIET)
    write_zarr(tmp_path / "other.zarr", point_demonstrations(episodes=11))
    config = point_training(tmp_path, resume=True, data_path=str(tmp_path / "other.zarr"))
    with pytest.raises(ConfigurationError, match="data_sha256"):
        train(config, [], QUIET)


def test_folder_of_a_running_training_is_refused(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "point" / "test"
    run_dir.mkdir(parents=True)
    with FileLock(run_dir / ".lock"), pytest.raises(UserError, match="Another process"):
        train(point_training(tmp_path), [], QUIET)


def test_a_folder_is_held_by_one_training_at_a_time(tmp_path: Path) -> None:
    def claim() -> AbstractContextManager[None]:
        return claimed_folder(tmp_path / "run", lambda: False, False, "resume=true")

    with claim(), pytest.raises(UserError, match="Another process is training"), claim():
        pass
    with claim():
        pass


def test_a_start_that_fails_before_it_writes_leaves_nothing_behind(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(UserError, match="sharding"):
        train(point_training(tmp_path, trainer={"sharding": "fsdp2"}), [], QUIET)
    with pytest.raises(UserError, match="batch_size"):
        train(point_training(tmp_path, trainer={"batch_size": 100_000}), [], QUIET)
    with pytest.raises(UserError, match="nothing to resume"):
        train(point_training(tmp_path, resume=True), [], QUIET)
    assert not runs.exists()


def test_a_failed_start_keeps_a_folder_that_was_there_or_holds_something(tmp_path: Path) -> None:
    def fail_in(folder: Path, write: str | None = None) -> None:
        with pytest.raises(UserError), claimed_folder(folder, lambda: False, False, "resume=true"):
            if write is not None:
                (folder / write).touch()
            raise UserError("failed")

    before = tmp_path / "task" / "before"
    before.mkdir(parents=True)
    fail_in(before)
    assert before.is_dir()
    fail_in(tmp_path / "task" / "written", "metrics.csv")
    assert (tmp_path / "task" / "written" / "metrics.csv").is_file()
    fail_in(tmp_path / "task" / "new" / "run")
    assert {path.name for path in (tmp_path / "task").iterdir()} == {"before", "written"}


def test_of_failing_starts_side_by_side_one_at_a_time_holds_the_folder(tmp_path: Path) -> None:
    folder, held, overlaps = tmp_path / "runs" / "run", threading.Lock(), []

    def start(_: int) -> None:
        for _ in range(200):
            # A start that meets another one is refused as busy.
            with suppress(UserError), claimed_folder(folder, lambda: False, False, "resume=true"):
                overlaps.append(not held.acquire(blocking=False))
                held.release()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, range(4)))
    assert overlaps
    assert not any(overlaps)


def test_starting_over_an_existing_run_is_refused_with_the_resume_command(tmp_path: Path) -> None:
    train(point_training(tmp_path), [], QUIET)
    with pytest.raises(UserError, match=r"already holds a run.*task=point resume=true"):
        train(point_training(tmp_path), ["task=point"], QUIET)


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to resume"):
        train(point_training(tmp_path, resume=True), [], QUIET)


def test_damaged_last_checkpoint_is_reported(tmp_path: Path) -> None:
    run = train(point_training(tmp_path), [], QUIET)
    tensors = run / "checkpoints" / "last" / "training.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        train(point_training(tmp_path, resume=True), [], QUIET)


def test_of_dozens_of_settings_that_differ_some_are_listed(tmp_path: Path) -> None:
    now = {f"s{number}": number for number in range(12)}
    with pytest.raises(
        ConfigurationError, match=r"other values of s0, s1, .*, s7 and 4 more\. s0 was None, now 0; "
    ) as info:
        refuse_changes(tmp_path, list(now), before={}, now=now)
    assert "s8" not in str(info.value)
    with pytest.raises(ConfigurationError, match=r"other values of s0, s1\. Resume"):
        refuse_changes(tmp_path, ["s0", "s1"])
