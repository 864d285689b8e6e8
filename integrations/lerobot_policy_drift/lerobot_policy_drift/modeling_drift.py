"""A drift policy behind LeRobot's policy interface.

LeRobot normalises before and after the policy, with statistics of the data set, so the normaliser of the policy inside
is the identity.
"""

from collections import deque
from functools import partial
from typing import Any

import torch
from drift_policy.integrations.lerobot.inner_policy import key_of
from drift_policy.policy import Policy, build_policy
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lerobot_policy_drift.configuration_drift import DriftConfig


class DriftPolicy(PreTrainedPolicy):
    """Action chunks from one network evaluation.

    Shape letters: B observations, To observation steps, Tp predicted steps, Ta executed steps, Da action size.

    Args:
        config: settings and features.
        kwargs: statistics and description of the data set, which LeRobot passes to every policy; not used.
    """

    config_class = DriftConfig
    name = "drift"

    def __init__(self, config: DriftConfig, **kwargs: Any) -> None:
        super().__init__(config)
        self.config: DriftConfig = config
        self.policy = build_policy(config.policy_config())
        for name, buffer in self.policy.normalizer.named_buffers():
            buffer.fill_(1.0 if name.startswith("scale_") else 0.0)
        self.policy.normalizer.load_state_dict(self.policy.normalizer.state_dict())  # which marks it as fitted
        self.average: AveragedModel | None = None
        if config.ema_decay > 0:
            self.average = AveragedModel(self.policy, avg_fn=partial(_move_average, config.ema_decay))
            self.average.requires_grad_(False)
        self.reset()

    @property
    def deciding(self) -> Policy:
        """The policy whose weights decide: the average, once `update` was called for the first time."""
        if self.average is not None and int(self.average.n_averaged) > 0:
            averaged: Policy = self.average.module
            return averaged
        return self.policy

    def get_optim_params(self) -> Any:
        """Return the parameters that are trained; the averaged ones are not."""
        return self.policy.parameters()

    def update(self) -> None:
        """Move the averaged weights; LeRobot calls it after every optimiser step."""
        if self.average is not None:
            self.average.update_parameters(self.policy)

    def train(self, mode: bool = True) -> "DriftPolicy":
        """Set the mode of the policy; averaged weights never train."""
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self

    def reset(self) -> None:
        """Forget the observations and actions of the current episode."""
        self._history: deque[dict[str, Tensor]] = deque(maxlen=self.config.n_obs_steps)
        self._actions: deque[Tensor] = deque()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the training loss and numbers to log; the drifting loss itself is nearly constant by construction.

        Args:
            batch: features [B, To, ...] and "action" [B, Tp, Da], normalised; images are in 0..1.
        """
        observed = {key: self._with_steps(key, value) for key, value in self._features(batch).items()}
        loss, metrics = self.policy.compute_loss({"obs": observed, ACTION: batch[ACTION]})
        return loss, {name: float(value) for name, value in metrics.items()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None, **_: Any) -> Tensor:
        """Return the chunk to execute, [B, Ta, Da], normalised; it begins at the newest observation.

        Args:
            batch: features [B, To, ...], or [B, ...] of one step, which joins the history of the episode.
            noise: [B, Tp, Da] of one candidate or [B, N, Tp, Da] of N, standard normal; drawn for the configuration's
                `num_candidates` if absent.
        """
        observed = self._features(batch)
        key, spec = next(iter(self.deciding.config.observations.items()))
        if observed[key].ndim == len(spec.shape) + 1:
            self._remember(observed)
            observed = self._stacked()
        return self._decide(observed, noise)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None, **_: Any) -> Tensor:
        """Return the next action [B, Da], normalised, for one step of observations [B, ...]."""
        self._remember(self._features(batch))
        if not self._actions:
            self._actions.extend(self._decide(self._stacked(), noise).unbind(dim=1))
        return self._actions.popleft()

    def _decide(self, observed: dict[str, Tensor], noise: Tensor | None) -> Tensor:
        # A copy, because LeRobot's processors write to what they are given, which PyTorch's inference tensors refuse.
        return self.deciding.predict_action(observed, noise=noise)["action"].clone()

    def _features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what the policy observes, under its names."""
        missing = [feature for feature in self.config.input_features if feature not in batch]
        if missing:
            raise ValueError(f"The batch lacks {missing}: it has {sorted(map(str, batch))}.")
        return {key_of(feature): batch[feature] for feature in self.config.input_features}

    def _with_steps(self, key: str, value: Tensor) -> Tensor:
        """Give a feature its axis of steps, which data of a single step may lack."""
        return value.unsqueeze(1) if value.ndim == len(self.policy.config.observations[key].shape) + 1 else value

    def _remember(self, observed: dict[str, Tensor]) -> None:
        """Add one step; the first one of an episode stands for those before it."""
        copied = {key: value.clone() for key, value in observed.items()}
        if not self._history:
            self._history.extend([copied] * self.config.n_obs_steps)
        else:
            self._history.append(copied)

    def _stacked(self) -> dict[str, Tensor]:
        return {key: torch.stack([step[key] for step in self._history], dim=1) for key in self._history[0]}


def _move_average(largest_decay: float, average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
    """Return the new average; the decay warms up, so that the random initial weights are forgotten."""
    decay = min(largest_decay, (1 + float(count)) / (10 + float(count)))
    return torch.lerp(average, current, 1 - decay)
