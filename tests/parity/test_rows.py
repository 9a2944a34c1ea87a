"""Split, packed and padded rows against solo rows."""

import pytest

from tests.parity import rows
from tests.parity.cases import CASES, Case

every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
def test_split_equals_whole(case: Case):
    rows.check_split(case)


@every_case
def test_split_of_packed_rows_equals_whole(case: Case):
    rows.check_split_packed(case)


@every_case
def test_packed_equals_solo(case: Case):
    rows.check_packed_equals_solo(case)


@every_case
def test_padded_equals_solo(case: Case):
    rows.check_padded_equals_solo(case)
