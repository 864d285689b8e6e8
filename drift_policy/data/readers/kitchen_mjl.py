"""Franka Kitchen demonstrations as MuJoCo HAPTIX logs (.mjl), in the folders of relay-policy-learning.

A log is little-endian: seven int32 (nq, nv, nu, nmocap, nsensordata, nuserdata, length of the model's name), the name,
then records of 1 + nq + nv + nu + 7 nmocap + nsensordata + nuserdata float32: time, qpos, qvel, ctrl, mocap poses,
sensors, user data. The logs hold physics steps of 0.002 s; every 40th is a control step of the environment.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.errors import DataError, require

COLUMNS = ("obs", "action")
N_ROBOT, N_OBJECT, N_GOAL = 9, 21, 30
PHYSICS_STEPS = 40  # of a control step: 0.08 s
NOISE_SEED = 42  # Diffusion Policy's
# Half width of the original's sensor noise at a ratio of 1 (its franka_config.xml, entries qpos0 to qpos29): joints of
# the robot in radians and its fingers in metres, then objects in their own units.
NOISE_AMPLITUDE = np.repeat([0.1, 0.005, 0.0005, 0.005, 0.1, 0.005, 0.1, 0.005], [9, 2, 6, 3, 3, 3, 3, 1])

HEADER_INTS = 7
HEADER_BYTES = 4 * HEADER_INTS
MAX_SIZE = 100_000  # of each number in a header; real ones are below 1,000
SHOW_PROGRESS_FROM = 50  # logs
REMEDY = "Get the demonstrations again, or remove this log to do without it."


@dataclass(frozen=True)
class _Log:
    """Where the numbers of a log are."""

    path: Path
    nq: int
    nv: int
    nu: int
    start: int  # bytes before the first record
    record: int  # numbers in a record
    n_records: int

    @property
    def n_steps(self) -> int:
        """Control steps: the first record and every 40th after it."""
        return -(-self.n_records // PHYSICS_STEPS)


def read_kitchen_mjl(path: str | Path, columns: Sequence[str], *, robot_noise_ratio: float = 0.0) -> ReplayBuffer:
    """Read all logs below a folder, in the order of their paths, as Diffusion Policy's KitchenMjlLowdimDataset does.

    The columns, float32: "obs" [60], nine joint positions of the robot (radians; metres for the fingers), 21 of the
    objects and 30 goal numbers, which are zero; "action" [9], the absolute joint positions that were commanded.

    Args:
        path: a folder with logs in it or in its folders, or one log.
        columns: "obs", "action".
        robot_noise_ratio: adds uniform noise of this share of `NOISE_AMPLITUDE` to the 30 positions, always the same.
            Diffusion Policy trains with 0.1, which is also the noise of its environment.

    Raises:
        ConfigurationError: a noise ratio that is negative or no number.
        DataError: there is no log, or one is damaged or of another model; the message names it.
    """
    require(
        isinstance(robot_noise_ratio, int | float) and 0 <= robot_noise_ratio < np.inf,
        f"robot_noise_ratio must be a number that is not negative, but is {robot_noise_ratio!r}.",
    )
    for name in columns:
        if name not in COLUMNS:
            raise DataError(f"{path} has no column '{name}': the columns of this format are {', '.join(COLUMNS)}.")
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in columns}
    rng = np.random.default_rng(NOISE_SEED)
    lengths = []
    for log in _with_progress(_logs(path)):
        qpos, ctrl = _control_steps(log)
        observation = np.zeros((log.n_steps, N_ROBOT + N_OBJECT + N_GOAL), np.float32)
        observation[:, :N_ROBOT], observation[:, N_ROBOT:N_GOAL] = qpos[:, :N_ROBOT], qpos[:, -N_OBJECT:]
        noise = rng.uniform(-1, 1, (log.n_steps, len(NOISE_AMPLITUDE))) * NOISE_AMPLITUDE * robot_noise_ratio
        observation[:, : len(NOISE_AMPLITUDE)] += noise.astype(np.float32)
        for name in columns:
            parts[name].append(observation if name == "obs" else ctrl)
        lengths.append(log.n_steps)
    return ReplayBuffer({name: np.concatenate(arrays) for name, arrays in parts.items()}, np.cumsum(lengths))


def count_kitchen_mjl(path: str | Path) -> tuple[int, int]:
    """Return (episodes, steps) of the logs below a folder, from their headers and sizes; errors as reading."""
    logs = [_open(file) for file in _logs(path)]
    return len(logs), sum(log.n_steps for log in logs)


def _logs(path: str | Path) -> list[Path]:
    path = Path(path)
    # What an archive from a Mac leaves beside the files is called "._<name>".
    found = [path] if path.is_file() else sorted(file for file in path.rglob("*.mjl") if file.name[0] != ".")
    if not found:
        raise DataError(
            f"{path} has no .mjl logs in it or in its folders: expected kitchen_demos_multitask of "
            "relay-policy-learning, which Diffusion Policy's kitchen.zip also holds."
        )
    return found


def _with_progress(paths: list[Path]) -> Iterator[_Log]:
    console = Console(stderr=True)
    hidden = not console.is_terminal or len(paths) < SHOW_PROGRESS_FROM
    for path in track(paths, "reading logs", console=console, transient=True, disable=hidden):
        yield _open(path)


def _open(path: Path) -> _Log:
    """Read the header of a log and check it against the size of the file."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        raise DataError(f"{path} is no .mjl log: it has {len(header)} bytes, less than a header. {REMEDY}")
    sizes = [int(size) for size in np.frombuffer(header, "<i4")]
    nq, nv, nu, n_mocap, n_sensor, n_user, name_bytes = sizes
    if min(sizes) < 0 or max(sizes) > MAX_SIZE:
        raise DataError(f"{path} is no .mjl log: its header is {sizes}, sizes from 0 to {MAX_SIZE:,} are possible.")
    if nq < N_ROBOT + N_OBJECT or nu != N_ROBOT:
        raise DataError(
            f"{path} is the log of another model: it has {nq} positions and {nu} actuators, but the kitchen has at "
            f"least {N_ROBOT + N_OBJECT} and {N_ROBOT}."
        )
    start = HEADER_BYTES + name_bytes
    record = 1 + nq + nv + nu + 7 * n_mocap + n_sensor + n_user
    n_records, rest = divmod(path.stat().st_size - start, 4 * record)
    if n_records < 1 or rest:
        raise DataError(
            f"{path} is damaged or an incomplete copy: {max(0, n_records)} records of {record} numbers leave {rest} "
            f"bytes over. {REMEDY}"
        )
    return _Log(path, nq, nv, nu, start, record, n_records)


def _control_steps(log: _Log) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return qpos [T, nq] and ctrl [T, nu] of every control step; only these records are kept in memory."""
    records = np.memmap(log.path, "<f4", mode="r", offset=log.start, shape=(log.n_records, log.record))
    steps = np.array(records[::PHYSICS_STEPS], dtype=np.float32)
    bad = ~np.isfinite(steps).all(axis=1)
    if bad.any():
        raise DataError(f"{log.path} holds NaN or infinity, first at control step {int(np.argmax(bad))}. {REMEDY}")
    first_ctrl = 1 + log.nq + log.nv
    return steps[:, 1 : 1 + log.nq].copy(), steps[:, first_ctrl : first_ctrl + log.nu].copy()
