"""The training loop: step-based, resumable to the bit."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi

import numpy as np
import torch
from torch import Tensor

from drift_policy.data.dataset import WindowDataset
from drift_policy.errors import ConfigurationError, UserError
from drift_policy.evaluation.rollout import Episode, RolloutResult
from drift_policy.policy import Policy
from drift_policy.training.checkpoint import CheckpointStore, TrainingState
from drift_policy.training.config import TrainerConfig
from drift_policy.training.display import TrainingDisplay
from drift_policy.training.ema import Ema
from drift_policy.training.interrupt import InterruptGuard, TrainingInterruptedError
from drift_policy.training.tracking import Tracker
from drift_policy.training.validation import Validation

# Rolls a policy out; the callback is called after each episode.
Evaluate = Callable[[Policy, Callable[[Episode], None]], RolloutResult]


@dataclass
class TrainingData:
    """Windows to train on and windows that are held out."""

    train: WindowDataset
    validation: WindowDataset | None


def learning_rate(step: int, config: TrainerConfig) -> float:
    """Return the learning rate of the update that follows `step` updates: linear warm-up, then a cosine to zero."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return config.learning_rate * warmup * 0.5 * (1 + cos(pi * step / config.num_steps))


def batch_indices(step: int, num_windows: int, batch_size: int, seed: int) -> np.ndarray:
    """Return the windows of the update that follows `step` updates, without repetition within an epoch.

    A function of the step alone, so that a resumed run sees the same data in the same order.
    """
    batches = max(1, num_windows // batch_size)
    epoch, position = divmod(step, batches)
    return _epoch_order(seed, epoch, num_windows)[position * batch_size : (position + 1) * batch_size]


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_windows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_windows)


def step_generator(step: int, seed: int) -> torch.Generator:
    """Return the source of all random numbers of the update that follows `step` updates (dropout apart)."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


class Trainer:
    """Optimises a policy, averages it, measures it and saves it.

    Args:
        policy: with its normaliser set, on the device to train on.
        data: windows on the same device.
        config: see `TrainerConfig`.
        store: where checkpoints go.
        trackers: where metrics go.
        display: what the user sees.
        evaluate: rolls the averaged policy out, or None to train without rollouts.
        seed: of the data order; seed PyTorch yourself for weights and noise.
    """

    def __init__(
        self,
        policy: Policy,
        data: TrainingData,
        config: TrainerConfig,
        *,
        store: CheckpointStore,
        trackers: list[Tracker],
        display: TrainingDisplay,
        evaluate: Evaluate | None,
        seed: int,
    ) -> None:
        if len(data.train) < config.batch_size:
            raise ConfigurationError(
                f"trainer.batch_size={config.batch_size} is larger than the {len(data.train)} training windows: "
                f"set trainer.batch_size={len(data.train)} or less."
            )
        self.policy = policy.train()
        self.ema = Ema(policy, config.ema_decay)
        self.state = TrainingState()
        self.trackers = trackers
        self._config, self._store, self._display = config, store, display
        self._windows, self._seed, self._evaluate = data.train, seed, evaluate
        self._validation = Validation(data.validation, config.validation_windows) if data.validation else None
        self._optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=config.learning_rate,
            betas=(config.betas[0], config.betas[1]),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._compute_loss = torch.compile(policy.compute_loss) if config.compile else policy.compute_loss
        self._pending: list[dict[str, Tensor]] = []
        self._pending_s = 0.0

    def resume(self) -> None:
        """Continue from the last checkpoint."""
        self.state = self._store.load_last(self.ema.policy, self.policy, self._optimizer)
        self.ema.num_updates = self.state.ema_updates

    def run(self) -> None:
        """Train to the configured step; what is due at a step happens before the next update.

        Raises:
            TrainingInterruptedError: a stop was requested; the state has been saved.
        """
        with self._display, InterruptGuard(self._announce_stop) as guard:
            try:
                while True:
                    self._do_due_events(guard)
                    if self.state.step >= self._config.num_steps:
                        break
                    guard.check()
                    self._timed_update()
            except TrainingInterruptedError:
                self._save()
                raise

    def _timed_update(self) -> None:
        started = time.perf_counter()
        self._pending.append(self._update())
        elapsed = time.perf_counter() - started
        self._pending_s += elapsed
        self.state.training_s += elapsed

    def _update(self) -> dict[str, Tensor]:
        """Do one optimiser step and return its metrics, still on the device."""
        config, step = self._config, self.state.step
        batch = self._windows.batch(batch_indices(step, len(self._windows), config.batch_size, self._seed))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        draws = self.policy.draw(config.batch_size, step_generator(step, self._seed))
        with self._autocast():
            try:
                loss, metrics = self._compute_loss(batch, draws)
            except ValueError as error:  # the drift loss refuses samples that are not finite
                raise _diverged(step, config) from error
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), config.gradient_clip)
        self._optimizer.step()
        self.ema.update(self.policy)
        self.state.step += 1
        self.state.ema_updates = self.ema.num_updates
        self.state.done_events = []
        return metrics | {"loss": loss.detach(), "gradient_norm": norm.detach()}

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        if self._config.precision == "bfloat16":
            return torch.autocast(self.policy.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _do_due_events(self, guard: InterruptGuard) -> None:
        """Log, validate, roll out and save if this step asks for it and it was not done before an interruption."""
        config = self._config
        events: tuple[tuple[str, int, Callable[[], None]], ...] = (
            ("log", config.log_every, self._log),
            ("validate", config.validate_every, self._validate),
            ("rollout", config.rollout_every, lambda: self._rollout(guard)),
            ("checkpoint", config.checkpoint_every, self._save),
        )
        for name, every, action in events:
            due = every and (self.state.step % every == 0 or self.state.step == config.num_steps)
            if due and self.state.step and name not in self.state.done_events:
                self.state.done_events.append(name)
                try:
                    action()
                except BaseException:
                    self.state.done_events.remove(name)
                    raise

    def _log(self) -> None:
        if not self._pending:
            return
        means = {
            f"train/{name}": float(torch.stack([metrics[name] for metrics in self._pending]).mean())
            for name in self._pending[0]
        }
        if not np.isfinite(means["train/loss"]):
            raise _diverged(self.state.step, self._config)
        means["train/samples_per_s"] = len(self._pending) * self._config.batch_size / self._pending_s
        means["train/learning_rate"] = learning_rate(self.state.step - 1, self._config)
        self._pending, self._pending_s = [], 0.0
        self._track(means)

    def _validate(self) -> None:
        if self._validation is None:
            return
        self._track(self._validation.measure(self.ema.policy))
        self._display.line(self.state.step)

    def _rollout(self, guard: InterruptGuard) -> None:
        if self._evaluate is None:
            return
        self._require_finite()
        result = self._evaluate(self.ema.policy, lambda _: guard.check())
        self._track({"rollout/score": result.score.mean, "rollout/success": result.success.mean})
        self._display.message(
            f"step {self.state.step}: rollouts on {result.score.n} start states: score {result.score.mean:.3f}, "
            f"success {result.success.mean:.2f} ({result.wall_s:.0f} s)"
        )
        self._store.save_scored(self.ema.policy, self.state, result.score.mean)

    def _save(self) -> None:
        self._require_finite()
        self._store.save_last(self.ema.policy, self.policy, self._optimizer, self.state)

    def _require_finite(self) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.ema.policy.parameters()):
            raise _diverged(self.state.step, self._config)

    def _announce_stop(self) -> None:
        self._display.message("stopping after this step or episode; press Ctrl-C again to stop without saving")

    def _track(self, metrics: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(self.state.step, metrics)
        self._display.update(self.state.step, metrics)


def _diverged(step: int, config: TrainerConfig) -> UserError:
    return UserError(
        f"The training diverged before step {step}: lower trainer.learning_rate (now {config.learning_rate:g}), or use "
        "trainer.precision=float32. The last saved checkpoint is from before."
    )
