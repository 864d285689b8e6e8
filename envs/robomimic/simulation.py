"""robosuite's environments as robomimic uses them: made from `env_args`, seeded, set to states, observed."""

import importlib
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift_policy.errors import ConfigurationError
from envs.rendering import BACKEND_VARIABLE, choose_backend

RELEASE = "1.4.1"  # of robosuite, with which robomimic's v1.4.1 files were made
LOGGER = "robosuite_logs"
# robosuite turns every MUJOCO_GL but these two into "egl"; "glx" alone needs no library of the system at import.
WITHOUT_RENDERING = "glx"


@cache
def import_robosuite() -> ModuleType:
    """Import robosuite without its notices, bound to a rendering backend that works, if there is one.

    robosuite takes the backend from MUJOCO_GL once, when it is imported, so it is chosen here even for simulations that
    render nothing.

    Raises:
        ConfigurationError: robosuite is not installed, or of another release than 1.4.
    """
    given = os.environ.get(BACKEND_VARIABLE)
    try:
        choose_backend()
    except ConfigurationError:  # told by make_robosuite, to those who want to render
        os.environ[BACKEND_VARIABLE] = WITHOUT_RENDERING
    logger = logging.getLogger(LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        module = importlib.import_module("robosuite")
    except ImportError as error:
        raise ConfigurationError(
            f"This needs the package robosuite {RELEASE}, which cannot be imported ({error}): "
            f"pip install 'robosuite=={RELEASE}' 'mujoco<3.10'."
        ) from error
    finally:
        logger.setLevel(level)
        if os.environ.get(BACKEND_VARIABLE) == WITHOUT_RENDERING:
            _set_variable(BACKEND_VARIABLE, given)
    if not module.__version__.startswith("1.4."):
        raise ConfigurationError(
            f"This needs robosuite {RELEASE}, but {module.__version__} is installed: controllers and observations "
            f"differ. pip install 'robosuite=={RELEASE}'."
        )
    return module


def make_robosuite(env_name: str, env_kwargs: Mapping[str, Any], rendering: bool = False) -> Any:
    """Make an environment of robosuite from the `env_name` and `env_kwargs` of robomimic's `env_args`.

    Three settings differ from robomimic's, none of which changes the physics. Cameras are no observables, which
    robosuite would render twice a step: `observe` renders them. A reset keeps the loaded model (`hard_reset=False`,
    unless the arguments say otherwise), because loading it anew takes long and leaks memory in robosuite. And the sizes
    of objects that robosuite draws when it loads a model are always the same ones. Velocities of the end effector and
    joint angles are observed, as robomimic does.

    Args:
        env_name: a name that robosuite has registered, such as "Lift".
        env_kwargs: arguments of that environment; they are not changed.
        rendering: whether cameras can be rendered.

    Raises:
        ConfigurationError: robosuite is missing or of another release, has no such environment, refuses an argument, or
            cannot render on this machine.
    """
    if rendering:
        choose_backend()
    robosuite = import_robosuite()
    known = sorted(robosuite.ALL_ENVIRONMENTS)
    if env_name not in known:
        raise ConfigurationError(f"robosuite has no environment '{env_name}': its environments are {', '.join(known)}.")
    kwargs = {
        "hard_reset": False,
        **env_kwargs,
        "has_renderer": False,
        "has_offscreen_renderer": rendering,
        "use_camera_obs": False,
        "ignore_done": True,
    }
    try:
        with _seeded(0):
            env = robosuite.make(env_name, **kwargs)
    except (TypeError, AssertionError) as error:
        raise ConfigurationError(f"robosuite cannot make '{env_name}' with these env_kwargs: {error}") from error
    for name in env.observation_names:
        if "joint_pos" in name or "eef_vel" in name:
            env.modify_observable(observable_name=name, attribute="active", modifier=True)
    env.visualize(vis_settings=dict.fromkeys(env._visualizations, False))  # hide markers, as every reset does
    return env


def reset_robosuite(env: Any, seed: int) -> None:
    """Start an episode: the same seed gives the same placements and joint angles in every process.

    robosuite draws them from the global generators of numpy and Python, which are left as they were. The model stays
    the one that is loaded; see `load_own_model`.

    Args:
        env: from `make_robosuite`.
        seed: 0 to 2**32 - 1.
    """
    with _seeded(seed):
        env.reset()


def load_own_model(env: Any) -> None:
    """Load the environment's own model again, in place of one that `restore_state` was given."""
    env._initialize_sim()
    with _seeded(0):
        env.reset()
    _renew_sensors(env)


def restore_state(env: Any, state: NDArray[np.float64], model: str | None = None) -> None:
    """Set the simulator to a stored state, as at the start of an episode.

    The controllers take the joint angles of this state for those of the start, to which they pull the redundant joint,
    so that the actions of a demonstration, from its first state on, have the effect that they had when recorded.

    Args:
        env: from `make_robosuite`.
        state: [D] flattened MuJoCo state: time, positions, velocities.
        model: MuJoCo's XML of the scene, if it is to replace the present one; its meshes are looked for in the
            robosuite that is installed.

    Raises:
        ValueError: the state is not of this model.
    """
    if model is not None:
        env.reset_from_xml_string(env.edit_model_xml(model))
        _renew_sensors(env)
    expected = env.sim.get_state().flatten().shape
    if state.shape != expected:
        raise ValueError(f"A state of {type(env).__name__} has shape {expected}, but {state.shape} was given.")
    env.sim.reset()
    env.sim.set_state_from_flattened(state)
    env.sim.forward()
    for robot in env.robots:
        robot.controller.update_initial_joints(robot._joint_positions)
        robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)


def observe(env: Any, cameras: Sequence[str] = (), camera_shape: tuple[int, int] = (84, 84)) -> dict[str, NDArray[Any]]:
    """Observe the present state as robomimic stores it.

    Everything follows from the state alone. What `env.step` returns is one physics step (2 ms) older.

    Args:
        env: from `make_robosuite`, with `rendering=True` for cameras.
        cameras: names of cameras, such as "agentview".
        camera_shape: height and width of their images in pixels.

    Returns:
        "object" [D], "robot<i>_<quantity>" [D], float64, in metres, radians and quaternions (x, y, z, w), and
        "<camera>_image" [H, W, 3] uint8, RGB, upright.
    """
    env.sim.forward()
    seen = env._get_observations(force_update=True)
    observation = {"object": np.array(seen["object-state"])} if "object-state" in seen else {}
    for key, value in seen.items():
        if key.startswith("robot") and not key.endswith("proprio-state"):
            observation[key] = np.array(value)
    height, width = camera_shape
    for camera in cameras:
        frame = env.sim.render(camera_name=camera, height=height, width=width)
        observation[f"{camera}_image"] = np.ascontiguousarray(frame[::-1])
    return observation


def is_success(env: Any) -> bool:
    """Return whether the task is solved in the present state."""
    return bool(env._check_success())


def _renew_sensors(env: Any) -> None:
    """Let observables read from the simulation that is loaded; robosuite leaves some of ToolHang's with the one before.

    It renews them itself only in a reset that loads the model anew (`hard_reset`).
    """
    for name, observable in env._setup_observables().items():
        env.modify_observable(observable_name=name, attribute="sensor", modifier=observable._sensor)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
        random.setstate(python_state)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
