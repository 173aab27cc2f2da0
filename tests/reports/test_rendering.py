"""Numbers as pages write them."""

import pytest

from gradaug_det.reports.rendering import with_sign


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.234, "+1.23"),
        (-0.5, "\N{MINUS SIGN}0.50"),
        (0.001, "0.00"),
        (-0.001, "0.00"),
    ],
)
def test_differences_have_a_sign_unless_they_round_to_zero(value, text):
    assert with_sign(value) == text
