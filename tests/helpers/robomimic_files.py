"""Small robomimic HDF5 files of true schema, as robosuite 1.4 and 1.5 leave them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

OSC_POSE: dict[str, Any] = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
COMPOSITE = {
    "type": "BASIC",
    "body_parts": {"right": {**OSC_POSE, "input_ref_frame": "world", "gripper": {"type": "GRIP"}}},
}
LENGTHS = {"demo_10": 4, "demo_2": 6, "demo_0": 5, "demo_1": 3}  # 2 before 10, and in no order


def env_args(generation: str = "1.4", arms: int = 1, **changes: Any) -> dict[str, Any]:
    """The description of Lift or of the two-armed Transport; `changes` replace its keys."""
    return {
        "env_name": "Lift" if arms == 1 else "TwoArmTransport",
        "env_version": {"1.4": "1.4.1", "1.5": "1.5.1"}[generation],
        "type": 1,
        "env_kwargs": {
            "has_renderer": False,
            "has_offscreen_renderer": False,
            "ignore_done": True,
            "use_object_obs": True,
            "use_camera_obs": False,
            "control_freq": 20,
            "controller_configs": OSC_POSE if generation == "1.4" else COMPOSITE,
            "robots": ["Panda"] * arms,
            "camera_depths": False,
            "camera_heights": 84,
            "camera_widths": 84,
            "reward_shaping": False,
        },
        **changes,
    }


@dataclass(frozen=True)
class DemoFile:
    """What a file shall hold; `write` makes it."""

    lengths: Mapping[str, int] = field(default_factory=lambda: LENGTHS)  # steps of each demonstration
    generation: str = "1.4"
    arms: int = 1
    absolute: bool = False
    image_size: int | None = None  # cameras of this size, or none
    masks: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def demo(self, name: str) -> dict[str, Any]:
        """The arrays of one demonstration by their path below it; the same each time."""
        rng = np.random.default_rng(int(name.removeprefix("demo_")))
        length = self.lengths[name]
        arrays: dict[str, Any] = {
            "actions": self._actions(rng, length),
            "states": rng.normal(size=(length, 32)),
            "rewards": np.zeros(length),
            "dones": np.zeros(length, np.int64),
            "obs/object": rng.normal(size=(length, 10)),
        }
        for arm in range(self.arms):
            arrays[f"obs/robot{arm}_eef_pos"] = rng.normal(size=(length, 3))
            arrays[f"obs/robot{arm}_eef_quat"] = rng.normal(size=(length, 4))
            arrays[f"obs/robot{arm}_gripper_qpos"] = rng.normal(size=(length, 2))
            if self.image_size is not None:
                shape = (length, self.image_size, self.image_size, 3)
                arrays[f"obs/robot{arm}_eye_in_hand_image"] = rng.integers(0, 256, shape, np.uint8)
        return arrays | {f"next_{key}": array for key, array in arrays.items() if key.startswith("obs/")}

    def column(self, key: str, names: Sequence[str]) -> np.ndarray:
        """What a column of these demonstrations, one after the other, must be."""
        return np.concatenate([self.demo(name)[key] for name in names])

    def write(self, path: Path) -> Path:
        with h5py.File(path, "w") as file:
            data = file.create_group("data")
            for name, length in self.lengths.items():
                group = data.create_group(name)
                group.attrs["num_samples"] = length
                group.attrs["model_file"] = f"<mujoco model='{name}'/>"
                for key, array in self.demo(name).items():
                    compressed = {"compression": "gzip", "chunks": (2, *array.shape[1:])} if array.ndim == 4 else {}
                    group.create_dataset(key, data=array, **compressed)
            data.attrs["total"] = sum(self.lengths.values())
            data.attrs["env_args"] = json.dumps(env_args(self.generation, self.arms), indent=4)
            for key, names in self.masks.items():
                file.create_dataset(f"mask/{key}", data=np.array(names, dtype="S"))
        return path

    def _actions(self, rng: np.random.Generator, length: int) -> np.ndarray:
        arms = rng.uniform(-1, 1, (length, self.arms, 7))
        if self.absolute:
            # A gripper that points down, give or take: half a turn about an axis that is nearly horizontal.
            arms[..., 3:6] = [np.pi - 0.2, 0, 0] + 0.1 * arms[..., 3:6]
        return arms.reshape(length, -1)
