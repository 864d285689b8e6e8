"""What Diffusion Policy hands to a policy and writes to disk, in miniature: normaliser, networks' names, checkpoints.

The networks are skeletons: they have the parameters of the originals, with their names and in their order, and nothing
to compute with.
"""

import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class LinearNormalizer(nn.Module):
    """Its `params_dict`, filled as its `fit` does for the mode "limits"."""

    def __init__(self) -> None:
        super().__init__()
        self.params_dict = nn.ParameterDict()

    def fit(self, data: Mapping[str, Tensor]) -> None:
        for key, value in data.items():
            flat = value.reshape(-1, value.shape[-1])
            low, high = flat.amin(dim=0), flat.amax(dim=0)
            scale = 2 / (high - low)
            self.put(key, scale, -1 - scale * low)

    def put(self, key: str, scale: Tensor, offset: Tensor) -> None:
        stats = nn.ParameterDict({"min": nn.Parameter(torch.zeros(1), requires_grad=False)})
        self.params_dict[key] = nn.ParameterDict(
            {
                "scale": nn.Parameter(scale, requires_grad=False),
                "offset": nn.Parameter(offset, requires_grad=False),
                "input_stats": stats,
            }
        )

    def put_image_range(self, key: str) -> None:
        self.put(key, torch.tensor([2.0]), torch.tensor([-1.0]))

    def normalize(self, key: str, value: Tensor) -> Tensor:
        return value * self.params_dict[key]["scale"] + self.params_dict[key]["offset"]


class _Dummy(nn.Module):
    """The empty parameter by which its modules know their device."""

    def __init__(self) -> None:
        super().__init__()
        self._dummy_variable = nn.Parameter(torch.empty(0))


def _conv_block(n_in: int, n_out: int, kernel: int) -> nn.Module:
    holder = nn.Module()
    holder.block = nn.Sequential(nn.Conv1d(n_in, n_out, kernel), nn.GroupNorm(8, n_out))
    return holder


def _residual_block(n_in: int, n_out: int, condition: int, kernel: int) -> nn.Module:
    block = nn.Module()
    block.blocks = nn.ModuleList([_conv_block(n_in, n_out, kernel), _conv_block(n_out, n_out, kernel)])
    block.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * n_out))
    block.residual_conv = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
    return block


def _resample(layer: nn.Module) -> nn.Module:
    holder = nn.Module()
    holder.conv = layer
    return holder


def unet_skeleton(action_dim: int, condition_dim: int, dims: list[int], step_dim: int, kernel: int = 5) -> nn.Module:
    """Return a module with the state dict of `ConditionalUnet1D` with global conditioning."""
    condition = step_dim + condition_dim
    net = nn.Module()
    net.mid_modules = nn.ModuleList(_residual_block(dims[-1], dims[-1], condition, kernel) for _ in range(2))
    net.diffusion_step_encoder = nn.Sequential(
        nn.Identity(), nn.Linear(step_dim, 4 * step_dim), nn.Mish(), nn.Linear(4 * step_dim, step_dim)
    )
    pairs = list(zip([action_dim, *dims[:-1]], dims, strict=True))
    net.up_modules = nn.ModuleList(
        nn.ModuleList(
            [
                _residual_block(2 * high, low, condition, kernel),
                _residual_block(low, low, condition, kernel),
                _resample(nn.ConvTranspose1d(low, low, 4, 2, 1)),
            ]
        )
        for low, high in reversed(pairs[1:])
    )
    net.down_modules = nn.ModuleList(
        nn.ModuleList(
            [
                _residual_block(n_in, n_out, condition, kernel),
                _residual_block(n_out, n_out, condition, kernel),
                nn.Identity() if n_out == dims[-1] else _resample(nn.Conv1d(n_out, n_out, 3, 2, 1)),
            ]
        )
        for n_in, n_out in pairs
    )
    net.final_conv = nn.Sequential(_conv_block(dims[0], dims[0], kernel), nn.Conv1d(dims[0], action_dim, 1))
    return net


def transformer_skeleton(
    action_dim: int, obs_dim: int, horizon: int, n_obs_steps: int, n_emb: int, n_head: int, n_layer: int
) -> nn.Module:
    """Return a module with the state dict of `TransformerForDiffusion`, causal, with observations as condition."""
    net = _Dummy()
    net.pos_emb = nn.Parameter(torch.zeros(1, horizon, n_emb))
    net.cond_pos_emb = nn.Parameter(torch.zeros(1, 1 + n_obs_steps, n_emb))
    net.input_emb = nn.Linear(action_dim, n_emb)
    net.cond_obs_emb = nn.Linear(obs_dim, n_emb)
    net.encoder = nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))
    layer = nn.TransformerDecoderLayer(n_emb, n_head, 4 * n_emb, activation="gelu", batch_first=True, norm_first=True)
    net.decoder = nn.TransformerDecoder(layer, n_layer)
    net.register_buffer("mask", torch.full((horizon, horizon), float("-inf")).triu(1))
    net.register_buffer("memory_mask", torch.zeros(horizon, 1 + n_obs_steps))
    net.ln_f = nn.LayerNorm(n_emb)
    net.head = nn.Linear(n_emb, action_dim)
    return net


def _resnet_block(n_in: int, n_out: int, stride: int) -> nn.Module:
    block = nn.Module()
    block.conv1 = nn.Conv2d(n_in, n_out, 3, stride, bias=False)
    block.bn1 = nn.GroupNorm(n_out // 16, n_out)
    block.conv2 = nn.Conv2d(n_out, n_out, 3, bias=False)
    block.bn2 = nn.GroupNorm(n_out // 16, n_out)
    if stride != 1 or n_in != n_out:
        block.downsample = nn.Sequential(
            nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.GroupNorm(n_out // 16, n_out)
        )
    return block


def camera_skeleton(keypoints: int = 32, features: int = 64) -> nn.Module:
    """Return a module with the state dict of robomimic's visual core on ResNet-18, group normalisation."""
    sizes = [64, 64, 128, 256, 512]
    stages = [
        nn.Sequential(_resnet_block(n_in, n_out, 1 if number == 0 else 2), _resnet_block(n_out, n_out, 1))
        for number, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
    ]
    backbone = nn.Module()
    stem = [nn.Conv2d(3, 64, 7, 2, bias=False), nn.GroupNorm(4, 64), nn.ReLU(), nn.MaxPool2d(3, 2)]
    backbone.nets = nn.Sequential(*stem, *stages)
    pool = nn.Module()
    pool.nets = nn.Conv2d(512, keypoints, 1)
    for name in ("temperature", "pos_x", "pos_y"):
        pool.register_buffer(name, torch.ones(1))
    core = nn.Module()
    core.backbone, core.pool = backbone, pool
    core.nets = nn.Sequential(backbone, pool, nn.Flatten(), nn.Linear(2 * keypoints, features))
    return core


def policy_state(
    network: nn.Module, normalizer: LinearNormalizer, cameras: Mapping[str, nn.Module] | None = None
) -> "OrderedDict[str, Tensor]":
    """Return the state dict that a policy of Diffusion Policy has with these parts."""
    policy = _Dummy()
    if cameras:
        policy.obs_encoder = nn.Module()
        policy.obs_encoder.obs_nets = nn.ModuleDict(cameras)
    policy.model = network
    policy.mask_generator = _Dummy()
    policy.normalizer = normalizer
    return policy.state_dict()


def save_checkpoint(path: Path, payload: Any) -> None:
    """Write `payload` as the workspaces do: torch.save with another pickle module, which is given here as dill's is."""
    with named_like_dill() as pickler:
        torch.save(
            payload, path, pickle_module=SimpleNamespace(Pickler=pickler, __name__="dill", __version__="0.3.5.1")
        )


@contextmanager
def named_like_dill() -> Iterator[Callable[..., Any]]:
    """Give a pickler that writes built-in types as calls of dill._dill._load_type, as dill does."""
    package, module = ModuleType("dill"), ModuleType("dill._dill")
    names = {dict: "DictType", int: "IntType", list: "ListType"}
    types = {name: kind for kind, name in names.items()}
    exec("def _load_type(name):\n    return types[name]\n", module.__dict__ | {"types": types}, module.__dict__)
    load_type = module.__dict__["_load_type"]
    load_type.__module__ = "dill._dill"

    class Pickler(pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            return (load_type, (names[value],)) if isinstance(value, type) and value in names else NotImplemented

    sys.modules |= {"dill": package, "dill._dill": module}
    try:
        yield Pickler
    finally:
        del sys.modules["dill"], sys.modules["dill._dill"]
