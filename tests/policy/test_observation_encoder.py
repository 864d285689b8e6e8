"""The observation encoder: one vector per observation, the keys in the order of the configuration."""

import torch

from drift_policy.encoders import ObservationEncoder, ObservationSpec


def test_keys_of_a_step_lie_together_in_configuration_order() -> None:
    encoder = ObservationEncoder({"pose": ObservationSpec(shape=[3]), "goal": ObservationSpec(shape=[1])}, 2)
    pose, goal = torch.arange(12.0).reshape(2, 2, 3), torch.arange(100.0, 104.0).reshape(2, 2, 1)
    expected = torch.tensor([[0.0, 1, 2, 100, 3, 4, 5, 101], [6.0, 7, 8, 102, 9, 10, 11, 103]])
    assert torch.equal(encoder({"goal": goal, "pose": pose}), expected)
    assert encoder.output_size == 8


def test_one_key_alone_is_flattened() -> None:
    encoder = ObservationEncoder({"obs": ObservationSpec(shape=[4])}, 3)
    value = torch.randn(5, 3, 4)
    assert torch.equal(encoder({"obs": value}), value.reshape(5, 12))
    assert encoder.output_size == 12
