import pytest
import torch

from drift_policy.errors import ConfigurationError
from image_gen.feature_loss import guidance_weights
from image_gen.guidance import GuidanceLaw


@pytest.mark.parametrize("exponent", [0.0, 1.0, 3.0, 5.0])
def test_shares_of_guidance_scales_are_those_of_the_density(exponent: float) -> None:
    law = GuidanceLaw(exponent=exponent)
    drawn = law.draw(20000, torch.Generator().manual_seed(0)).double()
    assert float(drawn.min()) >= 1
    assert float(drawn.max()) <= 4
    grid = torch.linspace(1, 4, 3001, dtype=torch.float64)
    density = grid**-exponent
    total = torch.trapezoid(density, grid)
    for bound in (1.2, 1.5, 2.0, 3.0):
        below = grid <= bound + 1e-9
        expected = torch.trapezoid(density[below], grid[below]) / total
        assert float((drawn <= bound).double().mean()) == pytest.approx(float(expected), abs=0.012)


def test_quantiles_are_the_scales_below_which_a_share_lies() -> None:
    shares = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    # The share below alpha is (1 - alpha^-2) / (1 - 4^-2) for the exponent 3, log(alpha) / log(4) for 1.
    assert GuidanceLaw(exponent=3.0).quantile(shares).tolist() == pytest.approx([1.0, 1.37199, 4.0], abs=1e-5)
    assert GuidanceLaw(exponent=1.0).quantile(shares).tolist() == pytest.approx([1.0, 2.0, 4.0])


def test_half_of_the_labels_of_latent_l_are_unguided() -> None:
    drawn = GuidanceLaw(exponent=3.0, unguided_share=0.5).draw(20000, torch.Generator().manual_seed(0))
    assert float((drawn == 1).float().mean()) == pytest.approx(0.5, abs=0.012)
    assert GuidanceLaw(unguided_share=1.0).draw(5, torch.Generator()).tolist() == [1.0] * 5


def test_one_scale_is_possible_and_draws_repeat() -> None:
    law = GuidanceLaw(minimum=2.0, maximum=2.0)
    assert law.draw(3, torch.Generator()).tolist() == pytest.approx([2.0] * 3)
    law = GuidanceLaw(unguided_share=0.5)
    one, two = (law.draw(9, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)


def test_unconditional_negatives_have_the_share_that_guidance_asks_for() -> None:
    alpha = torch.tensor([1.0, 2.0, 4.0])
    weights = guidance_weights(alpha, num_generated=17, num_unconditional=8)
    unconditional = weights.sum(dim=1)
    assert torch.allclose(unconditional / (16 + unconditional), 1 - 1 / alpha)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"minimum": 0.5}, "must be at least 1"),
        ({"minimum": 3.0, "maximum": 2.0}, "in this order"),
        ({"unguided_share": 1.5}, "unguided_share"),
    ],
)
def test_impossible_laws_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        GuidanceLaw(**settings)
