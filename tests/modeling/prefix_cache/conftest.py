"""What the tests of the prefix cache share."""

import pytest

from tests.modeling.models import tiny_model


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture
def fed(model, monkeypatch):
    """Columns of every forward pass of the model."""
    columns, forward = [], model.model.forward

    def counting(*args, input_ids=None, **kwargs):
        columns.append(input_ids.shape[1])
        return forward(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model.model, "forward", counting)
    return columns
