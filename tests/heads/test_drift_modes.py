"""What the drift head learns from two equally likely demonstrations +u(o) and -u(o), one of them at a time.

Three outcomes exist: both modes, one of them, or their mean. With the affinity kernel, how wide the first samples
spread decides whether both are kept; from a narrow start the affinity floor decides between one mode (0) and the mean
(1e-6, the released code). The energy kernel finds both from any start.
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from drift_policy import Policy, build_policy
from drift_policy.data.normalizer import Normalizer
from drift_policy.heads.drift import DriftHeadConfig
from drift_policy.networks import MlpConfig
from tests.helpers.policies import tiny_config

TP, DA = 8, 2
STEPS, BATCH_SIZE, LEARNING_RATE = 400, 32, 2e-3
WIDE_START = 0.15  # deviation of the output weights: the first samples spread about as wide as the modes


class Outcome(NamedTuple):
    on_mode: float  # share of the samples within half a mode's length of a mode
    both_modes: float  # share of the observations with samples on either mode
    length: float  # mean length of the samples over that of the modes


def modes(obs: Tensor) -> Tensor:
    """u(o): chunks [B, Tp, Da] that vary smoothly with observations [B, 1, 2] and never vanish."""
    frequencies = torch.linspace(-1, 1, 2 * TP * DA).reshape(2, TP * DA)
    return 0.8 * torch.sin(obs[:, 0] @ frequencies + torch.arange(TP * DA)).reshape(-1, TP, DA)


def make_policy(affinity_floor: float, wide_start: bool, kernel: str = "affinity") -> Policy:
    policy = build_policy(
        tiny_config(
            head_config=DriftHeadConfig(samples_per_observation=8, affinity_floor=affinity_floor, kernel=kernel),
            network_config=MlpConfig(width=64, depth=2),
            observations={"obs": 2},
            horizon=TP,
            action_dim=DA,
            n_obs_steps=1,
            n_action_steps=TP,
        )
    )
    plus_minus_one = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    policy.set_normalizer(Normalizer.fit({"obs": plus_minus_one, "action": plus_minus_one}))
    if wide_start:
        torch.nn.init.normal_(policy.head.network.output.weight, std=WIDE_START)  # type: ignore[union-attr, arg-type]
    return policy


def draw_obs(number: int) -> Tensor:
    return 2 * torch.rand(number, 1, 2) - 1


def train(policy: Policy) -> None:
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        obs = draw_obs(BATCH_SIZE)
        sign = 2.0 * torch.randint(0, 2, (BATCH_SIZE, 1, 1)) - 1
        loss, _ = policy.compute_loss({"obs": obs, "action": sign * modes(obs)})
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 2.0)
        optimizer.step()
        schedule.step()


def measure(policy: Policy) -> Outcome:
    obs = draw_obs(64)
    mode = modes(obs).flatten(1).unsqueeze(1)
    samples = policy.sample_actions(obs, 32).flatten(2)  # type: ignore[arg-type]
    distance = torch.stack([(samples - mode).norm(dim=2), (samples + mode).norm(dim=2)])
    near = distance < 0.5 * mode.norm(dim=2)  # [mode, observation, sample]
    return Outcome(
        on_mode=float(near.any(dim=0).float().mean()),
        both_modes=float(near.any(dim=2).all(dim=0).float().mean()),
        length=float((samples.norm(dim=2) / mode.norm(dim=2)).mean()),
    )


def outcome(affinity_floor: float, wide_start: bool, kernel: str = "affinity") -> Outcome:
    torch.manual_seed(0)
    policy = make_policy(affinity_floor, wide_start, kernel)
    train(policy)
    return measure(policy)


def test_without_floor_a_wide_start_keeps_both_modes() -> None:
    result = outcome(affinity_floor=0.0, wide_start=True)
    assert result.on_mode > 0.7 and result.both_modes == 1.0
    assert result.length == pytest.approx(1.0, abs=0.15)


def test_without_floor_a_narrow_start_does_not_average_the_modes() -> None:
    result = outcome(affinity_floor=0.0, wide_start=False)
    assert result.on_mode > 0.9
    assert result.length == pytest.approx(1.0, abs=0.1)


def test_the_released_floor_averages_the_modes_from_a_narrow_start() -> None:
    result = outcome(affinity_floor=1e-6, wide_start=False)
    assert result.on_mode == 0.0 and result.both_modes == 0.0
    assert result.length < 0.3


@pytest.mark.parametrize("wide_start", [False, True])
def test_the_energy_kernel_keeps_both_modes_from_any_start(wide_start: bool) -> None:
    result = outcome(affinity_floor=0.0, wide_start=wide_start, kernel="energy")
    assert result.on_mode > 0.8 and result.both_modes == 1.0
    assert result.length == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("signs", "expected"),
    [((-1.0, 1.0), Outcome(1.0, 1.0, 1.0)), ((1.0, 1.0), Outcome(1.0, 0.0, 1.0)), ((0.0, 0.0), Outcome(0.0, 0.0, 0.0))],
    ids=["both", "one", "mean"],
)
def test_the_measure_tells_the_outcomes_apart(
    signs: tuple[float, float], expected: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(0.0, wide_start=False)
    factors = torch.tensor(signs).reshape(1, 2, 1, 1)
    monkeypatch.setattr(policy, "sample_actions", lambda obs, number: factors * modes(obs).unsqueeze(1))
    assert measure(policy) == pytest.approx(expected)
