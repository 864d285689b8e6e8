"""The benchmark beside LeRobot: its numbers, and what it says where LeRobot is missing."""

import sys

import pytest

from benchmarks.lerobot_latency import CASES, EAGER, FLOOR, eager, lerobot_calls, summarize


def test_rows_compare_with_our_policy() -> None:
    times = {EAGER: [1.0, 2.0, 3.0], FLOOR: [100.0, 100.0, 400.0]}
    rows = summarize({EAGER: 5.0, FLOOR: 6.0}, times)
    assert rows[FLOOR]["p50_ms"] == 100.0 and rows[FLOOR]["times_eager"] == 50.0
    assert rows[EAGER]["first_call_ms"] == 5.0 and rows[EAGER]["p99_over_p50"] == pytest.approx(2.98 / 2)
    assert summarize({FLOOR: 6.0}, {FLOOR: [1.0]})[FLOOR]["times_eager"] is None


def test_our_decision_is_a_whole_one() -> None:
    assert eager()()["action"].shape == (1, 8, 2)


def test_without_lerobot_its_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(SystemExit, match=r"integrations/lerobot_policy_drift/test\.sh"):
        lerobot_calls(list(CASES))
