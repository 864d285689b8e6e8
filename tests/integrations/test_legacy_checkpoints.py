"""Checkpoints of Diffusion Policy: nothing in them runs, and the weights, settings and normaliser come out."""

import math
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from drift_policy import load_policy
from drift_policy.errors import CheckpointError
from drift_policy.integrations.diffusion_policy import load_legacy_policy, read_legacy_checkpoint
from drift_policy.integrations.diffusion_policy.legacy_pickle import Placeholder, read_inert
from tests.helpers.diffusion_policy_stub import (
    LinearNormalizer,
    camera_skeleton,
    named_like_dill,
    policy_state,
    save_checkpoint,
    transformer_skeleton,
    unet_skeleton,
)

pytest.importorskip("diffusers", reason="needs diffusers of the train extra")

SCHEDULER = {
    "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
    "num_train_timesteps": 6,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "prediction_type": "epsilon",
}
LOWDIM = {
    "noise_scheduler": SCHEDULER,
    "horizon": "${horizon}",
    "n_obs_steps": "${n_obs_steps}",
    "n_action_steps": "${n_action_steps}",
    "num_inference_steps": 6,
    "obs_as_global_cond": True,
    "oa_step_convention": True,
    "pred_action_steps_only": False,
}
SHAPE_META = {
    "obs": {"image": {"shape": [3, 40, 40], "type": "rgb"}, "agent_pos": {"shape": [2], "type": "low_dim"}},
    "action": {"shape": [2]},
}
DIMS = [16, 32]


class Malicious:
    """An object whose pickle calls a function with arguments."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def workspace_config(policy: dict[str, Any]) -> Any:
    return OmegaConf.create({"horizon": 8, "n_obs_steps": 2, "n_action_steps": 4, "policy": policy})


def normalizer(obs: str = "obs", obs_dim: int = 3) -> LinearNormalizer:
    given = LinearNormalizer()
    generator = torch.Generator().manual_seed(1)
    given.fit({obs: 5 * torch.rand(20, obs_dim, generator=generator), "action": 90 + torch.rand(20, 2)})
    return given


def randomised(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.numel():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.data = torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in)
    return network


def unet() -> nn.Module:
    return randomised(unet_skeleton(2, 2 * 3, DIMS, 16))


def write(path: Path, state: dict[str, Tensor], policy: dict[str, Any], **extra: Any) -> Path:
    average = {
        name: tensor + 1 if name.startswith("model.final_conv.1.b") else tensor for name, tensor in state.items()
    }
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3), "step": 7}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    payload = {
        "cfg": workspace_config(policy),
        "state_dicts": {"model": state, "ema_model": average, "optimizer": optimizer},
        "pickles": {"epoch": pickle.dumps(3), "global_step": pickle.dumps(4)},
        **extra,
    }
    save_checkpoint(path, payload)
    return path


def by_position(loaded: nn.Module, original: nn.Module) -> None:
    """Check that the parameters are those of the original, in its order; the networks' tests pin that order."""
    theirs = [parameter for parameter in original.parameters() if parameter.numel()]
    ours = list(loaded.parameters())
    assert len(theirs) == len(ours)
    for mine, expected in zip(ours, theirs, strict=True):
        assert torch.equal(mine, expected)


def test_a_lowdim_unet_becomes_a_policy(tmp_path: Path) -> None:
    network, maps = unet(), normalizer()
    path = write(tmp_path / "latest.ckpt", policy_state(network, maps), LOWDIM)
    policy = load_legacy_policy(path, weights="model")
    by_position(policy.head.network, network)
    assert (policy.horizon, policy.n_obs_steps, policy.n_action_steps, policy.num_evaluations) == (8, 2, 4, 6)
    obs = {"obs": 5 * torch.rand(3, 2, 3)}
    for key, value in (("obs", obs["obs"]), ("action", torch.rand(3, 2))):
        torch.testing.assert_close(policy.normalizer.normalize(key, value), maps.normalize(key, value))
    again = load_policy(policy.save_pretrained(tmp_path / "safe"))
    noise = torch.randn(3, 8, 2)

    def draw(given: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        action: Tensor = given.predict_action(obs, noise=noise, generator=generator)["action"]
        return action

    assert draw(policy).shape == (3, 4, 2)
    assert torch.equal(draw(again), draw(policy))
    average = load_legacy_policy(path)
    assert not torch.equal(draw(average), draw(policy))
    torch.testing.assert_close(average.head.network.output[1].bias, policy.head.network.output[1].bias + 1)  # type: ignore[index, union-attr]


def test_a_transformer_becomes_a_policy(tmp_path: Path) -> None:
    network = randomised(transformer_skeleton(2, 3, horizon=8, n_obs_steps=2, n_emb=16, n_head=2, n_layer=2))
    settings = {key: value for key, value in LOWDIM.items() if key not in ("obs_as_global_cond", "oa_step_convention")}
    model = {"n_head": 2, "causal_attn": True, "n_layer": 2}
    path = write(tmp_path / "t.ckpt", policy_state(network, normalizer()), settings | {"model": model})
    policy = load_legacy_policy(path)
    by_position(policy.head.network, network)
    assert policy.predict_action({"obs": torch.rand(2, 2, 3)})["action"].shape == (2, 4, 2)
    path = write(tmp_path / "without.ckpt", policy_state(network, normalizer()), settings)
    with pytest.raises(CheckpointError, match=r'config=\{"model": \{"n_head": 4'):
        load_legacy_policy(path)
    assert load_legacy_policy(path, config={"model": model}).config.network.causal_attn


def test_a_hybrid_image_policy_becomes_a_policy(tmp_path: Path) -> None:
    camera = randomised(camera_skeleton(keypoints=4, features=6))
    network = randomised(unet_skeleton(2, 2 * (6 + 2), DIMS, 16))
    maps = normalizer("agent_pos", 2)
    maps.put_image_range("image")
    settings = LOWDIM | {"shape_meta": SHAPE_META, "crop_shape": [36, 36], "obs_as_global_cond": True}
    path = write(tmp_path / "image.ckpt", policy_state(network, maps, {"image": camera}), settings)
    policy = load_legacy_policy(path, weights="model")
    by_position(policy.head.network, network)
    unique = {id(parameter): parameter for parameter in camera.parameters()}
    backbone = list(policy.encoder.backbones["image"].parameters())
    assert len(backbone) == len(unique)
    # robomimic registers the pooling's convolution between trunk and linear layer, as we do.
    for mine, expected in zip(backbone, unique.values(), strict=True):
        assert torch.equal(mine, expected)
    assert policy.config.observations["image"].crop == [36, 36]
    obs = {"image": torch.randint(256, (1, 2, 3, 40, 40), dtype=torch.uint8), "agent_pos": torch.rand(1, 2, 2)}
    assert policy.predict_action(obs)["action"].shape == (1, 4, 2)


def test_expressions_are_left_to_the_user(tmp_path: Path) -> None:
    settings = LOWDIM | {"n_action_steps": "${eval:'${n_action_steps}+0'}"}
    path = write(tmp_path / "e.ckpt", policy_state(unet(), normalizer()), settings)
    with pytest.raises(CheckpointError, match=r'n_action_steps as a number .*config=\{"n_action_steps": ...\}'):
        load_legacy_policy(path)
    assert load_legacy_policy(path, config={"n_action_steps": 5}).n_action_steps == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"oa_step_convention": False}, "oa_step_convention=False; only True"),
        ({"obs_as_global_cond": False}, "obs_as_global_cond=False"),
        ({"noise_scheduler": SCHEDULER | {"prediction_type": "sample"}}, "prediction_type='sample'; only 'epsilon'"),
        ({"noise_scheduler": SCHEDULER | {"_target_": "x.EulerScheduler"}}, "EulerScheduler; DDPM and DDIM"),
        ({"n_groups": 4}, "n_groups=4; only 8"),
        ({"num_inference_steps": 5}, "cannot be expressed"),
        ({"n_obs_steps": 3}, "does not hold the policy that its settings describe"),
    ],
)
def test_what_cannot_be_expressed_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.ckpt", policy_state(unet(), normalizer()), LOWDIM | change)
    with pytest.raises(CheckpointError, match=message):
        load_legacy_policy(path)


def test_batch_normalisation_and_other_encoders_are_refused(tmp_path: Path) -> None:
    state = policy_state(unet(), normalizer())
    name = "obs_encoder.obs_nets.image.backbone.nets.1.running_mean"
    for extra, message in ((name, "batch normalisation"), ("obs_encoder.key_model_map.rgb.conv1.weight", "hybrid")):
        path = write(tmp_path / "b.ckpt", {**state, extra: torch.zeros(2)}, LOWDIM)
        with pytest.raises(CheckpointError, match=message):
            load_legacy_policy(path)


def test_nothing_in_a_checkpoint_runs(tmp_path: Path) -> None:
    """Functions in every place of the payload, which would each leave a file."""
    import os

    marks = [tmp_path / f"ran_{number}" for number in range(5)]
    bad: list[Any] = [Malicious(os.system, f"touch {mark}") for mark in marks[:3]]
    bad += [Malicious(exec, f"open({str(mark)!r}, 'w')") for mark in marks[3:]]
    state = policy_state(unet(), normalizer())
    path = write(tmp_path / "bad.ckpt", state, LOWDIM, hooks=bad, more={"a": bad[0], 2: (bad[3],)})
    checkpoint = read_legacy_checkpoint(path)
    assert set(checkpoint.state_dicts) == {"model", "ema_model"}
    assert all(torch.equal(checkpoint.state_dicts["model"][name], tensor) for name, tensor in state.items())
    load_legacy_policy(path)
    assert not any(mark.exists() for mark in marks)
    # The same file does harm to a reader that executes it: the test can fail.
    with named_like_dill():
        torch.load(path, weights_only=False)
    assert all(mark.exists() for mark in marks)


def test_a_function_in_place_of_a_tensor_is_refused(tmp_path: Path) -> None:
    state: dict[str, Any] = dict(policy_state(unet(), normalizer()))
    mark = tmp_path / "ran"
    state["model.x"] = Malicious(exec, f"open({str(mark)!r}, 'w')")
    path = tmp_path / "bad.ckpt"
    save_checkpoint(path, {"cfg": {}, "state_dicts": {"model": state}})
    with pytest.raises(CheckpointError, match=r"'model\.x' is no tensor"):
        read_legacy_checkpoint(path)
    assert not mark.exists()


# Written by hand, opcode by opcode: every way in which a pickle names and calls something.
PROGRAMS = {
    "global and reduce": b"cos\nsystem\n(S'touch {mark}'\ntR.",
    "instance": b"(S'touch {mark}'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nS'touch {mark}'\no.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'touch {mark}'\ntR.",
    "dotted name": b"\x80\x04\x8c\x08builtins\x8c\x0dexec.__call__\x93(S\"open('{mark}','w')\"\ntR.",
    "new object": b"\x80\x02cos\nsystem\n(S'touch {mark}'\nt\x81.",
    "instance of a result": b"cdill._dill\n_create_type\n(S'touch {mark}'\ntR(cos\nsystem\nt\x81(dS'a'\nI1\nsb.",
    "called twice": b"cbuiltins\ngetattr\n(cos\n__dict__\nS'x'\ntR(S'touch {mark}'\ntR.",
    "state of an object": b"cbuiltins\nlist\n)R(dS'a'\ncos\nsystem\n(S'touch {mark}'\ntRsb.",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hand_written_program_gives_a_placeholder(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    result = read_inert(PROGRAMS[name].replace(b"{mark}", str(mark).encode()), "program")
    assert isinstance(result, Placeholder)
    assert not mark.exists()


def test_a_named_module_is_not_imported() -> None:
    assert "antigravity" not in sys.modules and "this" not in sys.modules
    read_inert(b"cantigravity\nfly\n)R.", "program")
    read_inert(b"cthis\ns\n.", "program")
    assert "antigravity" not in sys.modules and "this" not in sys.modules


@pytest.mark.parametrize(
    "program",
    [
        b"ccollections\nOrderedDict\n(N(dS'get'\nI1\nsdtb.",  # attributes for the class itself
        b"ctorch._utils\n_rebuild_tensor_v2\n(N(dS'__defaults__'\nI1\nsdtb.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(I1\nI2\nI3\nI4\ntR.",
        b"ctorch\nFloatStorage\n(I1\ntR.",
        b"(S'module'\nS'os'\ntQ.",  # a persistent reference that is no storage
        b"\x80\x02garbage",
        b"",
    ],
)
def test_misuse_of_what_is_allowed_is_an_error(program: bytes) -> None:
    with pytest.raises(CheckpointError, match="cannot be read without running code"):
        read_inert(program, "program")


def test_attributes_cannot_be_put_on_dictionaries() -> None:
    entries = read_inert(b"ccollections\nOrderedDict\n)R(dS'get'\ncos\nsystem\nsb.", "program")
    assert entries == {} and entries.get("x") is None


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_legacy_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(CheckpointError, match="no zip archive"):
        read_legacy_checkpoint(tmp_path / "text.ckpt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="no state_dicts/model"):
        read_legacy_checkpoint(tmp_path / "other.ckpt")


def rewrite(source: Path, target: Path, change: Any) -> None:
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            content = change(name, before.read(name))
            if content is not None:
                after.writestr(name, content)


def test_damaged_numbers_are_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good.ckpt", policy_state(unet(), normalizer()), LOWDIM)
    bad = tmp_path / "bad.ckpt"
    for change, message in (
        (lambda name, content: content[:-4] if "/data/" in name else content, "incomplete"),
        (lambda name, content: None if "/data/" in name else content, "damaged"),
        (lambda name, content: b"big" if name.endswith("byteorder") else content, "big-endian"),
    ):
        rewrite(good, bad, change)
        with pytest.raises(CheckpointError, match=message):
            read_legacy_checkpoint(bad)
    state = policy_state(unet(), normalizer())
    state["model.final_conv.1.bias"] = torch.tensor([torch.nan, 1.0])
    with pytest.raises(CheckpointError, match="holds NaN"):
        read_legacy_checkpoint(write(bad, state, LOWDIM))


def test_views_types_and_shared_numbers_come_out(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    state = {
        "model.a": base[2:8].view(2, 3).t(),
        "model.b": base,
        "model.c": torch.tensor([1, 2], dtype=torch.int64),
        "model.d": nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        "model.e": torch.tensor(3.0),
        "model.f": torch.empty(0),
    }
    save_checkpoint(tmp_path / "v.ckpt", {"cfg": None, "state_dicts": {"model": state}})
    read = read_legacy_checkpoint(tmp_path / "v.ckpt")
    assert read.config == {}
    for name, tensor in state.items():
        assert torch.equal(read.state_dicts["model"][name], tensor)
        assert read.state_dicts["model"][name].dtype == tensor.dtype
