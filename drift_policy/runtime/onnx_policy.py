"""Run a policy that `python -m drift_policy.export format=onnx` wrote, with onnxruntime and numpy alone."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drift_policy.errors import CheckpointError
from drift_policy.runtime.array_policy import ArrayPolicy, Floats
from drift_policy.runtime.observations import Arrays
from drift_policy.runtime.spec import METADATA_KEY, PolicySpec, spec_from_json

NOISE, PREDICTION = "noise", "action_pred"  # names in the graph, beside the observation keys
_ELEMENT_TYPE = "tensor(float)"


class OnnxPolicy(ArrayPolicy):
    """An exported policy; `predict_action`, `select_action` and `reset` are those of `ArrayPolicy`.

    Args:
        path: the .onnx file.
        num_threads: CPU threads of a decision.
        providers: where onnxruntime computes, for example ["CUDAExecutionProvider"]; the CPU if absent.
        seed: of the noise; fresh entropy if absent.

    Raises:
        CheckpointError: onnxruntime is not installed, or the file is missing, damaged or not written by the export.
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
        _check_graph(self._session, spec, path)
        super().__init__(spec, seed)

    def _decide(self, observation: Arrays, noise: Floats | None, noise_scale: float) -> tuple[Floats, dict[str, float]]:
        started = time.perf_counter()
        if noise is None:
            noise = self._draw(len(next(iter(observation.values()))))
        feed = {key: as_floats(value) for key, value in observation.items()}
        feed[NOISE] = noise * np.float32(noise_scale)
        prepared = time.perf_counter()
        prediction = self._session.run([PREDICTION], feed)[0]
        ended = time.perf_counter()
        return prediction, {"prepare": (prepared - started) * 1000, "graph": (ended - prepared) * 1000}


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
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; warnings are about the graph's optimisation
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime's errors share no public base class
        raise CheckpointError(f"{path} cannot be run by onnxruntime: {error}") from error


def _check_graph(session: Any, spec: PolicySpec, path: str | Path) -> None:
    """Refuse a file whose graph is not that of its metadata."""
    steps = {key: [spec.n_obs_steps, *value.shape] for key, value in spec.observations.items()}
    expected = steps | {NOISE: [spec.horizon, spec.action_dim]}
    found = {node.name: node for node in session.get_inputs()}
    if found.keys() != expected.keys():
        raise CheckpointError(f"{path} reads {sorted(found)}, but its metadata say {sorted(expected)}.")
    for name, shape in expected.items():
        if list(found[name].shape[1:]) != shape or found[name].type != _ELEMENT_TYPE:
            raise CheckpointError(
                f"{path}: {name} is {found[name].type} {list(found[name].shape)}, but its metadata say {_ELEMENT_TYPE} "
                f"[batch, {', '.join(map(str, shape))}]."
            )
    outputs = {node.name: list(node.shape[1:]) for node in session.get_outputs()}
    if outputs != {PREDICTION: [spec.horizon, spec.action_dim]}:
        raise CheckpointError(f"{path} returns {outputs}, which its metadata do not say.")
