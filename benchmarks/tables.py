"""The tables of README.md, docs/results.md and docs/latency.md, and the README's chart, from the files in results/.

The paper's table with our columns is another page, docs/table7.md; see benchmarks.table.

python -m benchmarks.tables          writes the tables between the markers of the pages, and the chart
python -m benchmarks.tables --check  exits with 1 if a page differs from what the files say
"""

from functools import partial
from pathlib import Path

from benchmarks import score_tables, speed_tables
from benchmarks.headline_chart import draw_headline_chart
from benchmarks.pages import RESULTS, ROOT, Tables, fill, is_check, update_page

CHART = ROOT / "docs" / "images" / "pusht_results.png"
PAGES: dict[Path, Tables] = {
    ROOT / "README.md": {
        "pusht_methods": score_tables.headline_table,
        "tasks": score_tables.overview_table,
        "decisions": speed_tables.decisions_table,
    },
    ROOT / "docs" / "results.md": {
        "pusht": score_tables.pusht_table,
        "pusht_seeds": score_tables.pusht_seed_table,
        "pusht_image": score_tables.pusht_image_table,
        **{
            task: partial(score_tables.method_table, task)
            for task in ("adroit_door", "block_push", "lift", "can", "square")
        },
        "toy": score_tables.toy_table,
    },
    ROOT / "docs" / "latency.md": {
        "latency": speed_tables.latency_table,
        "runtime": speed_tables.runtime_table,
        "lerobot": speed_tables.lerobot_table,
        "server": speed_tables.server_table,
        "evaluation": speed_tables.evaluation_table,
        "throughput": speed_tables.throughput_table,
    },
}


def main() -> None:
    """Write or check the tables; a chart is only written, since pictures differ with versions of matplotlib."""
    check = is_check(__doc__)
    for page, tables in PAGES.items():
        update_page(page, fill(page.read_text(), RESULTS, tables), "benchmarks.tables", check=check)
    if not check:
        draw_headline_chart(RESULTS, CHART)


if __name__ == "__main__":
    main()
