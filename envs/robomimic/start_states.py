"""Where the demonstrations of a robomimic file start, to start an environment there."""

import xml.etree.ElementTree as ET
from pathlib import Path

from drift_policy.data.readers.robomimic import StartState, describe_robomimic, read_start_state
from drift_policy.errors import DataError

FILES_OF = ("mesh", "texture")  # elements of robosuite's models that name files, all inside robosuite
REFUSED = ("include", "plugin", "extension")  # elements with which a model could load anything else
MAX_ELEMENTS = 100_000


class StartStates:
    """The first states of the demonstrations of a file, in their numerical order.

    Args:
        path: a robomimic file.
        env_name: the environment that it must be of, such as "Lift".

    Raises:
        DataError: the file is damaged, or of another environment.
    """

    def __init__(self, path: str | Path, env_name: str) -> None:
        self._path = Path(path)
        found = describe_robomimic(self._path)
        if found.environment.name != env_name:
            raise DataError(
                f"start_states={self._path} holds demonstrations of '{found.environment.name}', but the environment is "
                f"'{env_name}': give a file of the same task."
            )
        self._demos = found.demos

    def __len__(self) -> int:
        return len(self._demos)

    def read(self, number: int) -> StartState:
        """Return the start of a demonstration, its model checked.

        Raises:
            DataError: it is missing or damaged, or its model would load files from elsewhere.
        """
        start = read_start_state(self._path, self._demos[number])
        if start.model is not None:
            check_model(start.model, f"{self._path}: attribute 'model_file' of 'data/{self._demos[number]}'")
        return start


def check_model(model: str, where: str) -> None:
    """Require that the only files which a model names are meshes and textures of robosuite.

    Args:
        model: MuJoCo's XML.
        where: how messages call it.

    Raises:
        DataError: it is no XML, or names other files.
    """
    try:
        root = ET.fromstring(model)
    except ET.ParseError as error:
        raise DataError(f"{where} is no XML ({error}). Get the file again.") from error
    for count, element in enumerate(root.iter()):
        if element.tag in REFUSED or count > MAX_ELEMENTS:
            raise DataError(f"{where} is no model of robosuite: it has <{element.tag}> elements, or far too many.")
        for name, value in element.attrib.items():
            if not name.startswith("file"):
                continue
            # robosuite replaces everything up to the last folder "robosuite" by the one where it is installed.
            parts = value.split("/")
            if element.tag not in FILES_OF or name != "file" or "robosuite" not in parts or ".." in parts:
                raise DataError(
                    f"{where} is no model of robosuite: <{element.tag}> names the file {value!r:.80}, which is no mesh "
                    "or texture inside a folder 'robosuite'."
                )
