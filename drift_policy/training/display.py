"""The live display of a training run."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# What means something, in this order; the loss of the drift head is nearly constant and is left out.
_SHOWN = (
    ("val/executed_mse", "held-out error of decisions"),
    ("val/action_mse", "held-out error"),
    ("train/action_mse", "error"),
    ("train/noise_mse", "noise error"),
    ("train/velocity_mse", "velocity error"),
    ("train/reconstruction", "reconstruction error"),
    ("train/accuracy", "accuracy"),
    ("train/spread", "spread"),
    ("train/scale", "scale"),
    ("train/samples_per_s", "samples/s"),
)
_FORCE = "train/force_"


class TrainingDisplay:
    """A progress bar with the metrics that mean something; plain lines where there is no terminal.

    Args:
        total: steps of the run.
        console: where to print.
    """

    def __init__(self, total: int, console: Console) -> None:
        self.console = console
        self._values: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=total, metrics="")

    def __enter__(self) -> "TrainingDisplay":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show the newest metrics."""
        self._values |= metrics
        self._progress.update(self._task, completed=step, metrics=self._summary())

    def line(self, step: int) -> None:
        """Print the newest metrics as a line of their own."""
        self.console.print(f"step {step}: {self._summary()}", highlight=False)

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False)

    def _summary(self) -> str:
        parts = [f"{label} {self._values[name]:.4g}" for name, label in _SHOWN if name in self._values]
        forces = {name: value for name, value in self._values.items() if name.startswith(_FORCE)}
        if forces:
            parts.append(
                "force " + " ".join(f"{name.removeprefix(_FORCE)}:{value:.2g}" for name, value in forces.items())
            )
        return ", ".join(parts)
