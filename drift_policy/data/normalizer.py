"""Min-max normalisation to [-1, 1], part of every policy and of its checkpoint."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drift_policy.errors import CheckpointError, ConfigurationError, DataError

# Dimensions whose range is below this are constant: they are centred, and dividing by their range would amplify noise.
CONSTANT_RANGE = 1e-4  # a task may ask for another


class Normalizer(nn.Module):
    """Affine maps between the units of the demonstrations and [-1, 1], one for each key and dimension.

    Dimensions whose range in the data is below 1e-4, or what `fit` was given, are centred at zero and not scaled, as
    Diffusion Policy does.

    Args:
        sizes: key -> number of dimensions. The maps are undefined until `fit` or `load_state_dict`.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        for key, size in sizes.items():
            if not key or "." in key:
                raise ConfigurationError(
                    f"Observation key {key!r} cannot be used: keys must not be empty or hold dots."
                )
            self.register_buffer(f"scale_{key}", torch.full((size,), torch.nan))
            self.register_buffer(f"offset_{key}", torch.full((size,), torch.nan))
        self.sizes = dict(sizes)
        self.is_fitted = False

    @classmethod
    def fit(cls, arrays: Mapping[str, np.ndarray | Tensor], *, constant_range: float = CONSTANT_RANGE) -> "Normalizer":
        """Return the normaliser that maps the range of each array [N, D] to [-1, 1].

        Args:
            arrays: key -> numbers [N, D].
            constant_range: dimensions with a smaller range are not scaled.

        Raises:
            DataError: an array that is not [N, D] with N > 0, or holds a non-finite number.
        """
        tensors = {key: torch.as_tensor(array, dtype=torch.float32) for key, array in arrays.items()}
        for key, tensor in tensors.items():
            if tensor.ndim != 2 or len(tensor) == 0:
                raise DataError(f"Cannot normalise {key!r}: expected [steps, dimensions], got {list(tensor.shape)}.")
            if not bool(torch.isfinite(tensor).all()):
                raise DataError(f"Cannot normalise {key!r}: it holds NaN or infinity. Remove the damaged episodes.")
        normalizer = cls({key: tensor.shape[1] for key, tensor in tensors.items()})
        for key, tensor in tensors.items():
            low, high = tensor.amin(dim=0), tensor.amax(dim=0)
            constant = high - low < constant_range
            scale = 2.0 / torch.where(constant, 2.0, high - low)
            centre = torch.where(constant, low, (low + high) / 2)
            getattr(normalizer, f"scale_{key}").copy_(scale)
            getattr(normalizer, f"offset_{key}").copy_(-centre * scale)
        normalizer.is_fitted = True
        return normalizer

    @property
    def reference(self) -> Tensor:
        """A tensor that tells device and type; quicker than a walk over the modules of a policy in every decision."""
        return next(iter(self._buffers.values()))  # type: ignore[return-value]  # none is None

    def normalize(self, key: str, value: Tensor) -> Tensor:
        """Map `value` [..., D] from the units of the data to [-1, 1]."""
        scale, offset = self._maps(key)
        return torch.addcmul(offset, value, scale)

    def unnormalize(self, key: str, value: Tensor) -> Tensor:
        """Map `value` [..., D] from [-1, 1] back to the units of the data."""
        scale, offset = self._maps(key)
        return (value - offset) / scale

    def maps_like(self, other: "Normalizer") -> bool:
        """Return whether both are fitted and give the same numbers; the sizes must be the same."""
        others = other.state_dict()
        return all(torch.equal(value, others[name].to(value)) for name, value in self.state_dict().items())

    def _maps(self, key: str) -> tuple[Tensor, Tensor]:
        if not self.is_fitted:
            raise CheckpointError(
                "The policy has no normaliser yet: call policy.set_normalizer(Normalizer.fit(...)) before using it."
            )
        return self._buffers[f"scale_{key}"], self._buffers[f"offset_{key}"]  # type: ignore[return-value]  # none is None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.is_fitted = all(bool(torch.isfinite(buffer).all()) for buffer in self.buffers())
