"""The table, the robot and the blocks in pybullet."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.block_push.bullet import connect
from envs.block_push.starts import BLOCKS, EFFECTOR, EFFECTOR_TARGET, N_NUMBERS, TABLE, TARGETS, WORKSPACE, Numbers

PHYSICS_STEPS = 24  # of 1/240 s in each control step
GRAVITY = -9.8  # m/s^2

# The robot: joints and links of pybullet_data's xArm 6 have the same numbers.
ROBOT_MODEL = "xarm/xarm6_robot.urdf"
JOINTS = (1, 2, 3, 4, 5, 6)
FLANGE = 6
FLANGE_HEIGHT = 0.06  # metres, kept at all times
POINTING_DOWN = (0.0, 1.0, 0.0, 0.0)  # orientation of the flange as a quaternion x, y, z, w
JOINT_TORQUE = 1200.0  # Nm, more than enough: the joints follow their targets
ELBOW_UP = (-0.92, 0.7, -1.1, 0.0, 0.4, -4.06)  # joint angles near the usual start, from which others are computed

# The tool below the flange: a thin stick, held by a constraint that gives way before anything is crushed.
TOOL_RADIUS, TOOL_LENGTH, TOOL_MASS = 0.005, 0.05, 0.1
TOOL_OFFSET = 0.029  # from the flange to the middle of the stick
TOOL_FORCE = 50.0  # N

BLOCK_SIZE, BLOCK_MASS, BLOCK_FRICTION = 0.04, 0.01, 0.5
ROLLING_FRICTION = 0.0001
TARGET_SIZE = 0.1  # side of the drawn square: its inner circle is where a block's centre counts

BLOCK_COLORS = ((0.85, 0.25, 0.2, 1.0), (0.2, 0.4, 0.85, 1.0))
TARGET_COLORS = ((0.35, 0.75, 0.4, 1.0), (0.85, 0.75, 0.3, 1.0))
ROBOT_COLORS = ((0.92, 0.92, 0.92, 1.0), (0.6, 0.6, 0.62, 1.0))  # of every other link
CAMERA_EYE, CAMERA_FOCUS, CAMERA_ANGLE = (1.15, 0.0, 0.8), (0.36, 0.0, 0.06), 46.0  # metres, metres, degrees


class World:
    """A table with two blocks, two target areas, and an xArm that moves a stick over it.

    `build` makes everything anew, so that nothing of an earlier episode, not even the order in which contacts are
    solved, can change the next one.
    """

    def __init__(self) -> None:
        self._client = connect()
        self._blocks: list[int] = []
        self._target_poses = np.zeros((2, 3))
        self._effector_target = np.zeros(2)
        self._robot = -1

    def build(self, state: Numbers) -> None:
        """Make the scene with everything at rest where `state` [16], an observation, says."""
        client = self._client
        client.resetSimulation()
        client.setGravity(0, 0, GRAVITY)
        self._add_table()
        self._target_poses = np.stack([state[target] for target in TARGETS])
        for pose, color in zip(self._target_poses, TARGET_COLORS, strict=True):
            self._add_box(pose, (TARGET_SIZE, TARGET_SIZE, 0.001), color, mass=0.0)
        self._blocks = [
            self._add_box(state[block], (BLOCK_SIZE,) * 3, color, mass=BLOCK_MASS)
            for block, color in zip(BLOCKS, BLOCK_COLORS, strict=True)
        ]
        self._add_robot(state[EFFECTOR])
        self._effector_target = state[EFFECTOR_TARGET].copy()
        self._command(state[EFFECTOR])
        for _ in range(PHYSICS_STEPS):  # contacts and motors come to rest
            client.stepSimulation()

    def move(self, target: Numbers) -> None:
        """Let the effector follow `target` [2] (x, y in metres, brought into the workspace) for 0.1 s."""
        self._effector_target = target.clip(*WORKSPACE)
        self._command(self._effector_target)
        for _ in range(PHYSICS_STEPS):
            self._client.stepSimulation()

    def observe(self) -> Numbers:
        """Return the sixteen numbers of an observation."""
        numbers = np.empty(N_NUMBERS)
        for part, block in zip(BLOCKS, self._blocks, strict=True):
            position, orientation = self._client.getBasePositionAndOrientation(block)
            yaw = self._client.getEulerFromQuaternion(orientation)[2]
            numbers[part] = (*position[:2], yaw % np.pi)
        numbers[EFFECTOR] = self._client.getLinkState(self._robot, FLANGE)[4][:2]
        numbers[EFFECTOR_TARGET] = self._effector_target
        for part, pose in zip(TARGETS, self._target_poses, strict=True):
            numbers[part] = pose
        return numbers

    def render(self, size: int) -> NDArray[np.uint8]:
        """Return the scene from the front as [size, size, 3] uint8, RGB, drawn without a graphics card or screen."""
        client = self._client
        view = client.computeViewMatrix(CAMERA_EYE, CAMERA_FOCUS, (0, 0, 1))
        projection = client.computeProjectionMatrixFOV(CAMERA_ANGLE, 1.0, 0.05, 5.0)
        pixels = client.getCameraImage(
            size,
            size,
            view,
            projection,
            shadow=0,
            lightDirection=(0.6, -0.4, 1.0),
            flags=client.ER_NO_SEGMENTATION_MASK,
            renderer=client.ER_TINY_RENDERER,
        )[2]
        return np.array(pixels, dtype=np.uint8).reshape(size, size, 4)[:, :, :3]

    def close(self) -> None:
        """End the physics server."""
        self._client.disconnect()

    def _command(self, target: Numbers) -> None:
        self._client.setJointMotorControlArray(
            self._robot,
            JOINTS,
            self._client.POSITION_CONTROL,
            targetPositions=self._joint_angles(target),
            forces=[JOINT_TORQUE] * len(JOINTS),
        )

    def _joint_angles(self, target: Numbers) -> tuple[float, ...]:
        """Return joint angles that bring the flange to x, y of `target`, found from where the joints are now."""
        position = (*target.tolist(), FLANGE_HEIGHT)
        angles: tuple[float, ...] = self._client.calculateInverseKinematics(
            self._robot, FLANGE, position, POINTING_DOWN, maxNumIterations=100, residualThreshold=1e-10
        )
        return angles

    def _add_table(self) -> None:
        client = self._client
        half = (TABLE, TABLE, 0.5)
        shape = client.createCollisionShape(client.GEOM_BOX, halfExtents=half)
        client.createMultiBody(0, shape, basePosition=(0, 0, -0.5))
        middle, extent = WORKSPACE.mean(axis=0), np.ptp(WORKSPACE, axis=0)
        self._add_box((*middle, 0.0), (*extent, 0.0005), (0.25, 0.25, 0.27, 1.0), mass=0.0)

    def _add_box(self, pose: Any, size: tuple[float, ...], color: tuple[float, ...], mass: float) -> int:
        """Add a box at x, y, yaw on the table; one without mass is only seen."""
        client = self._client
        half = [length / 2 for length in size]
        visual = client.createVisualShape(client.GEOM_BOX, halfExtents=half, rgbaColor=color)
        collision = client.createCollisionShape(client.GEOM_BOX, halfExtents=half) if mass else -1
        body: int = client.createMultiBody(
            mass,
            collision,
            visual,
            basePosition=(pose[0], pose[1], half[2]),
            baseOrientation=client.getQuaternionFromEuler((0, 0, pose[2])),
        )
        if mass:
            client.changeDynamics(body, -1, lateralFriction=BLOCK_FRICTION, rollingFriction=ROLLING_FRICTION)
        return body

    def _add_robot(self, effector: Numbers) -> None:
        client = self._client
        self._robot = client.loadURDF(ROBOT_MODEL, useFixedBase=True)
        for link in range(-1, client.getNumJoints(self._robot)):
            client.changeDynamics(self._robot, link, linearDamping=0, angularDamping=0)
            client.setCollisionFilterGroupMask(self._robot, link, 0, 0)  # only the tool comes near the table
            client.changeVisualShape(self._robot, link, rgbaColor=ROBOT_COLORS[link % 2])
        angles: tuple[float, ...] = ELBOW_UP
        for _ in range(20):  # each round starts where the one before ended
            for joint, angle in zip(JOINTS, angles, strict=True):
                client.resetJointState(self._robot, joint, angle)
            angles = self._joint_angles(effector)
        self._add_tool()

    def _add_tool(self) -> None:
        client = self._client
        geometry = {"radius": TOOL_RADIUS, "collisionFramePosition": (0, 0, TOOL_OFFSET)}
        collision = client.createCollisionShape(client.GEOM_CYLINDER, height=TOOL_LENGTH, **geometry)
        visual = client.createVisualShape(
            client.GEOM_CYLINDER,
            radius=TOOL_RADIUS,
            length=TOOL_LENGTH,
            visualFramePosition=(0, 0, TOOL_OFFSET),
            rgbaColor=(0.1, 0.1, 0.1, 1.0),
        )
        flange = client.getLinkState(self._robot, FLANGE)
        tool = client.createMultiBody(TOOL_MASS, collision, visual, basePosition=flange[4], baseOrientation=flange[5])
        # A constraint counts from the link's centre of mass; the tool hangs from the flange itself.
        offset, turn = client.invertTransform(flange[2], flange[3])
        constraint = client.createConstraint(
            self._robot, FLANGE, tool, -1, client.JOINT_FIXED, (0, 0, 0), offset, (0, 0, 0), turn
        )
        client.changeConstraint(constraint, maxForce=TOOL_FORCE)
