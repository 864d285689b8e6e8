"""The study's comparison of variants: with what, in which direction, and start state by start state."""

import re
from typing import Any

import pytest

from benchmarks.manifests import phase_interval
from benchmarks.study_report import reference_of, success_difference

STARTS = [100, 101, 102, 103, 104, 105]


def run(command: str, successes: list[bool], starts: list[int] | None = None) -> dict[str, Any]:
    pairs = zip(starts or STARTS, successes, strict=True)
    return {"command": command, "evaluation": {"episodes": [{"seed": seed, "success": done} for seed, done in pairs]}}


@pytest.mark.parametrize(("task", "expected"), [("pusht", "energy"), ("multimodal_toy", "affinity")])
def test_the_reference_is_the_variant_without_settings_of_its_own(task: str, expected: str) -> None:
    assert reference_of("kernel", task) == expected


def test_a_difference_is_how_much_more_often_than_the_reference() -> None:
    better, worse = (
        [run(f"{name}{seed}", [done] * 6) for seed in (0, 1)] for name, done in (("a", True), ("b", False))
    )
    assert success_difference(better, worse) == "+1.000 [+1.000, +1.000]"
    assert success_difference(worse, better) == "-1.000 [-1.000, -1.000]"
    assert success_difference(better, better) == "reference"
    assert success_difference(better[:1], worse) == success_difference(better, worse[:1]) == ""


def test_start_states_are_compared_with_themselves_in_whatever_order_they_were_played() -> None:
    successes = [True, True, True, False, False, False]
    runs = [run("a0", successes), run("a1", successes[::-1], STARTS[::-1])]
    reference = [run("b0", successes[::-1], STARTS[::-1]), run("b1", successes)]
    shown = success_difference(runs, reference)
    assert [abs(float(number)) for number in re.findall(r"[+-][\d.]+", shown)] == [0.0, 0.0, 0.0]


def test_a_phase_is_reached_with_as_many_subtasks_or_more() -> None:
    episodes = [{"completed": number} for number in (0, 1, 2, 4)]
    shares = [phase_interval([{"evaluation": {"episodes": episodes}}], f"p{number}").mean for number in (1, 2, 3, 4)]
    assert shares == [0.75, 0.5, 0.25, 0.25]
