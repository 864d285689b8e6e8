"""The paper's orderings on the digits, each setting trained for the same number of short steps.

    python -m benchmarks.image_ladder.orderings --study antisymmetry --seeds 0 1 2

Leaves results/image_gen/ordering_<study>_seed<number>.json, of other lengths than 200 steps
ordering_<study>_<number>_steps_seed<number>.json.
Studies (the paper's tables): antisymmetry (weights of V+ and V-), positives (N_pos), negatives (N_neg = N_pos at equal
numbers of samples a step), features (encoder or raw pixels), temperatures (one or three).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.image_ladder.common import Study, add_arguments
from benchmarks.image_ladder.plain_loss import plain_loss_of_features
from drift_policy.cli import command_line
from image_gen.training.drift_objective import LossOfFeatures, drifting_loss

SCRIPT = "-m benchmarks.image_ladder.orderings"
STEPS = 200  # of every setting, unless --steps says otherwise
_TOTAL = 256  # generated samples a step in every setting
# Overrides that the paper's picture of an ordering rests on: no guidance, so that samples follow the data alone.
_UNGUIDED = ["drift.guidance.maximum=1.0", "drift.unconditional_per_label=0"]


@dataclass
class Setting:
    """One row of a study."""

    name: str
    overrides: list[str] = field(default_factory=list)
    loss: LossOfFeatures = drifting_loss


def _balance(attraction: float, repulsion: float) -> Setting:
    return Setting(f"{attraction:g} V+ - {repulsion:g} V-", loss=plain_loss_of_features(attraction, repulsion))


def _group_size(number: int) -> Setting:
    """N_neg = N_pos = number, with fewer labels for larger groups."""
    sizes = {"samples_per_label": number, "positives_per_label": number, "labels_per_step": _TOTAL // number}
    overrides = [f"drift.{name}={value}" for name, value in sizes.items()]
    return Setting(f"N_neg = N_pos = {number}", [*overrides, f"drift.bank.push_per_step={max(64, _TOTAL // number)}"])


STUDIES: dict[str, list[Setting]] = {
    "antisymmetry": [
        _balance(1, 1),
        _balance(1.5, 1),
        _balance(1, 1.5),
        _balance(2, 1),
        _balance(1, 2),
        _balance(1, 0),
    ],
    "positives": [Setting(f"N_pos = {number}", [f"drift.positives_per_label={number}"]) for number in (1, 16, 64)],
    "negatives": [_group_size(number) for number in (4, 16, 64)],
    "features": [
        Setting("encoder and pixels"),
        Setting("encoder", ["feature.compare_input=false"]),
        Setting("raw pixels", ["feature.encoder=none"]),
    ],
    "temperatures": [
        Setting(str(values), [f"drift.temperatures={values}"]) for values in ([0.02], [0.05], [0.2], [0.02, 0.05, 0.2])
    ],
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a study."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python " + SCRIPT, description=__doc__)
    parser.add_argument("--study", choices=tuple(STUDIES), required=True, help="which ordering")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps of every setting")
    add_arguments(parser)
    given = parser.parse_args(arguments)
    with command_line() as console:
        study = Study(given, SCRIPT, arguments, console)
        mae = study.common_mae()
        budget = [f"trainer.num_steps={given.steps}", "trainer.sample_every=0"]
        prefix = given.study if given.steps == STEPS else f"{given.study}_{given.steps}_steps"
        for seed in given.seeds:
            rows = []
            for number, setting in enumerate(STUDIES[given.study]):
                own = [f"seed={seed}", f"feature.mae={mae}", *_UNGUIDED, *budget, *setting.overrides]
                folder, manifest = study.train(f"{prefix}_{number}_seed{seed}", own, setting.loss)
                picture = given.results / f"ordering_{prefix}_{number}_seed{seed}.png"
                scores = study.score(folder, picture=picture)
                rows.append({"setting": setting.name, "training": manifest["training"], "scores": scores})
                console.print(f"{setting.name}: {scores}", highlight=False)
            study.write(f"ordering_{prefix}_seed{seed}", {"study": given.study, "seed": seed, "settings": rows})


if __name__ == "__main__":
    main()
