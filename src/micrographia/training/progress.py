"""What the user sees of a training: a progress bar or log lines, `metrics.csv`, TensorBoard."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Seconds between log lines where there is no terminal.
LOG_INTERVAL_S = 10.0


class ProgressDisplay:
    """A bar with rate, time left and the last losses; without a terminal, a line to stderr every 10 s."""

    def __init__(self, label: str, steps: int, start: int, silent: bool = False):
        self.label, self.steps, self.start, self.silent = label, steps, start, silent
        self.values: dict[str, float] = {}
        self.begun = self.last_line = time.monotonic()
        console = Console(stderr=True)
        self.bar: Progress | None = None
        if console.is_terminal and not silent:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}"),
                console=console,
            )
            self.task = self.bar.add_task(label, total=steps, completed=start, detail="")

    def __enter__(self) -> ProgressDisplay:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, step: int, values: dict[str, float] | None = None) -> None:
        """Tell that `step` steps are done, and the latest quantities when there are new ones."""
        if self.silent:
            return
        self.values.update(values or {})
        now = time.monotonic()
        rate = (step - self.start) / max(now - self.begun, 1e-9)
        if self.bar:
            self.bar.update(self.task, completed=step, detail=f"{rate:.3g} steps/s  {self._losses()}")
        elif now - self.last_line >= LOG_INTERVAL_S or step == self.steps:
            self.last_line = now
            left = _clock((self.steps - step) / rate) if rate else "?"
            line = (
                f"{self.label}: step {step}/{self.steps}, {rate:.3g} steps/s, {left} left; {self._losses()}"
            )
            print(line, file=sys.stderr, flush=True)

    def _losses(self) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())


class MetricsFile:
    """`metrics.csv`, one row per logged step, and the same in TensorBoard where that is installed.

    The rows also live in the checkpoint, so a resumed run starts by writing the file anew: no row twice, none
    missing, whatever the moment of a kill.
    """

    def __init__(self, folder: Path, rows: list[dict[str, Any]], start: int):
        self.path, self.rows = folder / "metrics.csv", rows
        self.columns: list[str] = []
        self._rewrite()
        self.board = _tensorboard(folder / "tensorboard", start)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; it must have a `step`."""
        self.rows.append(row)
        if set(row) <= set(self.columns):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        else:
            self._rewrite()
        if self.board:
            for name, value in row.items():
                if name not in ("step", "seconds"):
                    self.board.add_scalar(name, value, row["step"])
            self.board.flush()

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self.board:
            self.board.close()

    def _rewrite(self) -> None:
        """Write all rows, with a column for every quantity seen so far."""
        self.columns = list(dict.fromkeys(["step", "seconds", *(name for row in self.rows for name in row)]))
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except (ImportError, RuntimeError):  # absent, or broken by another package
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
