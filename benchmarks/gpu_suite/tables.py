"""The tables of docs/gpu_suite.md, generated from the files under results/gpu/.

python -m benchmarks.gpu_suite.tables           writes the tables between the markers of docs/gpu_suite.md
python -m benchmarks.gpu_suite.tables --check   exits with 1 if docs/gpu_suite.md differs from what the files say
"""

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.pages import NOT_MEASURED, RESULTS, ROOT, fill, is_check, markdown, update_page

PAGE = ROOT / "docs" / "gpu_suite.md"


def latency_table(results: Path) -> str:
    """Decisions of the original sizes on a GPU, one observation each."""
    rows = []
    for path in sorted((results / "gpu").glob("latency*.json")):
        content = json.loads(path.read_text())
        for subject, found in content["subjects"].items():
            for case, row in found["methods"].items():
                method, mode, precision = case.split("/")
                million = f"{found['parameters'][method] / 1e6:.0f} M"
                numbers = (
                    f"{row['p50_ms']:.2f}",
                    f"{row['p99_ms']:.2f}",
                    f"{row['times_drift']:.1f}",
                    str(row["decisions"]),
                )
                rows.append([subject, million, method, mode, precision, *numbers, content["machine"]["gpu"]])
    header = [
        "network",
        "parameters",
        "method",
        "mode",
        "precision",
        "p50 [ms]",
        "p99 [ms]",
        "x drift",
        "decisions",
        "GPU",
    ]
    return markdown(header, rows) if rows else NOT_MEASURED


TABLES: dict[str, Callable[[Path], str]] = {"gpu_latency": latency_table}


def main() -> None:
    """Write or check the tables."""
    filled = fill(PAGE.read_text(), RESULTS, TABLES)
    update_page(PAGE, filled, "benchmarks.gpu_suite.tables", check=is_check(__doc__))


if __name__ == "__main__":
    main()
