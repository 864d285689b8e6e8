r"""Write a checkpoint as one file for a robot: normalisation, encoder and generator; the noise is an input.

    python -m drift_policy.export ckpt=runs/pusht/<name> [format=onnx|pt2] [output=policy.onnx] \
        [num_candidates=N] [plugins=[...]]

ckpt:            run folder, checkpoint folder, or hf://owner/name; with the drift, MIP or regression head
format:          onnx, for drift_policy.runtime.onnx_policy.OnnxPolicy or any ONNX runtime; pt2, for torch.export.load
output:          the file; policy.onnx or policy.pt2 by default
num_candidates:  chunks drawn for a decision in one evaluation, the most typical of which is the decision; the policy's
                 by default, and fixed in the file
plugins:         modules of yours to import first, for example [my_package.my_backbones]

The file is held against the policy on random inputs, and not written if they differ by more than 1e-5.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from drift_policy.cli import command_line, parse_arguments
from drift_policy.plugins import import_plugins


@dataclass
class ExportConfig:
    """Settings of the command."""

    ckpt: str  # run folder, checkpoint folder, or hf://owner/name
    format: str = "onnx"  # "onnx" or "pt2"
    output: str | None = None  # the file; policy.<format> by default
    num_candidates: int | None = None  # chunks drawn for a decision; the policy's by default
    plugins: list[str] = field(default_factory=list)  # modules to import first, for example image backbones of yours


def main() -> None:
    """Load, export, check, report."""
    with command_line() as console:
        config = parse_arguments(ExportConfig, sys.argv[1:], __doc__)
        import_plugins(config.plugins)
        # Imported after the arguments are checked: torch takes seconds.
        from drift_policy.runtime.export import export_policy
        from drift_policy.serialization import load_policy

        path = Path(config.output or f"policy.{config.format}")
        policy = load_policy(config.ckpt)
        with console.status("exporting"):
            difference = export_policy(policy, path, config.format, config.num_candidates)
        console.print(
            f"{path}: {path.stat().st_size / 2**20:.1f} MiB, differs from PyTorch by {difference:.1e} "
            "of the actions' range"
        )


if __name__ == "__main__":
    main()
