"""Run a policy that `python -m drift_policy.export format=onnx` wrote, with onnxruntime and numpy alone."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drift_policy.errors import CheckpointError, require
from drift_policy.runtime.array_policy import ArrayPolicy, Decided, Floats
from drift_policy.runtime.observations import Arrays, checked_observation
from drift_policy.runtime.spec import METADATA_KEY, PolicySpec, spec_from_json

NOISE, PREDICTION = "noise", "action_pred"  # names in the graph, beside the observation keys
PAST, FEATURES = "past_features", "features"  # of observation steps, in the graph of a policy that encodes them singly
_ELEMENT_TYPE = "tensor(float)"


class OnnxPolicy(ArrayPolicy):
    """An exported policy; `predict_action`, `select_action` and `reset` are those of `ArrayPolicy`.

    Noise of a single candidate is refused where the file draws several and mirrors half of them: its graph would mirror
    that one too.

    Args:
        path: the .onnx file.
        num_threads: CPU threads of a decision.
        providers: where onnxruntime computes, for example ["CUDAExecutionProvider"]; the CPU if absent. What one of
            them cannot compute, the CPU does.
        seed: of the noise; fresh entropy if absent.

    Raises:
        CheckpointError: onnxruntime is not installed, or the file is missing, damaged or not written by the export.
        ConfigurationError: a provider that this onnxruntime does not have, or that does not start.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        num_threads: int = 1,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        seed: int | None = None,
    ) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, but is {num_threads}.")
        self._session = _open(Path(path), num_threads, providers)
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise CheckpointError(
                f"{path} has no metadata of drift-policy: write it with python -m drift_policy.export ckpt=... "
                "format=onnx."
            )
        spec = spec_from_json(text, str(path))
        self.feature_size = _feature_size(self._session, path)
        _check_graph(self._session, spec, self.feature_size, path)
        self._encode_only = _only_what_is_fetched()
        super().__init__(spec, seed)

    @property
    def encodes_steps(self) -> bool:
        """Whether the robot loop encodes each step once: the file has cameras and observes several steps."""
        return self.feature_size is not None

    def encode_step(self, obs: Any) -> Floats:
        """Return the features [B, F] of one observation step.

        Args:
            obs: {key: [B, 1, ...]}; otherwise as in `predict_action`, with the same errors.

        Raises:
            ValueError: also if the policy does not encode steps.
        """
        if not self.encodes_steps:
            raise ValueError("This policy takes whole observations: it has no features of single steps.")
        observation = checked_observation(self.spec, obs, 1)
        batch = len(next(iter(observation.values())))
        noise = np.zeros((batch, *self.spec.noise_shape), np.float32)
        features: Floats = self._session.run([FEATURES], self._feed(observation, [], noise), self._encode_only)[0]
        return features[:, -1]

    def _decide(
        self, observation: Arrays, features: Sequence[ArrayLike], noise: Floats | None, noise_scale: float
    ) -> Decided:
        started = time.perf_counter()
        if noise is None:
            noise = self._draw(len(next(iter(observation.values()))))
        elif noise.ndim == 3 and self.spec.num_candidates > 1:
            if self.spec.mirrored:
                raise ValueError(
                    f"noise has shape {list(noise.shape)}, that of one candidate, but half of the candidates of this "
                    f"file answer to the mirror image of the observation: give {[len(noise), *self.spec.noise_shape]}."
                )
            # The graph's candidates are then all that one, so its choice among them is that one too.
            noise = np.repeat(noise[:, None], self.spec.num_candidates, axis=1)
        feed = self._feed(observation, features, noise * np.float32(noise_scale))
        prepared = time.perf_counter()
        outputs = self._session.run([PREDICTION, FEATURES] if self.encodes_steps else [PREDICTION], feed)
        ended = time.perf_counter()
        timing = {"prepare": (prepared - started) * 1000, "graph": (ended - prepared) * 1000}
        return Decided(outputs[0], timing, *outputs[1:])

    def _feed(self, observation: Arrays, features: Sequence[ArrayLike], noise: Floats) -> Arrays:
        """Return what the graph reads."""
        feed = {key: as_floats(value) for key, value in observation.items()} | {NOISE: noise}
        if self.feature_size is None:
            return feed
        # The graph keeps the newest To of past and new steps: what stands before the known ones is never read.
        past = np.zeros((len(noise), self.n_obs_steps - 1, self.feature_size), np.float32)
        for number, value in enumerate(reversed(features), start=1):
            given = np.asarray(value, dtype=np.float32)
            if given.shape != (len(noise), self.feature_size):
                raise ValueError(
                    f"features of a step must have shape {[len(noise), self.feature_size]}, but have "
                    f"{list(given.shape)}."
                )
            if not np.isfinite(given).all():
                raise ValueError("features hold NaN or infinity: a value is missing.")
            past[:, -number] = given
        return feed | {PAST: past}


def as_floats(value: np.ndarray) -> np.ndarray:
    """Return numbers as they are, and bytes of images as floats in 0..1: what the graph reads."""
    return np.multiply(value, np.float32(1 / 255), dtype=np.float32) if value.dtype == np.uint8 else value


def _open(path: Path, num_threads: int, providers: Sequence[str]) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise CheckpointError(
            "Running an exported policy needs onnxruntime: pip install 'drift-policy[export]'."
        ) from error
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: write it with python -m drift_policy.export ckpt=... .")
    # onnxruntime itself only warns and computes on the CPU.
    known = onnxruntime.get_available_providers()
    for name in providers:
        require(
            name in known,
            f"providers names {name}, but this onnxruntime has {', '.join(known)}: install a build that has it, for "
            "example onnxruntime-gpu in place of onnxruntime.",
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; warnings are about the graph's optimisation
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime's errors share no public base class
        raise CheckpointError(f"{path} cannot be run by onnxruntime: {error}") from error
    for name in providers:
        require(
            name in session.get_providers(),
            f"onnxruntime cannot start {name}, and would compute on the CPU: install the libraries that it needs (for "
            "CUDAExecutionProvider, CUDA and cuDNN), or leave it out of providers.",
        )
    return session


def _only_what_is_fetched() -> Any:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    return options


def _feature_size(session: Any, path: str | Path) -> int | None:
    """Return F of a graph that takes features of past steps, else None."""
    sizes = [node.shape[-1] for node in session.get_inputs() if node.name == PAST]
    if not sizes:
        return None
    if not isinstance(sizes[0], int) or sizes[0] < 1:
        raise CheckpointError(f"{path}: {PAST} must have a fixed number of features, not {sizes[0]}.")
    return sizes[0]


def _check_graph(session: Any, spec: PolicySpec, feature_size: int | None, path: str | Path) -> None:
    """Refuse a file whose graph is not that of its metadata."""
    expected = {key: [spec.n_obs_steps, *value.shape] for key, value in spec.observations.items()}
    expected[NOISE] = list(spec.noise_shape)
    predicted = {PREDICTION: [spec.horizon, spec.action_dim]}
    found = {node.name: node for node in session.get_inputs()}
    if feature_size is not None:
        expected[PAST] = [spec.n_obs_steps - 1, feature_size]
        predicted[FEATURES] = [spec.n_obs_steps, feature_size]
    if found.keys() != expected.keys():
        raise CheckpointError(f"{path} reads {sorted(found)}, but its metadata say {sorted(expected)}.")
    for name, shape in expected.items():
        given = list(found[name].shape[1:])
        if feature_size is not None and name in spec.observations and isinstance(given[0], str):
            given[0] = spec.n_obs_steps  # any number of steps is taken
        if given != shape or found[name].type != _ELEMENT_TYPE:
            raise CheckpointError(
                f"{path}: {name} is {found[name].type} {list(found[name].shape)}, but its metadata say {_ELEMENT_TYPE} "
                f"[batch, {', '.join(map(str, shape))}]."
            )
    outputs = {node.name: list(node.shape[1:]) for node in session.get_outputs()}
    if outputs != predicted:
        raise CheckpointError(f"{path} returns {outputs}, which its metadata do not say.")
