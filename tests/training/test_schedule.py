"""The windows and random numbers of an update are functions of its step and the seed."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from drift_policy.training.schedule import batch_indices, step_generator, step_seed
from tests.helpers.image_policies import tiny_image_policy

STEPS = st.integers(0, 10**6)
SEEDS = st.integers(0, 10**6)


@given(STEPS, STEPS, SEEDS, SEEDS)
def test_every_step_and_seed_has_random_numbers_of_its_own(
    step: int, other_step: int, seed: int, other_seed: int
) -> None:
    drawn = torch.rand(8, generator=step_generator(step, seed))
    assert torch.equal(drawn, torch.rand(8, generator=step_generator(step, seed)))
    is_same = (step, seed) == (other_step, other_seed)
    assert torch.equal(drawn, torch.rand(8, generator=step_generator(other_step, other_seed))) is is_same
    assert (step_seed(step, seed) == step_seed(other_step, other_seed)) is is_same


def test_the_order_of_the_windows_is_that_of_the_seed_and_the_epoch() -> None:
    orders = [batch_indices(step, 50, 50, seed).tolist() for seed in (0, 1) for step in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_step_and_seed_are_not_interchangeable() -> None:
    assert step_seed(1, 2) != step_seed(2, 1)


def test_random_numbers_do_not_touch_the_default_generator() -> None:
    before = torch.get_rng_state()
    torch.rand(8, generator=step_generator(3, 4))
    assert torch.equal(before, torch.get_rng_state())


def test_noise_and_crops_of_a_policy_are_those_of_the_step() -> None:
    policy = tiny_image_policy()
    drawn, again, later = (policy.draw(4, step_generator(step, 0)) for step in (5, 5, 6))
    assert drawn.keys() == {"noise", "crop.image"}
    for name, value in drawn.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, later[name])
