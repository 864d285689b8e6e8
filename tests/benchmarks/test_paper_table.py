"""The paper's table with our columns: current, empty where nothing was measured, and honest about the data."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pages, table
from benchmarks.score_tables import method_table


def manifest(seed: int, scores: list[float], **changes: Any) -> dict[str, Any]:
    episodes = [{"score": score, "success": score == 1.0, "completed": round(2 * score)} for score in scores]
    data = {"name": "lift", "origin": "environment", "episodes": 200, "steps": 9666, **changes.pop("data", {})}
    evaluation = {
        "score_name": "success",
        "network_evaluations": 1,
        "latency_ms": {"p50": 0.5},
        "episodes": episodes,
        **changes.pop("evaluation", {}),
    }
    training, config = {"seconds": 600.0, "steps": 5000}, {"trainer": {"batch_size": 64}}
    return {"seed": seed, "data": data, "training": training, "config": config, "evaluation": evaluation, **changes}


def write(results: Path, task: str, policy: str, *manifests: dict[str, Any]) -> None:
    (results / task).mkdir(exist_ok=True)
    for content in manifests:
        (results / task / f"{policy}_seed{content['seed']}.json").write_text(json.dumps(content))


def cells(results: Path, task: str, setting: str) -> list[str]:
    rows, _ = table.rows_and_notes(results)
    (found,) = (row for row in rows if row[:2] == [task, setting])
    return found


def test_the_page_shows_what_the_result_files_say() -> None:
    page = table.PAGE.read_text()
    assert table.filled_page(page, table.RESULTS) == page


def test_nothing_is_filled_in_where_nothing_was_measured(tmp_path: Path) -> None:
    rows, notes = table.rows_and_notes(tmp_path)
    assert len(rows) == 19 and notes == []
    assert all(row[4:] == [""] * 5 for row in rows)
    assert cells(tmp_path, "ToolHang", "visual")[2:4] == [".73", ".67"]
    assert cells(tmp_path, "Transport", "state")[2:4] == [".82", ""]


def test_cells_pool_the_episodes_of_all_training_seeds(tmp_path: Path) -> None:
    write(tmp_path, "lift", "drift", manifest(0, [1.0, 0.0]), manifest(1, [1.0, 1.0]))
    write(tmp_path, "lift", "drift_other", manifest(0, [0.0]))
    assert cells(tmp_path, "Lift", "state")[4:] == ["0.75 [0.30, 0.95], 2 seeds, 4 episodes", "", "", "", ""]


def test_phases_and_coverage_have_their_own_measure(tmp_path: Path) -> None:
    data = {"episodes": 1000, "steps": 9, "name": "block_push"}
    write(tmp_path, "block_push", "drift", manifest(0, [1.0, 0.5, 0.0, 0.5], data=data))
    write(tmp_path, "pusht", "regression", manifest(0, [0.5, 0.5], data={"episodes": 206, "steps": 25650}))
    assert cells(tmp_path, "BlockPush", "p1")[4].startswith("0.75 [")
    assert cells(tmp_path, "BlockPush", "p2")[4].startswith("0.25 [")
    assert cells(tmp_path, "PushT", "state")[8] == "0.50 [0.50, 0.50], 1 seed, 2 episodes"


def test_other_data_than_the_published_are_marked(tmp_path: Path) -> None:
    scripted = manifest(
        0, [1.0], data={"episodes": 100, "steps": 4000}, command="python ... data_path=lift_scripted.hdf5"
    )
    write(tmp_path, "lift", "drift", scripted)
    write(tmp_path, "lift", "flow", manifest(0, [1.0]))
    write(tmp_path, "can", "drift", manifest(0, [1.0], data={"episodes": 100, "steps": 23207, "name": "can"}))
    write(tmp_path, "block_push", "drift", manifest(0, [1.0], data={"episodes": 1000, "steps": 9, "name": "blocks"}))
    assert cells(tmp_path, "Lift", "state")[4].endswith("1 episode †")
    assert cells(tmp_path, "Lift", "state")[6].endswith("1 episode")
    text = table.markdown_table(tmp_path)
    assert "- lift, drift: 100 scripted demonstrations with 4,000 steps ('lift')" in text
    assert "- can, drift: 100 other demonstrations with 23,207 steps ('can')" in text
    assert text.count("block_push, drift: 1000 scripted") == 1
    assert table.rich_table(tmp_path).row_count == 19


def test_a_run_in_the_wrong_column_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "can", "diffusion", manifest(2, [1.0], evaluation={"network_evaluations": 16}))
    with pytest.raises(ValueError, match="diffusion_seed2.json has 16 network evaluations"):
        table.rows_and_notes(tmp_path)


def test_a_table_of_a_task_that_was_not_measured_says_so(tmp_path: Path) -> None:
    page = "<!-- table:lift -->\nold\n<!-- end:lift -->\n"
    tables = {"lift": partial(method_table, "lift")}
    filled = pages.fill(page, tmp_path, tables)
    assert filled == "<!-- table:lift -->\nNot measured yet.\n<!-- end:lift -->\n"
    with pytest.raises(ValueError, match="table:lift"):
        pages.fill(page + page, tmp_path, tables)
    assert pages.fill("none here", tmp_path, tables, complete=False) == "none here"


def test_the_table_of_any_task_shows_what_its_runs_have(tmp_path: Path) -> None:
    data = {"episodes": 100, "steps": 9, "name": "lift_scripted"}
    write(tmp_path, "lift", "diffusion", manifest(0, [1.0], data=data))
    write(tmp_path, "lift", "drift", manifest(0, [1.0, 0.0], data=data), manifest(1, [1.0, 1.0], data=data))
    write(tmp_path, "lift", "drift_floor_zero", manifest(0, [0.0], data=data))
    lines = method_table("lift", tmp_path).splitlines()
    assert lines[0] == (
        "| policy | evaluations | success | training seeds | steps x windows | training [min] | decision p50 [ms] "
        "| demonstrations |"
    )
    assert lines[2] == "| **drift** (default) | 1 | 0.75 [0.30, 0.95] | 2 | 5,000 x 64 | 10.0 | 0.50 | 100 scripted |"
    assert [line.split(" |")[0] for line in lines[3:]] == ["| diffusion (DDPM)", "| drift floor zero"]
    phased = manifest(0, [1.0, 0.5], evaluation={"phases": {"p1": {}, "p2": {}}})
    write(tmp_path, "block_push", "drift", phased)
    header, _, row = method_table("block_push", tmp_path).splitlines()
    assert "| evaluations | p1 | p2 | success |" in header
    assert row.startswith("| **drift** (default) | 1 | 1.00 [0.34, 1.00] | 0.50 [0.09, 0.91] |")
    write(tmp_path, "pusht", "drift", manifest(0, [0.9], evaluation={"score_name": "coverage"}))
    assert "| max coverage | success |" in method_table("pusht", tmp_path)
