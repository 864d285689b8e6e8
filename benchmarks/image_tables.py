"""The tables of docs/image_gen.md, generated from the files that the ladder left under results/image_gen/.

python -m benchmarks.image_tables           writes the tables between the markers of docs/image_gen.md
python -m benchmarks.image_tables --check   exits with 1 if docs/image_gen.md differs from what the files say
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.pages import NOT_MEASURED, RESULTS, ROOT, fill, is_check, markdown, update_page

PAGE = ROOT / "docs" / "image_gen.md"
STUDIES = ("antisymmetry", "positives", "negatives", "features", "temperatures")
DISTANCE = "Frechet distance in a small classifier of digits features"
_REAL_SCORES = {DISTANCE: ".1f", "accuracy": ".3f"}  # of held-out digits, with the form of their means
_DIGITS_SCORES = {DISTANCE: ".1f", "recall": ".2f", "accuracy": ".3f"}
_SHARES = ("precision", "recall", "accuracy")
_ASSUMED_RATE = 400e12  # FLOP/s of a well-filled H100 in bfloat16
_BANDWIDTH = 3.35e12  # bytes/s of an H100's memory (SXM), from its data sheet
_RATE_OF = "latent_B"  # the size whose measured steps give the other rate
_COUNTED_STEP = (1, 64)  # labels, and samples of each, of the steps that benchmarks.image_ladder.cost counts for it
_FROZEN = ("features_real", "features_generated", "tokenizer")  # parts of a step that are not trained
Scores = Mapping[str, Any]


def digits_table(results: Path) -> str:
    """Digits: every method with the same network after the same seconds of updates; mean over training seeds.

    Raises:
        ValueError: the seeds have other methods, steps of drift or numbers of samples than each other.
    """
    files = _files(results, "digits_seed*.json")
    if not files:
        return NOT_MEASURED
    # Flow matching makes as many steps as fit into drift's seconds.
    works = [
        [_work(run, name)[: 3 if name == "drift" else 2] for name, run in file["methods"].items()] for file in files
    ]
    _require_alike("digits", works)
    rows = []
    for method in files[0]["methods"]:
        runs = [file["methods"][method] for file in files]
        evaluations = str(runs[0]["scores"]["evaluations_per_image"])
        minutes = sum(run["training"]["seconds"] for run in runs) / len(runs) / 60
        means = _means([run["scores"] for run in runs], _DIGITS_SCORES)
        rows.append([method, evaluations, *means, f"{minutes:.1f}", str(len(runs))])
    distance, accuracy = _means([files[0]["held_out_real_images"]], _REAL_SCORES)
    rows.append(["held-out real digits", "", distance, "", accuracy, "", ""])
    return markdown(
        ["method", "evaluations", "Frechet distance", "recall", "accuracy", "training [min]", "seeds"], rows
    )


def ordering_table(study: str, results: Path) -> str:
    """One ordering of the paper on the digits: every setting after the same steps; mean, lowest and highest seed.

    Raises:
        ValueError: the seeds of a number of steps have other settings or numbers of samples than each other.
    """
    lengths: dict[int, list[dict[str, Any]]] = {}  # steps -> the files of all seeds
    for file in _files(results, f"ordering_{study}_*.json"):
        lengths.setdefault(file["settings"][0]["training"]["steps"], []).append(file)
    for files in lengths.values():
        _require_alike(study, [[_work(run, run["setting"]) for run in file["settings"]] for file in files])
    rows = []
    for steps, files in sorted(lengths.items()):
        for settings in zip(*(file["settings"] for file in files), strict=True):
            scores = _means_and_ranges([setting["scores"] for setting in settings], _DIGITS_SCORES)
            rows.append([settings[0]["setting"], *scores, f"{steps:,}", str(len(files))])
    return markdown([study, "Frechet distance", "recall", "accuracy", "steps", "seeds"], rows) if rows else NOT_MEASURED


def guidance_table(pattern: str, results: Path) -> str:
    """Scores of a generator at several guidance scales, a file of image_gen/evaluate.py each."""
    files = _files(results, pattern)
    if not files:
        return NOT_MEASURED
    rows = []
    for file in files:
        scores = file["scores"]
        (distance,) = (value for name, value in scores.items() if name.startswith("Frechet distance"))
        numbers = (f"{value:.2f}" for value in (distance, *(scores[name] for name in _SHARES)))
        rows.append([f"{file['cfg_scale']:g}", *numbers, f"{scores['num_samples']:,}", f"{file['step']:,}"])
    return markdown(["guidance", "Frechet distance", *_SHARES, "samples", "steps"], rows)


def speed_table(results: Path) -> str:
    """Sampling and training of each size, beside plain references of the same run."""
    rows = []
    for file in _files(results, "speed*.json"):
        machine, mode = file["machine"], _speed_mode(file)
        device = machine["gpu"] if mode["device"] == "cuda" else f"{machine['threads']} CPU thread(s)"
        words = {"compile": "compiled", "checkpointing": "with activation checkpointing"}
        how = ", ".join([file["precision"], *(word for name, word in words.items() if mode[name])])
        for size, row in file["sizes"].items():
            drawn, trained = row["sampling"], row["training"]
            rows.append(
                [
                    size,
                    f"{device}, {how}",
                    f"{drawn['images_per_s']:.4g}",
                    f"{drawn['images_per_s'] / drawn['images_per_s_plain_attention']:.2f}",
                    f"{trained['labels_per_step']} x {trained['samples_per_label']}",
                    f"{trained['steps_per_s']:#.3g}",
                    f"{trained['steps_per_s_plain_loss']:#.3g}",
                    f"{trained['drift_loss_share']:.0%}",
                    f"{trained['plain_loss']['seconds'] / trained['drift_loss']['seconds']:.2f}",
                    _memory(trained["drift_loss"]),
                    _memory(trained["plain_loss"]),
                ]
            )
    step = ["labels x samples", "steps/s", "with plain loss"]
    loss = ["drift loss", "x plain loss", "loss [MB]", "plain [MB]"]
    header = ["size", "on", "images/s", "x plain attention", *step, *loss]
    return markdown(header, rows) if rows else NOT_MEASURED


def _speed_mode(file: Mapping[str, Any]) -> dict[str, Any]:
    """Return where and how speeds were measured, of which the first files have the command alone."""
    command = file["command"].split()
    said = {
        "device": "cuda" if "--device cuda" in file["command"] else "cpu",
        "compile": "--compile" in command,
        "checkpointing": "--checkpointing" in command,
    }
    return {name: file.get(name, value) for name, value in said.items()}


def cost_table(results: Path) -> str:
    """Counted FLOPs of the paper's runs, and H100 hours at an assumed rate and at that of latent_B's measured steps."""
    found = [*_files(results, "cost.json"), *_files(results, "speed_h100.json")]
    if len(found) < 2:
        return NOT_MEASURED
    cost, speed = found
    timed = speed["sizes"][_RATE_OF]["training"]
    step = timed["labels_per_step"], timed["samples_per_label"]
    if step != _COUNTED_STEP:
        raise ValueError(f"speed_h100.json has steps of {step} labels and samples, but {_COUNTED_STEP} were counted.")
    steps_per_s = timed["steps_per_s"]
    measured = sum(cost["flops_of_measured_steps"][_RATE_OF].values()) * steps_per_s
    trainings = cost["generators"] | {f"MAE {name}": run for name, run in cost["autoencoders"].items()}
    rows = []
    for name, run in trainings.items():
        flops = sum(run["flops_per_step"].values())
        frozen = sum(value for part, value in run["flops_per_step"].items() if part in _FROZEN)
        images = [run[f"{kind}_images_per_step"] for kind in ("generated", "real") if f"{kind}_images_per_step" in run]
        hours = [_two_digits(run["steps"] * flops / rate / 3600) for rate in (_ASSUMED_RATE, measured)]
        queues = f"{run['queue_bytes'] / 1e9:.1f}" if "queue_bytes" in run else ""
        counts = f"{run['steps']:,}", " + ".join(f"{number:,}" for number in images)
        rows.append([name, *counts, f"{flops / 1e15:.1f}", f"{frozen / flops:.0%}", *hours, queues])
    rates = [f"H100 hours at {rate / 1e12:.0f} TFLOP/s" for rate in (_ASSUMED_RATE, measured)]
    header = ["run", "steps", "images a step (generated + real)", "10^15 FLOPs a step", "of frozen networks"]
    return markdown([*header, *rates, "queues [GB]"], rows)


def traffic_table(results: Path) -> str:
    """Counted traffic of the drift loss in the paper's runs, and its time beside the networks' at assumed rates."""
    found = _files(results, "traffic.json")
    if not found:
        return NOT_MEASURED
    rows = []
    for name, run in found[0]["runs"].items():
        ours, plain = run["losses"]["drift loss"], run["losses"]["plain loss"]
        seconds = [ours[kind] / _BANDWIDTH for kind in ("bytes", "bytes_of_matrices")]
        networks = run["flops_of_networks"] / _ASSUMED_RATE
        shares = [f"{seconds[0] / (seconds[0] + networks):.0%}", f"{seconds[1] / seconds[0]:.0%}"]
        kernels = (f"{loss['kernels']:,}" for loss in (ours, plain))
        gigabytes = (f"{loss['bytes'] / 1e9:,.0f}" for loss in (ours, plain))
        rows.append([name, str(run["labels"]), *kernels, *gigabytes, *shares])
    header = ["run", "labels a process", "kernels", "of the plain loss", "GB moved", "by the plain loss"]
    return markdown([*header, "share of a step", "of it matrices"], rows)


def memory_table(results: Path) -> str:
    """Counted memory of the paper's runs on each device, between networks in bfloat16 and in float32."""
    found = _files(results, "memory.json")
    if not found:
        return NOT_MEASURED
    rows = []
    for name, run in found[0]["runs"].items():
        for step in run["steps"]:
            ranges = []
            for how in ("kept", "checkpointing"):
                half, full = ((run["always"] + step[how][kind]) / 1e9 for kind in ("bfloat16", "float32"))
                ranges.append(f"{half:.0f} to {full:.0f}")
            rows.append([name, str(step["processes"]), str(step["labels"]), f"{run['always'] / 1e9:.0f}", *ranges])
    header = ["run", "devices", "labels of each", "always there [GB]", "in a step [GB]"]
    return markdown([*header, "the same with feature.activation_checkpointing [GB]"], rows)


def loss_memory_table(results: Path) -> str:
    """Counted memory of both losses beside what an H100 measured; the drift loss was rewritten since."""
    found = [*_files(results, "memory.json"), *_files(results, "speed_h100.json")]
    if len(found) < 2:
        return NOT_MEASURED
    counted, measured = found[0]["peak_of_losses"], found[1]["sizes"][_RATE_OF]["training"]
    kinds = {"drift loss": "drift_loss", "plain loss": "plain_loss"}
    rows = [[kind, f"{counted[kind] / 1e6:.0f}", _memory(measured[key])] for kind, key in kinds.items()]
    return markdown(["one label of latent_B", "counted [MB]", "measured on an H100 before the rewriting [MB]"], rows)


TABLES: dict[str, Callable[[Path], str]] = {
    "digits": digits_table,
    "fashion": partial(guidance_table, "fashion_cfg_*.json"),
    "imagenette": partial(guidance_table, "imagenette_h100_cfg_*.json"),
    "image_cost": cost_table,
    "image_speed": speed_table,
    "image_traffic": traffic_table,
    "image_memory": memory_table,
    "image_loss_memory": loss_memory_table,
    **{f"ordering_{study}": partial(ordering_table, study) for study in STUDIES},
}


def _files(results: Path, pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((results / "image_gen").glob(pattern))]


def _work(run: Mapping[str, Any], name: str) -> tuple[str, Any, int]:
    """Return what runs of several seeds must share to be averaged: name, samples that were judged, steps."""
    return name, run["scores"].get("num_samples"), run["training"]["steps"]


def _require_alike(what: str, works: Sequence[Sequence[tuple[Any, ...]]]) -> None:
    for other in works[1:]:
        if other != works[0]:
            raise ValueError(
                f"The seeds of {what} cannot be averaged: {works[0]} and {other}. Measure all of them alike."
            )


def _memory(loss: Mapping[str, Any]) -> str:
    """Peak memory, which is recorded on GPUs alone."""
    return "" if loss["memory_mb"] is None else f"{loss['memory_mb']:.0f}"


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.0f}"


def _means(scores: Sequence[Scores], forms: Mapping[str, str]) -> list[str]:
    return [f"{sum(float(score[name]) for score in scores) / len(scores):{form}}" for name, form in forms.items()]


def _means_and_ranges(scores: Sequence[Scores], forms: Mapping[str, str]) -> list[str]:
    """Return "mean [lowest, highest]" of every score, the mean alone where there is one value."""
    if len(scores) == 1:
        return _means(scores, forms)
    texts = []
    for mean, (name, form) in zip(_means(scores, forms), forms.items(), strict=True):
        values = [float(score[name]) for score in scores]
        texts.append(f"{mean} [{min(values):{form}}, {max(values):{form}}]")
    return texts


def main() -> None:
    """Write or check the tables."""
    filled = fill(PAGE.read_text(), RESULTS, TABLES)
    update_page(PAGE, filled, "benchmarks.image_tables", check=is_check(__doc__))


if __name__ == "__main__":
    main()
