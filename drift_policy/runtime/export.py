"""Write a policy as one file: normalisation, encoder and generator in a graph that needs no drift-policy.

The graph reads the observation keys (numbers as float32, images as float32 in 0..1) and "noise" [B, Tp, Da], which is
already multiplied with its scale, and returns "action_pred" [B, Tp, Da] in the units of the demonstrations. With N > 1
candidates, which are fixed in the file, the noise is [B, N, Tp, Da] and the prediction the most typical of N chunks.

With cameras and To above 1, the ONNX graph can leave out steps that it has encoded before. It then also reads
"past_features" [B, To-1, F], takes any number T of steps from 1 on, and returns "features" [B, To, F] beside the
prediction: those of the newest To of past and new steps. With all To steps given, the past is not used: give zeros.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from drift_policy.candidates import can_be_halved, most_typical, takes_both_sides
from drift_policy.errors import ConfigurationError, UserError, require
from drift_policy.policy import Policy
from drift_policy.policy_config import ACTION
from drift_policy.runtime.onnx_policy import FEATURES, NOISE, PAST, PREDICTION, OnnxPolicy
from drift_policy.runtime.spec import METADATA_KEY, PolicySpec, describe_policy

FORMATS = ("onnx", "pt2")
PT2_METADATA_FILE = f"{METADATA_KEY}.json"  # among the extra files of a .pt2
TOLERANCE = 1e-5
_LARGEST_BATCH = 4096
_TRACED_BATCH = 2  # sizes 0 and 1 would be built into the graph
_CHECKED_BATCHES = (1, 3)

Inputs = dict[str, Tensor]
Runner = Callable[[Inputs, Tensor], Tensor]  # observations and scaled noise to predictions


class ParityError(UserError):
    """An exported file does not compute what the policy computes."""


class DecisionGraph(nn.Module):
    """A decision as a function of tensors alone.

    Args:
        policy: with the drift, MIP or regression head, in evaluation mode.

    Raises:
        ConfigurationError: the head is a sampler, or the policy is in training mode.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        # MIP knows a time too, but its two evaluations are a fixed function of the observation.
        if policy.head.time_conditioned and policy.head.stochastic:
            raise ConfigurationError(
                f"A policy with the head {policy.config.head_name!r} draws a chunk in {policy.num_evaluations} steps "
                "of a sampler and cannot be exported as one graph: the heads drift, mip and regression can. To use "
                "this policy from another program, serve it: python -m drift_policy.serve ckpt=..."
            )
        if policy.training:
            raise ConfigurationError("The policy is in training mode: call policy.eval() before it is exported.")
        self.policy = policy

    def forward(self, observations: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Map observations {key: [B, To, ...]} and scaled noise [B, (N,) Tp, Da] to predictions [B, Tp, Da]."""
        return self._generate(self._encode(observations), noise)

    def _encode(self, observations: Mapping[str, Tensor]) -> Tensor:
        encoded: Tensor = self.policy.encoder(self.policy.normalize_observation(observations))
        return encoded

    def _generate(self, condition: Tensor, noise: Tensor) -> Tensor:
        candidates = noise.unsqueeze(1) if noise.ndim == 3 else noise
        chunk = most_typical(self.policy.propose(condition, candidates))
        return self.policy.normalizer.unnormalize(ACTION, chunk)


class StepwiseDecisionGraph(DecisionGraph):
    """A decision that encodes only the steps that come after those whose features are given."""

    def forward(  # type: ignore[override]  # exporters read the arguments by their order
        self, observations: Mapping[str, Tensor], noise: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Map T new steps {key: [B, T, ...]}, noise and past features [B, To-1, F] to predictions and features."""
        steps = next(iter(observations.values())).shape[1]
        new = self._encode(observations).unflatten(1, (steps, past.shape[2]))
        features = torch.cat([past, new], dim=1)[:, -self.policy.n_obs_steps :]
        return self._generate(features.flatten(1), noise), features


def export_policy(
    policy: Policy, path: str | Path, file_format: str = "onnx", num_candidates: int | None = None
) -> float:
    """Write `policy` to `path`, read it back, and hold it against the policy on random inputs.

    The file appears only when it computes the same.

    Args:
        policy: on the CPU, in evaluation mode, with the drift, MIP or regression head.
        path: the file.
        file_format: "onnx", or "pt2" for `torch.export.load`.
        num_candidates: N of every decision of the file; the policy's if absent.

    Returns:
        The largest difference found; see `largest_difference`.

    Raises:
        ConfigurationError: a head that is a sampler, an unknown format, a wrong number, or a package that is missing.
        ParityError: the file computes something else, by more than 1e-5.
    """
    if file_format not in FORMATS:
        raise ConfigurationError(f"format is {file_format!r}; choose one of: {', '.join(FORMATS)}.")
    spec = describe_policy(policy)
    if num_candidates is not None:
        require(num_candidates >= 1, f"num_candidates must be at least 1, but is {num_candidates}.")
        mirrored = takes_both_sides(num_candidates, policy.config.mirrored)
        require(
            not mirrored or can_be_halved(num_candidates),
            f"num_candidates={num_candidates} cannot be shared by an observation and its mirror image, as this policy "
            "was trained for: give an even number, or 1, which is not mirrored.",
        )
        spec = replace(spec, num_candidates=num_candidates, mirrored=mirrored)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.writing.{file_format}")
    try:
        write, read = (_write_onnx, _read_onnx) if file_format == "onnx" else (_write_pt2, _read_pt2)
        write(policy, spec, temporary)
        difference = max(largest_difference(policy, spec, run) for run in read(temporary))
        if not difference <= TOLERANCE:
            raise ParityError(
                f"The exported graph differs from the policy by {difference:.1e} of the actions' range, more than "
                f"{TOLERANCE:g}: {path} is not written. Try another format, or other versions of torch and onnx."
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def trace(policy: Policy, spec: PolicySpec) -> ExportedProgram:
    """Return the graph of a decision, for any batch size up to 4096.

    Args:
        policy: to export.
        spec: of it, with the number of candidates.

    Raises:
        ConfigurationError: the head is a sampler, or the policy is in training mode.
    """
    graph = DecisionGraph(policy)
    batch = Dim("batch", min=1, max=_LARGEST_BATCH)
    observations, noise = random_inputs(policy, spec, _TRACED_BATCH, seed=0)
    shapes = ({key: {0: batch} for key in observations}, {0: batch})
    with torch.no_grad(), _quiet():
        return torch.export.export(graph, (observations, noise), dynamic_shapes=shapes)


def trace_stepwise(policy: Policy, spec: PolicySpec) -> ExportedProgram:
    """Return the graph of a decision that takes features of past steps; otherwise as `trace`."""
    graph = StepwiseDecisionGraph(policy)
    # Traced with more steps than are ever given: sizes 0 and 1, and those that other sizes equal, would be built in.
    most = policy.n_obs_steps + 1
    batch, steps = Dim("batch", min=1, max=_LARGEST_BATCH), Dim("steps", min=1, max=most)
    observations, noise = random_inputs(policy, spec, _TRACED_BATCH, seed=0)
    longer = {key: torch.cat([value[:, :1], value], dim=1) for key, value in observations.items()}
    past = torch.zeros(_TRACED_BATCH, policy.n_obs_steps - 1, policy.feature_size)
    shapes = ({key: {0: batch, 1: steps} for key in longer}, {0: batch}, {0: batch})
    with torch.no_grad(), _quiet():
        return torch.export.export(graph, (longer, noise, past), dynamic_shapes=shapes)


def random_inputs(policy: Policy, spec: PolicySpec, batch: int, seed: int) -> tuple[Inputs, Tensor]:
    """Return random observations over about the range of the data, as the graph reads them, and noise."""
    generator = torch.Generator().manual_seed(seed)
    observations: Inputs = {}
    for key, value in spec.observations.items():
        unit = torch.rand((batch, spec.n_obs_steps, *value.shape), generator=generator)
        observations[key] = unit if value.kind == "image" else policy.normalizer.unnormalize(key, 2.4 * unit - 1.2)
    return observations, torch.randn((batch, *spec.noise_shape), generator=generator)


def largest_difference(policy: Policy, spec: PolicySpec, run: Runner) -> float:
    """Return the largest difference between the policy's predictions and those of `run`.

    In normalised actions, whose range in the data is [-1, 1], relative where they are larger than 1.

    Args:
        policy: what is right.
        spec: of the graph, with its number of candidates.
        run: the graph.
    """
    largest = 0.0
    for seed, batch in enumerate(_CHECKED_BATCHES, start=1):
        observations, noise = random_inputs(policy, spec, batch, seed)
        expected = policy.predict_action(observations, noise=noise, noise_scale=1.0)["action_pred"]
        expected, found = (policy.normalizer.normalize(ACTION, value) for value in (expected, run(observations, noise)))
        error = (found - expected).abs() / expected.abs().clamp(min=1.0)
        largest = max(largest, float(error.nan_to_num(torch.inf).max()))
    return largest


def _write_onnx(policy: Policy, spec: PolicySpec, path: Path) -> None:
    try:
        import onnxruntime  # noqa: F401  # the file is checked with it
        import onnxscript  # noqa: F401  # torch.onnx writes with it
    except ImportError as error:
        raise ConfigurationError(
            f"format=onnx needs the package {error.name}: pip install 'drift-policy[export]'."
        ) from error
    read, returned = [*policy.config.observations, NOISE], [PREDICTION]
    if policy.encodes_steps:
        program, read, returned = trace_stepwise(policy, spec), [*read, PAST], [*returned, FEATURES]
    else:
        program = trace(policy, spec)
    with _quiet():
        onnx = torch.onnx.export(program, input_names=read, output_names=returned, dynamo=True, verbose=False)
    assert onnx is not None  # it is only for dynamo=False
    onnx.model.metadata_props[METADATA_KEY] = spec.to_json()
    onnx.save(path, external_data=False)


def _read_onnx(path: Path) -> list[Runner]:
    exported = OnnxPolicy(path)

    def run(observations: Inputs, noise: Tensor) -> Tensor:
        arrays = {key: value.numpy() for key, value in observations.items()}
        return torch.as_tensor(exported.predict_action(arrays, noise=noise.numpy(), noise_scale=1.0)["action_pred"])

    def run_stepwise(observations: Inputs, noise: Tensor) -> Tensor:
        steps = [
            {key: value[:, number : number + 1].numpy() for key, value in observations.items()}
            for number in range(exported.n_obs_steps)
        ]
        features = [exported.encode_step(step) for step in steps[:-1]]
        answer = exported.predict_action(steps[-1], noise=noise.numpy(), noise_scale=1.0, features=features)
        return torch.as_tensor(answer["action_pred"])

    return [run, run_stepwise] if exported.encodes_steps else [run]


def _write_pt2(policy: Policy, spec: PolicySpec, path: Path) -> None:
    program = trace(policy, spec)
    with _quiet():
        torch.export.save(program, path, extra_files={PT2_METADATA_FILE: spec.to_json()})


def _read_pt2(path: Path) -> list[Runner]:
    # torch.export.load may unpickle: only this file, which was written a moment ago, is read.
    with _quiet():
        graph = torch.export.load(path).module()

    def run(observations: Inputs, noise: Tensor) -> Tensor:
        with torch.no_grad():
            predictions: Tensor = graph(observations, noise)
        return predictions

    return [run]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notes about packages that are not installed and their own internals off the console."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
