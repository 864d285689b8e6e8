import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import image_tables, pages, score_tables, tables
from benchmarks.gpu_suite import tables as gpu_tables
from benchmarks.headline_chart import draw_headline_chart


def manifest(seed: int, scores: list[float]) -> dict[str, Any]:
    episodes = [{"score": score, "success": score == 1.0} for score in scores]
    return {
        "seed": seed,
        "training": {"seconds": 600.0, "steps": 10, "checkpoints": [{"step": 10}]},
        "config": {"trainer": {"batch_size": 64}},
        "evaluation": {"network_evaluations": 1, "latency_ms": {"p50": 0.5}, "episodes": episodes},
    }


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_pages_show_what_the_result_files_say(page: Path) -> None:
    assert pages.fill(page.read_text(), pages.RESULTS, tables.PAGES[page]) == page.read_text()


def test_episodes_of_all_seeds_are_pooled(tmp_path: Path) -> None:
    (tmp_path / "pusht").mkdir()
    for seed, scores in ((0, [1.0, 0.5]), (1, [1.0, 1.0])):
        (tmp_path / "pusht" / f"drift_seed{seed}.json").write_text(json.dumps(manifest(seed, scores)))
    (tmp_path / "pusht" / "drift_other_seed0.json").write_text(json.dumps(manifest(0, [0.0])))
    row = score_tables.pusht_table(tmp_path).splitlines()[2]
    assert "0.875 [" in row and "0.75 [" in row and "| 2 |" in row
    assert len(score_tables.pusht_seed_table(tmp_path).splitlines()) == 4


def test_methods_show_mean_times_and_no_time_of_decisions_for_many(tmp_path: Path) -> None:
    (tmp_path / "pusht").mkdir()
    for seed, (minutes, p50, together) in enumerate([(10, 0.5, 1), (20, 1.5, 1), (30, 99.0, 50)]):
        run = manifest(seed, [1.0])
        run["training"]["seconds"], run["evaluation"]["latency_ms"]["p50"] = 60.0 * minutes, p50
        run["config"]["evaluation"] = {"decision_batch_size": together}
        (tmp_path / "pusht" / f"drift_seed{seed}.json").write_text(json.dumps(run))
    cells = score_tables.pusht_table(tmp_path).splitlines()[2].split(" | ")
    assert cells[4:8] == ["3", "10 x 64", "20.0", "1.00"]
    for seed in range(2):
        (tmp_path / "pusht" / f"drift_seed{seed}.json").unlink()
    assert score_tables.pusht_table(tmp_path).splitlines()[2].split(" | ")[7] == ""


def test_a_task_shows_its_phases_or_its_score_unless_that_is_the_success(tmp_path: Path) -> None:
    for task, facts in (
        ("a", {}),
        ("b", {"score_name": "success"}),
        ("c", {"score_name": "coverage"}),
        ("d", {"phases": {"p1": 0, "p2": 0}, "score_name": "coverage"}),
    ):
        run = manifest(0, [0.5]) | {"data": {"name": task, "episodes": 7}}
        run["evaluation"] |= facts
        run["evaluation"]["episodes"][0]["completed"] = 1
        (tmp_path / task).mkdir()
        (tmp_path / task / "drift_seed0.json").write_text(json.dumps(run))
    headers = {task: score_tables.method_table(task, tmp_path).splitlines()[0].split(" | ")[2:5] for task in "abcd"}
    assert headers["a"][:2] == ["max score", "success"] and headers["b"][0] == "success"
    assert headers["c"][:2] == ["max coverage", "success"] and headers["d"] == ["p1", "p2", "success"]
    assert [cell[:4] for cell in score_tables.method_table("d", tmp_path).splitlines()[2].split(" | ")[2:4]] == [
        "1.00",
        "0.00",
    ]
    assert score_tables.method_table("nothing", tmp_path) == pages.NOT_MEASURED


def test_toys_show_by_how_much_the_distance_fell(tmp_path: Path) -> None:
    case = {"distance_before": 2.0, "distance_after": 0.5, "mode_shares": [0.25, 0.75]}
    (tmp_path / "toy_2d.json").write_text(json.dumps({"cases": {"two_moons": case}}))
    assert score_tables.toy_table(tmp_path).splitlines()[2:] == [
        "| two moons | 2.000 | 0.500 | 75.0% | 25.0% / 75.0% |"
    ]


def test_the_overview_has_a_row_a_task_and_a_cell_a_method(tmp_path: Path) -> None:
    for task, policy, scores in (
        ("lift", "regression", [1.0, 0.5]),
        ("pusht", "drift", [1.0]),
        ("pusht", "mip", [0.5]),
    ):
        (tmp_path / task).mkdir(exist_ok=True)
        run = manifest(0, scores) | {"data": {"name": task, "episodes": 7}}
        (tmp_path / task / f"{policy}_seed0.json").write_text(json.dumps(run))
    assert score_tables.overview_table(tmp_path).splitlines()[2:] == [
        "| Push-T, keypoints | 7 | 1.00 (1) |  |  | 0.00 (1) |  |",
        "| Lift, scripted | 7 |  |  |  |  | 0.50 (1) |",
    ]
    headline = score_tables.headline_table(tmp_path).splitlines()
    assert headline[2].startswith("| **drift** (default) | 1 | 1.000 [") and headline[2].endswith("| 1 | 10 x 64 |")
    assert len(headline) == 4
    draw_headline_chart(tmp_path, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 0


def test_markers_are_required_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="table:pusht"):
        pages.fill("no tables here", tmp_path, {"pusht": score_tables.pusht_table})


@pytest.mark.parametrize("generated", [image_tables, gpu_tables])
def test_other_pages_show_what_the_result_files_say(generated: ModuleType) -> None:
    page = generated.PAGE.read_text()
    assert pages.fill(page, pages.RESULTS, generated.TABLES) == page


def test_image_tables_average_over_seeds(tmp_path: Path) -> None:
    folder = tmp_path / "image_gen"
    folder.mkdir()
    for seed, distance in ((0, 10.0), (1, 20.0)):
        scores = {image_tables.DISTANCE: distance, "accuracy": 0.5, "recall": seed / 2, "evaluations_per_image": 1}
        run = {"training": {"seconds": 60.0, "steps": 200}, "scores": scores}
        digits = {"methods": {"drift": run}, "held_out_real_images": {image_tables.DISTANCE: 1.0, "accuracy": 0.9}}
        (folder / f"digits_seed{seed}.json").write_text(json.dumps(digits))
        ordering = {"settings": [{"setting": "one", **run}]}
        (folder / f"ordering_features_seed{seed}.json").write_text(json.dumps(ordering))
    longer = {"settings": [{"setting": "one", "training": {"steps": 1000}, "scores": scores}]}
    (folder / "ordering_features_1000_steps_seed0.json").write_text(json.dumps(longer))
    lines = image_tables.digits_table(tmp_path).splitlines()
    assert "| drift | 1 | 15.0 | 0.25 | 0.500 | 1.0 | 2 |" in lines
    assert "| held-out real digits |  | 1.0 |  | 0.900 |  |  |" in lines
    assert image_tables.ordering_table("features", tmp_path).splitlines()[2:] == [
        "| one | 15.0 [10.0, 20.0] | 0.25 [0.00, 0.50] | 0.500 [0.500, 0.500] | 200 | 2 |",
        "| one | 20.0 | 0.50 | 0.500 | 1,000 | 1 |",
    ]
    assert image_tables.ordering_table("positives", tmp_path) == pages.NOT_MEASURED


def test_costs_in_hours_follow_from_flops_and_measured_steps(tmp_path: Path) -> None:
    folder = tmp_path / "image_gen"
    folder.mkdir()
    assert image_tables.cost_table(tmp_path) == pages.NOT_MEASURED
    generator = {
        "steps": 7200,
        "generated_images_per_step": 2000,
        "real_images_per_step": 3000,
        "queue_bytes": 2_100_000_000,
        "flops_per_step": {"generator": 10**15, "features_real": 3 * 10**15},
    }
    autoencoder = {"steps": 720_000, "real_images_per_step": 8, "flops_per_step": {"autoencoder": 10**15}}
    cost = {
        "generators": {"ablation": generator},
        "autoencoders": {"latent_256": autoencoder},
        "flops_of_measured_steps": {"latent_B": {"generator": 10**13, "loss": 10**13}},
    }
    timed = {"steps_per_s": 5.0, "labels_per_step": 1, "samples_per_label": 64}
    speed = {"sizes": {"latent_B": {"training": timed}}}
    for name, content in (("cost", cost), ("speed_h100", speed)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    header, _, *rows = image_tables.cost_table(tmp_path).splitlines()
    assert "at 400 TFLOP/s" in header and "at 100 TFLOP/s" in header
    assert rows == [
        "| ablation | 7,200 | 2,000 + 3,000 | 4.0 | 75% | 20 | 80 | 2.1 |",
        "| MAE latent_256 | 720,000 | 8 | 1.0 | 0% | 500 | 2,000 |  |",
    ]
    timed["labels_per_step"] = 4
    (folder / "speed_h100.json").write_text(json.dumps(speed))
    with pytest.raises(ValueError, match=r"steps of \(4, 64\)"):
        image_tables.cost_table(tmp_path)


def test_shares_of_traffic_follow_from_bandwidth_and_flops(tmp_path: Path) -> None:
    folder = tmp_path / "image_gen"
    folder.mkdir()
    assert image_tables.traffic_table(tmp_path) == pages.NOT_MEASURED
    losses = {
        "drift loss": {"kernels": 1000, "bytes": 335 * 10**9, "bytes_of_matrices": 67 * 10**9},  # 0.1 s
        "plain loss": {"kernels": 2000, "bytes": 600 * 10**9, "bytes_of_matrices": 90 * 10**9},
    }
    run = {"labels": 8, "flops_of_networks": 160 * 10**12, "losses": losses}  # 0.4 s
    (folder / "traffic.json").write_text(json.dumps({"runs": {"ablation": run}}))
    assert image_tables.traffic_table(tmp_path).splitlines()[2:] == [
        "| ablation | 8 | 1,000 | 2,000 | 335 | 600 | 20% | 20% |"
    ]


def test_memory_of_a_device_is_what_is_always_there_and_a_step(tmp_path: Path) -> None:
    folder = tmp_path / "image_gen"
    folder.mkdir()
    assert image_tables.memory_table(tmp_path) == image_tables.loss_memory_table(tmp_path) == pages.NOT_MEASURED
    step = {
        "processes": 8,
        "labels": 16,
        "kept": {"float32": 200e9, "bfloat16": 150e9},
        "checkpointing": {"float32": 120e9, "bfloat16": 90e9},
    }
    peaks = {"drift loss": 1750e6, "plain loss": 2253e6}
    memory = {"peak_of_losses": peaks, "runs": {"latent_B": {"always": 10e9, "steps": [step]}}}
    timed = {"drift_loss": {"memory_mb": 3565.2}, "plain_loss": {"memory_mb": 2253.0}}
    speed = {"sizes": {"latent_B": {"training": timed}}}
    for name, content in (("memory", memory), ("speed_h100", speed)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    assert image_tables.memory_table(tmp_path).splitlines()[2:] == [
        "| latent_B | 8 | 16 | 10 | 160 to 210 | 100 to 130 |"
    ]
    assert image_tables.loss_memory_table(tmp_path).splitlines()[2:] == [
        "| drift loss | 1750 | 3565 |",
        "| plain loss | 2253 | 2253 |",
    ]


@pytest.mark.parametrize("changes", [{"setting": "two"}, {"steps": 300}, {"num_samples": 10}])
def test_seeds_that_were_not_measured_alike_are_not_averaged(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = tmp_path / "image_gen"
    folder.mkdir()
    for seed in range(2):
        of = {"setting": "drift", "steps": 200, "num_samples": 5000} | (changes if seed else {})
        scores = {image_tables.DISTANCE: 1.0, "accuracy": 0.5, "recall": 0.5, "evaluations_per_image": 1}
        run = {
            "training": {"seconds": 60.0, "steps": of["steps"]},
            "scores": scores | {"num_samples": of["num_samples"]},
        }
        (folder / f"ordering_features_seed{seed}.json").write_text(
            json.dumps({"settings": [{"setting": of["setting"], **run}]})
        )
        (folder / f"digits_seed{seed}.json").write_text(json.dumps({"methods": {of["setting"]: run}}))
    orderings = image_tables.TABLES["ordering_features"]
    if "steps" in changes:  # orderings of other lengths are rows of their own
        assert [row.split(" | ")[-2:] for row in orderings(tmp_path).splitlines()[2:]] == [
            ["200", "1 |"],
            ["300", "1 |"],
        ]
    for table in (image_tables.digits_table, *([] if "steps" in changes else [orderings])):
        with pytest.raises(ValueError, match="cannot be averaged"):
            table(tmp_path)


def test_speeds_say_on_what_and_how_they_were_measured(tmp_path: Path) -> None:
    (tmp_path / "image_gen").mkdir()
    costs = {"seconds": 1.0, "memory_mb": None}
    rates = {"steps_per_s": 1.0, "steps_per_s_plain_loss": 1.0, "drift_loss_share": 0.5}
    training = {"labels_per_step": 4, "samples_per_label": 16, **rates, "drift_loss": costs, "plain_loss": costs}
    sampling = {"images_per_s": 1.0, "images_per_s_plain_attention": 1.0}
    file = {
        "command": "python -m benchmarks.image_speed --device=cuda",
        "machine": {"gpu": "A GPU", "threads": 1},
        "precision": "float32",
        "sizes": {"latent_tiny": {"sampling": sampling, "training": training}},
    }

    def shown(**settings: Any) -> str:
        (tmp_path / "image_gen" / "speed.json").write_text(json.dumps(file | settings))
        return image_tables.speed_table(tmp_path).splitlines()[2].split(" | ")[1]

    assert shown(device="cuda", compile=False, checkpointing=False) == "A GPU, float32"
    full = shown(device="cpu", compile=True, checkpointing=True)
    assert full == "1 CPU thread(s), float32, compiled, with activation checkpointing"
    assert shown(command="python -m x --device cuda --compile") == "A GPU, float32, compiled"  # of the first files


def test_speeds_stand_beside_those_of_the_plain_form(tmp_path: Path) -> None:
    (tmp_path / "image_gen").mkdir()
    training = {
        "labels_per_step": 4,
        "samples_per_label": 16,
        "steps_per_s": 3.0,
        "steps_per_s_plain_loss": 2.0,
        "drift_loss_share": 0.25,
        "drift_loss": {"seconds": 1.0, "memory_mb": 100.0},
        "plain_loss": {"seconds": 4.0, "memory_mb": 300.0},
    }
    sampling = {"images_per_s": 60.0, "images_per_s_plain_attention": 40.0}
    file = {
        "command": "x",
        "machine": {"gpu": None, "threads": 1},
        "precision": "float32",
        "sizes": {"latent_tiny": {"sampling": sampling, "training": training}},
    }
    (tmp_path / "image_gen" / "speed.json").write_text(json.dumps(file))
    (row,) = image_tables.speed_table(tmp_path).splitlines()[2:]
    assert row.endswith("| 60 | 1.50 | 4 x 16 | 3.00 | 2.00 | 25% | 4.00 | 100 | 300 |")


def test_scores_on_imagenette_have_a_row_a_guidance_scale(tmp_path: Path) -> None:
    (tmp_path / "image_gen").mkdir()
    for scale in (1.0, 1.5):
        scores = {"Frechet distance in x": 10 * scale, "precision": 0.5, "recall": 0.25, "accuracy": 0.75}
        file = {"cfg_scale": scale, "step": 7, "scores": scores | {"num_samples": 100}}
        (tmp_path / "image_gen" / f"imagenette_h100_cfg_{scale}.json").write_text(json.dumps(file))
    assert image_tables.guidance_table("imagenette_h100_cfg_*.json", tmp_path).splitlines()[2:] == [
        "| 1 | 10.00 | 0.50 | 0.25 | 0.75 | 100 | 7 |",
        "| 1.5 | 15.00 | 0.50 | 0.25 | 0.75 | 100 | 7 |",
    ]


def test_results_name_no_folders_of_the_machine_that_made_them() -> None:
    absolute = re.compile(r"[=\"' ]/[A-Za-z_][\w.]*/")
    named = [str(file) for file in pages.RESULTS.rglob("*.json") if absolute.search(file.read_text())]
    assert not named, "write paths of commands relative to the checkout"
