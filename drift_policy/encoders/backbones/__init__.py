"""Networks that turn one image into one vector, by name; `register_image_backbone` adds your own."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from drift_policy.encoders.backbones.resnet18 import Resnet18, Resnet18Config
from drift_policy.encoders.backbones.small_cnn import SmallCnn, SmallCnnConfig
from drift_policy.errors import ConfigurationError

__all__ = ["IMAGE_BACKBONES", "BackboneKind", "backbone_kind", "register_image_backbone"]


class BackboneKind(NamedTuple):
    """A backbone's configuration dataclass and what builds it."""

    config: type[Any]
    build: Callable[[Any, int, int, int], nn.Module]  # (config, channels, height, width) -> [N, C, H, W] to [N, F]


IMAGE_BACKBONES: dict[str, BackboneKind] = {
    "resnet18": BackboneKind(Resnet18Config, Resnet18),
    "small_cnn": BackboneKind(SmallCnnConfig, SmallCnn),
}


def register_image_backbone(name: str, config: type[Any], build: Callable[[Any, int, int, int], nn.Module]) -> None:
    """Make `policy.image_backbone.name=<name>` build any network of yours.

    Call it in a module of yours, and name that module in `plugins=[my_package.my_module]` on the command line, or
    import it before `load_policy`.

    Args:
        name: how configurations call it.
        config: dataclass of its settings.
        build: takes (config, channels, height, width) and returns a module that maps float images
            [N, channels, height, width] in [-1, 1] to features [N, F]; F is found by trying.

    Raises:
        ConfigurationError: the name is taken by something else.
    """
    kind = BackboneKind(config, build)
    if IMAGE_BACKBONES.get(name, kind) != kind:
        raise ConfigurationError(f"An image backbone called {name!r} exists already: choose another name.")
    IMAGE_BACKBONES[name] = kind


def backbone_kind(name: str) -> BackboneKind:
    """Return the backbone registered under `name`.

    Raises:
        ConfigurationError: the name is unknown.
    """
    if name not in IMAGE_BACKBONES:
        raise ConfigurationError(
            f"Image backbone {name!r} is unknown: expected one of {sorted(IMAGE_BACKBONES)}. If it is your own, import "
            "the module that registers it first (plugins=[my_package.my_module])."
        )
    return IMAGE_BACKBONES[name]
