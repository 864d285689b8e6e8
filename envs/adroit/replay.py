"""Replay the demonstrated actions of the Adroit door, in as many ways as could explain why a replay differs.

    python -m envs.adroit.replay [data_path=door_human_demos.npz] [output=results/adroit_door_replay.json]

Prints one row a way, and writes every number. A way is a start, a treatment of the actions and a change of physics.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from drift_policy.cli import command_line
from drift_policy.config import parse_config
from drift_policy.manifest import describe_run, write_json
from drift_policy.task import DatasetConfig, find_demonstrations
from envs.adroit.demonstrations import (
    BLOCKS,
    DOOR,
    OPEN_ANGLE,
    Demonstration,
    Numbers,
    Start,
    observed_joints,
    observed_start,
    read_demonstrations,
    recording_facts,
    squared_speeds,
)
from envs.adroit.env import AdroitDoorEnv

TASK = Path(__file__).parents[2] / "configs" / "task" / "adroit_door.yaml"
LATER_STEPS = 50  # how long after the stored start the first observation is looked for


@dataclass
class ReplayConfig:
    """What to replay, and where to write the result."""

    data_path: str | None = None  # the demonstrations; null searches for them as training does
    output: str = "results/adroit_door_replay.json"


@dataclass(frozen=True)
class Way:
    """One way to replay."""

    name: str
    start: Callable[[AdroitDoorEnv, Demonstration], Start] = observed_start
    forward: bool = True  # whether positions are computed after the start is set
    shift: int = 0  # steps by which actions come later
    drive: Callable[[AdroitDoorEnv, Numbers], Numbers] = lambda env, action: env.step(action)[0]
    physics: Callable[[AdroitDoorEnv], None] = lambda env: None


def stored_start(env: AdroitDoorEnv, demonstration: Demonstration) -> Start:
    """Return the start that the data set stores."""
    return demonstration.stored_start


def moving_start(env: AdroitDoorEnv, demonstration: Demonstration) -> Start:
    """Return the observed start with the speed of the first two observations."""
    return observed_start(env, demonstration, with_velocity=True)


def drive_unclipped(env: AdroitDoorEnv, action: Numbers) -> Numbers:
    """Take a step with targets outside the control ranges as they are."""
    return _drive(env, env.act_mean + action * env.act_rng)


def drive_unscaled(env: AdroitDoorEnv, action: Numbers) -> Numbers:
    """Take a step with the action as joint targets, as if it were not scaled."""
    return _drive(env, action)


def _drive(env: AdroitDoorEnv, targets: Numbers) -> Numbers:
    env.do_simulation(targets, env.frame_skip)
    observation: Numbers = env._get_obs()
    return observation


def disable(flag: mujoco.mjtDisableBit) -> Callable[[AdroitDoorEnv], None]:
    """Return a change of the physics: a part of MuJoCo is switched off."""

    def change(env: AdroitDoorEnv) -> None:
        env.model.opt.disableflags |= int(flag)

    return change


def option(name: str, value: int) -> Callable[[AdroitDoorEnv], None]:
    """Return a change of the physics: a number of MuJoCo's options is set."""
    return lambda env: setattr(env.model.opt, name, value)


def frame_skip(steps: int) -> Callable[[AdroitDoorEnv], None]:
    """Return a change of the physics: so many physics steps an action."""
    return lambda env: setattr(env, "frame_skip", steps)


def linear_impedance(env: AdroitDoorEnv) -> None:
    """Let constraints stiffen linearly with their violation.

    MuJoCo 1.5, for which the model was written, had three numbers for it (`solimp`); later releases have two more,
    whose defaults make it a curve.
    """
    model = env.model
    for impedance in (model.geom_solimp, model.pair_solimp, model.jnt_solimp, model.dof_solimp):
        impedance[:, 4] = 1.0
    model.tendon_solimp_lim[:, 4] = 1.0


WAYS = (
    Way("stored start", start=stored_start),
    Way("stored start, positions not updated", start=stored_start, forward=False),
    Way("observed start"),
    Way("observed start, moving", start=moving_start),
    Way("actions one step later", shift=1),
    Way("actions one step earlier", shift=-1),
    Way("actions not scaled", drive=drive_unscaled),
    Way("actions not clipped", drive=drive_unclipped, physics=disable(mujoco.mjtDisableBit.mjDSBL_CLAMPCTRL)),
    Way("4 physics steps an action", physics=frame_skip(4)),
    Way("6 physics steps an action", physics=frame_skip(6)),
    Way("older convex collisions", physics=disable(mujoco.mjtDisableBit.mjDSBL_NATIVECCD)),
    Way("elliptic friction cones", physics=option("cone", int(mujoco.mjtCone.mjCONE_ELLIPTIC))),
    Way("no slip iterations", physics=option("noslip_iterations", 0)),
    Way("100 solver iterations", physics=option("iterations", 100)),
    Way("PGS solver", physics=option("solver", int(mujoco.mjtSolver.mjSOL_PGS))),
    Way("linear impedance, as MuJoCo 1.5", physics=linear_impedance),
)  # unless said otherwise, with the observed start


def replay(env: AdroitDoorEnv, demonstration: Demonstration, way: Way) -> Numbers:
    """Return the observations of a replay, [L + 1, 39]: before the first action, and after every action."""
    start = way.start(env, demonstration)
    env.reset(seed=0)
    env.model.body_pos[env.door_body_id] = start.door_body_pos
    env.data.qpos[:], env.data.qvel[:] = start.qpos, start.qvel
    if way.forward:
        mujoco.mj_forward(env.model, env.data)
    observations = [env._get_obs()]
    steps = np.arange(len(demonstration.actions)) - way.shift
    for step in steps.clip(0, len(steps) - 1):
        observations.append(way.drive(env, demonstration.actions[step]))
    return np.stack(observations)


def compare(way: Way, demonstrations: list[Demonstration]) -> dict[str, Any]:
    """Replay all demonstrations in one way and return how they differ from what was recorded."""
    env = AdroitDoorEnv()
    way.physics(env)
    replays = [replay(env, demonstration, way) for demonstration in demonstrations]
    first = np.max([np.abs(r[0] - d.observations[0]) for r, d in zip(replays, demonstrations, strict=True)], axis=0)
    errors = np.concatenate([np.abs(r[:-1] - d.observations) for r, d in zip(replays, demonstrations, strict=True)])
    angles = np.array([float(r[:, DOOR].max()) for r in replays])
    recorded = np.array([d.largest_angle for d in demonstrations])
    misses = np.abs(angles - recorded)
    return {
        "way": way.name,
        "opened": int((angles >= OPEN_ANGLE).sum()),
        "outcome_as_recorded": int(((angles >= OPEN_ANGLE) == (recorded >= OPEN_ANGLE)).sum()),
        "opened_by_1_radian": int((angles > 1.0).sum()),
        "error_of_first_observation": {name: float(first[block].max()) for name, block in BLOCKS.items()},
        "mean_error": {name: float(errors[:, block].mean()) for name, block in BLOCKS.items()},
        "error_of_largest_angle": {"median": float(np.median(misses)), "highest": float(misses.max())},
        "largest_angles": angles.tolist(),
    }


def start_facts(demonstrations: list[Demonstration]) -> dict[str, Any]:
    """Return what speaks for the observed start, at rest, and against the stored one."""
    env = AdroitDoorEnv()
    speeds = {"recorded": float(squared_speeds(demonstrations).mean())}
    for name, start in (("observed start", observed_start), ("observed start, moving", moving_start)):
        speeds[name] = float(np.mean([_squared_speed_after_first_action(env, d, start) for d in demonstrations]))
    later = []
    for demonstration in demonstrations:
        observations = replay(env, demonstration, WAYS[0])[: LATER_STEPS + 1]
        later.append(np.abs(observations - demonstration.observations[0])[:, BLOCKS["arm and hand"]].max(axis=1).min())
    return {
        "largest_misfit_of_palm_in_first_observations": max(observed_joints(env, d, 0)[1] for d in demonstrations),
        "mean_squared_speed_after_first_action": speeds,
        f"least_error_of_arm_and_hand_within_{LATER_STEPS}_steps_of_stored_start": {
            "lowest": float(min(later)),
            "highest": float(max(later)),
        },
    }


def _squared_speed_after_first_action(
    env: AdroitDoorEnv, demonstration: Demonstration, start: Callable[[AdroitDoorEnv, Demonstration], Start]
) -> float:
    state = start(env, demonstration)
    env.reset(seed=0)
    env.set_env_state({"qpos": state.qpos, "qvel": state.qvel, "door_body_pos": state.door_body_pos})
    env.step(demonstration.actions[0])
    return float(np.sum(env.data.qvel**2))


def print_table(facts: dict[str, Any], results: list[dict[str, Any]], console: Console) -> None:
    """Print one row a way, below a row of what was recorded."""
    total = facts["demonstrations"]
    table = Table(title=f"{total} demonstrations of the Adroit door, replayed")
    table.add_column("way to replay")
    errors = ("first: joints", "palm", "handle", "mean: joints", "door", "widest opening")
    for heading in ("opened", "outcome kept", *errors):
        table.add_column(heading, justify="right")
    table.add_row("what was recorded", f"{facts['opened']} / {total}", *[""] * 7)
    for result in results:
        first, mean = result["error_of_first_observation"], result["mean_error"]
        table.add_row(
            result["way"],
            f"{result['opened']} / {total}",
            f"{result['outcome_as_recorded']} / {total}",
            *(f"{first[block]:.4f}" for block in ("arm and hand", "palm", "handle")),
            *(f"{mean[block]:.4f}" for block in ("arm and hand", "door")),
            f"{result['error_of_largest_angle']['median']:.3f}, {result['error_of_largest_angle']['highest']:.3f}",
        )
    console.print(table)
    console.print(
        "Outcome kept: the door was opened where the recording has it open, and nowhere else. Errors in radians and "
        "metres: largest of the first observations; mean of all; median and largest of the widest openings.",
        highlight=False,
    )


def main() -> None:
    """Parse the command line, replay and write."""
    with command_line() as console:
        config = parse_config(ReplayConfig, OmegaConf.from_cli(sys.argv[1:]))
        dataset = parse_config(DatasetConfig, OmegaConf.load(TASK).dataset, "task.dataset")
        found = find_demonstrations(dataset, config.data_path, True, lambda text: console.print(text, highlight=False))
        demonstrations = read_demonstrations(found.path)
        facts = recording_facts(demonstrations)
        results = [compare(way, demonstrations) for way in WAYS]
        print_table(facts, results, console)
        content = {
            **describe_run("-m envs.adroit.replay", sys.argv[1:]),
            "simulator": {name: version(name) for name in ("mujoco", "gymnasium-robotics")},
            "recording": facts,
            "start": start_facts(demonstrations),
            "replays": results,
        }
        write_json(Path(config.output), content)
        console.print(f"written  {config.output}", highlight=False)


if __name__ == "__main__":
    main()
