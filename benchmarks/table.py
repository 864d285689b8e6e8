"""The robot table of "Generative Modeling via Drifting" (arXiv 2602.04770, Table 7) with our columns from results/.

python -m benchmarks.table                     shows it on the terminal
python -m benchmarks.table --format markdown   prints it as Markdown
python -m benchmarks.table --write             writes it between the markers of docs/table7.md
python -m benchmarks.table --check             exits with 1 if docs/table7.md differs from what the files say

A cell of ours is what the manifests results/<task>/<policy>_seed<number>.json hold, and empty where there are none.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.manifests import (
    Manifest,
    is_scripted,
    mean_and_interval,
    phase_interval,
    read_runs,
    score_interval,
    success_rate,
)
from benchmarks.pages import RESULTS, ROOT, fill, markdown, update_page

PAGE = ROOT / "docs" / "table7.md"
NAME = "table7"
MARK = "†"


@dataclass(frozen=True)
class Row:
    """One line of the table: a task, and what was published for it."""

    task: str  # as the paper calls it
    setting: str  # observations, or the phase of a task with several
    folder: str  # below results/
    diffusion_policy: str  # Diffusion Policy's CNN, 100 evaluations: mean of the last ten checkpoints
    drifting: str  # the paper's drifting policy, one evaluation: mean of the last ten checkpoints
    phase: str | None = None  # share of episodes that completed it, instead of the score
    coverage: bool = False  # whether the score is the covered area instead of success
    # Episodes and steps of the published demonstrations. None: their size does not tell them from others.
    published: tuple[int, int | None] | None = None


# Sizes: robomimic's proficient-human sets, Diffusion Policy's Push-T and Kitchen, D4RL's door-human. BlockPush has
# 1,000 scripted episodes whoever's demonstrator made them, so ours are always marked.
_PUSHT, _LIFT, _CAN = (206, 25650), (200, 9666), (200, 23207)
_TOOL_HANG, _SQUARE, _TRANSPORT = (200, 95962), (200, 30154), (200, 93752)
ROWS = (
    Row("Lift", "state", "lift", ".98", "1.00", published=_LIFT),
    Row("Lift", "visual", "lift_image", "1.00", "1.00", published=_LIFT),
    Row("Can", "state", "can", ".96", ".98", published=_CAN),
    Row("Can", "visual", "can_image", ".97", ".99", published=_CAN),
    Row("ToolHang", "state", "tool_hang", ".30", ".38", published=_TOOL_HANG),
    Row("ToolHang", "visual", "tool_hang_image", ".73", ".67", published=_TOOL_HANG),
    Row("PushT", "state", "pusht", ".91", ".86", coverage=True, published=_PUSHT),
    Row("PushT", "visual", "pusht_image", ".84", ".86", coverage=True, published=_PUSHT),
    Row("BlockPush", "p1", "block_push", ".36", ".56", phase="p1"),
    Row("BlockPush", "p2", "block_push", ".11", ".16", phase="p2"),
    Row("Kitchen", "p1", "kitchen_abs", "1.00", "1.00", phase="p1", published=(566, None)),
    Row("Kitchen", "p2", "kitchen_abs", "1.00", "1.00", phase="p2", published=(566, None)),
    Row("Kitchen", "p3", "kitchen_abs", "1.00", ".99", phase="p3", published=(566, None)),
    Row("Kitchen", "p4", "kitchen_abs", ".99", ".96", phase="p4", published=(566, None)),
    # Not in the paper's table: of Diffusion Policy's (proficient human), and of Adroit.
    Row("Square", "state", "square", ".93", "", published=_SQUARE),
    Row("Square", "visual", "square_image", ".92", "", published=_SQUARE),
    Row("Transport", "state", "transport", ".82", "", published=_TRANSPORT),
    Row("Transport", "visual", "transport_image", ".93", "", published=_TRANSPORT),
    Row("Adroit door", "state", "adroit_door", "", "", published=(25, 6729)),
)
# Policy -> heading and, where the heading says it, network evaluations a decision.
POLICIES = {
    "drift": ("drift (1)", 1),
    "diffusion": ("diffusion (100)", 100),
    "flow": ("flow", None),
    "mip": ("MIP (2)", 2),
    "regression": ("regression (1)", 1),
}
HEADER = (
    "task",
    "setting",
    "DP-C, published (100)",
    "drifting, published (1)",
    *(head for head, _ in POLICIES.values()),
)


def rows_and_notes(results: Path) -> tuple[list[list[str]], list[str]]:
    """Return the cells of every row, and a note for every cell that is not of the published demonstrations.

    Raises:
        ValueError: a manifest has other network evaluations than the heading of its column.
    """
    rows, notes = [], []
    for row in ROWS:
        cells = [row.task, row.setting, row.diffusion_policy, row.drifting]
        for policy, (heading, evaluations) in POLICIES.items():
            runs = read_runs(results / row.folder, policy)
            for run in runs:
                found = run["evaluation"]["network_evaluations"]
                if evaluations is not None and found != evaluations:
                    raise ValueError(
                        f"results/{row.folder}/{policy}_seed{run['seed']}.json has {found} network evaluations, but "
                        f"the column is {heading!r}: give this run another name."
                    )
            note = _note(row, policy, runs)
            cells.append(_cell(row, runs) + (f" {MARK}" if note else ""))
            if note and note not in notes:
                notes.append(note)
        rows.append(cells)
    return rows, notes


def markdown_table(results: Path) -> str:
    """Return the table and its notes as Markdown."""
    rows, notes = rows_and_notes(results)
    lines = [f"{MARK} Not trained on the published demonstrations:", "", *(f"- {note}" for note in notes)]
    return "\n".join([markdown(HEADER, rows), *(["", *lines] if notes else [])])


def rich_table(results: Path) -> Table:
    """Return the table for a terminal, its notes below."""
    rows, notes = rows_and_notes(results)
    table = Table(title="Table 7, with what was measured here", caption_justify="left")
    for number, heading in enumerate(HEADER):
        table.add_column(Text(heading), justify="left" if number < 2 else "right")
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    if notes:
        table.caption = Text("\n".join([f"{MARK} not trained on the published demonstrations:", *notes]))
    return table


def _cell(row: Row, runs: Sequence[Manifest]) -> str:
    """Return mean, interval, training seeds and episodes; nothing where nothing was measured."""
    if not runs:
        return ""
    if row.phase is not None:
        interval = phase_interval(runs, row.phase)
    elif row.coverage:
        interval = score_interval(runs)
    else:
        interval = success_rate(runs)
    seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
    episodes = "1 episode" if interval.n == 1 else f"{interval.n} episodes"
    return f"{mean_and_interval(interval)}, {seeds}, {episodes}"


def _note(row: Row, policy: str, runs: Sequence[Manifest]) -> str | None:
    """Say on what a cell was trained if that is not the published data."""
    others = [run for run in runs if is_scripted(run) or not _is_published(row, run)]
    if not others:
        return None
    data = others[0]["data"]
    kind = "scripted" if is_scripted(others[0]) or row.published is None else "other"
    return (
        f"{row.folder}, {policy}: {data['episodes']} {kind} demonstrations with {data['steps']:,} steps "
        f"('{data['name']}')"
    )


def _is_published(row: Row, run: Manifest) -> bool:
    if row.published is None:
        return False
    episodes, steps = row.published
    return bool(run["data"]["episodes"] == episodes and steps in (None, run["data"]["steps"]))


def main() -> None:
    """Show, write or check the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=("rich", "markdown"), default="rich", help="how to show it")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--write", action="store_true", help="write docs/table7.md instead of showing it")
    group.add_argument("--check", action="store_true", help="compare docs/table7.md instead of showing it")
    arguments = parser.parse_args()
    if arguments.write or arguments.check:
        filled = filled_page(PAGE.read_text(), RESULTS)
        update_page(PAGE, filled, "benchmarks.table --write", check=arguments.check)
    elif arguments.format == "markdown":
        print(markdown_table(RESULTS))
    else:
        Console().print(rich_table(RESULTS))


def filled_page(text: str, results: Path) -> str:
    """Return the page with the current table between its markers; ValueError if it has none."""
    return fill(text, results, {NAME: markdown_table})


if __name__ == "__main__":
    main()
