"""The five tasks of robomimic in simulation, with the `env_args` of its v1.4.1 "ph" files."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

ENV_VERSION = "1.4.1"
ROBOSUITE_TYPE = 1  # robomimic's number for environments of robosuite

# Targets relative to the present pose, each action in [-1, 1] up to 5 cm and 0.5 rad, at 20 Hz.
DELTA_POSE_CONTROLLER: dict[str, Any] = {
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


@dataclass(frozen=True)
class RobomimicTask:
    """A task as robomimic names it, and as robosuite does."""

    env_name: str  # name of the environment in robosuite
    cameras: tuple[str, ...]  # cameras of robomimic's image files
    image_size: int = 84  # height and width of their images in Diffusion Policy's files, pixels
    robots: tuple[str, ...] = ("Panda",)
    env_configuration: str | None = None  # how robosuite places two robots


TASKS = {
    "lift": RobomimicTask("Lift", ("agentview", "robot0_eye_in_hand")),
    "can": RobomimicTask("PickPlaceCan", ("agentview", "robot0_eye_in_hand")),
    "square": RobomimicTask("NutAssemblySquare", ("agentview", "robot0_eye_in_hand")),
    "tool_hang": RobomimicTask("ToolHang", ("sideview", "robot0_eye_in_hand"), image_size=240),
    "transport": RobomimicTask(
        "TwoArmTransport",
        ("shouldercamera0", "shouldercamera1", "robot0_eye_in_hand", "robot1_eye_in_hand"),
        robots=("Panda", "Panda"),
        env_configuration="single-arm-opposed",
    ),
}


def environment_arguments(task: RobomimicTask, images: bool, camera_size: int) -> dict[str, Any]:
    """Return the `env_args` of a file of this task.

    Args:
        task: one of `TASKS`.
        images: whether the file holds images.
        camera_size: height and width of the images in pixels.
    """
    kwargs: dict[str, Any] = {
        "has_renderer": False,
        "has_offscreen_renderer": images,
        "ignore_done": True,
        "use_object_obs": True,
        "use_camera_obs": images,
        "control_freq": 20,
        "controller_configs": deepcopy(DELTA_POSE_CONTROLLER),
        "robots": list(task.robots),
        "camera_depths": False,
        "camera_heights": camera_size,
        "camera_widths": camera_size,
        "reward_shaping": False,
    }
    if images:
        kwargs["camera_names"] = list(task.cameras)
    if task.env_configuration is not None:
        kwargs["env_configuration"] = task.env_configuration
    return {"env_name": task.env_name, "env_version": ENV_VERSION, "type": ROBOSUITE_TYPE, "env_kwargs": kwargs}
