"""Checks that both formats share: what a file says about a network is built and compared before it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from drift_policy.errors import CheckpointError, ConfigurationError
from image_gen.field_types import has_type
from image_gen.models import MAE, DiT, DiTConfig, MaeConfig

Kind = Literal["generator", "mae"]
Model = DiT | MAE


def kind_of(model: Model) -> Kind:
    """Return what `model` is called in config.json."""
    return "generator" if isinstance(model, DiT) else "mae"


class _WithoutFilling(TorchFunctionMode):
    """Leaves tensors unfilled: random numbers on the meta device would load torch's compiler, which takes seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("uniform_", "normal_", "fill_", "zero_", "copy_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def build_model(kind: Kind, settings: Mapping[str, Any], where: Path) -> Model:
    """Build the network that `settings` describe, on the meta device: nothing is allocated yet.

    Raises:
        CheckpointError: an unknown, missing or mistyped setting, or settings that do not fit together.
    """
    config_type = DiTConfig if kind == "generator" else MaeConfig
    hints = get_type_hints(config_type)
    known = {field.name for field in fields(config_type)}
    if known != settings.keys():
        differing = sorted(known ^ settings.keys(), key=str)
        what = "lacks the setting" if differing[0] in known else "has the unknown setting"
        raise CheckpointError(f"{where} {what} {differing[0]!r} of a {kind}: it is of another release or damaged.")
    for name, value in settings.items():
        if not has_type(value, hints[name]):
            raise CheckpointError(f"{where}: the setting {name} is {value!r}, which is no {hints[name]}.")
    try:
        with torch.device("meta"), _WithoutFilling():
            return DiT(DiTConfig(**settings)) if kind == "generator" else MAE(MaeConfig(**settings))
    except ConfigurationError as error:
        raise CheckpointError(f"{where} describes a network that cannot be built: {error}") from error


def check_tensors(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    where: Path,
    config_name: str,
    shown: Mapping[str, str] | None = None,
) -> None:
    """Require exactly the tensors of `expected`, floating-point and finite.

    Args:
        found: name -> tensor, of the file.
        expected: name -> tensor, of the network; may be on the meta device.
        where: the file, for messages.
        config_name: the file beside it that describes the network, for messages.
        shown: name -> name in the file, where they differ.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape or type, or not finite.
    """
    shown = shown or {}
    differing = sorted(expected.keys() ^ found.keys())
    if differing:
        what = "lacks" if differing[0] in expected else "has the unknown array"
        raise CheckpointError(
            f"{where} {what} {shown.get(differing[0], differing[0])} ({len(differing)} names differ): it is not the "
            f"network that {config_name} beside it describes. Take both files from the same artifact."
        )
    for name, tensor in found.items():
        label = shown.get(name, name)
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{where}: {label} has shape {list(tensor.shape)}, but {config_name} asks for "
                f"{list(expected[name].shape)} (in PyTorch's order). Take both files from the same artifact."
            )
        if tensor.dtype != expected[name].dtype:
            raise CheckpointError(
                f"{where}: {label} has type {tensor.dtype}; expected {expected[name].dtype}. Save the weights in that "
                "type and try again."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{where}: {label} holds NaN or infinity: the training that wrote it diverged.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: copy or download the whole folder.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): copy or download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a JSON object: download it again.")
    return content
