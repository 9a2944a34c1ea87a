"""Marks of Transformers' tests, which this repository's strict configuration has to know."""

import pytest

from tests.upstream.sources import markers


def pytest_configure(config: pytest.Config) -> None:
    for name in markers():
        config.addinivalue_line("markers", f"{name}: of Transformers' own tests")
