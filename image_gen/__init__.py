"""One-step image generation with the drifting loss: generators, feature encoders, data and released weights."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from image_gen.artifacts import load_generator, load_mae

__all__ = ["load_generator", "load_mae"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that a part of this package needs only what it imports itself."""
    if name in __all__:
        return getattr(import_module("image_gen.artifacts"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
