"""ResNet-18: the size and parts of Diffusion Policy's image encoder."""

import pytest
import torch
from torch import Tensor, nn

from drift_policy.encoders.backbones.resnet18 import Resnet18, Resnet18Config
from drift_policy.errors import ConfigurationError


def on_meta(channels: int = 3, height: int = 84, width: int = 84, **settings: int) -> Resnet18:
    """Build the network without memory for its weights: shapes and counts need none."""
    with torch.device("meta"):
        return Resnet18(Resnet18Config(**settings), channels, height, width)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def split(network: Resnet18) -> tuple[nn.Sequential, nn.Module, nn.Module]:
    """Return the trunk, the spatial softmax and the linear layer."""
    *trunk, softmax, linear = network
    return nn.Sequential(*trunk), softmax, linear


def test_parameter_count_is_that_of_diffusion_policys_encoder() -> None:
    """Diffusion Policy's has one constant besides: the temperature of its softmax, which is 1."""
    network = on_meta()
    trunk, softmax, linear = split(network)
    # ResNet-18 has 11,689,512 parameters, (512 + 1) x 1000 of them in the classifier, and group norms as many as batch
    # norms.
    assert count(trunk) == 11_689_512 - 513 * 1000 == 11_176_512
    assert count(softmax) == (512 + 1) * 32 == 16_416
    assert count(linear) == (64 + 1) * 64 == 4_160
    assert count(network) == 11_197_088


def test_parameters_have_the_order_of_torchvisions_resnet18() -> None:
    trunk, _, _ = split(on_meta())

    def block(n_in: int, n_out: int) -> list[tuple[int, ...]]:
        convolutions = [(n_out, n_in, 3, 3), (n_out,), (n_out,), (n_out, n_out, 3, 3), (n_out,), (n_out,)]
        return convolutions + ([(n_out, n_in, 1, 1), (n_out,), (n_out,)] if n_in != n_out else [])

    expected: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    for n_in, n_out in ((64, 64), (64, 128), (128, 256), (256, 512)):
        expected += block(n_in, n_out) + block(n_out, n_out)
    assert [tuple(parameter.shape) for parameter in trunk.parameters()] == expected


def test_group_norm_of_16_channels_stands_in_for_every_batch_norm() -> None:
    norms = [module for module in on_meta().modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 20
    assert all(norm.num_channels // norm.num_groups == 16 for norm in norms)
    assert not any(isinstance(module, nn.modules.batchnorm._NormBase) for module in on_meta().modules())


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(84, 84, 3, 3), (76, 76, 3, 3), (96, 96, 3, 3), (97, 96, 4, 3), (64, 224, 2, 7), (1, 33, 1, 2)],
)
def test_the_trunk_keeps_a_thirty_second_of_the_image(height: int, width: int, rows: int, columns: int) -> None:
    network = on_meta(height=height, width=width)
    trunk, _, _ = split(network)
    images = torch.zeros(2, 3, height, width, device="meta")
    assert trunk(images).shape == (2, 512, rows, columns)
    assert network(images).shape == (2, 64)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_number_of_channels_is_read(channels: int) -> None:
    network = on_meta(channels, num_keypoints=5, feature_size=7)
    assert network(torch.zeros(2, channels, 84, 84, device="meta")).shape == (2, 7)


@pytest.fixture(scope="module")
def network() -> Resnet18:
    torch.manual_seed(0)
    return Resnet18(Resnet18Config(), 3, 40, 64)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return 2 * torch.rand(3, 3, 40, 64, generator=torch.Generator().manual_seed(0)) - 1


def test_the_features_of_an_image_do_not_depend_on_the_batch(network: Resnet18, images: Tensor) -> None:
    with torch.no_grad():
        together, alone = network(images), torch.cat([network(image.unsqueeze(0)) for image in images])
        assert torch.equal(network.eval()(images), network.train()(images)), "training and evaluation are the same"
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert float(together.std(dim=0).mean()) > 1e-3, "the image must have an influence"


def test_every_parameter_is_trained(network: Resnet18, images: Tensor) -> None:
    network.zero_grad()
    network(images).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("name", ["num_keypoints", "feature_size"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"resnet18: {name} must be at least 1, but is 0"):
        Resnet18Config(**{name: 0})


@pytest.mark.parametrize("batch", [1, 2])
def test_the_layout_for_single_images_changes_no_answer(batch: int) -> None:
    torch.manual_seed(0)
    network = Resnet18(Resnet18Config(), 3, 40, 44).eval()
    images = torch.rand(batch, 3, 40, 44)
    with torch.inference_mode():
        expected = network(images)
        network.prefer_single_images()
        torch.testing.assert_close(network(images), expected, rtol=1e-5, atol=1e-5)
    kernels = [parameter for parameter in network.parameters() if parameter.ndim == 4 and parameter.shape[2] > 1]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
