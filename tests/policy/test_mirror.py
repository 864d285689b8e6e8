"""Candidates from the mirror image: maps are fitted exactly, and what they give is what an equivariant policy would."""

import pytest
import torch
from torch import Tensor

from drift_policy.errors import CheckpointError, ConfigurationError
from drift_policy.mirror import Mirror

SIZE, ACTION = 6, 2


def reflection(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return matrix and offset of a map that undoes itself: across a plane that does not go through the origin."""
    normal = torch.nn.functional.normalize(torch.randn(size, generator=torch.Generator().manual_seed(seed)), dim=0)
    return torch.eye(size) - 2 * torch.outer(normal, normal), 0.3 * normal


def steps(count: int, rank: int) -> Tensor:
    """Return numbers of which only `rank` are free, as the corners of a rigid body."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, rank, generator=generator) @ torch.randn(rank, SIZE, generator=generator) / rank


def fitted(rank: int = SIZE) -> Mirror:
    mirror, features, action = Mirror(SIZE, ACTION), steps(500, rank), torch.randn(500, ACTION)
    (matrix, offset), (turn, shift) = reflection(SIZE, 0), reflection(ACTION, 1)
    mirror.fit(features, features @ matrix + offset, action, action @ turn + shift)
    return mirror


@pytest.mark.parametrize("rank", [SIZE, 3])
def test_fitted_maps_hold_for_other_steps_even_if_numbers_depend_on_each_other(rank: int) -> None:
    mirror = fitted(rank)
    matrix, offset = reflection(SIZE, 0)
    others = 2 * steps(500, rank)[:40].unflatten(0, (20, 2))  # beyond what was seen, of the same kind
    shown = mirror.both_observations(others.flatten(1))
    assert torch.equal(shown[::2], others.flatten(1))
    torch.testing.assert_close(shown[1::2].unflatten(1, (2, SIZE)), others @ matrix + offset, atol=1e-4, rtol=1e-4)


def test_directions_in_which_nothing_varies_but_rounding_are_not_fitted() -> None:
    mirror, features, action = Mirror(SIZE, ACTION), steps(500, 3), torch.randn(500, ACTION)
    matrix, offset = reflection(SIZE, 0)
    noise = 3e-4 * torch.randn(500, SIZE, generator=torch.Generator().manual_seed(0))
    mirror.fit(features, features @ matrix + offset + noise, action, action)
    assert float(mirror.feature_matrix.abs().max()) < 2, "else rounding would be magnified a hundredfold"


def test_candidates_come_back_to_this_side_in_order() -> None:
    mirror = fitted()
    turn, shift = reflection(ACTION, 1)
    noise = torch.randn(3, 4, 5, ACTION)
    halves = mirror.both_noises(noise)
    assert torch.equal(halves[::2], noise[:, :2]) and torch.equal(halves[1::2], noise[:, 2:])
    here = torch.stack([noise[:, :2], noise[:, 2:] @ turn + shift], dim=1).flatten(0, 1)
    back = mirror.all_candidates(here)
    torch.testing.assert_close(back, noise, atol=1e-5, rtol=1e-5)


def test_actions_are_led_back_also_by_a_map_that_does_not_undo_itself() -> None:
    mirror, features, action = Mirror(SIZE, ACTION), steps(500, SIZE), torch.randn(500, ACTION)
    quarter_turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    mirror.fit(features, features, action, action @ quarter_turn)
    noise = torch.randn(3, 4, 5, ACTION)
    sides = torch.stack([noise[:, :2], noise[:, 2:] @ quarter_turn], dim=1).flatten(0, 1)
    torch.testing.assert_close(mirror.all_candidates(sides), noise, atol=1e-5, rtol=1e-5)


def test_maps_fit_the_steps_that_they_were_fitted_to_and_no_others() -> None:
    mirror, features, action = fitted(), steps(500, SIZE), torch.randn(500, ACTION)
    (matrix, offset), (turn, shift) = reflection(SIZE, 0), reflection(ACTION, 1)
    image, turned = features @ matrix + offset, action @ turn + shift
    assert mirror.fits(features, image, action, turned)
    for other in ((features @ matrix, turned), (features, turned), (image, action @ turn), (image, action)):
        assert not mirror.fits(features, other[0], action, other[1])


def test_what_no_affine_map_does_is_refused_and_so_is_an_unset_mirror() -> None:
    mirror, features, action = Mirror(SIZE, ACTION), steps(500, SIZE), torch.randn(500, ACTION)
    with pytest.raises(ConfigurationError, match="maps every feature by one matrix and offset"):
        mirror.fit(features, features.square(), action, action)
    with pytest.raises(ConfigurationError, match="maps every action by one matrix and offset"):
        mirror.fit(features, features, action, action.abs())
    for wrong in (6e-3 * torch.randn(500, SIZE), torch.full((500, SIZE), torch.nan)):  # little, or not a number
        with pytest.raises(ConfigurationError, match=r"off by ([56]\.\de-03|nan) of half the range"):
            mirror.fit(features, features + wrong, action, action)
    with pytest.raises(CheckpointError, match="has no mirror yet"):
        Mirror(SIZE, ACTION).both_observations(torch.zeros(1, SIZE))
    loaded = Mirror(SIZE, ACTION)
    loaded.load_state_dict(fitted().state_dict())
    assert torch.equal(loaded.both_observations(features), fitted().both_observations(features))
    loaded.load_state_dict(Mirror(SIZE, ACTION).state_dict())
    with pytest.raises(CheckpointError, match="has no mirror yet"):
        loaded.both_observations(features)
