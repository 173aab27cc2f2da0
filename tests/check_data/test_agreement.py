"""Class names by index across data sets, and objects that a framework keeps."""

import re

import pytest

from gradaug_det.check_data.agreement import check_kept, check_same_classes
from gradaug_det.errors import DataError

BOTH = ("bolt", "nut")


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            ("nut", "bolt"),
            r"class 0 is 'bolt' in a\.json and 'nut' in b\.json; .*order of category",
        ),
        (("bolt",), r"class 1 is 'nut' in a\.json and no class in b\.json; write the same"),
        (("bolt", "nut", "pin"), r"class 2 is no class in a\.json and 'pin' in b\.json"),
        (("bolt", "Nut "), r"class 1 is 'nut' .* 'Nut ' .*differ in case or spaces"),
        (("0", "bolt", "nut"), r"class 0 is 'bolt' .* '0' in b\.json; write the same.*\(2 and 3"),
    ],
)
def test_classes_that_differ(other, sentence):
    with pytest.raises(DataError, match=sentence):
        check_same_classes({"a.json": BOTH, "c.json": list(BOTH), "b.json": other})


def test_classes_that_are_the_same():
    check_same_classes({})
    check_same_classes({"a.json": BOTH})
    check_same_classes({"a.json": BOTH, "b.json": list(BOTH)})


def test_nothing_is_kept():
    with pytest.raises(DataError, match=r"set: 0 of 8 objects are left .* \(all crowds\); gradaug"):
        check_kept("set", {}, {"bolt": 4, "nut": 4}, "all crowds")
    with pytest.raises(DataError, match="set: 0 of 0 objects are left to learn from; "):
        check_kept("set", {}, {})


@pytest.mark.parametrize(
    ("kept", "given", "warning"),
    [
        ({"bolt": 1}, {"bolt": 1, "nut": 0}, ""),
        ({"bolt": 2, "nut": 0}, {"bolt": 4, "nut": 3}, "only 2 of 7 objects in all are"),
        ({"bolt": 1, "nut": 9}, {"bolt": 4, "nut": 9}, "only 1 of 4 of 'bolt' are left"),
        ({"a": 1}, {"a": 9, "b": 8, "c": 7}, "only 1 of 24 objects in all, 1 of 9 .* and 1 more"),
        ({"bolt": 4, "nut": 4}, {"bolt": 4, "nut": 8}, ""),
    ],
)
def test_most_are_lost(kept, given, warning, caplog):
    check_kept("set", kept, given, "too small")
    assert bool(caplog.text) == bool(warning)
    assert re.search(warning, caplog.text)
