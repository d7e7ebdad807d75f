"""What the tests of manifests share: each folder is rendered once a run."""

from __future__ import annotations

import os

import pytest

from tests.manifests.rendering import share_renderings


@pytest.fixture(scope="session", autouse=True)
def shared_renderings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder that all processes of this run see."""
    own = tmp_path_factory.getbasetemp()
    share_renderings((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "renderings")
