"""A browser for tests that look at pages."""

import pytest


@pytest.fixture(scope="session")
def chromium():
    """Path of a Chromium; tests that need one are skipped where there is none."""
    from jaxllm.evaluation.browser import find_browser

    path = find_browser()
    if path is None:
        pytest.skip("no Chromium here: launch/setup.sh --browser installs one (as root: apt-get install chromium)")
    return path
