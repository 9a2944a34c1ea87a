"""Every semantic mutant is killed by its check, and every check passes on the model as it is."""

import functools

import pytest

from tests.mutants import MUTANTS, Check, Mutant
from tests.parity.cases import Case


@functools.cache
def _passes(check: Check, case: Case) -> bool:
    check(case)
    return True


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_mutant_is_killed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch):
    assert _passes(mutant.check, mutant.case)
    mutant.apply(monkeypatch)
    # The comparison itself must fail, not some shape on the way to it.
    with pytest.raises(AssertionError, match=r"exceeds"):
        mutant.check(mutant.case)


def test_mutants_have_names_of_their_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20
