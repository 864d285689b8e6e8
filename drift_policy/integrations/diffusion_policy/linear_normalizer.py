"""Diffusion Policy's `LinearNormalizer` as our `Normalizer`: both are x * scale + offset, per key and dimension."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from drift_policy.data.normalizer import Normalizer
from drift_policy.errors import ConfigurationError

# What Diffusion Policy gives images in 0..1: to [-1, 1], or as they are. Our encoder brings them to [-1, 1] itself.
_IMAGE_MAPS = ((2.0, -1.0), (1.0, 0.0))


def from_linear_normalizer(given: Any, sizes: Mapping[str, int], images: Iterable[str] = ()) -> Normalizer:
    """Return the maps of a fitted `LinearNormalizer`.

    Args:
        given: anything with its `params_dict`: {key: {"scale": [D], "offset": [D]}}; one number stands for all
            dimensions, as in its identity.
        sizes: key -> number of dimensions, the action included.
        images: image keys, whose maps must be the image range [0, 1] -> [-1, 1] or the identity.

    Raises:
        ConfigurationError: a missing key, a wrong size, a map that cannot be inverted, or images with other maps.
    """
    params = getattr(given, "params_dict", None)
    if params is None:
        raise ConfigurationError(
            f"set_normalizer was given a {type(given).__name__}; give Diffusion Policy's LinearNormalizer "
            "(dataset.get_normalizer())."
        )
    normalizer = Normalizer(sizes)
    maps: dict[str, Tensor] = {}
    for key, size in sizes.items():
        for name in ("scale", "offset"):
            maps[f"{name}_{key}"] = _numbers(params, key, name, size)
        if bool((maps[f"scale_{key}"] == 0).any()):
            raise ConfigurationError(f"The normaliser's scale of {key!r} holds zeros, so it cannot be inverted.")
    for key in images:
        pair = tuple(float(_numbers(params, key, name, 1)) for name in ("scale", "offset"))
        if pair not in _IMAGE_MAPS:
            raise ConfigurationError(
                f"The normaliser maps the images {key!r} with scale {pair[0]:g} and offset {pair[1]:g}; expected the "
                "image range (2 and -1) or the identity (1 and 0): the policy takes images in 0..1."
            )
    normalizer.load_state_dict(maps)
    return normalizer


def _numbers(params: Any, key: str, name: str, size: int) -> Tensor:
    """Return scale or offset of a key as [size] finite numbers."""
    if key not in params:
        raise ConfigurationError(f"The normaliser lacks the key {key!r}: it has {sorted(params.keys())}.")
    value = torch.as_tensor(params[key][name]).detach().to("cpu", torch.float32).flatten()
    if value.numel() not in (1, size):
        raise ConfigurationError(f"The normaliser's {name} of {key!r} has {value.numel()} numbers; expected {size}.")
    if not bool(torch.isfinite(value).all()):
        raise ConfigurationError(f"The normaliser's {name} of {key!r} holds NaN or infinity.")
    return value.expand(size).clone()
