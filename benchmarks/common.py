"""What all benchmarks share: CPU time, tables, and where they were measured."""

from __future__ import annotations

import os
import platform
import sys
import time
import types
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from micrographia.io import atomic_path

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"


def cpu_seconds(function: Callable[[], object], repeats: int = 1) -> float:
    """CPU time of this process (all its threads) per call, the least of `repeats` calls.

    CPU time, not wall clock, so that other load on the machine counts little; the least, because a disturbance
    only ever adds.
    """
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


@contextmanager
def clock():
    """Yield a dict that holds ``cpu`` and ``wall`` seconds after the block."""
    out: dict[str, float] = {}
    cpu, wall = time.process_time(), time.perf_counter()
    yield out
    out["cpu"], out["wall"] = time.process_time() - cpu, time.perf_counter() - wall


def stand_in_for_torchvision() -> None:
    """AtomAI imports torchvision for parts that no benchmark uses; where it is missing, empty names do as well."""
    try:
        import torchvision  # noqa: F401

        return
    except ImportError:
        pass
    names = {
        "torchvision": (),
        "torchvision.models": ("mobilenet_v2", "resnet50", "vgg16"),
        "torchvision.utils": ("make_grid",),
    }
    for module, needed in names.items():
        sys.modules[module] = types.ModuleType(module)
        for name in needed:
            setattr(sys.modules[module], name, None)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def environment(packages: Sequence[str]) -> str:
    """Return processor, threads and versions."""

    def installed(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"{package} absent"

    info = Path("/proc/cpuinfo")
    names = [
        line.split(":")[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else ())
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.processor() or platform.machine()
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    parts = [installed(p) for p in packages]
    return (
        f"{processor}, {os.cpu_count()} logical cores (shared with other work), OMP_NUM_THREADS {threads}; "
        f"Python {platform.python_version()}, {', '.join(parts)}"
    )


def publish(
    name: str,
    title: str,
    sections: Sequence[str],
    packages: Sequence[str],
    measured: str | None = None,
    arguments: str = "",
    page: str | None = None,
) -> None:
    """Print the page and write it to ``docs/benchmarks/PAGE.md``.

    Parameters
    ----------
    measured : str, optional
        When and where, if that was not here and now.
    arguments : str
        Of the command that repeats the measurement.
    page : str, optional
        By default named like the script.
    """
    here = f"Measured on {date.today()}: {environment(packages)}. Times are CPU times of the process."
    repeat = f"Repeat: `python benchmarks/{name}.py {arguments}".rstrip() + "`"
    text = "\n\n".join([f"# {title}", *sections, measured or here, repeat])
    print(text)
    with atomic_path(DOCS / f"{page or name}.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
