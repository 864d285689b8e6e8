"""Digits: drifting against flow matching with the same network, for the same training time.

    python -m benchmarks.image_ladder.digits --seeds 0 1 2

The default drift training, then flow matching for as many seconds of updates.
Leaves results/image_gen/digits_seed<number>.json and a sample grid of each method beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.image_ladder.common import Study, add_arguments
from drift_policy.cli import command_line

SCRIPT = "-m benchmarks.image_ladder.digits"
FLOW_STEPS = (1, 50)
# Flow matching has neither guidance nor use for random styles; its batch and rate were not searched for.
FLOW = [
    "method=flow",
    "+model.noise_classes=0",
    "drift.bank.push_per_step=64",
    "drift.labels_per_step=8",
    "drift.samples_per_label=32",
    "trainer.learning_rate=2.0e-3",
    "trainer.num_steps=1000000",
    "trainer.ema_decay=0.995",
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python " + SCRIPT, description=__doc__)
    add_arguments(parser)
    given = parser.parse_args(arguments)
    with command_line() as console:
        study = Study(given, SCRIPT, arguments, console)
        for seed in given.seeds:
            methods = {}
            mae = study.common_mae()
            folder, manifest = study.train(f"drift_seed{seed}", [f"seed={seed}", f"feature.mae={mae}"])
            training = manifest["training"]
            picture = given.results / f"digits_drift_seed{seed}.png"
            methods["drift"] = {"training": training, "scores": study.score(folder, picture=picture)}

            seconds = f"trainer.max_seconds={training['seconds']}"
            folder, manifest = study.train(f"flow_seed{seed}", [f"seed={seed}", *FLOW, seconds])
            for steps in FLOW_STEPS:
                picture = given.results / f"digits_flow_{steps}_seed{seed}.png"
                scores = study.score(folder, steps, picture)
                methods[f"flow, {steps} step(s)"] = {"training": manifest["training"], "scores": scores}
            study.write(f"digits_seed{seed}", {"seed": seed, "methods": methods})


if __name__ == "__main__":
    main()
