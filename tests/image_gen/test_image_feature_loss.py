"""The drifting loss over features: parity with a recorded training step, weights, gradients, refusals."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drift_policy.drift import DriftInfo, drift_loss
from image_gen import feature_loss, load_mae
from image_gen.feature_loss import compiled_drift_loss, feature_drift_loss, guidance_weights, target_features
from image_gen.feature_maps import Features, input_rms
from tests.helpers.image_models import MAE_ARTIFACT, channels_first, needs_mae_artifact, recorded, small_mae

TEMPERATURES = (0.2, 0.05, 0.02)
# Each channel of these maps is normalised by itself (32 groups, 32 channels), so its mean and deviation are constants
# and their losses are those of rounding errors.
ROUNDING = ("layer1_mean", "layer1_std")


def no_features(x: Tensor) -> Features:
    return {"norm_x": input_rms(x)}


def step() -> tuple[dict[str, Tensor], Tensor, dict[str, float]]:
    """Return the inputs of the recorded step, its gradient, and its losses."""
    golden = recorded("mae/feature_loss.npz")
    batch = len(golden["pos"])
    tensors = {name: channels_first(golden[name]) for name in ("gen", "grad_gen", "pos", "neg")}
    for name in ("gen", "grad_gen"):
        tensors[name] = tensors[name].unflatten(0, (batch, -1))
    tensors["cfg_scale"] = torch.from_numpy(golden["cfg_scale"])
    losses = {name.removeprefix("loss_"): float(value) for name, value in golden.items() if name.startswith("loss")}
    return tensors, tensors.pop("grad_gen"), losses


@needs_mae_artifact
def test_equals_the_recorded_training_step() -> None:
    inputs, grad_gen, losses = step()
    mae = load_mae(MAE_ARTIFACT)
    gen = inputs["gen"].requires_grad_()
    targets = target_features(mae.features, inputs["pos"], inputs["neg"])
    loss = feature_drift_loss(mae.features, gen, targets, inputs["cfg_scale"], temperatures=TEMPERATURES)
    (grad,) = torch.autograd.grad(loss.total, gen)

    total = losses.pop("loss") - sum(losses[name] for name in ROUNDING)
    ours = float(loss.total.detach()) - sum(float(loss.terms[name]) for name in ROUNDING)
    assert ours == pytest.approx(total, rel=1e-4)
    assert loss.terms.keys() == losses.keys()
    for name in losses.keys() - set(ROUNDING):
        np.testing.assert_allclose(float(loss.terms[name]), losses[name], rtol=5e-4, err_msg=name)
    np.testing.assert_allclose(grad.numpy(), grad_gen.numpy(), rtol=1e-3, atol=1e-3 * float(grad_gen.abs().max()))


def test_features_of_the_input_equal_the_recorded_ones() -> None:
    inputs, _, losses = step()
    targets = target_features(no_features, inputs["pos"], inputs["neg"])
    loss = feature_drift_loss(no_features, inputs["gen"], targets, inputs["cfg_scale"], temperatures=TEMPERATURES)
    for name in ("global", "norm_x"):
        assert float(loss.terms[name]) == pytest.approx(losses[name], rel=1e-4)
    torch.testing.assert_close(loss.total.detach(), loss.terms["global"] + loss.terms["norm_x"])


def test_guidance_weights_equal_the_recorded_ones() -> None:
    golden = recorded("mae/feature_loss.npz")
    weights = guidance_weights(torch.from_numpy(golden["cfg_scale"]), 4, 3)
    np.testing.assert_allclose(weights.numpy(), np.repeat(golden["weight_neg"][:, None], 3, axis=1), rtol=1e-6)
    alpha = torch.tensor([1.0, 1.5, 4.0])
    unconditional = guidance_weights(alpha, 64, 16).sum(dim=1)
    torch.testing.assert_close(unconditional / (unconditional + 63), (alpha - 1) / alpha)


def test_features_of_one_shape_share_a_call_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, _, _ = step()
    mae, calls = small_mae(in_channels=4), []
    targets = target_features(mae.features, inputs["pos"], inputs["neg"])

    def counting(*arguments: Tensor, **options: Any) -> tuple[Tensor, DriftInfo]:
        calls.append(options["num_features"])
        return drift_loss(*arguments, **options)

    results = []
    for most in (1, 2**20):
        monkeypatch.setattr(feature_loss, "_MOST_ON_CPU", most)
        gen = inputs["gen"].clone().requires_grad_()
        loss = feature_drift_loss(mae.features, gen, targets, inputs["cfg_scale"], kernel_loss=counting)
        results.append((loss, *torch.autograd.grad(loss.total, gen)))
    (alone, grad_alone), (together, grad_together) = results
    separate = calls[: len(alone.terms)]
    assert set(separate) == {1}
    shared = calls[len(separate) :]
    assert max(shared) > 1 and len(shared) < len(separate) / 2 and sum(shared) == len(separate)
    assert list(together.terms) == list(alone.terms)
    for name, term in alone.terms.items():
        torch.testing.assert_close(together.terms[name], term, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.infos[name], alone.infos[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(together.total, alone.total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad_together, grad_alone, rtol=1e-3, atol=1e-3 * float(grad_alone.abs().max()))


def test_a_compiled_loss_is_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is traced is what could go wrong here; generating code for it takes a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    inputs, _, _ = step()
    mae = small_mae(in_channels=4)
    targets = target_features(mae.features, inputs["pos"], inputs["neg"])
    losses = [
        feature_drift_loss(mae.features, inputs["gen"], targets, inputs["cfg_scale"], kernel_loss=kernel_loss)
        for kernel_loss in (drift_loss, compiled_drift_loss())
    ]
    torch.testing.assert_close(losses[1].total, losses[0].total, rtol=1e-5, atol=1e-5)


def test_targets_of_another_size_are_refused() -> None:
    inputs, _, _ = step()
    half = inputs["pos"].shape[-1] // 2
    targets = target_features(no_features, inputs["pos"][..., :half, :half])
    with pytest.raises(ValueError, match="use images of one size"):
        feature_drift_loss(no_features, inputs["gen"], targets)


def test_every_class_and_position_is_a_problem_of_its_own() -> None:
    inputs, _, _ = step()
    mae = small_mae(in_channels=4)
    gen = inputs["gen"]
    targets = target_features(mae.features, inputs["pos"])
    loss = feature_drift_loss(mae.features, gen, targets, select=lambda name: name == "layer2")
    found, pos = mae.features(gen.flatten(0, 1))["layer2"].unflatten(0, (3, 4)), targets.pos["layer2"]
    problems = [(found[b, :, location], pos[b, :, location]) for b in range(3) for location in range(pos.shape[2])]
    expected, _ = drift_loss(*(torch.stack(samples) for samples in zip(*problems, strict=True)))
    torch.testing.assert_close(loss.total, expected.mean())
    assert list(loss.terms) == list(loss.infos) == ["layer2"]


def test_parts_and_joint_features_agree() -> None:
    inputs, _, _ = step()
    mae = small_mae(in_channels=4)
    whole = target_features(mae.features, inputs["pos"], inputs["neg"])
    parts = target_features(mae.features, inputs["pos"], inputs["neg"], chunk_size=5)
    assert whole.neg is not None and parts.neg is not None
    assert whole.pos["conv1"].shape == (3, 5, 256, 8)
    assert whole.neg["conv1"].shape == (3, 3, 256, 8)
    for name in whole.pos:
        torch.testing.assert_close(parts.pos[name], whole.pos[name])
        torch.testing.assert_close(parts.neg[name], whole.neg[name])
    torch.testing.assert_close(whole.neg["global"], inputs["neg"].flatten(2).unsqueeze(2))


def test_only_generated_images_receive_a_gradient() -> None:
    inputs, _, _ = step()
    mae = small_mae(in_channels=4)
    tensors = {name: inputs[name].requires_grad_() for name in ("gen", "pos", "neg", "cfg_scale")}
    targets = target_features(mae.features, tensors["pos"], tensors["neg"])
    assert not any(value.requires_grad for value in targets.pos.values())
    feature_drift_loss(mae.features, tensors["gen"], targets, tensors["cfg_scale"]).total.backward()
    assert tensors["gen"].grad is not None
    assert all(tensors[name].grad is None for name in ("pos", "neg", "cfg_scale"))


def test_missing_guidance_and_features_are_refused() -> None:
    inputs, _, _ = step()
    targets = target_features(no_features, inputs["pos"], inputs["neg"])
    with pytest.raises(ValueError, match="cfg_scale is missing"):
        feature_drift_loss(no_features, inputs["gen"], targets)
    with pytest.raises(ValueError, match="select at least one feature"):
        feature_drift_loss(no_features, inputs["gen"], targets, inputs["cfg_scale"], select=lambda name: False)
    with pytest.raises(ValueError, match="use one encoder for both"):
        feature_drift_loss(lambda x: {}, inputs["gen"], targets, inputs["cfg_scale"])
