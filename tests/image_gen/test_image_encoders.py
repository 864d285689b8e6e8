"""Frozen encoders: any network by its layers, ConvNeXt-V2, several together, and behind a decoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from drift_policy.errors import CheckpointError, ConfigurationError
from image_gen.encoders.base import CombinedFeatures, DecodedFeatures, FeatureExtractor, RecomputedFeatures
from image_gen.encoders.convnext import ConvNextV2Features, load_convnext_v2
from image_gen.encoders.hooked import HookedFeatures, Preprocessing
from image_gen.encoders.mae import MaeFeatures
from image_gen.encoders.own import load_own_encoder
from image_gen.feature_loss import feature_drift_loss, target_features
from image_gen.feature_maps import FeatureSettings
from image_gen.tokenizers.base import Tokenizer
from tests.helpers.image_models import small_mae
from tests.helpers.own_encoder import tiny


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), Tokens(), nn.Linear(4, 6), nn.Flatten()
    )


class Doubling(Tokenizer):
    """Latents are every second pixel."""

    def __init__(self) -> None:
        super().__init__(3, 3, factor=2)

    def _encode(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return images[:, :, ::2, ::2]

    def _decode(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_layers_of_any_network_give_features() -> None:
    net = network()
    encoder = HookedFeatures(net, ["0", "4"], nn.Identity(), prefix="net.")
    x = torch.rand(2, 3, 8, 8)
    features = encoder.features(x)
    with torch.no_grad():
        maps, tokens = net[0](x), net[:5](x)
    torch.testing.assert_close(features["net.0"], maps.flatten(2).transpose(1, 2))
    torch.testing.assert_close(features["net.4"], tokens)
    torch.testing.assert_close(features["net.4_mean"], tokens.mean(dim=1, keepdim=True))
    np.testing.assert_allclose(
        features["net.4_std"].numpy(), np.sqrt(tokens.numpy().var(axis=1, keepdims=True) + 1e-6), rtol=1e-4
    )
    assert {"net.0_mean_2", "net.0_std_4"} <= features.keys()
    assert not net[0]._forward_hooks


def test_encoders_stay_frozen_in_training() -> None:
    encoder = HookedFeatures(network(), ["4"], nn.Identity())
    outer = nn.ModuleList([encoder])
    outer.train()
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    torch.testing.assert_close(encoder.features(x), encoder.features(x))  # no dropout
    encoder.features(x)["4"].sum().backward()
    assert x.grad is not None
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_layers_without_features_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no layer 'layer9': its layers are 0, 1, 2"):
        HookedFeatures(network(), ["layer9"], nn.Identity())
    with pytest.raises(ConfigurationError, match="at least one layer"):
        HookedFeatures(network(), [], nn.Identity())
    with pytest.raises(ConfigurationError, match=r"The output of 5 is \[1, 96\]"):
        HookedFeatures(network(), ["5"], nn.Identity()).features(torch.rand(1, 3, 8, 8))


def test_preprocessing_normalises_and_resizes() -> None:
    white = Preprocessing(4)(torch.ones(1, 3, 8, 8))
    assert white.shape == (1, 3, 4, 4)
    torch.testing.assert_close(
        white[0, :, 0, 0], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, 0.594 / 0.225])
    )
    checks = torch.tensor([-1.0, 1.0]).repeat(4).reshape(1, 1, 1, 8).expand(1, 3, 8, 8)
    shrunk = Preprocessing(2, mean=(0, 0, 0), std=(1, 1, 1))(checks)
    torch.testing.assert_close(shrunk, torch.full((1, 3, 2, 2), 0.5), atol=0.06, rtol=0)  # without antialiasing: 0 or 1


def test_several_encoders_add_up_to_one() -> None:
    mae, other = MaeFeatures(small_mae()), HookedFeatures(network(), ["4"], nn.Identity(), prefix="net.")
    both = CombinedFeatures([mae, other])
    x = torch.rand(1, 3, 16, 16)
    assert both.features(x).keys() == mae.features(x).keys() | other.features(x).keys()
    with pytest.raises(ConfigurationError, match="Two encoders have a feature named 'conv1'"):
        CombinedFeatures([mae, mae]).features(x)
    with pytest.raises(ConfigurationError, match="at least one"):
        CombinedFeatures([])


def test_encoders_of_pixels_see_decoded_latents() -> None:
    inner = MaeFeatures(small_mae(), FeatureSettings(every_k_block=0))
    encoder, x = DecodedFeatures(Doubling(), inner), torch.rand(2, 3, 8, 8, requires_grad=True)
    torch.testing.assert_close(encoder.features(x), inner.features(Doubling().decode(x)))
    targets = target_features(encoder.features, torch.rand(1, 3, 3, 8, 8))
    feature_drift_loss(encoder.features, x.unsqueeze(0), targets).total.backward()
    assert x.grad is not None and torch.count_nonzero(x.grad) > 0


def convnext(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    torch.manual_seed(0)
    config = transformers.ConvNextV2Config(hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 1, 1])
    network = transformers.ConvNextV2ForImageClassification(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    return network


def test_convnext_features(tmp_path: Path) -> None:
    whole = convnext(tmp_path)
    encoder: FeatureExtractor = load_convnext_v2(tmp_path)
    x = torch.rand(2, 3, 32, 32, requires_grad=True) * 2 - 1
    features = encoder.features(x)
    stages = [f"convnext_stage_{i}" for i in range(4)]
    expected = {*stages[1:], *(f"{stage}_{kind}" for stage in stages for kind in ("mean", "std"))}
    assert features.keys() == expected | {"convnext_global_mean", "convnext_global_std"}
    assert [features[stage].shape[1:] for stage in stages[1:]] == [(28 * 28, 6), (14 * 14, 8), (7 * 7, 10)]
    for stage in stages[1:]:  # standardised over the channels of a position
        torch.testing.assert_close(
            features[stage].mean(dim=2), torch.zeros(features[stage].shape[:2]), atol=1e-4, rtol=0
        )
        assert float(features[stage].detach().std(dim=2, correction=0).mean()) == pytest.approx(1, abs=0.02)
    # The pooled vector is what the network's own classifier sees.
    whole.eval()
    logits = whole(pixel_values=Preprocessing(224)(x)).logits
    torch.testing.assert_close(whole.classifier(features["convnext_global_mean"][:, 0]), logits)
    assert isinstance(encoder, ConvNextV2Features)


def test_convnext_keeps_its_precision_under_autocast(tmp_path: Path) -> None:
    convnext(tmp_path)
    encoder = load_convnext_v2(tmp_path)
    images = torch.rand(1, 3, 40, 40) * 2 - 1
    with torch.no_grad():
        expected = encoder.features(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = encoder.features(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_incomplete_convnext_weights_are_refused(tmp_path: Path) -> None:
    convnext(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if "stages.2" in name and name.endswith("bias"))
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="no usable weights for .*stages.2"):
        load_convnext_v2(tmp_path)


def test_absent_convnext_weights_are_explained(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the package transformers")
    with pytest.raises(CheckpointError, match="hf download facebook/convnextv2-base-22k-224"):
        load_convnext_v2(tmp_path)


GREY: dict[str, Any] = {"image_size": None, "mean": [0.5], "std": [0.5]}
TINY = "tests.helpers.own_encoder:tiny"


def test_a_network_of_the_user_gives_features_of_its_own_weights(tmp_path: Path) -> None:
    weights = {name: torch.randn_like(tensor) for name, tensor in tiny().state_dict().items()}
    save_file(weights, tmp_path / "tiny.safetensors")
    encoder = load_own_encoder(TINY, tmp_path / "tiny.safetensors", ["0", "2"], **GREY)
    plain = tiny()
    plain.load_state_dict(weights)
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        expected = plain(x).flatten(2).transpose(1, 2)  # (x + 1) / 2 with mean and deviation 0.5 is x
    features = encoder.features(x)
    torch.testing.assert_close(features["own.2"], expected)
    assert "own.0_mean" in features


def test_networks_and_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for factory, message in (
        ("tests.helpers.own_encoder", "give module:function"),
        ("no_such_module:tiny", "cannot be imported"),
        ("tests.helpers.own_encoder:absent", "has no absent"),
        ("tests.helpers.own_encoder:number", "returned int; expected a torch.nn.Module"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            load_own_encoder(factory, None, ["0"], **GREY)
    with pytest.raises(CheckpointError, match="is missing"):
        load_own_encoder(TINY, tmp_path / "absent.safetensors", ["0"], **GREY)
    (tmp_path / "damaged.safetensors").write_bytes(b"12345678910")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_own_encoder(TINY, tmp_path / "damaged.safetensors", ["0"], **GREY)
    tensors = tiny().state_dict()
    save_file({"0.weight": tensors["0.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"0\.bias is missing, unknown or of another shape \(3 in all\)"):
        load_own_encoder(TINY, tmp_path / "part.safetensors", ["0"], **GREY)


def test_features_that_are_computed_again_keep_less_and_give_the_same_gradients() -> None:
    hooked = HookedFeatures(network(), ["0", "4"], nn.Identity(), prefix="net.")
    encoders = CombinedFeatures([MaeFeatures(small_mae(), FeatureSettings(every_k_block=1)), hooked]).double()
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    again = RecomputedFeatures(encoders, size=2)
    kept: dict[FeatureExtractor, int] = {encoders: 0, again: 0}
    found = {}
    for extractor in kept:
        x = images.clone().requires_grad_()

        def keep(tensor: Tensor, extractor: FeatureExtractor = extractor) -> Tensor:
            kept[extractor] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = extractor.features(x)
        (gradient,) = torch.autograd.grad(sum(value.sin().sum() for value in features.values()), x)
        found[extractor] = features | {"the gradient": gradient}
    assert kept[again] < 0.2 * kept[encoders]
    assert list(found[again]) == list(found[encoders])
    for name, value in found[encoders].items():
        torch.testing.assert_close(found[again][name], value, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        assert not any(value.requires_grad for value in again.features(images).values())
    assert not any(parameter.requires_grad for parameter in again.parameters())
