"""Where each of our parameters lies in the released parameter trees, and in which layout.

The released networks keep dense kernels as [in, out] and convolutions as [kh, kw, in, out].
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from torch import Tensor, nn

from image_gen.models import DiT

Layout = Literal["same", "dense", "conv"]


class ReleasedTensor(NamedTuple):
    """One entry of a released tree."""

    path: str
    layout: Layout


# Our module -> the released one; {0} and {1} are the numbers in our name.
_GENERATOR_MODULES = {
    r"class_embed": "Embed_0",
    r"style_embeds\.(\d+)": "noise_embeds_{0}",
    r"guidance_embed\.linear1": "TimestepEmbedder_0/TorchLinear_0/Dense_0",
    r"guidance_embed\.linear2": "TimestepEmbedder_0/TorchLinear_1/Dense_0",
    r"guidance_embed\.norm": "RMSNorm_0",
    r"patch_embed": "LightningDiT_0/TorchLinear_0/Dense_0",
    r"context_proj": "LightningDiT_0/TorchLinear_1/Dense_0",
    r"blocks\.(\d+)\.norm1": "LightningDiT_0/blocks_{0}/RMSNorm_0",
    r"blocks\.(\d+)\.norm2": "LightningDiT_0/blocks_{0}/RMSNorm_1",
    r"blocks\.(\d+)\.attn\.qkv": "LightningDiT_0/blocks_{0}/Attention_0/TorchLinear_0/Dense_0",
    r"blocks\.(\d+)\.attn\.proj": "LightningDiT_0/blocks_{0}/Attention_0/TorchLinear_1/Dense_0",
    r"blocks\.(\d+)\.attn\.([qk]_norm)": "LightningDiT_0/blocks_{0}/Attention_0/{1}",
    r"blocks\.(\d+)\.modulation\.linear": "LightningDiT_0/blocks_{0}/TorchLinear_0/Dense_0",
    r"final\.norm": "LightningDiT_0/FinalLayer_0/RMSNorm_0",
    r"final\.modulation\.linear": "LightningDiT_0/FinalLayer_0/TorchLinear_0/Dense_0",
    r"final\.linear": "LightningDiT_0/FinalLayer_0/TorchLinear_1/Dense_0",
}
_SWIGLU_MODULES = {
    r"blocks\.(\d+)\.mlp\.gate": "LightningDiT_0/blocks_{0}/SwiGLUFFN_0/TorchLinear_0/Dense_0",
    r"blocks\.(\d+)\.mlp\.up": "LightningDiT_0/blocks_{0}/SwiGLUFFN_0/TorchLinear_1/Dense_0",
    r"blocks\.(\d+)\.mlp\.down": "LightningDiT_0/blocks_{0}/SwiGLUFFN_0/TorchLinear_2/Dense_0",
}
_MLP_MODULES = {
    r"blocks\.(\d+)\.mlp\.up": "LightningDiT_0/blocks_{0}/StandardMLP_0/TorchLinear_0/Dense_0",
    r"blocks\.(\d+)\.mlp\.down": "LightningDiT_0/blocks_{0}/StandardMLP_0/TorchLinear_1/Dense_0",
}
_GENERATOR_PARAMETERS = {"pos_embed": "LightningDiT_0/pos_embed", "context_embed": "LightningDiT_0/cls_embed"}
_MAE_MODULES = {
    r"encoder\.stages\.(\d+)\.(\d+)\.(\w+)": "encoder/stages_{0}/layers_{1}/{2}",
    r"encoder\.stage_norms\.(\d+)": "encoder/layer{0+1}_norm",
    r"encoder\.(\w+)": "encoder/{0}",
    r"decoder\.(\w+)\.concat_norm": "decoder/{0}/concat_norm_fn",
    r"decoder\.(\w+)\.(\w+)\.(\w+)": "decoder/{0}/{1}/{2}",
    r"decoder\.(\w+)\.(\w+)": "decoder/{0}/{1}",
    r"decoder\.(\w+)": "decoder/{0}",
    r"fc": "fc",
}


def released_tensors(model: nn.Module) -> dict[str, ReleasedTensor]:
    """Return our parameter name -> entry of the released tree, for every parameter of a generator or MAE."""
    if isinstance(model, DiT):
        mlp = _SWIGLU_MODULES if model.config.use_swiglu else _MLP_MODULES
        modules, parameters = _GENERATOR_MODULES | mlp, _GENERATOR_PARAMETERS
    else:
        modules, parameters = _MAE_MODULES, {}
    found = {}
    for module_name, module in model.named_modules():
        for leaf, _ in module.named_parameters(recurse=False):
            name = f"{module_name}.{leaf}" if module_name else leaf
            if name in parameters:
                found[name] = ReleasedTensor(parameters[name], "same")
                continue
            released_leaf, layout = _leaf(module, leaf)
            found[name] = ReleasedTensor(f"{_translate(module_name, modules)}/{released_leaf}", layout)
    return found


def from_released(tensor: Tensor, layout: Layout) -> Tensor:
    """Bring a released array into our layout."""
    if layout == "dense" and tensor.ndim == 2:
        return tensor.T.contiguous()
    if layout == "conv" and tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    return tensor


def to_released(tensor: Tensor, layout: Layout) -> Tensor:
    """Bring one of our parameters into the released layout."""
    if layout == "dense":
        return tensor.T.contiguous()
    return tensor.permute(2, 3, 1, 0).contiguous() if layout == "conv" else tensor


def _leaf(module: nn.Module, leaf: str) -> tuple[str, Layout]:
    if leaf == "bias":
        return "bias", "same"
    if isinstance(module, nn.Linear):
        return "kernel", "dense"
    if isinstance(module, nn.Conv2d):
        return "kernel", "conv"
    if isinstance(module, nn.Embedding):
        return "embedding", "same"
    return ("scale" if isinstance(module, nn.GroupNorm) else "weight"), "same"


def _translate(module_name: str, modules: dict[str, str]) -> str:
    for pattern, target in modules.items():
        match = re.fullmatch(pattern, module_name)
        if match is not None:
            groups = match.groups()
            # Stage norms count from 1 there and from 0 here.
            target = target.replace("{0+1}", str(int(groups[0]) + 1) if "{0+1}" in target else "")
            return target.format(*groups)
    raise KeyError(f"{module_name} has no place in a released tree.")
