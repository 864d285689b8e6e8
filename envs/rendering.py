"""Rendering of MuJoCo scenes without a screen."""

import os
import subprocess
import sys
from functools import cache

from drift_policy.errors import ConfigurationError

BACKEND_VARIABLE = "MUJOCO_GL"
BACKENDS = ("egl", "osmesa", "glfw")
WITHOUT_SCREEN = ("egl", "osmesa")  # in the order they are tried: a graphics card or Mesa, then Mesa alone
DEBIAN_PACKAGES = "libegl1 (for EGL) or libosmesa6 (for OSMesa)"


def choose_backend() -> str:
    """Choose how MuJoCo renders, and set MUJOCO_GL, which MuJoCo reads and worker processes inherit.

    A value that is set already is kept. Otherwise EGL is taken if it works, else OSMesa.

    Raises:
        ConfigurationError: no backend works, or not the one that MUJOCO_GL names.
    """
    given = os.environ.get(BACKEND_VARIABLE)
    if given is not None and given not in BACKENDS:
        raise ConfigurationError(f"{BACKEND_VARIABLE} must be one of {', '.join(BACKENDS)}, but is {given!r}.")
    for backend in WITHOUT_SCREEN if given is None else (given,):
        if _works_once(backend):
            os.environ[BACKEND_VARIABLE] = backend
            return backend
    tried = "neither EGL nor OSMesa works" if given is None else f"{BACKEND_VARIABLE}={given} does not work"
    raise ConfigurationError(
        f"MuJoCo cannot render on this machine: {tried}. Install the Debian package {DEBIAN_PACKAGES}."
    )


def works(backend: str) -> bool:
    """Return whether `backend` gives an OpenGL context.

    It is tried in a process of its own: PyOpenGL binds itself to the first backend that a process loads, and a driver
    that is half installed may end the process.
    """
    program = f"from mujoco.{backend} import GLContext; GLContext(8, 8).make_current()"
    return subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@cache
def _works_once(backend: str) -> bool:
    """Try a backend once in a process, however many environments it makes."""
    return works(backend)
