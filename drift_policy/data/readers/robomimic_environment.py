"""What a robomimic file says about its simulator, and which robosuite can replay it."""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from drift_policy.errors import ConfigurationError, DataError

ROBOSUITE_TYPE = 1  # robomimic's number for environments of robosuite
RobosuiteGeneration = Literal["1.4", "1.5"]
# 1.4.1 replays robomimic's v1.4.1 files; 1.5.1 is the last release before a dependency that forces numpy below 2.
RELEASES: dict[RobosuiteGeneration, str] = {"1.4": "1.4.1", "1.5": "1.5.1"}
POSE_CONTROLLER = "OSC_POSE"


@dataclass(frozen=True)
class RobomimicEnvironment:
    """The attribute `env_args` of a robomimic file."""

    name: str  # name of the environment, such as "Lift"
    kwargs: dict[str, Any]  # arguments of the environment; copy them before changing any
    version: str | None = None  # release of the simulator, such as "1.4.1"; the first files of robomimic have none
    type: int | None = None  # robomimic's number for the simulator: 1 is robosuite

    @property
    def takes_poses(self) -> bool:
        """Whether it is robosuite's with a controller for poses, whose delta actions all lie in [-1, 1]."""
        return self.type == ROBOSUITE_TYPE and POSE_CONTROLLER in _controller_types(self.kwargs)


def parse_environment(text: str, where: str) -> RobomimicEnvironment:
    """Parse the JSON of `env_args`; `where` is how messages call it.

    Raises:
        DataError: it is no JSON, or not with the keys of robomimic.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is no JSON ({type(error).__name__}: {error}). Correct it, or get the file again."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{where} must be a JSON object, but is {text:.50}.")
    expected: dict[str, type | tuple[type, ...]] = {
        "env_name": str,
        "env_kwargs": dict,
        "env_version": (str, type(None)),
        "type": (int, type(None)),
    }
    for key, kinds in expected.items():
        if not isinstance(content.get(key), kinds):
            raise DataError(
                f"{where} must have a text 'env_name', an object 'env_kwargs', and if at all a text 'env_version' and "
                f"a number 'type', but '{key}' is {content.get(key)!r:.50}."
            )
    return RobomimicEnvironment(
        content["env_name"], content["env_kwargs"], content.get("env_version"), content.get("type")
    )


def robosuite_generation(environment: RobomimicEnvironment) -> RobosuiteGeneration:
    """Say which robosuite a file was recorded or converted with: "1.4" (1.4 and before) or "1.5".

    The version in the file decides. Without one the controller does: composite controllers, with "body_parts", exist
    since 1.5. A file of 1.5 may still describe its controller in the old way.

    Raises:
        DataError: another simulator, an unknown version, nothing to tell by, or a composite controller before 1.5.
    """
    name, version = environment.name, environment.version
    if environment.type not in (ROBOSUITE_TYPE, None):
        raise DataError(
            f"'{name}' is no environment of robosuite: its type in env_args is {environment.type}, not "
            f"{ROBOSUITE_TYPE}."
        )
    controllers = _controllers(environment.kwargs)
    composite = any("body_parts" in controller for controller in controllers)
    if version is None:
        if not controllers:
            raise DataError(
                f"Nothing in env_args says which robosuite '{name}' was recorded with: it has neither 'env_version' "
                "nor controller_configs. Write the version into env_args."
            )
        return "1.5" if composite else "1.4"
    generation = _generation(version)
    if generation is None:
        raise DataError(f"'{name}' was recorded with robosuite {version}; known are 1.0 to 1.5.")
    if composite and generation == "1.4":
        raise DataError(
            f"'{name}' was recorded with robosuite {version} according to env_version, but has the composite "
            "controllers of 1.5: correct env_args."
        )
    return generation


def check_installed_robosuite(environment: RobomimicEnvironment, installed: str | None) -> None:
    """Require that a release of robosuite can make the environment of a file.

    Args:
        environment: what the file says.
        installed: `robosuite.__version__`; None if it is not installed.

    Raises:
        ConfigurationError: another generation, or none; the message names the release to install.
        DataError: as `robosuite_generation`.
    """
    generation = robosuite_generation(environment)
    if installed is None or _generation(installed) != generation:
        found = "is not installed" if installed is None else f"is {installed}"
        raise ConfigurationError(
            f"'{environment.name}' needs robosuite {generation} "
            f"(env_version in the file: {environment.version or 'none'}), but robosuite {found}: controllers and "
            f"observations differ. pip install 'robosuite=={RELEASES[generation]}', or take a file for the robosuite "
            "that is installed."
        )


def _generation(version: str) -> RobosuiteGeneration | None:
    match = re.match(r"1\.([0-9]{1,3})", version)
    minor = None if match is None else int(match.group(1))
    if minor is None or minor > 5:
        return None
    return "1.5" if minor == 5 else "1.4"


def _controllers(kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the descriptions of the controllers: one object for all robots, or a list with one for each."""
    configs = kwargs.get("controller_configs")
    return [config for config in (configs if isinstance(configs, list) else [configs]) if isinstance(config, dict)]


def _controller_types(kwargs: dict[str, Any]) -> set[str]:
    types = set()
    for controller in _controllers(kwargs):
        body_parts = controller.get("body_parts")
        parts = list(body_parts.values()) if isinstance(body_parts, dict) else [controller]
        types |= {str(part.get("type")) for part in parts if isinstance(part, dict)}
    return types
