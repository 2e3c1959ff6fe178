from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real microscope data beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real microscope data is not here: {SHARED_DATA} does not exist")
    return SHARED_DATA
