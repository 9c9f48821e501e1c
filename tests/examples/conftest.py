"""What documented calls write by default is written to a directory of the test's own."""

import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Default directories are relative."""
    monkeypatch.chdir(tmp_path)
