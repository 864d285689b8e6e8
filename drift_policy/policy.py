"""The policy: normaliser, observation encoder and action head; `DriftPolicy` is the policy with the drift head.

Shape letters: B observations, G samples per observation, To observation steps, Tp predicted steps (horizon),
Ta executed steps, Da action size.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drift_policy.candidates import check_number, checked_noise, draw_noise, most_typical, takes_both_sides
from drift_policy.data.normalizer import Normalizer
from drift_policy.demonstrated import OBSERVATION_NOISE, PositiveNoise, below, demonstrated, draw_augmentation
from drift_policy.encoders import ObservationEncoder
from drift_policy.encoders.backbones import backbone_kind
from drift_policy.errors import ConfigurationError
from drift_policy.heads import Draws, Generators, Metrics, head_kind
from drift_policy.heads.drift import DriftHead
from drift_policy.inputs import checked_step, checked_steps, stacked, training_observation, with_past_features
from drift_policy.mirror import Mirror
from drift_policy.networks import build_network
from drift_policy.policy_config import ACTION, POSITIVE_WEIGHTS, POSITIVES, PolicyConfig
from drift_policy.runtime.spec import executed_steps
from drift_policy.runtime.step_features import StepHistory, decide, encode_newest
from drift_policy.serialization import save_policy

Observation = Mapping[str, Tensor | np.ndarray]
_CROP = "crop."  # prefix of the crops of an image key among the random numbers of a training step


class Policy(nn.Module):
    """Maps the last To observations to a chunk of actions.

    A prediction covers Tp steps that begin with the first observation step; the Ta steps that are executed
    begin with the newest observation: `action = action_pred[:, To-1 : To-1+Ta]`.

    Args:
        config: sizes, head and network.
        metadata: facts that travel with the checkpoint (task, data set); strings and numbers only.
    """

    def __init__(self, config: PolicyConfig, metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self.metadata = dict(metadata or {})
        self.horizon = config.horizon
        self.n_obs_steps = config.n_obs_steps
        self.n_action_steps = config.n_action_steps
        self.action_dim = config.action_dim

        sizes = {key: spec.shape[0] for key, spec in config.observations.items() if spec.kind == "state"}
        self.normalizer = Normalizer(sizes | {ACTION: config.action_dim})
        self.encoder = ObservationEncoder(
            config.observations,
            config.n_obs_steps,
            backbone_kind(config.image_backbone_name),
            config.image_backbone,
            config.share_image_backbone,
        )
        kind = head_kind(config.head_name)
        network = build_network(
            config.network_name,
            config.network,
            horizon=config.horizon,
            action_dim=config.action_dim,
            condition_dim=self.encoder.output_size,
            time_conditioned=kind.head.time_conditioned,
        )
        self.head = kind.head(config.head, network)
        self.mirror = Mirror(self.feature_size, config.action_dim) if config.mirrored else None
        self.reset()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.normalizer.reference.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""
        return self.normalizer.reference.dtype

    @property
    def num_evaluations(self) -> int:
        """Network evaluations (NFE) of one decision."""
        return self.head.num_evaluations

    @property
    def feature_size(self) -> int:
        """F: numbers of an encoded observation step."""
        return self.encoder.output_size // self.n_obs_steps

    @property
    def encodes_steps(self) -> bool:
        """Whether the robot loop encodes each step once: it has cameras and observes several steps."""
        return self.n_obs_steps > 1 and len(self.encoder.backbones) > 0

    def set_normalizer(self, normalizer: Normalizer) -> None:
        """Take over the maps of a fitted normaliser; others than before unset the mirror, whose numbers they are.

        Raises:
            ConfigurationError: its keys or sizes differ from the policy's.
        """
        if normalizer.sizes != self.normalizer.sizes:
            raise ConfigurationError(
                f"The normaliser has the sizes {normalizer.sizes}, but the policy needs {self.normalizer.sizes}."
            )
        if self.mirror is not None and not self.normalizer.maps_like(normalizer):
            self.mirror.unset()
        self.normalizer.load_state_dict(normalizer.state_dict())

    def draw(
        self,
        batch: int,
        generator: torch.Generator | None = None,
        *,
        observation_noise: float = 0.0,
        action_noise: float = 0.0,
        positive_noise: PositiveNoise | None = None,
        step: int | None = None,
    ) -> Draws:
        """Return the random numbers of a training step on `batch` observations, one row each, on the CPU.

        Args:
            batch: B, over all processes if several share a step.
            generator: their source, on the CPU; PyTorch's default generator if absent.
            observation_noise: standard deviation of Gaussian noise on the normalised numbers of the observations (not
                on images), an augmentation; 0 draws none.
            action_noise: the same on the normalised demonstrated chunks, all positives of an observation alike.
            positive_noise: of copies of the demonstrated chunk that attract beside it (drift head alone); None is none.
            step: optimiser steps done before, for a head whose loss changes with the step.

        Raises:
            ValueError: the head's loss changes with the step, and `step` is None.
        """
        crops = self.encoder.draw_crops(batch, generator)
        draws = self.head.draw(batch, generator) | self.head.scheduled(batch, step)
        draws |= {f"{_CROP}{key}": corners for key, corners in crops.items()}
        return draws | draw_augmentation(
            self.config, batch, generator, observations=observation_noise, action=action_noise, positives=positive_noise
        )

    def compute_loss(self, batch: Mapping[str, Any], draws: Draws | None = None) -> tuple[Tensor, Metrics]:
        """Return the scalar training loss and detached metrics.

        Args:
            batch: {"obs": {key: [B, To, ...]} or the array itself for a policy with one key,
                "action": [B, Tp, Da]}, tensors or arrays in the units of the demonstrations; images
                [B, To, C, H, W] are uint8, or float in 0..1. For the drift head also, if the samples shall be attracted
                by several chunks, "positives": [B, P, Tp, Da] in the units of the demonstrations, and
                "positive_weights": [B, P].
            draws: what `draw(B)` returned; drawn here if absent.

        Raises:
            ValueError: a key is missing, observations, actions or positives have another shape, the head compares with
                no positives, or its loss changes with the step and `draws` are absent.
        """
        observation = training_observation(self.config.observations, batch, self.n_obs_steps)
        drawn = self.draw(len(batch[ACTION])) if draws is None else draws
        drawn = {name: self._to_device(value) for name, value in drawn.items()}
        names = [name for name in (ACTION, POSITIVES, POSITIVE_WEIGHTS) if name in batch]
        chunks = {name: self._to_device(batch[name]) for name in names}
        action, positives = demonstrated(chunks, drawn, self.config, self.normalizer)
        condition = self._encode(
            {key: self._to_device(value) for key, value in observation.items()},
            below(_CROP, drawn),
            below(OBSERVATION_NOISE, drawn),
        )
        if positives is None:
            return self.head.compute_loss(action, condition, drawn)
        if not isinstance(self.head, DriftHead):
            raise ValueError(f"Several positives are for the drift head alone, not for {self.config.head_name!r}.")
        return self.head.compute_loss(action, condition, drawn, positives)

    @torch.inference_mode()
    def predict_action(
        self,
        obs: Observation,
        *,
        generator: Generators = None,
        noise: Tensor | np.ndarray | None = None,
        noise_scale: float | None = None,
        num_candidates: int | None = None,
        mirrored: bool | None = None,
        features: Sequence[Tensor | np.ndarray] | None = None,
    ) -> dict[str, Tensor]:
        """Draw one action chunk for each observation.

        Args:
            obs: {key: [B, To, ...]}, tensors or arrays in the units of the demonstrations, oldest step first; images
                are [B, To, C, H, W], uint8 or float in 0..1.
            generator: source of the noise, for a repeatable answer; a list holds one for each observation, so that
                an answer does not depend on the rest of the batch.
            noise: the noise itself, standard normal: [B, N, Tp, Da] of N candidates, or [B, Tp, Da] of one, whatever
                the configuration says; then `generator` only feeds what an iterative head draws on the way.
            noise_scale: factor on the noise. Default: the configuration's.
            num_candidates: N; draw so many chunks in one batched evaluation and answer with the one that most others
                are near to (`most_typical`). Default: the configuration's. Not together with `noise`.
            mirrored: whether half of several candidates answer to the mirror image of the observation, which the
                policy must have learned (`config.mirrored`). Default: the configuration's.
            features: [B, F] of each of the first steps, from `encode_step` or an earlier answer; `obs` then holds the
                steps after them alone, at least one. They are those of the present weights.

        Returns:
            {"action": [B, Ta, Da], "action_pred": [B, Tp, Da]} in the units of the demonstrations; with `features`,
            which may be an empty list, also "features": [B, To, F].

        Raises:
            ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
        """
        given = () if features is None else features
        if len(given) >= self.n_obs_steps:
            raise ValueError(f"features of {len(given)} steps are too many: this policy observes {self.n_obs_steps}.")
        observation = self._checked(obs, self.n_obs_steps - len(given))
        batch = next(iter(observation.values())).shape[0]
        check_number(num_candidates, noise)
        start = self._noise(batch, generator, noise_scale, noise=noise, num_candidates=num_candidates)
        condition = with_past_features(given, self._encode(observation), self.feature_size)
        chunk = most_typical(self.propose(condition, start, generator, mirrored=mirrored))
        prediction = self.normalizer.unnormalize(ACTION, chunk)
        answer = {
            "action": executed_steps(prediction, self.n_obs_steps, self.n_action_steps),
            "action_pred": prediction,
        }
        return answer if features is None else answer | {"features": condition.unflatten(1, (self.n_obs_steps, -1))}

    def propose(
        self, condition: Tensor, noise: Tensor, generator: Generators = None, *, mirrored: bool | None = None
    ) -> Tensor:
        """Return normalised candidates [B, N, Tp, Da] in one batched pass of the head: what a decision chooses from.

        Args:
            condition: encoded observations, [B, C].
            noise: of all candidates, scaled, [B, N, Tp, Da].
            generator: of what an iterative head draws on the way.
            mirrored: see `predict_action`; one candidate alone is never mirrored.

        Raises:
            ValueError: N is odd or the policy has no mirror where half of the candidates shall come from there.
            CheckpointError: its mirror was never set.
        """
        is_mirrored = self.config.mirrored if mirrored is None else mirrored
        if not takes_both_sides(noise.shape[1], is_mirrored):
            return self.head.sample(condition, noise, generator)
        if self.mirror is None:
            raise ValueError("mirrored is true, but this policy was made with policy.mirrored=false.")
        return self.mirror.sample(self.head, condition, noise, generator)

    @torch.inference_mode()
    def encode_step(self, obs: Observation) -> Tensor:
        """Return the features [B, F] of one observation step: normalised numbers, and what the images became.

        Args:
            obs: {key: [B, 1, ...]}; otherwise as in `predict_action`, with the same errors.
        """
        return self._encode(self._checked(obs, 1))

    @torch.inference_mode()
    def sample_actions(
        self,
        obs: Observation,
        num_samples: int,
        *,
        generator: Generators = None,
        noise_scale: float | None = None,
    ) -> Tensor:
        """Draw `num_samples` chunks for each observation, [B, G, Tp, Da], encoding each observation once."""
        observation = self._checked(obs)
        batch = next(iter(observation.values())).shape[0]
        start = self._noise(batch, generator, noise_scale, num_candidates=num_samples)
        chunks = self.head.sample(self._encode(observation), start, generator)
        return self.normalizer.unnormalize(ACTION, chunks)

    def select_action(self, obs_now: Observation | Tensor | np.ndarray) -> Tensor:
        """Return the next action [Da] for one unbatched observation {key: [...]}.

        Keeps the last To observations and the rest of the current chunk; call `reset` between episodes, and when the
        weights change. The first observation of an episode stands for the missing earlier ones. With cameras, steps
        that the next decision observes are encoded when they come: after the first one, no call encodes more than one.

        Raises:
            ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
        """
        self._history.append(self._one_step(obs_now))
        window = self._history.window()
        if not self._queue:
            self._queue.extend(decide(self, window, stacked)["action"][0])
        action = self._queue.popleft()
        if len(self._queue) < self.n_obs_steps - 1:  # the next decision observes this step
            encode_newest(self, window, stacked)
        return action

    def reset(self) -> None:
        """Forget the observations, their features and the actions of the current episode."""
        self._history = StepHistory(self.n_obs_steps)
        self._queue: deque[Tensor] = deque()

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors (the normaliser inside) and return the folder."""
        return save_policy(self, folder)

    def normalize_observation(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map the numbers of an observation {key: [B, To, ...]} to [-1, 1]; images stay what they are."""
        return {
            key: self.normalizer.normalize(key, observation[key]) if spec.kind == "state" else observation[key]
            for key, spec in self.config.observations.items()
        }

    def push_to_hub(self, repo_id: str, *, run: str | Path | None = None, private: bool = False) -> str:
        """Upload the policy and a model card to the Hugging Face Hub and return the address of the commit.

        Args:
            repo_id: "owner/name"; made if absent.
            run: the folder of the run, or a manifest of it or of an evaluation: the card then has scores with their
                intervals, command, data and versions.
            private: whether a new repository is private.

        Raises:
            CheckpointError: huggingface_hub is missing, the policy has no normaliser, the manifest is of another
                policy, or the Hub refuses.
        """
        from drift_policy.hub import push_policy  # needs the network, which a policy that predicts does not

        return push_policy(self, repo_id, run=run, private=private)

    def _encode(
        self,
        observation: Mapping[str, Tensor],
        crops: Mapping[str, Tensor] | None = None,
        noise: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        given = self.normalize_observation(observation)
        for key, value in (noise or {}).items():
            given[key] = given[key] + value
        encoded: Tensor = self.encoder(given, crops)
        return encoded

    def _to_device(self, given: Tensor | np.ndarray) -> Tensor:
        """Move an array to the policy's device, numbers also to its type; bytes and integers stay what they are."""
        value = torch.as_tensor(given)
        return value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)

    def _one_step(self, obs_now: Any) -> dict[str, Tensor]:
        """Copy one unbatched observation to the policy's device: drivers and simulators reuse their buffers."""
        given = checked_step(self.config.observations, obs_now, self.dtype)
        return {key: value.to(self.device, copy=True) for key, value in given.items()}

    def _checked(self, obs: Any, steps: int | None = None) -> dict[str, Tensor]:
        """Check an observation of `steps` steps, To if absent, and move it to the policy's device."""
        return {key: value.to(self.device) for key, value in self._checked_in_place(obs, steps).items()}

    def _checked_in_place(self, obs: Any, steps: int | None = None) -> dict[str, Tensor]:
        """Check an observation, in the policy's type, on the device where it is."""
        return checked_steps(self.config.observations, obs, self.n_obs_steps if steps is None else steps, self.dtype)

    def _noise(
        self,
        batch: int,
        generator: Generators,
        noise_scale: float | None,
        *,
        noise: Tensor | np.ndarray | None = None,
        num_candidates: int | None = None,
    ) -> Tensor:
        """Return scaled noise [B, N, Tp, Da] on the policy's device: the given one, or else drawn."""
        scale = self.config.noise_scale if noise_scale is None else noise_scale
        if noise is not None:
            return checked_noise(noise, batch, self.horizon, self.action_dim).to(self.device, self.dtype) * scale
        number = self.config.num_candidates if num_candidates is None else num_candidates
        return draw_noise((batch, number, self.horizon, self.action_dim), generator, self.device, self.dtype) * scale


class DriftPolicy(Policy):
    """One-step policy: a generator trained with the drifting loss maps noise and observations to actions.

    Raises:
        ConfigurationError: the configuration names another head.
    """

    def __init__(self, config: PolicyConfig, metadata: Mapping[str, Any] | None = None) -> None:
        if config.head_name != "drift":
            raise ConfigurationError(
                f"DriftPolicy has the head 'drift', but the configuration says {config.head_name!r}."
            )
        super().__init__(config, metadata)


def build_policy(config: PolicyConfig, metadata: Mapping[str, Any] | None = None) -> Policy:
    """Return a `DriftPolicy` for the drift head and a plain `Policy` for every other head."""
    return (DriftPolicy if config.head_name == "drift" else Policy)(config, metadata)
