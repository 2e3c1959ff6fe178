from __future__ import annotations

import json
import subprocess
import sys

import pytest

import micrographia


def test_import_is_light():
    """CPU time of ``import micrographia`` alone (best of three), and what it drags in."""
    code = (
        "import json, resource, sys\n"
        "def cpu():\n"
        "    usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    return usage.ru_utime + usage.ru_stime\n"
        "before = cpu()\n"
        "import micrographia\n"
        "print(json.dumps([cpu() - before, sorted(sys.modules)]))\n"
    )
    runs = [
        json.loads(
            subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
        )
        for _ in range(3)
    ]
    assert min(seconds for seconds, _ in runs) <= 0.3
    heavy = {"torch", "numpy", "pandas", "scipy", "matplotlib", "ase", "rsciio", "skimage"}
    assert not heavy & set(runs[0][1])


def test_every_export_exists_and_is_listed():
    for name in micrographia.__all__:
        assert getattr(micrographia, name) is not None
        assert name in dir(micrographia)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'read_image'"):
        micrographia.read_image  # noqa: B018
