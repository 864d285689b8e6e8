"""What demonstrations say about their simulator (robomimic's `env_args`), checked before it is made.

It may come from the metadata of somebody else's checkpoint, so only what is known passes, and only what changes the
physics is passed on.
"""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from drift_policy.data.readers.robomimic_environment import RobomimicEnvironment, robosuite_generation
from drift_policy.errors import ConfigurationError, require
from envs.robomimic.tasks import TASKS, environment_arguments

ActionMode = Literal["delta", "absolute"]
POSE_CONTROLLER = "OSC_POSE"
# How to render and when to end is decided here, not by the file.
DECIDED_HERE = {
    "has_renderer",
    "has_offscreen_renderer",
    "render_camera",
    "render_gpu_device_id",
    "ignore_done",
    "horizon",
    "hard_reset",
    "use_camera_obs",
    "camera_names",
    "camera_heights",
    "camera_widths",
    "camera_depths",
    "reward_shaping",
}
PHYSICS = {"robots", "env_configuration", "control_freq", "controller_configs", "use_object_obs"}
# Settings of the controller that are numbers, and how many: one, or one for each of so many dimensions.
CONTROLLER_NUMBERS = {
    "input_max": 6,
    "input_min": 6,
    "output_max": 6,
    "output_min": 6,
    "kp": 6,
    "damping": 6,
    "damping_ratio": 6,
    "ramp_ratio": 1,
}
CONTROLLER_LIMITS = {  # lower and upper limit, each one number or as many
    "kp_limits": 6,
    "damping_limits": 6,
    "damping_ratio_limits": 6,
    "position_limits": 3,
    "orientation_limits": 3,
}
CONTROLLER_CHOICES: dict[str, tuple[Any, ...]] = {
    "type": (POSE_CONTROLLER,),
    "impedance_mode": ("fixed",),
    "interpolation": (None, "linear"),
    "uncouple_pos_ori": (True, False),
    "control_ori": (True,),
    "control_delta": (True, False),  # replaced by the action mode
}
FREQUENCIES = (1, 500)  # Hz; physics runs at 500 Hz
IMAGE_SIZES = (16, 1024)  # pixels


@dataclass(frozen=True)
class SimulatorArguments:
    """What a simulator is made of."""

    env_name: str  # in robosuite
    env_kwargs: dict[str, Any]  # checked
    control_freq: float  # Hz
    image_size: int  # height and width of images, pixels


def default_environment(task: str) -> RobomimicEnvironment:
    """Return what robomimic's v1.4.1 files say about a task of `TASKS`."""
    arguments = environment_arguments(TASKS[task], images=False, camera_size=TASKS[task].image_size)
    return RobomimicEnvironment(
        arguments["env_name"], arguments["env_kwargs"], arguments["env_version"], arguments["type"]
    )


def check_env_args(env_args: Mapping[str, Any], task: str, action_mode: ActionMode) -> SimulatorArguments:
    """Return the arguments of the simulator that demonstrations were recorded in.

    Args:
        env_args: the fields of `RobomimicEnvironment`: name, kwargs, and if known version and type.
        task: one of `TASKS`, which the demonstrations must be of.
        action_mode: "delta" or "absolute". It replaces `control_delta`, which files of absolute actions do not change.

    Raises:
        ConfigurationError: another task, robot, controller or robosuite, or an argument that is not known.
        DataError: nothing tells which robosuite it was.
    """
    environment = _environment(env_args)
    expected = TASKS[task]
    require(
        environment.name == expected.env_name,
        f"The demonstrations are of {environment.name!r:.80}, but the task {task} is '{expected.env_name}': choose the "
        f"task of the demonstrations, one of {', '.join(TASKS)}.",
    )
    _require_generation(environment)
    kwargs = environment.kwargs
    unknown = sorted(str(name) for name in set(kwargs) - DECIDED_HERE - PHYSICS)
    require(not unknown, f"env_args has unknown arguments {unknown[:5]}: known are {sorted(PHYSICS | DECIDED_HERE)}.")
    robots = kwargs.get("robots")
    robots = [robots] if isinstance(robots, str) else robots
    require(
        robots == list(expected.robots),
        f"env_args.robots is {robots!r:.80}, but the robots of {task} are {list(expected.robots)}.",
    )
    configuration = kwargs.get("env_configuration", expected.env_configuration)
    require(
        configuration in (expected.env_configuration, expected.env_configuration or "default"),
        f"env_args.env_configuration is {configuration!r:.80}, but {task} has {expected.env_configuration!r}.",
    )
    require(
        kwargs.get("use_object_obs", True) is True,
        "env_args.use_object_obs must be true: the state of the objects is observed, and tells success.",
    )
    checked: dict[str, Any] = {
        "robots": robots,
        "control_freq": _number(kwargs.get("control_freq", 20), "env_args.control_freq", *FREQUENCIES),
        "controller_configs": _controllers(kwargs.get("controller_configs"), len(expected.robots), action_mode),
        "use_object_obs": True,
        "reward_shaping": False,
    }
    if expected.env_configuration is not None:
        checked["env_configuration"] = expected.env_configuration
    return SimulatorArguments(
        expected.env_name, checked, checked["control_freq"], _image_size(kwargs, expected.image_size)
    )


def _environment(env_args: Mapping[str, Any]) -> RobomimicEnvironment:
    known = {"name", "kwargs", "version", "type"}
    shape_fits = isinstance(env_args, Mapping) and {"name", "kwargs"} <= set(env_args) <= known
    require(
        shape_fits
        and isinstance(env_args["name"], str)
        and isinstance(env_args["kwargs"], Mapping)
        and isinstance(env_args.get("version"), str | None)
        and isinstance(env_args.get("type"), int | None),
        "env_args must have a text 'name', a mapping 'kwargs', and if at all a text 'version' and a number 'type' "
        f"(drift_policy.data.readers.robomimic.describe_robomimic reads them from a file), but is {env_args!r:.200}.",
    )
    kwargs = {str(name): value for name, value in env_args["kwargs"].items()}
    return RobomimicEnvironment(env_args["name"], kwargs, env_args.get("version"), env_args.get("type"))


def _require_generation(environment: RobomimicEnvironment) -> None:
    """Refuse recordings of robosuite 1.5, none of which can be translated exactly.

    Measured with 1.4.1 and 1.5.1 on MuJoCo 3.9.0 in all five tasks, the same states and actions: images and robot
    states are equal, but 1.5 changes the command of the fingers by 0.2 a control step where 1.4 changes it by 0.01 a
    physics step (0.25 a control step), so that states differ from the first action on, and the numbers of `object` are
    in another order or have another sign. Its default also takes delta actions in the frame of the robot's base.
    """
    if robosuite_generation(environment) == "1.5":
        raise ConfigurationError(
            f"The demonstrations of '{environment.name}' were recorded with robosuite "
            f"{environment.version or '1.5'}, but this environment runs robosuite 1.4.1 and nothing translates them "
            "exactly: in 1.5 the gripper moves otherwise, and the numbers of 'object' are others. Take robomimic's "
            "v1.4.1 file of the same demonstrations, or install robosuite==1.5.1 elsewhere and give that "
            "environment as task.env.id."
        )


def _controllers(given: Any, n_robots: int, action_mode: ActionMode) -> Any:
    """Return the controller of all robots, or a list with one for each, with the action mode set."""
    if isinstance(given, list | tuple):
        require(
            len(given) == n_robots,
            f"env_args.controller_configs must be one or {n_robots}, but there are {len(given)}.",
        )
        return [_controller(one, action_mode) for one in given]
    return _controller(given, action_mode)


def _controller(given: Any, action_mode: ActionMode) -> dict[str, Any]:
    where = "env_args.controller_configs"
    require(isinstance(given, Mapping), f"{where} must be a mapping, but is {given!r:.80}.")
    require(
        given.get("type") == POSE_CONTROLLER,
        f"{where}.type must be {POSE_CONTROLLER}, which takes poses of the hand, but is {given.get('type')!r:.80}.",
    )
    for name, value in given.items():
        place = f"{where}.{name}"
        if name in CONTROLLER_CHOICES:
            choices = CONTROLLER_CHOICES[name]
            known = any(value is choice or (isinstance(choice, str) and value == choice) for choice in choices)
            require(known, f"{place} must be one of {list(choices)}, but is {value!r:.80}.")
        elif name in CONTROLLER_NUMBERS:
            _numbers(value, place, CONTROLLER_NUMBERS[name])
        elif name in CONTROLLER_LIMITS:
            require(
                value is None or (isinstance(value, list | tuple) and len(value) == 2),
                f"{place} must be null or a lower and an upper limit, but is {value!r:.80}.",
            )
            for limit in value or ():
                _numbers(limit, place, CONTROLLER_LIMITS[name])
        else:
            raise ConfigurationError(f"{where} has the unknown setting {name!r:.80}.")
    return {**deepcopy(dict(given)), "control_delta": action_mode == "delta"}


def _numbers(value: Any, where: str, count: int) -> None:
    values = value if isinstance(value, list | tuple) else [value]
    require(
        len(values) in (1, count),
        f"{where} must be one number or {count}, but has {len(values)}.",
    )
    for number in values:
        _number(number, where, -math.inf, math.inf)


def _number(value: Any, where: str, low: float, high: float) -> float:
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    limits = "" if math.isinf(low) else f" from {low:g} to {high:g}"
    require(finite and low <= value <= high, f"{where} must be a finite number{limits}, but is {value!r:.80}.")
    return value


def _image_size(kwargs: Mapping[str, Any], default: int) -> int:
    height, width = (kwargs.get(name, default) for name in ("camera_heights", "camera_widths"))
    size = _number(height, "env_args.camera_heights", *IMAGE_SIZES)
    require(
        isinstance(height, int) and height == width,
        f"env_args.camera_heights and camera_widths must be one whole number, but are {height!r:.80}, {width!r:.80}.",
    )
    return int(size)
