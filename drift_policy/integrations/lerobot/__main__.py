"""Write a policy that LeRobot trained as a checkpoint of ours, with LeRobot's normalisation inside.

    python -m drift_policy.integrations.lerobot \
        ckpt=outputs/train/<name>/checkpoints/last/pretrained_model output=my_policy [plugins=[...]]

ckpt:     what lerobot-train --policy.type=drift saved: the folder pretrained_model, one that holds it, or hf://owner/name
output:   a new folder, for load_policy, python -m drift_policy.export, python -m drift_policy.serve
plugins:  modules of yours to import first, for example [my_package.my_backbones]

LeRobot is not needed. What cannot be converted exactly is refused; docs/lerobot.md says what is folded how.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from drift_policy.cli import command_line, parse_arguments
from drift_policy.errors import require
from drift_policy.plugins import import_plugins


@dataclass
class ConversionConfig:
    """Settings of the command."""

    ckpt: str  # folder that LeRobot saved, or hf://owner/name
    output: str  # the new folder
    plugins: list[str] = field(default_factory=list)  # modules to import first, for example image backbones of yours


def main() -> None:
    """Convert, save, report."""
    with command_line() as console:
        config = parse_arguments(ConversionConfig, sys.argv[1:], __doc__)
        output = Path(config.output)
        require(not output.exists(), f"output={output} is there already: name a new folder, or remove that one.")
        import_plugins(config.plugins)
        # Imported after the arguments are checked: torch takes seconds.
        from drift_policy.integrations.lerobot.conversion import convert_checkpoint

        policy = convert_checkpoint(config.ckpt)
        policy.save_pretrained(output)
        said = policy.metadata["lerobot"]
        for key, mode in said["normalization"].items():
            console.print(f"{key}: {mode}", highlight=False)
        console.print(f"{output}: the {said['weights']} weights, with LeRobot's normalisation inside", highlight=False)


if __name__ == "__main__":
    main()
