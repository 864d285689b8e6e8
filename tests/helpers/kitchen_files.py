"""Small Franka Kitchen demonstrations in the three published layouts, recorded in the environment or made up."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

TASKS = {"microwave": 1, "kettle": 7}  # a Minari data set's goals and their sizes
PHYSICS_STEPS = 40


@dataclass(frozen=True)
class Demo:
    """One demonstration of T steps."""

    qpos: np.ndarray  # [T + 1, 30]
    qvel: np.ndarray  # [T + 1, 29]
    action: np.ndarray  # [T, 9]

    def __len__(self) -> int:
        return len(self.action)


def made_up_demos(lengths: Sequence[int] = (5, 3, 7)) -> list[Demo]:
    """Numbers that tell every step and place apart."""
    rng = np.random.default_rng(0)
    return [
        Demo(rng.normal(size=(n + 1, 30)), rng.normal(size=(n + 1, 29)), rng.uniform(-1, 1, (n, 9))) for n in lengths
    ]


def recorded_demos(episodes: int = 3, length: int = 20, **env_kwargs: Any) -> list[Demo]:
    """Smooth random motions, recorded in the environment."""
    from envs.kitchen import KitchenEnv

    env, rng = KitchenEnv(robot_noise_ratio=0.0, **env_kwargs), np.random.default_rng(0)
    demos = []
    for episode in range(episodes):
        env.reset(seed=episode)
        states, actions = [env.state()], []
        low, high = env.action_space.low, env.action_space.high
        ends = rng.uniform(low, high, (2, 9))
        for share in np.linspace(0, 1, length):
            actions.append((1 - share) * ends[0] + share * ends[1])
            env.step(actions[-1])
            states.append(env.state())
        demos.append(
            Demo(np.stack([s["qpos"] for s in states]), np.stack([s["qvel"] for s in states]), np.stack(actions))
        )
    return demos


def write_numpy(folder: Path, demos: Sequence[Demo]) -> Path:
    """Diffusion Policy's padded arrays: time, then episodes; the padding repeats nothing and is not zero."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (max(len(demo) for demo in demos) + 2, len(demos))
    observations, actions = np.full((*shape, 60), 99, np.float32), np.full((*shape, 9), 99, np.float32)
    mask = np.zeros(shape, np.float32)
    for episode, demo in enumerate(demos):
        observations[: len(demo), episode] = np.concatenate([demo.qpos[:-1], np.zeros((len(demo), 30))], axis=1)
        actions[: len(demo), episode] = demo.action
        mask[: len(demo), episode] = 1
    for name, array in (("observations_seq", observations), ("actions_seq", actions), ("existence_mask", mask)):
        np.save(folder / f"{name}.npy", array)
    return folder


def mjl_bytes(demo: Demo, header: Sequence[int] = (30, 29, 9, 1, 2, 3), name: bytes = b"kitchen\0") -> bytes:
    """A log of 40 records a step but 10 of the last; only the records that are read hold the demonstration."""
    nq, nv, nu, n_mocap, n_sensor, n_user = header
    record = 1 + nq + nv + nu + 7 * n_mocap + n_sensor + n_user
    records = np.full((len(demo) * PHYSICS_STEPS - 30, record), 7, "<f4")
    records[:, 0] = 0.002 * np.arange(len(records))
    steps = records[::PHYSICS_STEPS]
    steps[:, 1 : 1 + nq] = demo.qpos[:-1]
    steps[:, 1 + nq : 1 + nq + nv] = demo.qvel[:-1]
    steps[:, 1 + nq + nv : 1 + nq + nv + nu] = demo.action
    return struct.pack("<7i", *header, len(name)) + name + records.tobytes()


def write_mjl(folder: Path, demos: Sequence[Demo]) -> Path:
    """Logs in a folder a sequence of subtasks, as relay-policy-learning has them."""
    for number, demo in enumerate(demos):
        subtasks = (
            folder / "kitchen_demos_multitask" / ("friday_kettle_switch" if number % 2 else "friday_kettle_hinge")
        )
        subtasks.mkdir(parents=True, exist_ok=True)
        (subtasks / f"kitchen_playdata_{number}.mjl").write_bytes(mjl_bytes(demo))
    return folder


def mjl_order(demos: Sequence[Demo]) -> list[Demo]:
    """The demonstrations in the order of `write_mjl`'s paths."""
    return [*demos[::2], *demos[1::2]]


def write_minari(folder: Path, demos: Sequence[Demo]) -> Path:
    """D4RL's Kitchen as Minari 0.5 stores it."""
    (folder / "data").mkdir(parents=True)
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for number, demo in enumerate(demos):
            group = file.create_group(f"episode_{number}")
            group.attrs["id"], group.attrs["total_steps"] = number, len(demo)
            q, v = demo.qpos, demo.qvel
            arrays: dict[str, Any] = {
                "observations/observation": np.concatenate([q[:, :9], v[:, :9], q[:, 9:], v[:, 9:]], axis=1),
                "actions": demo.action,
                "rewards": np.arange(len(demo), dtype=float),
                "terminations": np.zeros(len(demo), bool),
                "truncations": np.zeros(len(demo), bool),
            }
            for goal in ("achieved_goal", "desired_goal"):
                arrays |= {f"observations/{goal}/{t}": np.ones((len(demo) + 1, n)) for t, n in TASKS.items()}
            for name, array in arrays.items():
                group.create_dataset(name, data=array, chunks=True, maxshape=(None, *array.shape[1:]))
            group.create_dataset("infos", data=["{}"] * (len(demo) + 1), dtype=h5py.string_dtype())
    return folder
