"""What robomimic files say about their simulator: which robosuite replays them, and what to install for it."""

from pathlib import Path
from typing import Any

import pytest

from drift_policy.data.readers.robomimic import describe_robomimic
from drift_policy.data.readers.robomimic_environment import (
    RobomimicEnvironment,
    check_installed_robosuite,
    parse_environment,
    robosuite_generation,
)
from drift_policy.errors import ConfigurationError, DataError
from tests.helpers.robomimic_files import COMPOSITE, OSC_POSE, DemoFile


@pytest.mark.parametrize(
    ("version", "controllers", "generation"),
    [
        ("1.4.1", OSC_POSE, "1.4"),
        ("1.2.0", OSC_POSE, "1.4"),
        ("1.4.1", [OSC_POSE, OSC_POSE], "1.4"),
        (None, OSC_POSE, "1.4"),
        ("1.5.1", COMPOSITE, "1.5"),
        (None, COMPOSITE, "1.5"),
        (None, [COMPOSITE, COMPOSITE], "1.5"),
        ("1.5.0", OSC_POSE, "1.5"),
        ("1.5.1", None, "1.5"),
    ],
)
def test_the_generation_follows_from_version_and_controllers(
    version: str | None, controllers: Any, generation: str
) -> None:
    environment = RobomimicEnvironment("Lift", {"controller_configs": controllers}, version, 1)
    assert robosuite_generation(environment) == generation


@pytest.mark.parametrize(
    ("version", "controllers", "kind", "message"),
    [
        ("1.4.1", COMPOSITE, 1, "recorded with robosuite 1.4.1 .*composite controllers of 1.5"),
        (None, None, 1, "neither 'env_version' nor controller_configs"),
        ("1.6.0", COMPOSITE, 1, "robosuite 1.6.0; known are"),
        ("1.50", COMPOSITE, 1, "robosuite 1.50; known are"),
        ("0.3.0", OSC_POSE, 1, "robosuite 0.3.0; known are"),
        ("2.1.5", OSC_POSE, 1, "robosuite 2.1.5; known are"),
        ("1.4.1", OSC_POSE, 2, "no environment of robosuite: its type in env_args is 2"),
    ],
)
def test_files_of_unknown_simulators_are_refused(
    version: str | None, controllers: Any, kind: int, message: str
) -> None:
    environment = RobomimicEnvironment("Lift", {"controller_configs": controllers}, version, kind)
    with pytest.raises(DataError, match=message):
        robosuite_generation(environment)


@pytest.mark.parametrize(("generation", "fitting", "release"), [("1.4", "1.4.0", "1.4.1"), ("1.5", "1.5.2", "1.5.1")])
def test_the_error_names_the_robosuite_to_install(tmp_path: Path, generation: str, fitting: str, release: str) -> None:
    environment = describe_robomimic(DemoFile(generation=generation).write(tmp_path / "demo.hdf5")).environment
    check_installed_robosuite(environment, fitting)
    other = {"1.4": "1.5.1", "1.5": "1.4.1"}[generation]
    for installed, found in ((other, f"is {other}"), (None, "is not installed"), ("2.0", "is 2.0")):
        with pytest.raises(ConfigurationError, match=f"{found}.*pip install 'robosuite=={release}'"):
            check_installed_robosuite(environment, installed)


@pytest.mark.parametrize(
    "text",
    [
        '{"env_name": "Lift"}',
        '{"env_kwargs": {}}',
        '{"env_name": 3, "env_kwargs": {}}',
        '{"env_name": "Lift", "env_kwargs": []}',
        '{"env_name": "Lift", "env_kwargs": {}, "env_version": 1.4}',
        '{"env_name": "Lift", "env_kwargs": {}, "type": "robosuite"}',
        "null",
        "[" * 100_000,
        "1" * 10_000,
    ],
)
def test_descriptions_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="^env_args (must|is no JSON)"):
        parse_environment(text, "env_args")
