"""The study of replays: it tells the true start and treatment of actions from others, and what recordings hold."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="needs the package `mujoco` of the mujoco extra")
pytest.importorskip("gymnasium_robotics", reason="needs the package `gymnasium-robotics` of the mujoco extra")

from drift_policy.errors import DataError  # noqa: E402
from envs.adroit import AdroitDoorEnv  # noqa: E402
from envs.adroit import replay as replay_module  # noqa: E402
from envs.adroit.demonstrations import (  # noqa: E402
    Demonstration,
    observed_joints,
    observed_start,
    read_demonstrations,
    recording_facts,
    squared_speeds,
)
from envs.adroit.replay import WAYS, compare, start_facts  # noqa: E402
from tests.helpers.door_demonstrations import record_door_demonstrations, write_door_demonstrations  # noqa: E402

WAY = {way.name: way for way in WAYS}
REAL = Path(os.environ.get("DRIFT_POLICY_DATA", "")) / "adroit_door/door_human_demos.npz"
needs_real_data = pytest.mark.skipif(
    "DRIFT_POLICY_DATA" not in os.environ or not REAL.exists(),
    reason="DRIFT_POLICY_DATA does not name a folder with adroit_door/door_human_demos.npz",
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_door_demonstrations(tmp_path_factory.mktemp("door") / "demos.npz")


@pytest.fixture(scope="module")
def demonstrations(archive: Path) -> list[Demonstration]:
    return read_demonstrations(archive)


@pytest.fixture(scope="module")
def real() -> list[Demonstration]:
    return read_demonstrations(REAL)


def test_the_observed_start_is_the_one_that_was_recorded(demonstrations: list[Demonstration]) -> None:
    env = AdroitDoorEnv()
    for demonstration in demonstrations:
        start = observed_start(env, demonstration)
        env.reset(options={"qpos": start.qpos, "qvel": start.qvel, "door_body_pos": start.door_body_pos})
        assert np.abs(env._get_obs() - demonstration.observations[0]).max() < 1e-6
        assert abs(start.qpos[0]) > 1e-3, "the slide, which is not observed, was to be found"
        assert observed_joints(env, demonstration, 0)[1] < 1e-6


def test_only_the_true_way_replays_exactly(demonstrations: list[Demonstration]) -> None:
    def error(name: str) -> float:
        return compare(WAY[name], demonstrations)["mean_error"]["arm and hand"]

    true = error("observed start")
    assert true < 1e-5
    for name in (
        "stored start",
        "observed start, moving",
        "actions one step later",
        "actions one step earlier",
        "actions not scaled",
        "actions not clipped",
        "4 physics steps an action",
        "6 physics steps an action",
    ):
        assert error(name) > 100 * true, name


def test_a_start_whose_positions_are_not_updated_shows_the_old_handle(demonstrations: list[Demonstration]) -> None:
    updated, stale = (
        compare(WAY[name], demonstrations[:2]) for name in ("stored start", "stored start, positions not updated")
    )
    assert updated["error_of_first_observation"]["handle"] < 1e-6 < stale["error_of_first_observation"]["handle"]
    assert updated["mean_error"]["arm and hand"] == stale["mean_error"]["arm and hand"]


def test_every_change_of_the_physics_changes_it() -> None:
    """Compares where the hand is pressed against the door: contacts are what these changes are about."""
    changed = ["older convex collisions", "elliptic friction cones", "no slip iterations", "PGS solver"]
    changed += ["linear impedance, as MuJoCo 1.5"]
    final = {}
    for name in ["observed start", *changed]:
        env = AdroitDoorEnv()
        WAY[name].physics(env)
        env.reset(seed=0)
        action = np.zeros(28)
        action[[0, 1]] = 1.0, -0.6
        for _ in range(120):
            observation = env.step(action)[0]
        final[name] = observation
        assert env.data.ncon > 0
    for name in changed:
        assert not np.array_equal(final[name], final["observed start"]), name


def test_outcomes_are_counted(demonstrations: list[Demonstration]) -> None:
    result = compare(WAY["observed start"], demonstrations)
    assert (result["opened"], result["opened_by_1_radian"], result["outcome_as_recorded"]) == (1, 1, 3)
    assert result["largest_angles"][2] == pytest.approx(demonstrations[2].largest_angle, abs=1e-4)


def test_facts_of_the_recording(demonstrations: list[Demonstration]) -> None:
    facts = recording_facts(demonstrations)
    assert (facts["demonstrations"], facts["steps"], facts["opened"], facts["opened_by_1_radian"]) == (3, 36, 1, 1)
    assert facts["door_places_in_the_range_of_resets"] == 2
    assert facts["joints_at_zero_in_every_first_observation"] == 22
    assert facts["largest_stored_joint_angle"] == 0 < facts["largest_first_observed_joint_angle"] <= 0.1
    actions = record_door_demonstrations()["action"]
    assert facts["share_of_action_numbers_outside_1"] == pytest.approx((abs(actions) > 1).mean())
    assert facts["largest_error_of_palm_minus_handle"] < 1e-6
    assert facts["steps_with_another_door_open_flag"] == 0
    after = facts["reward_minus_that_of_the_observation_after_the_action"]
    assert -0.1 < after["lowest"] < after["highest"] < 0


def test_speeds_are_found_in_the_rewards(demonstrations: list[Demonstration]) -> None:
    facts = start_facts(demonstrations)
    speeds = facts["mean_squared_speed_after_first_action"]
    assert speeds["recorded"] == pytest.approx(squared_speeds(demonstrations).mean())
    assert speeds["observed start"] == pytest.approx(speeds["recorded"], rel=0.02)
    assert abs(speeds["observed start, moving"] - speeds["recorded"]) > 0.1 * speeds["recorded"]
    assert facts["largest_misfit_of_palm_in_first_observations"] < 1e-6


@pytest.mark.parametrize("name", ["observation", "action", "init_qpos", "init_door_body_pos"])
def test_another_schema_is_an_error(tmp_path: Path, name: str) -> None:
    arrays = record_door_demonstrations(episodes=1, length=3)
    np.savez(tmp_path / "demos.npz", **{**arrays, name: arrays[name][:, :-1]})
    with pytest.raises(DataError, match=f"does not hold Adroit door demonstrations.*'{name}'"):
        read_demonstrations(tmp_path / "demos.npz")


def test_the_command_prints_and_writes(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replay_module, "WAYS", WAYS[:3])
    monkeypatch.setattr(sys, "argv", ["replay", f"data_path={archive}", f"output={tmp_path}/replay.json"])
    monkeypatch.setenv("COLUMNS", "200")
    replay_module.main()
    content: dict[str, Any] = json.loads((tmp_path / "replay.json").read_text())
    assert content["command"].startswith("python -m envs.adroit.replay data_path=")
    assert content["recording"]["opened"] == 1
    assert [result["way"] for result in content["replays"]] == [way.name for way in WAYS[:3]]
    assert content["simulator"]["mujoco"] and content["simulator"]["gymnasium-robotics"]
    printed = capsys.readouterr().out
    assert "what was recorded" in printed and "observed start" in printed and "1 / 3" in printed


@needs_real_data
def test_facts_of_the_real_recordings(real: list[Demonstration]) -> None:
    facts = recording_facts(real)
    assert (facts["demonstrations"], facts["steps"]) == (25, 6729)
    # Most demonstrators stopped short of what gymnasium-robotics calls success.
    assert (facts["opened"], facts["opened_by_1_radian"]) == (7, 25)
    assert facts["door_places_in_the_range_of_resets"] == 2
    # The stored starts are not those of the recordings, where arm and wrist were elsewhere.
    assert facts["largest_stored_joint_angle"] == 0
    assert facts["largest_first_observed_joint_angle"] == pytest.approx(0.506, abs=1e-3)
    # A reward belongs to the observation after the action: what is left is the cost of speed.
    after = facts["reward_minus_that_of_the_observation_after_the_action"]
    assert -0.03 < after["lowest"] < after["highest"] < 0


@needs_real_data
def test_real_demonstrations_replay_from_the_observed_start(real: list[Demonstration]) -> None:
    some = [real[index] for index in (2, 11, 16)]
    observed, stored = compare(WAY["observed start"], some), compare(WAY["stored start"], some)
    assert (observed["opened"], observed["outcome_as_recorded"]) == (2, 3)
    assert max(observed["error_of_first_observation"].values()) < 1e-6
    assert observed["error_of_largest_angle"]["highest"] < 0.01
    assert stored["error_of_first_observation"]["arm and hand"] > 0.3
