"""How the tensors of Diffusion Policy's networks are called here; the tables are in the networks' own modules."""

import re
from collections.abc import Mapping

from torch import Tensor

from drift_policy.errors import CheckpointError

# Parameters and buffers without influence: an empty tensor for the device, masks and grids that are rebuilt.
_IGNORED = re.compile(r"(^|\.)_dummy_variable$|^(mask|memory_mask)$|\.pool\.(temperature|pos_x|pos_y)$")
_UNET = (
    (r"^mid_modules\.", "mid_blocks."),
    (r"^diffusion_step_encoder\.", "step_encoder."),
    (r"^(up|down)_modules\.(\d+)\.0\.", r"\1_levels.\2.block_1."),
    (r"^(up|down)_modules\.(\d+)\.1\.", r"\1_levels.\2.block_2."),
    (r"^(up|down)_modules\.(\d+)\.2\.conv\.", r"\1_levels.\2.resample."),
    (r"^final_conv\.0\.block\.", "output.0."),
    (r"^final_conv\.1\.", "output.1."),
    (r"\.blocks\.0\.block\.", ".conv_1."),
    (r"\.blocks\.1\.block\.", ".conv_2."),
    (r"\.cond_encoder\.1\.", ".film."),
    (r"\.residual_conv\.", ".skip."),
)
_TRANSFORMER = (
    (r"^pos_emb$", "action_position"),
    (r"^cond_pos_emb$", "memory_position"),
    (r"^input_emb\.", "action_projection."),
    (r"^cond_obs_emb\.", "condition_projection."),
    (r"^encoder\.", "memory_encoder."),
    (r"^decoder\.layers\.", "layers."),
    (r"^ln_f\.", "output_norm."),
    (r"^head\.", "output."),
)
# robomimic's visual core: ResNet-18 without its classifier, spatial softmax, flattening, linear layer. `nets` holds the
# backbone and the pooling a second time.
_CAMERA = re.compile(r"^obs_nets\.([^.]+)\.(.+)$")
_RESNET = (
    (r"^backbone\.nets\.(0|1)\.", r"\1."),
    (r"^backbone\.nets\.([4-7])\.([01])\.", lambda match: f"{2 * int(match[1]) - 4 + int(match[2])}."),
    (r"^pool\.nets\.", "12.maps."),
    (r"^nets\.3\.", "13."),
    (r"\.bn([12])\.", r".norm\1."),
)
_REPEATED = re.compile(r"^nets\.[01]\.")


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors below `prefix`, without it and without those that have no influence."""
    below = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in below.items() if not _IGNORED.search(name)}


def rename_network(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a `ConditionalUnet1D` or a `TransformerForDiffusion` our names."""
    rules = _TRANSFORMER if "pos_emb" in state else _UNET
    return {_renamed(name, rules): tensor for name, tensor in state.items()}


def rename_cameras(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Give robomimic's image networks our names: camera -> tensors of our ResNet-18.

    Raises:
        CheckpointError: the encoder is of another kind, or has batch normalisation.
    """
    cameras: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = _CAMERA.match(name)
        if match is None:
            raise CheckpointError(
                f"The checkpoint's obs_encoder has the tensor {name}: only the encoder of the hybrid workspaces "
                "(robomimic's ResNet-18 with spatial softmax) can be read."
            )
        camera, rest = match.groups()
        if rest.endswith(("running_mean", "running_var", "num_batches_tracked")):
            raise CheckpointError(
                "The checkpoint's obs_encoder has batch normalisation; only encoders trained with "
                "obs_encoder_group_norm: True can be read."
            )
        if not _REPEATED.match(rest):
            cameras.setdefault(camera, {})[_renamed(rest, _RESNET)] = tensor
    return cameras


def _renamed(name: str, rules: tuple[tuple[str, object], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)  # type: ignore[call-overload]  # a text or a function
    return name
