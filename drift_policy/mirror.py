"""Candidates from the mirror image of an observation: for tasks that look the same in a mirror.

A policy that was trained on demonstrations and their mirror images has learned two answers to every observation: its
own, and the mirror image of its answer to the mirror image. Half of the candidates of a decision come from each, in one
batched network evaluation; as with two networks, what both agree on is the densest place.

Shape letters: B observations, N candidates, To observation steps, F numbers of an observation step, Tp predicted steps,
Da action size; all numbers are normalised.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from drift_policy.candidates import can_be_halved
from drift_policy.errors import CheckpointError, ConfigurationError, require
from drift_policy.heads import ActionHead, Generators
from drift_policy.policy_config import ACTION

if TYPE_CHECKING:
    from drift_policy.data.dataset import WindowDataset
    from drift_policy.policy import Policy

TOLERANCE = 1e-3  # root mean square error of the fitted maps, in normalised numbers
_RANK_TOLERANCE = 3e-3  # directions in which the data vary less, relative to the widest, are rounding


class Mirror(nn.Module):
    """The affine maps of a mirror: of the numbers of an observation step, and of an action from there back.

    Args:
        feature_size: F.
        action_dim: Da.
    """

    feature_matrix: Tensor  # [F, F]
    feature_offset: Tensor  # [F]
    action_matrix: Tensor  # [Da, Da]
    action_offset: Tensor  # [Da]

    def __init__(self, feature_size: int, action_dim: int) -> None:
        super().__init__()
        self.register_buffer("feature_matrix", torch.full((feature_size, feature_size), torch.nan))
        self.register_buffer("feature_offset", torch.full((feature_size,), torch.nan))
        self.register_buffer("action_matrix", torch.full((action_dim, action_dim), torch.nan))
        self.register_buffer("action_offset", torch.full((action_dim,), torch.nan))
        self.is_fitted = False

    def fit(self, features: Tensor, mirrored_features: Tensor, action: Tensor, mirrored_action: Tensor) -> None:
        """Take the maps from demonstrated steps and the same steps in the mirror, all normalised; see `fit_mirror`.

        Args:
            features: [N, F].
            mirrored_features: [N, F].
            action: [N, Da].
            mirrored_action: [N, Da].

        Raises:
            ConfigurationError: no affine map leads from one to the other.
        """
        for name, source, target in (
            ("feature", features, mirrored_features),
            ("action", mirrored_action, action),
        ):
            matrix, offset = _fit_affine(source.double(), target.double(), name)
            getattr(self, f"{name}_matrix").copy_(matrix)
            getattr(self, f"{name}_offset").copy_(offset)
        self.is_fitted = True

    def fits(self, features: Tensor, mirrored_features: Tensor, action: Tensor, mirrored_action: Tensor) -> bool:
        """Return whether the maps are those of these steps, within `TOLERANCE`; arguments as of `fit`."""
        errors = (
            features @ self.feature_matrix + self.feature_offset - mirrored_features,
            mirrored_action @ self.action_matrix + self.action_offset - action,
        )
        return all(float(error.square().mean().sqrt()) <= TOLERANCE for error in errors)

    def unset(self) -> None:
        """Forget the maps, which are of numbers as one normaliser gives them."""
        for buffer in self.buffers():
            buffer.fill_(torch.nan)
        self.is_fitted = False

    def require_fitted(self) -> None:
        """Refuse to go on without maps.

        Raises:
            CheckpointError: neither `fit` nor a checkpoint gave them.
        """
        if not self.is_fitted:
            raise CheckpointError(
                "The policy mirrors observations but has no mirror yet: after set_normalizer, call "
                "drift_policy.mirror.fit_mirror(policy, windows) with windows of demonstrations that are followed by "
                "their mirror images."
            )

    def sample(self, head: ActionHead, condition: Tensor, noise: Tensor, generator: Generators = None) -> Tensor:
        """Return candidates [B, N, Tp, Da] of which the second half answers to the mirror image, in one batched pass.

        Args:
            head: draws chunks.
            condition: encoded observations, [B, To * F].
            noise: of all candidates, [B, N, Tp, Da].
            generator: of what an iterative head draws on the way.

        Raises:
            ValueError: N is odd.
            CheckpointError: neither `fit` nor a checkpoint gave the maps.
        """
        if not can_be_halved(noise.shape[1]):
            raise ValueError(f"{noise.shape[1]} candidates cannot be shared by two sides: give an even number.")
        both = [one for one in generator for _ in range(2)] if isinstance(generator, list) else generator
        return self.all_candidates(head.sample(self.both_observations(condition), self.both_noises(noise), both))

    def both_observations(self, condition: Tensor) -> Tensor:
        """Return every encoded observation [B, To * F], followed by its mirror image, [2 B, To * F].

        Raises:
            CheckpointError: neither `fit` nor a checkpoint gave the maps.
        """
        self.require_fitted()
        steps = condition.unflatten(1, (-1, len(self.feature_offset)))
        image = steps @ self.feature_matrix + self.feature_offset
        return torch.stack([condition, image.flatten(1)], dim=1).flatten(0, 1)

    def both_noises(self, noise: Tensor) -> Tensor:
        """Return the noise [B, N, Tp, Da] of all candidates as that of N / 2 of each side, [2 B, N / 2, Tp, Da]."""
        return noise.unflatten(1, (2, -1)).flatten(0, 1)

    def all_candidates(self, chunks: Tensor) -> Tensor:
        """Return chunks [2 B, N / 2, Tp, Da] of both sides as candidates on this side, [B, N, Tp, Da]."""
        sides = chunks.unflatten(0, (-1, 2))
        return torch.cat([sides[:, 0], sides[:, 1] @ self.action_matrix + self.action_offset], dim=1)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.is_fitted = all(bool(torch.isfinite(buffer).all()) for buffer in self.buffers())


def fit_mirror(policy: "Policy", windows: "WindowDataset") -> None:
    """Fit the mirror of a policy, which must have its normaliser, to demonstrations and their mirror images.

    Args:
        policy: with `config.mirrored`. Another normaliser unsets its mirror.
        windows: of demonstrations that are followed by their mirror images (`data.symmetry.with_mirror_images`), with
            the policy's observation keys.

    Raises:
        ConfigurationError: the policy has no mirror, or no affine map leads from steps to their mirror images.
        CheckpointError: the policy has no normaliser.
    """
    require(
        len(windows.action) % 2 == 0,
        f"A mirror is fitted to demonstrations and as many mirror images, but there are {len(windows.action)} steps: "
        "cut the windows from with_mirror_images(buffer, symmetry).",
    )
    if policy.mirror is None:
        raise ConfigurationError("This policy was made with policy.mirrored=false, so it has no mirror to fit.")
    policy.mirror.fit(*_pairs(policy, windows))


def mirror_fits(policy: "Policy", windows: "WindowDataset") -> bool:
    """Return whether the mirror of a policy is that of these demonstrations; arguments as of `fit_mirror`."""
    return policy.mirror is not None and policy.mirror.fits(*_pairs(policy, windows))


def _pairs(policy: "Policy", windows: "WindowDataset") -> tuple[Tensor, ...]:
    """Return the normalised features [N, F] of steps and of their mirror images, then their actions [N, Da]."""

    def normalized(key: str, value: Tensor) -> Tensor:
        return policy.normalizer.normalize(key, value.to(policy.device))

    # In the order in which the encoder puts the numbers of a step together.
    features = torch.cat([normalized(key, windows.observations[key]) for key in policy.config.observations], dim=1)
    return (*features.chunk(2), *normalized(ACTION, windows.action).chunk(2))


def _fit_affine(source: Tensor, target: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return matrix [D, D] and offset [D] with target = source @ matrix + offset for all rows [N, D]."""
    centre, image = source.mean(dim=0), target.mean(dim=0)
    # Numbers that depend on each other (the corners of a block) leave directions in which nothing varies but rounding.
    matrix = torch.linalg.pinv(source - centre, rtol=_RANK_TOLERANCE) @ (target - image)
    offset = image - centre @ matrix
    error = float((source @ matrix + offset - target).square().mean().sqrt())
    if not error <= TOLERANCE:
        raise ConfigurationError(
            f"policy.mirrored=true needs a symmetry that maps every {name} by one matrix and offset, but those that "
            f"fit task.symmetry best are off by {error:.1e} of half the range: set policy.mirrored=false."
        )
    return matrix, offset
