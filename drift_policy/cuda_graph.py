"""Decisions as one CUDA graph: launching the many small kernels of a policy one by one takes longer than they do.

Shape letters: B observations, To observation steps, Tp predicted steps (horizon), Ta executed steps, Da action size.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from drift_policy.candidates import most_typical
from drift_policy.errors import require
from drift_policy.heads import Generators
from drift_policy.policy import Observation, Policy
from drift_policy.policy_config import ACTION
from drift_policy.runtime.spec import executed_steps

PRECISIONS = ("float32", "bfloat16")
_WARM_UP_CALLS = 3  # before the capture: libraries choose kernels and set up workspaces in their first calls


class GraphedPolicy:
    """Makes a policy's decisions by replaying a captured CUDA graph.

    Encoder, head (all steps of an iterative one), the choice among the policy's `num_candidates` and normaliser are
    captured once for one batch size, with inputs at fixed places. Only checks, three small copies and one launch are
    left to the host for each decision.

    The graph reads the weights where they are: weights that are loaded into the policy later are used, but the policy
    must not be moved to another device or type. Images must be uint8, as cameras give them.

    With a generator, all heads but DDPM give the same noise, and thus the same actions up to rounding, as the policy
    itself. DDPM draws fresh noise inside the graph, from generators on the GPU that are seeded from the given one:
    repeatable, but other noise than the policy's own.

    Args:
        policy: in evaluation mode, on a CUDA device.
        batch_size: B of every decision.
        precision: "bfloat16" is autocast; weights are then cast anew in every decision, which pays off for large
            batches and iterative heads.

    Raises:
        ConfigurationError: the policy is not on a CUDA device or in training mode, or an argument is out of range.
    """

    def __init__(self, policy: Policy, batch_size: int = 1, precision: str = "float32") -> None:
        require(batch_size >= 1, f"batch_size must be at least 1, but is {batch_size}.")
        require(precision in PRECISIONS, f"precision must be one of {', '.join(PRECISIONS)}, but is {precision!r}.")
        require(not policy.training, "The policy is in training mode: call policy.eval() before it is captured.")
        _require_gpu(policy.device)
        self.policy, self.batch_size = policy, batch_size
        self._use_bfloat16 = precision == "bfloat16"
        self._inputs = {
            key: _StaticInput(
                (batch_size, policy.n_obs_steps, *spec.shape),
                torch.uint8 if spec.kind == "image" else policy.dtype,
                policy.device,
            )
            for key, spec in policy.config.observations.items()
        }
        shape = (batch_size, policy.config.num_candidates, policy.horizon, policy.action_dim)
        self._noise = torch.zeros(shape, dtype=policy.dtype, device=policy.device)
        # One for each observation, so that an answer need not depend on the rest of the batch.
        self._generators = [torch.Generator(policy.device) for _ in range(batch_size)]
        before = [generator.get_state() for generator in self._generators]
        _warm_up(self._decide, policy.device)
        after = [generator.get_state() for generator in self._generators]
        self._draws_on_the_way = any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
        self._replay, self._prediction = _capture(self._decide, self._generators)

    @torch.inference_mode()
    def predict_action(
        self,
        obs: Observation,
        *,
        generator: Generators = None,
        noise: Tensor | np.ndarray | None = None,
        noise_scale: float | None = None,
    ) -> dict[str, Tensor]:
        """Draw one action chunk for each observation; arguments, result and errors of `Policy.predict_action`.

        Given noise [B, Tp, Da] is that of all captured candidates, which are then one chunk unless the head draws more
        noise on the way. A mirrored policy refuses it: half of them would answer to the mirror image.

        Raises:
            ValueError: also for another batch size or number of candidates than captured, and for float images.
        """
        observation = self.policy._checked_in_place(obs)
        for key, value in observation.items():
            self._check_fits(key, value)
        for key, value in observation.items():
            self._inputs[key].fill(value)
        # The policy's own way to draw, so that both use the same numbers.
        start = self.policy._noise(self.batch_size, generator, noise_scale, noise=noise)
        self._check_candidates(start.shape[1])
        self._noise.copy_(start)
        if self._draws_on_the_way:
            self._seed_generators(generator)
        self._replay()
        prediction = self._prediction.clone()  # the next decision writes to the same place
        action = executed_steps(prediction, self.policy.n_obs_steps, self.policy.n_action_steps)
        return {"action": action, "action_pred": prediction}

    def _decide(self) -> Tensor:
        """Compute what is captured: from the static inputs to chunks [B, Tp, Da] in the units of the demonstrations."""
        policy = self.policy
        observation = {key: value.on_device for key, value in self._inputs.items()}
        # The autocast context ends with the decision: casts that it caches must not outlive the graph's memory.
        with torch.inference_mode(), torch.autocast(policy.device.type, torch.bfloat16, enabled=self._use_bfloat16):
            chunks = policy.propose(policy._encode(observation), self._noise, self._generators)
        with torch.inference_mode():
            return policy.normalizer.unnormalize(ACTION, most_typical(chunks.to(policy.dtype)))

    def _check_fits(self, key: str, value: Tensor) -> None:
        if len(value) != self.batch_size:
            raise ValueError(
                f"obs[{key!r}] has batch size {len(value)}, but the graph was captured for {self.batch_size}: make "
                "another GraphedPolicy for another batch size."
            )
        if value.dtype != self._inputs[key].on_device.dtype:
            raise ValueError(f"obs[{key!r}] is an image of {value.dtype}, but a captured graph reads uint8 (0..255).")

    def _check_candidates(self, number: int) -> None:
        captured = self._noise.shape[1]
        if number not in (1, captured):
            raise ValueError(
                f"There are {number} candidates, but the graph was captured for {captured}: make another GraphedPolicy "
                "for another number."
            )
        if number < captured and self.policy.config.mirrored:
            raise ValueError(
                f"noise is that of one candidate, but half of the {captured} candidates of this policy answer to the "
                f"mirror image of the observation: give {list(self._noise.shape)}."
            )

    def _seed_generators(self, generator: Generators) -> None:
        """Seed the generators inside the graph from the given ones, or from PyTorch's default one."""
        sources = generator if isinstance(generator, list) else [generator] * self.batch_size
        for own, source in zip(self._generators, sources, strict=True):
            device = torch.device("cpu") if source is None else source.device
            own.manual_seed(int(torch.randint(2**63 - 1, (), generator=source, device=device)))


class _StaticInput:
    """A tensor at a fixed place on the GPU, which is filled through pinned memory without waiting for the GPU."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.on_device = torch.zeros(shape, dtype=dtype, device=device)
        self._pinned = torch.empty(shape, dtype=dtype, pin_memory=True)
        self._was_read = torch.cuda.Event()

    def fill(self, value: Tensor) -> None:
        """Copy a tensor of this shape and type, wherever it is."""
        if value.is_cuda:
            self.on_device.copy_(value)
            return
        self._was_read.synchronize()  # the GPU may still be copying the previous observation
        self._pinned.copy_(value)
        self.on_device.copy_(self._pinned, non_blocking=True)
        self._was_read.record()


def _require_gpu(device: torch.device) -> None:
    require(
        device.type == "cuda",
        f"A CUDA graph needs an NVIDIA GPU, but the policy is on {device}: move it with policy.to('cuda'), or use the "
        "policy itself.",
    )


def _warm_up(decide: Callable[[], Tensor], device: torch.device) -> None:
    """Call on a stream of its own, as a capture does."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP_CALLS):
            decide()
    torch.cuda.current_stream(device).wait_stream(stream)


def _capture(decide: Callable[[], Tensor], generators: list[torch.Generator]) -> tuple[Callable[[], None], Tensor]:
    """Return a function that replays `decide`, and the tensor that it writes to."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        result = decide()
    return graph.replay, result
