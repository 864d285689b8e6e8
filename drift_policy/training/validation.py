"""The action error on held-out windows: what to watch while training, since the drift loss says nothing."""

from collections.abc import Iterator

import numpy as np
import torch

from drift_policy.data.dataset import WindowDataset
from drift_policy.heads.drift import sample_spread
from drift_policy.policy import Policy
from drift_policy.policy_config import ACTION
from drift_policy.runtime.spec import executed_steps
from drift_policy.training.batches import to_device

CHOICE_ERROR = "val/executed_mse"  # what checkpoints are chosen by where there is no environment
_SAMPLES = 4
_AT_ONCE = 32  # observations in a batch: all images of a measurement at once would take more memory than the training


class Validation:
    """Measures a policy on a fixed, evenly spaced subset of held-out windows.

    Args:
        windows: the held-out windows.
        limit: how many of them to use at most.
        device: of the policy.
        decides: whether to measure the policy's own decisions, `CHOICE_ERROR`.
    """

    def __init__(self, windows: WindowDataset, limit: int, device: torch.device, decides: bool = False) -> None:
        count = min(limit, len(windows))
        batch = windows.batch(np.linspace(0, len(windows) - 1, count).round().astype(np.int64))
        self._batch = to_device(batch, device)
        self._decides = decides

    @torch.inference_mode()
    def measure(self, policy: Policy) -> dict[str, float]:
        """Return errors of the normalised chunk.

        "val/action_mse" is the error of single samples, "val/typical_mse" that of the chunk without noise,
        "val/spread" the standard deviation between the samples of an observation, "val/action_error" the
        root mean squared error of samples in the units of the demonstrations. "val/executed_mse", if asked for, is the
        error of the steps that a decision executes, with the policy's own noise scale and candidates.
        """
        action = self._batch[ACTION]
        # Its own generator: measuring must not change the course of the training.
        generator = torch.Generator().manual_seed(0)
        samples = self._samples(policy, _SAMPLES, generator, noise_scale=1.0)
        metrics = {"val/action_error": (samples - action.unsqueeze(1)).square().mean().sqrt()}
        normalize = policy.normalizer.normalize
        target, drawn = normalize(ACTION, action).unsqueeze(1), normalize(ACTION, samples)
        metrics |= {"val/action_mse": (drawn - target).square().mean(), "val/spread": sample_spread(drawn)}
        if policy.num_evaluations == 1:
            typical = self._samples(policy, 1, generator, noise_scale=0.0)
            metrics["val/typical_mse"] = (normalize(ACTION, typical) - target).square().mean()
        if self._decides:
            decided = normalize(ACTION, self._decisions(policy, generator))
            demonstrated = executed_steps(target.squeeze(1), policy.n_obs_steps, policy.n_action_steps)
            metrics[CHOICE_ERROR] = (decided - demonstrated).square().mean()
        return {name: float(value) for name, value in metrics.items()}

    def _samples(self, policy: Policy, number: int, generator: torch.Generator, noise_scale: float) -> torch.Tensor:
        """Draw `number` chunks for each window, [W, number, Tp, Da]."""
        drawn = [
            policy.sample_actions(part, number, generator=generator, noise_scale=noise_scale)
            for part in self._observations()
        ]
        return torch.cat(drawn)

    def _decisions(self, policy: Policy, generator: torch.Generator) -> torch.Tensor:
        decided = [policy.predict_action(part, generator=generator)["action"] for part in self._observations()]
        return torch.cat(decided)

    def _observations(self) -> Iterator[dict[str, torch.Tensor]]:
        parts = zip(*(value.split(_AT_ONCE) for value in self._batch["obs"].values()), strict=True)
        return (dict(zip(self._batch["obs"], part, strict=True)) for part in parts)
