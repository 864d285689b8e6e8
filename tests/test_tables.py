import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables


def manifest(seed: int, scores: list[float]) -> dict[str, Any]:
    episodes = [{"score": score, "success": score == 1.0} for score in scores]
    return {
        "seed": seed,
        "training": {"seconds": 600.0, "checkpoints": [{"step": 10}]},
        "evaluation": {"network_evaluations": 1, "latency_ms": {"p50": 0.5}, "episodes": episodes},
    }


def test_readme_shows_what_the_result_files_say() -> None:
    assert tables.fill(tables.README.read_text(), tables.RESULTS) == tables.README.read_text()


def test_episodes_of_all_seeds_are_pooled(tmp_path: Path) -> None:
    (tmp_path / "pusht").mkdir()
    for seed, scores in ((0, [1.0, 0.5]), (1, [1.0, 1.0])):
        (tmp_path / "pusht" / f"drift_seed{seed}.json").write_text(json.dumps(manifest(seed, scores)))
    (tmp_path / "pusht" / "drift_other_seed0.json").write_text(json.dumps(manifest(0, [0.0])))
    row = tables.pusht_table(tmp_path).splitlines()[2]
    assert "0.875 [" in row and "0.75 [" in row and "| 2 |" in row
    assert len(tables.pusht_seed_table(tmp_path).splitlines()) == 4


def test_markers_are_required_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="table:pusht"):
        tables.fill("no tables here", tmp_path)
