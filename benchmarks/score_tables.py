"""Tables of scores: the methods on each task, from the manifests of measured runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.manifests import (
    Manifest,
    demonstrations,
    mean_and_interval,
    phase_interval,
    read_runs,
    score_interval,
    success_rate,
)
from benchmarks.pages import NOT_MEASURED, markdown

POLICY_LABELS = {  # policies in the order of tables
    "drift": "**drift** (default)",
    "diffusion": "diffusion (DDPM)",
    "flow": "flow matching",
    "mip": "minimal iterative policy (MIP)",
    "regression": "regression",
}
TASK_LABELS = {  # folders of results/ in the order of the overview; "scripted": ours, as the manifests do not say
    "pusht": "Push-T, keypoints",
    "pusht_image": "Push-T, camera",
    "adroit_door": "Adroit door",
    "block_push": "BlockPush, scripted",
    "lift": "Lift, scripted",
    "can": "Can, scripted",
    "square": "Square, scripted",
}


def headline_table(results: Path) -> str:
    """Push-T: one row a method, what it needs at run time and what it scores."""
    rows = []
    for policy, label in POLICY_LABELS.items():
        if runs := read_runs(results / "pusht", policy):
            evaluations, coverage, success, seeds = _method_row(label, runs)[1:5]
            rows.append([label, evaluations, coverage, success, seeds, _work(runs[0])])
    header = ["policy", "network evaluations", "max coverage", "success", "training seeds", "steps x windows"]
    return markdown(header, rows)


def overview_table(results: Path) -> str:
    """Every task with measured runs: the success of every method, and of how many training seeds."""
    rows = []
    for task, label in TASK_LABELS.items():
        groups = [read_runs(results / task, policy) for policy in POLICY_LABELS]
        cells = [f"{success_rate(runs).mean:.2f} ({len(runs)})" if runs else "" for runs in groups]
        if measured := [run for runs in groups for run in runs]:
            rows.append([label, demonstrations(measured), *cells])
    return markdown(["task", "demonstrations", *POLICY_LABELS.values()], rows)


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


def toy_table(results: Path) -> str:
    """The two-dimensional toys: distance to the target before and after training."""
    content = json.loads((results / "toy_2d.json").read_text())
    rows = []
    for name, case in content["cases"].items():
        before, after = case["distance_before"], case["distance_after"]
        shares = " / ".join(f"{share:.1%}" for share in case.get("mode_shares", []))
        rows.append([name.replace("_", " "), f"{before:.3f}", f"{after:.3f}", f"{1 - after / before:.1%}", shares])
    return markdown(["case", "distance before", "after", "fall", "samples on each mode"], rows)


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
