"""Images of a simulation's cameras, each renderer in an OpenGL context of its own."""

import atexit
import weakref
from importlib import import_module
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

MAX_GEOMS = 1000  # of a scene, as in robosuite
COLLISION_SHAPES = 0  # group of geoms that robosuite never shows


class Cameras:
    """Renders the cameras of simulations of robosuite, pixel by pixel as robosuite does.

    robosuite itself draws in the context that happens to be current, and frees the resources of whichever is current
    when it is collected: two of its environments in one process spoil each other's images. Here the own context is made
    current first. It is created for the first frame, and anew when the model has changed.

    Args:
        backend: "egl", "osmesa" or "glfw", as `rendering.choose_backend` returns it.
        size: height and width of the images in pixels.
    """

    def __init__(self, backend: str, size: int) -> None:
        self._backend = backend
        self._size = size
        self._model: Any = None  # what the context was made for
        self._context: Any = None
        self._drawing: Any = None
        self._scene: Any = None

    def frame(self, sim: Any, camera: str) -> NDArray[np.uint8]:
        """Return what a camera sees in the present state, [size, size, 3], RGB, upright.

        Args:
            sim: the simulation of an environment of robosuite.
            camera: its name, such as "agentview".
        """
        self._prepare(sim.model._model)
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = sim.model.camera_name2id(camera)
        options = mujoco.MjvOption()
        options.geomgroup[COLLISION_SHAPES] = 0
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, sim.data._data, options, mujoco.MjvPerturb(), view, everything, self._scene)
        viewport = mujoco.MjrRect(0, 0, self._size, self._size)
        mujoco.mjr_render(viewport, self._scene, self._drawing)
        image = np.empty((self._size, self._size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(image, None, viewport, self._drawing)
        return np.ascontiguousarray(image[::-1])  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free the context, if there is one. Another frame would make a new one."""
        if self._context is not None:
            self._context.make_current()
            self._drawing.free()
            self._context.free()
        self._model = self._context = self._drawing = self._scene = None

    def __del__(self) -> None:
        self.close()

    def _prepare(self, model: Any) -> None:
        if model is self._model:
            self._context.make_current()
            return
        self.close()
        # The images of a file may be larger than the 640 x 480 pixels that robosuite's models provide for.
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self._size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self._size)
        self._context = import_module(f"mujoco.{self._backend}").GLContext(self._size, self._size)
        self._context.make_current()
        self._scene = mujoco.MjvScene(model, MAX_GEOMS)
        self._drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._drawing)
        self._model = model
        # MuJoCo ends the connection to the display at exit, before objects that are left are deleted.
        atexit.register(_close, weakref.ref(self))


def _close(reference: "weakref.ref[Cameras]") -> None:
    cameras = reference()
    if cameras is not None:
        cameras.close()
