"""What may make a simulator of robomimic: the arguments of demonstrations, and the models of their starts."""

from dataclasses import asdict
from typing import Any

import pytest

from drift_policy.errors import ConfigurationError, DataError
from envs.robomimic.env_args import check_env_args, default_environment
from envs.robomimic.start_states import check_model
from envs.robomimic.tasks import DELTA_POSE_CONTROLLER, TASKS
from tests.helpers.robomimic_files import COMPOSITE


def env_args(task: str = "lift", controller: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a task's files, with these changes."""
    arguments = asdict(default_environment(task))
    arguments["kwargs"] |= {"controller_configs": DELTA_POSE_CONTROLLER | (controller or {})} | kwargs
    return arguments


@pytest.mark.parametrize("task", TASKS)
def test_the_arguments_of_robomimics_files_pass(task: str) -> None:
    checked = check_env_args(env_args(task), task, "delta")
    assert (checked.env_name, checked.control_freq) == (TASKS[task].env_name, 20)
    assert checked.image_size == {"tool_hang": 240}.get(task, 84)
    assert checked.env_kwargs["robots"] == list(TASKS[task].robots)
    assert checked.env_kwargs["controller_configs"] == DELTA_POSE_CONTROLLER
    assert checked.env_kwargs.get("env_configuration") == TASKS[task].env_configuration


def test_what_image_files_and_older_files_add_passes() -> None:
    cameras = {"camera_names": ["agentview"], "camera_heights": 120, "camera_widths": 120, "render_gpu_device_id": 0}
    given = env_args(**cameras, has_offscreen_renderer=True, use_camera_obs=True, robots="Panda")
    given["version"] = given["type"] = None
    checked = check_env_args(given, "lift", "delta")
    assert checked.image_size == 120
    assert set(checked.env_kwargs) == {
        "robots",
        "control_freq",
        "controller_configs",
        "use_object_obs",
        "reward_shaping",
    }


def test_the_kind_of_action_decides_how_the_controller_takes_it() -> None:
    given = env_args("transport", controller_configs=[DELTA_POSE_CONTROLLER, DELTA_POSE_CONTROLLER])
    controllers = check_env_args(given, "transport", "absolute").env_kwargs["controller_configs"]
    assert [controller["control_delta"] for controller in controllers] == [False, False]
    assert DELTA_POSE_CONTROLLER["control_delta"] is True
    back = env_args(controller={"control_delta": False})
    assert check_env_args(back, "lift", "delta").env_kwargs["controller_configs"]["control_delta"] is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"robots": ["Sawyer"]}, r"robots is \['Sawyer'\], but the robots of lift are \['Panda'\]"),
        ({"robots": ["Panda", "Panda"]}, "robots"),
        ({"robots": {"model": "/etc/passwd"}}, "robots"),
        ({"env_configuration": "bimanual"}, "env_configuration is 'bimanual'"),
        ({"renderer_config": {"file": "/tmp/x"}}, r"unknown arguments \['renderer_config'\]"),
        ({"custom_xml": "x"}, r"unknown arguments \['custom_xml'\]"),
        ({"use_object_obs": False}, "use_object_obs must be true"),
        ({"control_freq": 0}, "control_freq must be a finite number from 1 to 500, but is 0"),
        ({"control_freq": float("nan")}, "control_freq"),
        ({"control_freq": "20"}, "control_freq"),
        ({"camera_heights": 100_000}, "camera_heights must be a finite number from 16 to 1024"),
        ({"camera_heights": 100}, "camera_heights and camera_widths must be one whole number"),
        ({"controller_configs": "osc.json"}, "controller_configs must be a mapping, but is 'osc.json'"),
        ({"controller_configs": [DELTA_POSE_CONTROLLER] * 3}, "must be one or 1, but there are 3"),
        ({"controller": {"type": "JOINT_VELOCITY"}}, "type must be OSC_POSE.*'JOINT_VELOCITY'"),
        ({"controller": {"impedance_mode": "variable"}}, r"impedance_mode must be one of \['fixed'\]"),
        ({"controller": {"interpolation": "filename"}}, "interpolation must be one of"),
        ({"controller": {"control_delta": 1}}, "control_delta must be one of"),
        ({"controller": {"kp": float("inf")}}, "kp must be a finite number"),
        ({"controller": {"output_max": [0.05] * 4}}, "output_max must be one number or 6, but has 4"),
        ({"controller": {"kp_limits": 3}}, "kp_limits must be null or a lower and an upper limit"),
        ({"controller": {"position_limits": [[0, 0], [1, 1]]}}, "position_limits must be one number or 3"),
        ({"controller": {"policy_freq": 20}}, "unknown setting 'policy_freq'"),
    ],
)
def test_everything_else_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_env_args(env_args(**changes), "lift", "delta")


@pytest.mark.parametrize(
    "given", [{}, {"name": "Lift"}, {"name": 1, "kwargs": {}}, {"name": "Lift", "kwargs": {}, "file": "x"}, "Lift"]
)
def test_descriptions_of_another_form_are_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="env_args must have a text 'name'"):
        check_env_args(given, "lift", "delta")


def test_demonstrations_of_another_task_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="are of 'PickPlaceCan', but the task lift is 'Lift'"):
        check_env_args(env_args("can"), "lift", "delta")


@pytest.mark.parametrize(
    "changes",
    [{"version": "1.5.1"}, {"version": None, "kwargs": env_args()["kwargs"] | {"controller_configs": COMPOSITE}}],
)
def test_recordings_of_robosuite_1_5_are_refused_with_a_way_out(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"robosuite 1\.5.*v1\.4\.1 file.*robosuite==1\.5\.1"):
        check_env_args(env_args() | changes, "lift", "delta")


MODEL = "<mujoco><compiler meshdir='meshes/'/><asset>{}</asset></mujoco>"


def test_a_model_of_robosuite_passes() -> None:
    path = "/home/x/robosuite/robosuite/models/assets/robots/panda/meshes/link0.stl"
    check_model(MODEL.format(f"<mesh file='{path}'/><texture file='{path}'/><texture builtin='flat'/>"), "here")


@pytest.mark.parametrize(
    "content",
    [
        "<mesh file='/etc/passwd'/>",
        "<mesh file='xrobosuite/link0.stl'/>",
        "<texture file='robosuite/../../secret.png'/>",
        "<texture fileup='robosuite/a.png'/>",
        "<hfield file='robosuite/a.png'/>",
        "<include file='robosuite/a.xml'/>",
        "<plugin plugin='x'/>",
        "<mesh",
    ],
)
def test_a_model_that_loads_anything_else_is_refused(content: str) -> None:
    with pytest.raises(DataError, match="^here is no (model|XML)"):
        check_model(MODEL.format(content), "here")
