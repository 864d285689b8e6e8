"""The diffusion head: Diffusion Policy's action head on diffusers' DDPM and DDIM schedulers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drift_policy.errors import ConfigurationError
from drift_policy.heads.base import ActionHead, Draws, Generators, Metrics
from drift_policy.networks import ActionNetwork


@dataclass
class DiffusionHeadConfig:
    """Settings of the diffusion head; the defaults are Diffusion Policy's."""

    sampler: str = "ddpm"  # "ddpm" (stochastic, all training steps) or "ddim" (deterministic, may skip steps)
    num_train_steps: int = 100  # noise levels of the forward process
    num_inference_steps: int = 100  # network evaluations of a decision; 16 is usual with "ddim"
    beta_schedule: str = "squaredcos_cap_v2"  # name of a diffusers beta schedule
    clip_sample: bool = True  # clip the predicted clean chunk to [-1, 1] at every step

    def __post_init__(self) -> None:
        if self.sampler not in ("ddpm", "ddim"):
            raise ConfigurationError(f"head.sampler must be 'ddpm' or 'ddim', but is {self.sampler!r}.")
        steps, inference = self.num_train_steps, self.num_inference_steps
        # Evenly spaced steps with more than half of them would begin far below the noise they are given.
        if steps < 1 or inference != steps and not 1 <= inference <= steps // 2:
            raise ConfigurationError(
                f"head.num_inference_steps must be num_train_steps ({steps}) or at most half of it, but is {inference}."
            )


class DiffusionHead(ActionHead):
    """Denoising diffusion with noise prediction (Diffusion Policy, section II)."""

    time_conditioned = True
    config: DiffusionHeadConfig

    def __init__(self, config: DiffusionHeadConfig, network: ActionNetwork) -> None:
        super().__init__(config, network)
        self.scheduler = self.make_scheduler(config)

    @staticmethod
    def make_scheduler(config: DiffusionHeadConfig) -> Any:
        """Return diffusers' scheduler with its inference steps set.

        A subclass may return anything with its `timesteps`, `add_noise` and `step`.

        Raises:
            ConfigurationError: diffusers is not installed, or does not know the beta schedule.
        """
        # Imported here because only this head needs diffusers: a robot with a drift policy does without it.
        try:
            from diffusers import DDIMScheduler, DDPMScheduler
        except ImportError as error:
            raise ConfigurationError(
                "The diffusion head needs the package diffusers: pip install 'drift-policy[train]'."
            ) from error

        settings = {
            "num_train_timesteps": config.num_train_steps,
            "beta_schedule": config.beta_schedule,
            "clip_sample": config.clip_sample,
            "prediction_type": "epsilon",
        }
        try:
            if config.sampler == "ddpm":
                scheduler = DDPMScheduler(**settings, variance_type="fixed_small")
            else:
                scheduler = DDIMScheduler(**settings, set_alpha_to_one=True, steps_offset=0)
        except NotImplementedError as error:
            raise ConfigurationError(f"head.beta_schedule {config.beta_schedule!r} is unknown: {error}.") from error
        scheduler.set_timesteps(config.num_inference_steps)
        return scheduler

    @property
    def num_evaluations(self) -> int:
        """The number of denoising steps."""
        return self.config.num_inference_steps

    def draw(self, batch: int, generator: torch.Generator | None = None) -> Draws:
        """Return the noise and a uniformly drawn step [batch] of each observation."""
        step = torch.randint(self.config.num_train_steps, (batch,), generator=generator)
        return {"noise": self._draw_noise(batch, 1, generator), "step": step}

    def compute_loss(self, action: Tensor, condition: Tensor, draws: Draws) -> tuple[Tensor, Metrics]:
        """Return the mean squared error of the predicted noise at the drawn step."""
        noise, step = draws["noise"], draws["step"]
        noisy = self.scheduler.add_noise(action.unsqueeze(1), noise, step)
        predicted = self.network(sample=noisy, condition=condition, time=step.unsqueeze(1).to(noisy.dtype))
        loss = (predicted - noise).square().mean()
        return loss, {"noise_mse": loss.detach()}

    def sample(self, condition: Tensor, noise: Tensor, generator: Generators = None) -> Tensor:
        """Denoise step by step from `noise`; DDPM draws the noise between steps from `generator`."""
        chunk = noise
        extra = {"generator": generator} if self.config.sampler == "ddpm" else {}
        for step in self.scheduler.timesteps.tolist():
            time = noise.new_full(noise.shape[:2], step)
            predicted = self.network(sample=chunk, condition=condition, time=time)
            chunk = self.scheduler.step(predicted, step, chunk, **extra).prev_sample
        return chunk
