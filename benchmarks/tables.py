"""The README's result tables, generated from the JSON files that measured runs left under results/.

The paper's table with our columns is another page, docs/table7.md; see benchmarks.table, which uses the functions here.

python -m benchmarks.tables          writes the tables between the markers of README.md
python -m benchmarks.tables --check  exits with 1 if README.md differs from what the files say
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from drift_policy.evaluation.statistics import Interval, mean_interval, success_interval

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "results"
NOT_MEASURED = "Not measured yet."
POLICY_LABELS = {  # policies in the order of tables
    "drift": "**drift** (default)",
    "diffusion": "diffusion (DDPM)",
    "flow": "flow matching",
    "mip": "minimal iterative policy (MIP)",
    "regression": "regression",
}
Manifest = dict[str, Any]


def read_runs(folder: Path, prefix: str) -> list[Manifest]:
    """Return the manifests of the training runs called `<prefix>_seed<number>`, in the order of their seeds."""
    paths = [path for path in folder.glob(f"{prefix}_seed*.json") if path.stem.removeprefix(f"{prefix}_seed").isdigit()]
    return sorted((json.loads(path.read_text()) for path in paths), key=lambda manifest: int(manifest["seed"]))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean_and_interval(interval: Interval, digits: int = 2) -> str:
    """Return "mean [low, high]"."""
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def score_interval(runs: Sequence[Manifest]) -> Interval:
    """Return the mean of the highest score over the episodes of all runs."""
    return mean_interval([episode["score"] for episode in _episodes(runs)])


def success_rate(runs: Sequence[Manifest]) -> Interval:
    """Return the success rate over the episodes of all runs."""
    return success_interval([episode["success"] for episode in _episodes(runs)])


def phase_interval(runs: Sequence[Manifest], phase: str) -> Interval:
    """Return the share of the episodes of all runs that completed a phase, such as "p2": two subtasks or more."""
    number = int(phase.removeprefix("p"))
    return success_interval([episode["completed"] >= number for episode in _episodes(runs)])


def demonstrations(runs: Sequence[Manifest]) -> str:
    """Return how many demonstrations runs were trained on, and whether they are scripted."""
    kinds = {f"{run['data']['episodes']}{' scripted' if is_scripted(run) else ''}" for run in runs}
    return ", ".join(sorted(kinds))


def is_scripted(run: Manifest) -> bool:
    """Whether a run names scripted demonstrations: as its data set, its file, or on its command line."""
    dataset = run.get("config", {}).get("task", {}).get("dataset", {})
    said = (run["data"]["name"], dataset.get("relative_path", ""), run.get("command", ""))
    return any("scripted" in str(text) for text in said)


def pusht_table(results: Path) -> str:
    """Push-T: the methods on the same demonstrations with the same network, and earlier defaults."""
    kinds = (
        ("drift", "**drift** (default)"),
        ("diffusion", "diffusion (DDPM), 60,000 steps"),
        ("flow", "flow matching"),
        ("mip", "minimal iterative policy (MIP)"),
        ("regression", "regression"),
        ("drift_2x256", "two samples of 256 windows a step instead of eight of 64"),
        ("drift_2x128", "two samples of 128 windows, half the work"),
        ("drift_neighbours", "four positives: also the chunks of the three nearest observations"),
        ("drift_one_temperature", "the paper's kernel, its widest temperature alone"),
        ("drift_small_unet", "a small U-Net (1.0 M parameters) instead of the MLP, bfloat16"),
        ("drift_no_noise", "second default: no observation noise, horizon 16"),
        ("diffusion_no_noise", "diffusion (DDPM), 60,000 steps, no observation noise, horizon 16"),
        ("drift_single_affinity", "first default: also the paper's kernel, no mirror, one candidate"),
        ("drift_90_demonstrations", "first default, 15,000 steps, 90 demonstrations"),
        ("drift_bundled", "first default, bundled demonstrations"),
    )
    return _method_table(results / "pusht", kinds)


def pusht_image_table(results: Path) -> str:
    """Push-T from the camera: the methods with the same small CNN."""
    kinds = (
        ("drift", "**drift** (default)"),
        ("diffusion", "diffusion (DDPM)"),
        ("regression", "regression"),
        ("drift_energy_gpu", "drift: energy kernel, 16 candidates, horizon 12, 15,000 steps on an H100"),
        ("diffusion_gpu", "diffusion (DDPM), 30,000 steps on an H100"),
    )
    return _method_table(results / "pusht_image", kinds)


def pusht_seed_table(results: Path) -> str:
    """Push-T: every training seed of the default policy."""
    rows = [
        [
            str(run["seed"]),
            *_scores([run]),
            str(run["training"]["checkpoints"][0]["step"]),
            f"{run['training']['seconds'] / 60:.1f}",
        ]
        for run in read_runs(results / "pusht", "drift")
    ]
    return markdown(["seed", "max coverage", "success", "checkpoint [step]", "training [min]"], rows)


def latency_table(results: Path) -> str:
    """Latency of a decision, per network."""
    rows = []
    for path in sorted(results.glob("policy_latency_*.json")):
        content = json.loads(path.read_text())
        for method, row in content["methods"].items():
            numbers = (f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", f"{row['times_floor']:.2f}")
            rows.append([content["network"], method, *numbers, f"{row['times_drift']:.1f}"])
    return markdown(["network", "method", "p50 [ms]", "p99 [ms]", "x bare forward", "x drift"], rows)


def throughput_table(results: Path) -> str:
    """Updates of the trainer against loops of plain PyTorch that never change."""
    rows = []
    for name, case in json.loads((results / "training_throughput.json").read_text())["cases"].items():
        if case["kind"] != "update":
            continue
        ratio, share = case["steps_times_reference"], case["drift_loss_share"]
        rows.append(
            [
                name,
                str(case["batch_size"]),
                case["reference"],
                f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
                f"{case['samples_times_drift']['median']:.2f}",
                "" if share is None else f"{share['median']:.1%}",
            ]
        )
    header = ["update", "batch", "held against", "steps/s, x plain loop", "samples/s, x drift", "drift loss"]
    return markdown(header, rows)


def evaluation_table(results: Path) -> str:
    """How long Diffusion Policy's protocol takes with the pretrained checkpoint."""
    content = json.loads((results / "pusht_evaluation.json").read_text())
    evaluation, machine = content["evaluation"], content["machine"]
    steps = sum(episode["steps"] for episode in evaluation["episodes"])
    row = [
        str(len(evaluation["episodes"])),
        str(steps),
        f"{evaluation['wall_s']:.1f}",
        f"{steps / evaluation['wall_s']:.0f}",
        f"{machine['threads']} of {machine['cores']}",
    ]
    return markdown(["episodes", "environment steps", "wall time [s]", "steps/s", "threads of cores"], [row])


def toy_table(results: Path) -> str:
    """The two-dimensional toys: distance to the target before and after training."""
    content = json.loads((results / "toy_2d.json").read_text())
    rows = []
    for name, case in content["cases"].items():
        before, after = case["distance_before"], case["distance_after"]
        shares = " / ".join(f"{share:.1%}" for share in case.get("mode_shares", []))
        rows.append([name.replace("_", " "), f"{before:.3f}", f"{after:.3f}", f"{1 - after / before:.1%}", shares])
    return markdown(["case", "distance before", "after", "fall", "samples on each mode"], rows)


def method_table(task: str, results: Path) -> str:
    """Any task: every policy that has manifests results/<task>/<policy>_seed<number>.json, the known ones first."""
    folder = results / task
    found = {path.stem.rpartition("_seed")[0] for path in folder.glob("*_seed*.json")}
    prefixes = [*(name for name in POLICY_LABELS if name in found), *sorted(found - POLICY_LABELS.keys())]
    groups = {prefix: runs for prefix in prefixes if (runs := read_runs(folder, prefix))}
    if not groups:
        return NOT_MEASURED
    some = next(iter(groups.values()))[0]["evaluation"]
    phases, score_name = list(some.get("phases", {})), str(some.get("score_name", "score"))
    shows_score = not phases and score_name != "success"
    rows = []
    for prefix, runs in groups.items():
        row = _method_row(POLICY_LABELS.get(prefix, prefix.replace("_", " ")), runs)
        scores = [row[2]] if shows_score else [mean_and_interval(phase_interval(runs, phase)) for phase in phases]
        rows.append([*row[:2], *scores, *row[3:], demonstrations(runs)])
    scores = [f"max {score_name}"] if shows_score else phases
    timing = ["training seeds", "steps x windows", "training [min]", "decision p50 [ms]"]
    return markdown(["policy", "evaluations", *scores, "success", *timing, "demonstrations"], rows)


def runtime_table(results: Path) -> str:
    """Decisions of the shipped sizes in PyTorch and onnxruntime, beside iterative heads on the same network."""
    return _decision_table(json.loads((results / "runtime_latency.json").read_text()))


def lerobot_table(results: Path) -> str:
    """Decisions of ours beside LeRobot's DiffusionPolicy with its defaults, in one run."""
    path = results / "lerobot_latency.json"
    return _decision_table(json.loads(path.read_text())) if path.is_file() else NOT_MEASURED


def server_table(results: Path) -> str:
    """The policy server under load, clients on the same machine."""
    content = json.loads((results / "server_load.json").read_text())
    rows = [
        [
            str(load["clients"]),
            str(load["max_batch_size"]),
            f"{load['decisions_per_s']:.0f}",
            f"{load['p50_ms']:.1f}",
            f"{load['p99_ms']:.1f}",
            f"{load['lost']} / {load['wrong']}",
        ]
        for load in content["loads"]
    ]
    return markdown(["clients", "largest batch", "decisions/s", "p50 [ms]", "p99 [ms]", "lost / wrong"], rows)


def _decision_table(content: Manifest) -> str:
    rows = []
    for threads, observations in content["threads"].items():
        for observation, cases in observations.items():
            for case, row in cases.items():
                after = row.get("after_others_ms")
                numbers = [f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", "" if after is None else f"{after:.2f}"]
                rows.append([threads, observation, case, *numbers, f"{row['times_eager']:.2f}"])
    return markdown(["threads", "observation", "case", "p50 [ms]", "p99 [ms]", "after others [ms]", "x eager"], rows)


TABLES: dict[str, Callable[[Path], str]] = {
    "pusht": pusht_table,
    "pusht_seeds": pusht_seed_table,
    "pusht_image": pusht_image_table,
    "latency": latency_table,
    "throughput": throughput_table,
    "runtime": runtime_table,
    "lerobot": lerobot_table,
    "server": server_table,
    "evaluation": evaluation_table,
    "toy": toy_table,
}


# Filled in where a page has their markers.
OPTIONAL_TABLES: dict[str, Callable[[Path], str]] = {
    task: partial(method_table, task)
    for task in (
        "adroit_door",
        "block_push",
        "kitchen",
        "kitchen_abs",
        "lift",
        "can",
        "square",
        "tool_hang",
        "transport",
    )
}


def fill(
    text: str,
    results: Path,
    required: Mapping[str, Callable[[Path], str]] = TABLES,
    optional: Mapping[str, Callable[[Path], str]] = OPTIONAL_TABLES,
) -> str:
    """Return `text` with every marked table replaced by the current one.

    Raises:
        ValueError: a required table has no markers, or a table has more than one pair.
    """
    for name, table in {**required, **optional}.items():
        begin, end = f"<!-- table:{name} -->", f"<!-- end:{name} -->"
        counts = (text.count(begin), text.count(end))
        if counts == (0, 0) and name not in required:
            continue
        if counts != (1, 1):
            raise ValueError(f"The page needs the markers {begin} and {end}, once each.")
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{table(results)}\n{end}{after}"
    return text


def _method_table(folder: Path, kinds: Sequence[tuple[str, str]]) -> str:
    runs = {label: read_runs(folder, prefix) for prefix, label in kinds}
    rows = [_method_row(label, found) for label, found in runs.items() if found]
    header = [
        "policy",
        "evaluations",
        "max coverage",
        "success",
        "training seeds",
        "steps x windows",
        "training [min]",
        "decision p50 [ms]",
        "start states",
    ]
    return markdown(header, [[*row, starts] for row, starts in zip(rows, _start_states(runs), strict=True)])


def _start_states(groups: Mapping[str, list[Manifest]]) -> list[str]:
    """Return of every group that has runs how many start states each of them was scored on."""
    counts = ({len(run["evaluation"]["episodes"]) for run in runs} for runs in groups.values() if runs)
    return [", ".join(str(count) for count in sorted(found)) for found in counts]


def _method_row(label: str, runs: list[Manifest]) -> list[str]:
    evaluations = {str(run["evaluation"]["network_evaluations"]) for run in runs}
    minutes = [run["training"]["seconds"] / 60 for run in runs]
    latency = [run["evaluation"]["latency_ms"]["p50"] for run in runs if not _decides_for_many(run)]
    return [
        label,
        ", ".join(sorted(evaluations)),
        *_scores(runs),
        str(len(runs)),
        ", ".join(sorted({_work(run) for run in runs})),
        f"{sum(minutes) / len(minutes):.1f}",
        f"{sum(latency) / len(latency):.2f}" if latency else "",
    ]


def _work(run: Manifest) -> str:
    """Return how many updates a training made, and of how many windows each."""
    return f"{run['training']['steps']:,} x {run['config']['trainer']['batch_size']}"


def _decides_for_many(run: Manifest) -> bool:
    """Whether the time of a decision is that of a batch of observations."""
    evaluation = run.get("config", {}).get("evaluation", run["evaluation"].get("protocol", {}))
    return int(evaluation.get("decision_batch_size", 1)) > 1


def _scores(runs: list[Manifest]) -> tuple[str, str]:
    """Return mean and 95 % interval of highest coverage and success over the episodes of all runs."""
    return mean_and_interval(score_interval(runs), digits=3), mean_and_interval(success_rate(runs))


def _episodes(runs: Sequence[Manifest]) -> list[dict[str, Any]]:
    return [episode for run in runs for episode in run["evaluation"]["episodes"]]


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


def main() -> None:
    """Write or check the tables."""
    update_page(README, fill(README.read_text(), RESULTS), "benchmarks.tables", check=is_check(__doc__))


if __name__ == "__main__":
    main()
