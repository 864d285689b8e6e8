"""Scripted demonstrators, one file a task."""

from envs.robomimic.demonstrators.base import Demonstrator
from envs.robomimic.demonstrators.can import CanDemonstrator
from envs.robomimic.demonstrators.lift import LiftDemonstrator
from envs.robomimic.demonstrators.square import SquareDemonstrator

DEMONSTRATORS: dict[str, type[Demonstrator]] = {
    "lift": LiftDemonstrator,
    "can": CanDemonstrator,
    "square": SquareDemonstrator,
}
