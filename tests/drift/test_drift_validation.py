"""Wrong input is refused with a message that names the argument."""

from typing import Any

import pytest
import torch

from drift_policy.drift import drift_field, drift_loss
from drift_policy.drift.validation import is_not_finite

NAN, INF = float("nan"), float("inf")


def with_entry(shape: tuple[int, ...], value: float) -> torch.Tensor:
    tensor = torch.ones(shape)
    tensor.view(-1)[-1] = value
    return tensor


WRONG_LOSS_ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("gen", {"gen": torch.randn(4, 3)}),
    ("gen", {"gen": torch.randn(2, 4, 3, 1)}),
    ("gen", {"gen": torch.randn(2, 0, 3)}),
    ("gen", {"gen": torch.randn(0, 4, 3)}),
    ("gen", {"gen": torch.ones(2, 4, 3, dtype=torch.int64)}),
    ("gen", {"gen": [[[0.0, 0.0, 0.0]]]}),
    ("gen", {"gen": with_entry((2, 4, 3), NAN)}),
    ("gen", {"gen": with_entry((2, 4, 3), INF)}),
    ("pos", {"pos": torch.randn(5, 3)}),
    ("pos", {"pos": torch.randn(3, 5, 3)}),
    ("pos", {"pos": torch.randn(2, 5, 4)}),
    ("pos", {"pos": torch.randn(2, 0, 3)}),
    ("pos", {"pos": torch.ones(2, 5, 3, dtype=torch.int32)}),
    ("pos", {"pos": with_entry((2, 5, 3), NAN)}),
    ("pos", {"pos": with_entry((2, 5, 3), -INF)}),
    ("pos", {"pos": torch.zeros(2, 5, 3, device="meta")}),
    ("neg", {"neg": torch.randn(6, 3)}),
    ("neg", {"neg": torch.randn(1, 6, 3)}),
    ("neg", {"neg": torch.randn(2, 6, 2)}),
    ("neg", {"neg": with_entry((2, 6, 3), NAN)}),
    ("weight_gen", {"weight_gen": torch.ones(4)}),
    ("weight_gen", {"weight_gen": torch.ones(2, 5)}),
    ("weight_gen", {"weight_gen": -torch.ones(2, 4)}),
    ("weight_gen", {"weight_gen": torch.ones(2, 4, dtype=torch.int64)}),
    ("weight_pos", {"weight_pos": torch.ones(2, 4)}),
    ("weight_pos", {"weight_pos": with_entry((2, 5), -1e-3)}),
    ("weight_pos", {"weight_pos": with_entry((2, 5), NAN)}),
    ("weight_neg", {"weight_neg": torch.ones(2, 6)}),
    ("weight_neg", {"neg": torch.randn(2, 6, 3), "weight_neg": torch.ones(2, 5)}),
    ("weight_neg", {"neg": torch.randn(2, 6, 3), "weight_neg": with_entry((2, 6), INF)}),
    ("temperatures", {"temperatures": ()}),
    ("temperatures", {"temperatures": (0.2, 0.0)}),
    ("temperatures", {"temperatures": (-0.2,)}),
    ("temperatures", {"temperatures": (NAN,)}),
    ("temperatures", {"temperatures": ("warm",)}),
    ("temperatures", {"temperatures": (None,)}),
    ("temperatures", {"temperatures": (INF,)}),
    ("temperatures", {"temperatures": (0.2, 0.2)}),
    ("affinity_floor", {"affinity_floor": -1e-6}),
    ("affinity_floor", {"affinity_floor": 1.0}),
    ("affinity_floor", {"affinity_floor": NAN}),
    ("scope", {"scope": "global"}),
]

WRONG_FIELD_ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("x", {"x": torch.randn(2, 4, 3)}),
    ("x", {"x": torch.randn(0, 3)}),
    ("x", {"x": torch.ones(4, 3, dtype=torch.int64)}),
    ("x", {"x": with_entry((4, 3), NAN)}),
    ("y_pos", {"y_pos": torch.randn(5, 2)}),
    ("y_pos", {"y_pos": torch.randn(0, 3)}),
    ("y_pos", {"y_pos": with_entry((5, 3), INF)}),
    ("y_neg", {"y_neg": torch.randn(4)}),
    ("y_neg", {"y_neg": torch.randn(4, 2)}),
    ("y_neg", {"y_neg": with_entry((4, 3), NAN)}),
    ("temperature", {"temperature": 0.0}),
    ("temperature", {"temperature": -1.0}),
    ("temperature", {"temperature": NAN}),
    ("temperature", {"temperature": INF}),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG_LOSS_ARGUMENTS)
def test_drift_loss_names_the_wrong_argument(name: str, wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"gen": torch.randn(2, 4, 3), "pos": torch.randn(2, 5, 3)}
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        drift_loss(**(arguments | wrong))


@pytest.mark.parametrize(("name", "wrong"), WRONG_FIELD_ARGUMENTS)
def test_drift_field_names_the_wrong_argument(name: str, wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "x": torch.randn(4, 3),
        "y_pos": torch.randn(5, 3),
        "y_neg": torch.randn(4, 3),
        "temperature": 0.2,
    }
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        drift_field(**(arguments | wrong))


def test_numbers_of_a_diverged_training_are_told_from_wrong_settings() -> None:
    gen, pos = torch.randn(2, 4, 3), torch.randn(2, 5, 3)
    for arguments, expected in (
        ({"gen": with_entry((2, 4, 3), NAN), "pos": pos}, True),
        ({"gen": gen, "pos": pos, "temperatures": torch.tensor([NAN])}, True),
        ({"gen": gen, "pos": pos, "temperatures": (0.0,)}, False),
        ({"gen": gen, "pos": pos, "weight_pos": with_entry((2, 5), NAN)}, False),
    ):
        with pytest.raises(ValueError, match="finite") as error:
            drift_loss(**arguments)
        assert is_not_finite(error.value) == expected
        assert is_not_finite(RuntimeError(str(error.value))) == expected


def test_right_arguments_pass() -> None:
    """The arguments that the cases above spoil are good, so that it is the spoiled one that is refused."""
    weights: dict[str, Any] = {
        "weight_gen": torch.ones(2, 4),
        "weight_pos": torch.zeros(2, 5),
        "weight_neg": torch.ones(2, 0),
    }
    loss, _ = drift_loss(torch.randn(2, 4, 3), torch.randn(2, 5, 3), torch.randn(2, 0, 3), **weights)
    assert loss.shape == (2,)
    assert drift_field(torch.randn(4, 3), torch.randn(5, 3), torch.randn(6, 3), 0.2).shape == (4, 3)
