"""Pages with generated parts: markers, Markdown tables, and comparing a page with what the result files say."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
NOT_MEASURED = "Not measured yet."
Tables = Mapping[str, Callable[[Path], str]]  # name of the markers -> table from the folder of results


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fill(text: str, results: Path, tables: Tables, *, complete: bool = True) -> str:
    """Return `text` with every marked table replaced by the current one.

    complete: whether every table must have its markers.

    Raises:
        ValueError: a table that must be there has no markers, or a table has more than one pair.
    """
    for name, table in tables.items():
        begin, end = f"<!-- table:{name} -->", f"<!-- end:{name} -->"
        counts = (text.count(begin), text.count(end))
        if counts == (0, 0) and not complete:
            continue
        if counts != (1, 1):
            raise ValueError(f"The page needs the markers {begin} and {end}, once each.")
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{table(results)}\n{end}{after}"
    return text


def update_page(page: Path, filled: str, command: str, *, check: bool) -> None:
    """Write a page with its current tables, or end the program with 1 if it shows others; `command` writes it."""
    if not check:
        page.write_text(filled)
    elif filled != page.read_text():
        sys.exit(f"{page.relative_to(ROOT)} does not show what results/ says: run python -m {command}")


def is_check(description: str | None) -> bool:
    """Return whether a program that writes a page was asked to compare instead."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    return bool(parser.parse_args().check)
