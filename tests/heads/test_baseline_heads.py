"""The baseline heads on networks whose answer is known: exact integration, exact denoising, exact losses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drift_policy.errors import ConfigurationError
from drift_policy.heads import HEADS, ActionHead, head_kind
from drift_policy.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from drift_policy.heads.flow import FlowHead, FlowHeadConfig
from drift_policy.heads.mip import MipHead, MipHeadConfig
from drift_policy.heads.regression import RegressionHead, RegressionHeadConfig

B, G, TP, DA, C = 3, 4, 5, 2, 6


class Stub(nn.Module):
    """A network that answers with a given function of sample and time, and keeps its inputs."""

    horizon, action_dim = TP, DA

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.times: list[Tensor | None] = []
        self.samples: list[Tensor] = []
        self.conditions: list[Tensor] = []

    def forward(self, sample: Tensor, condition: Tensor, time: Tensor | None = None) -> Tensor:
        self.times.append(time)
        self.samples.append(sample)
        self.conditions.append(condition)
        return self.answer(sample, time)


def chunks(seed: int = 0) -> Tensor:
    """Clean chunks inside [-1, 1], one per sample, [B, G, Tp, Da]."""
    return 1.8 * torch.rand(B, G, TP, DA, generator=torch.Generator().manual_seed(seed)) - 0.9


def noise(seed: int = 1) -> Tensor:
    return torch.randn(B, G, TP, DA, generator=torch.Generator().manual_seed(seed))


def make(kind: type[ActionHead], config: Any, answer: Any) -> tuple[Any, Stub]:
    stub = Stub(answer)
    return kind(config, stub), stub  # type: ignore[arg-type]


def compute_loss(head: ActionHead, action: Tensor, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of chunks [B, Tp, Da] under conditions of zeros."""
    draws = head.draw(len(action), torch.Generator().manual_seed(seed))
    return head.compute_loss(action, torch.zeros(len(action), C), draws)


def test_unknown_heads_list_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'bridge' is unknown: expected one of .*'diffusion', 'drift'"):
        head_kind("bridge")
    assert head_kind("flow") is HEADS["flow"]


EVERY_HEAD: list[tuple[type[ActionHead], Any]] = [
    (RegressionHead, RegressionHeadConfig()),
    (MipHead, MipHeadConfig()),
    (FlowHead, FlowHeadConfig(num_inference_steps=2)),
    (DiffusionHead, DiffusionHeadConfig(num_train_steps=8, num_inference_steps=2)),
]
every_head = pytest.mark.parametrize(("kind", "config"), EVERY_HEAD, ids=lambda value: type(value).__name__)


@every_head
def test_every_evaluation_is_told_the_condition(kind: type[ActionHead], config: Any) -> None:
    head, stub = make(kind, config, lambda sample, time: 0.1 * sample)
    condition = torch.randn(B, C, generator=torch.Generator().manual_seed(0))
    head.compute_loss(chunks()[:, 0], condition, head.draw(B))
    head.sample(condition, noise(), torch.Generator().manual_seed(0))
    assert len(stub.conditions) == 1 + head.num_evaluations
    assert all(torch.equal(given, condition) for given in stub.conditions)


@every_head
def test_metrics_carry_no_gradient(kind: type[ActionHead], config: Any) -> None:
    weight = torch.ones((), requires_grad=True)
    head, _ = make(kind, config, lambda sample, time: weight * (sample + 1.0))
    loss, metrics = compute_loss(head, chunks()[:, 0])
    assert loss.requires_grad and metrics and not any(value.requires_grad for value in metrics.values())


@every_head
def test_the_random_numbers_of_a_loss_are_the_generators(kind: type[ActionHead], config: Any) -> None:
    head, _ = make(kind, config, None)
    state = torch.get_rng_state()
    first, again, other = (head.draw(64, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state), "a generator was given, so the global one must not move"
    for name, value in first.items():
        assert len(value) == 64 and torch.equal(value, again[name]) and not torch.equal(value, other[name])


def test_regression_never_shows_the_network_any_noise() -> None:
    target = chunks()[:, 0]
    head, stub = make(RegressionHead, RegressionHeadConfig(), lambda sample, time: sample + 0.25)
    assert head.draw(B) == {}
    loss, metrics = compute_loss(head, target)
    torch.testing.assert_close(loss, (0.25 - target).square().mean())
    assert set(metrics) == {"action_mse"} and torch.equal(metrics["action_mse"], loss)
    first, second = (head.sample(torch.zeros(B, C), noise(seed)) for seed in (1, 2))
    assert torch.equal(first, torch.full((B, G, TP, DA), 0.25)) and torch.equal(first, second)
    assert all(bool((sample == 0).all()) for sample in stub.samples)
    assert [sample.shape[1] for sample in stub.samples] == [1, 1, 1], "one evaluation serves all samples"


def test_mip_regresses_from_zeros_and_from_the_noisy_demonstration() -> None:
    target = chunks()[:, 0]
    config = MipHeadConfig(denoising_time=0.8, denoising_weight=16.0)
    head, stub = make(MipHead, config, lambda sample, time: sample + time[..., None, None])
    draws = head.draw(B, torch.Generator().manual_seed(0))
    loss, metrics = head.compute_loss(target, torch.zeros(B, C), draws)
    zeros, noisy = stub.samples[0].unbind(dim=1)
    assert bool((zeros == 0).all())
    torch.testing.assert_close(noisy, target + 0.2 * draws["noise"][:, 0])
    torch.testing.assert_close(stub.times[0], torch.tensor([[0.0, 80.0]]).expand(B, 2))
    first, second = target.square().mean(), (noisy + 80.0 - target).square().mean()
    torch.testing.assert_close(metrics, {"action_mse": first, "denoising_mse": second})
    torch.testing.assert_close(loss, first + 16.0 * second, rtol=1e-4, atol=0)


def test_mip_gives_its_first_answer_to_the_second_evaluation() -> None:
    head, stub = make(MipHead, MipHeadConfig(), lambda sample, time: 2.0 * sample + 0.25 + time[..., None, None])
    first, second = (head.sample(torch.zeros(B, C), noise(seed)) for seed in (1, 2))
    assert torch.equal(first, torch.full((B, G, TP, DA), 2.0 * 0.25 + 0.25 + 90.0)) and torch.equal(first, second)
    assert [sample.shape[1] for sample in stub.samples] == [1, 1, 1, 1], "one evaluation serves all samples"
    assert len(stub.samples) == 2 * head.num_evaluations


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_flow_integrates_a_constant_velocity_exactly(steps: int) -> None:
    start, goal = noise(), chunks()
    head, stub = make(FlowHead, FlowHeadConfig(num_inference_steps=steps), lambda sample, time: goal - start)
    torch.testing.assert_close(head.sample(torch.zeros(B, C), start), goal)
    assert len(stub.times) == head.num_evaluations == steps


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_flow_follows_the_straight_path_of_a_known_target(steps: int) -> None:
    """For a single demonstration the exact velocity is (goal - x) / (1 - t), and Euler steps lose nothing on it."""
    start, goal = noise(), chunks()

    def velocity(sample: Tensor, time: Tensor) -> Tensor:
        t = (time / 100.0)[:, :, None, None]
        torch.testing.assert_close(sample, torch.lerp(start, goal, t))
        return (goal - sample) / (1 - t)

    head, _ = make(FlowHead, FlowHeadConfig(num_inference_steps=steps), velocity)
    torch.testing.assert_close(head.sample(torch.zeros(B, C), start), goal)


def test_flow_trains_on_the_same_path_and_times() -> None:
    goal = chunks()[:, 0]

    def velocity(sample: Tensor, time: Tensor) -> Tensor:
        return (goal.unsqueeze(1) - sample) / (1 - time / 100.0)[:, :, None, None]

    head, stub = make(FlowHead, FlowHeadConfig(), velocity)
    loss, metrics = compute_loss(head, goal)
    assert float(loss) < 1e-6 and set(metrics) == {"velocity_mse"}
    zero_head, zero = make(FlowHead, FlowHeadConfig(), lambda sample, time: torch.zeros_like(sample))
    losses = [float(compute_loss(zero_head, goal.repeat(100, 1, 1), seed)[0]) for seed in range(3)]
    expected = 1 + float(goal.square().mean())  # E |goal - noise|^2 for standard normal noise
    assert all(value == pytest.approx(expected, rel=0.1) for value in losses)
    times = torch.cat([time for time in zero.times if time is not None])
    assert 0 <= float(times.min()) < 3 and 97 < float(times.max()) <= 100
    assert stub.times[0] is not None and stub.times[0].shape == (B, 1)


def true_noise(head: DiffusionHead, clean: Tensor) -> Any:
    """The noise in a noisy chunk whose clean chunk is known: (x - sqrt(a) x0) / sqrt(1 - a)."""

    def answer(sample: Tensor, time: Tensor) -> Tensor:
        alpha = head.scheduler.alphas_cumprod[time.long()][:, :, None, None]
        return (sample - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    return answer


@pytest.mark.parametrize("steps", [1, 5, 16, 100])
def test_ddim_recovers_the_clean_chunk_from_the_true_noise(steps: int) -> None:
    head, stub = make(DiffusionHead, DiffusionHeadConfig(sampler="ddim", num_inference_steps=steps), None)
    stub.answer = true_noise(head, chunks())
    torch.testing.assert_close(head.sample(torch.zeros(B, C), noise()), chunks(), rtol=1e-3, atol=1e-3)
    assert len(stub.times) == head.num_evaluations == steps
    assert all(time is not None and time.shape == (B, G) for time in stub.times)


def test_ddpm_recovers_the_clean_chunk_from_the_true_noise() -> None:
    head, stub = make(DiffusionHead, DiffusionHeadConfig(), None)
    stub.answer = true_noise(head, chunks())
    result = head.sample(torch.zeros(B, C), noise(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(result, chunks(), rtol=1e-3, atol=1e-3)
    assert [int(time[0, 0]) for time in stub.times if time is not None] == list(range(99, -1, -1))


def test_ddpm_draws_its_further_noise_from_the_generator() -> None:
    config = DiffusionHeadConfig(num_train_steps=10, num_inference_steps=10)
    head, _ = make(DiffusionHead, config, lambda sample, time: 0.1 * sample)
    first, again, other = (
        head.sample(torch.zeros(B, C), noise(), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_ddim_draws_no_further_noise() -> None:
    config = DiffusionHeadConfig(sampler="ddim", num_train_steps=10, num_inference_steps=5)
    head, _ = make(DiffusionHead, config, lambda sample, time: 0.1 * sample)
    assert torch.equal(head.sample(torch.zeros(B, C), noise()), head.sample(torch.zeros(B, C), noise()))


def test_ddpm_draws_each_observations_noise_from_its_own_generator() -> None:
    head, _ = make(
        DiffusionHead, DiffusionHeadConfig(num_train_steps=4, num_inference_steps=4), lambda sample, _: sample
    )
    start = noise()[:, :1]
    together = head.sample(torch.zeros(B, C), start, [torch.Generator().manual_seed(seed) for seed in range(B)])
    for row in range(B):
        alone = head.sample(torch.zeros(1, C), start[row : row + 1], [torch.Generator().manual_seed(row)])
        assert torch.equal(together[row : row + 1], alone)


def test_ddpm_draws_noise_of_the_posterior_variance() -> None:
    """With two steps and no predicted noise the chunk is the noise drawn between them, over the first step's scale."""
    config = DiffusionHeadConfig(num_train_steps=2, num_inference_steps=2, clip_sample=False)
    head, _ = make(DiffusionHead, config, lambda sample, time: torch.zeros_like(sample))
    start = torch.zeros(B, 500, TP, DA)
    early, late = head.scheduler.alphas_cumprod.tolist()
    variance = (1 - early) / (1 - late) * (1 - late / early)  # Ho et al. 2020, section 3.2: the smaller choice
    drawn = head.sample(torch.zeros(B, C), start, torch.Generator().manual_seed(0))
    assert float(drawn.std()) == pytest.approx((variance / early) ** 0.5, rel=0.05)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_clipping_keeps_chunks_in_the_range_of_the_demonstrations(sampler: str) -> None:
    for clip, expected in ((True, 1.0), (False, 3.0)):
        config = DiffusionHeadConfig(sampler=sampler, clip_sample=clip)
        head, stub = make(DiffusionHead, config, None)
        stub.answer = true_noise(head, torch.full((B, G, TP, DA), 3.0))
        result = head.sample(torch.zeros(B, C), noise(), torch.Generator().manual_seed(0))
        torch.testing.assert_close(result, torch.full_like(result, expected), rtol=1e-2, atol=1e-2)


def test_diffusion_trains_to_predict_the_noise_at_every_step() -> None:
    clean = chunks()[:, :1]
    head, stub = make(DiffusionHead, DiffusionHeadConfig(num_train_steps=8, num_inference_steps=8), None)
    stub.answer = true_noise(head, clean.repeat(50, 1, 1, 1))
    loss, metrics = compute_loss(head, clean[:, 0].repeat(50, 1, 1))
    assert float(loss) < 1e-6 and set(metrics) == {"noise_mse"}
    time = stub.times[0]
    assert time is not None and time.shape == (50 * B, 1) and set(time.unique().tolist()) == set(range(8))
    stub.answer = lambda sample, time: torch.zeros_like(sample)
    loss, _ = compute_loss(head, clean[:, 0].repeat(50, 1, 1))
    assert float(loss) == pytest.approx(1.0, rel=0.15)


def cosine_level(step: int, steps: int) -> float:
    """Signal that is left after a step of Nichol and Dhariwal's schedule, squared, over that at the start."""
    return math.cos((step / steps + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2


def test_noise_levels_are_those_of_the_schedule() -> None:
    """The cosine one by default; "linear" has diffusers' ends, 1e-4 and 0.02."""
    steps, clean = 8, chunks()[:, 0]
    linear = torch.cumprod(1 - torch.linspace(1e-4, 0.02, steps), dim=0)
    cosine = torch.tensor([cosine_level(step + 1, steps) for step in range(steps - 1)] + [0.0])
    for settings, levels in (({}, cosine), ({"beta_schedule": "linear"}, linear)):
        config = DiffusionHeadConfig(num_train_steps=steps, num_inference_steps=steps, **settings)  # type: ignore[arg-type]
        head, stub = make(DiffusionHead, config, lambda sample, time: torch.zeros_like(sample))
        draws = {"noise": noise()[:, :1], "step": torch.tensor([0, 3, 6])}
        head.compute_loss(clean, torch.zeros(B, C), draws)
        level = levels[draws["step"]].reshape(B, 1, 1, 1)
        torch.testing.assert_close(
            stub.samples[0], level.sqrt() * clean.unsqueeze(1) + (1 - level).sqrt() * draws["noise"]
        )


def test_diffusion_trains_on_all_steps_however_few_a_decision_takes() -> None:
    head, _ = make(DiffusionHead, DiffusionHeadConfig(num_train_steps=8, num_inference_steps=2), None)
    assert set(head.draw(200, torch.Generator().manual_seed(0))["step"].tolist()) == set(range(8))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (DiffusionHeadConfig, {"sampler": "euler"}, "'ddpm' or 'ddim'"),
        (DiffusionHeadConfig, {"num_train_steps": 10, "num_inference_steps": 6}, "at most half of it"),
        (DiffusionHeadConfig, {"num_train_steps": 10, "num_inference_steps": 0}, "at most half of it"),
        (FlowHeadConfig, {"num_inference_steps": 0}, "must be positive"),
        (MipHeadConfig, {"denoising_time": 0.0}, "inside"),
        (MipHeadConfig, {"denoising_time": 1.0}, "inside"),
        (MipHeadConfig, {"denoising_weight": 0.0}, "must be positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        kind(**settings)
