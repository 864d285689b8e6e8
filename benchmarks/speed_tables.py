"""Tables of latency and throughput, of the files that the benchmarks leave under results/."""

import json
from pathlib import Path

from benchmarks.manifests import Manifest
from benchmarks.pages import NOT_MEASURED, markdown

DECISIONS = {  # observations of runtime_latency.json -> what they are
    "state": "Push-T keypoints, the pretrained policy",
    "pusht image": "Push-T camera, a small CNN",
    "two cameras": "two cameras, a ResNet-18 each",
}
DECISION_CASES = {
    "eager": "drift, PyTorch [ms]",
    "onnx": "drift, onnxruntime [ms]",
    "DDIM, 16 evaluations": "DDIM, 16 evaluations [ms]",
    "DDPM, 100 evaluations": "DDPM, 100 evaluations [ms]",
}


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


def decisions_table(results: Path) -> str:
    """Median time of a decision on one CPU thread: drift in PyTorch and onnxruntime, iterative heads on its network."""
    observations = json.loads((results / "runtime_latency.json").read_text())["threads"]["1"]
    rows = []
    for observation, label in DECISIONS.items():
        cases = observations[observation]
        rows.append([label, *(f"{cases[case]['p50_ms']:.2f}" for case in DECISION_CASES)])
    candidate = [f"{observations['state'][f'{case}, one candidate']['p50_ms']:.2f}" for case in ("eager", "onnx")]
    rows.insert(1, ["the same, one candidate instead of 16", *candidate, "", ""])
    return markdown(["observation", *DECISION_CASES.values()], rows)


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
