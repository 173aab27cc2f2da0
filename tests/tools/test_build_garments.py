"""tools/build_garments.py: the embedded subset of Fashion-MNIST."""

import sys
from pathlib import Path

import numpy as np
import pytest

from gradaug_det.mini_coco import load_garments
from tests.mini_coco.helpers import write_fake_fashion_mnist

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from build_garments import build_garments


def test_the_subset_is_regenerated_bit_identically(tmp_path):
    source = write_fake_fashion_mnist(tmp_path / "source", train=4050, test=1300)
    first = build_garments(source, tmp_path / "first.npz")
    second = build_garments(source, tmp_path / "deep" / "second.npz")
    assert first.read_bytes() == second.read_bytes()
    with np.load(first, allow_pickle=False) as archive:
        # Class c is at positions c, c + 10, ...: the first 400 of each are the first 4000.
        np.testing.assert_array_equal(archive["train_index"], np.arange(4000))
        np.testing.assert_array_equal(archive["test_index"], np.arange(1200))
        expected = load_garments("train", source)[0][:4000]
        np.testing.assert_array_equal(archive["train_images"], expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "first.npz", "source"]


def test_a_failed_regeneration_leaves_the_old_file(tmp_path, monkeypatch):
    source = write_fake_fashion_mnist(tmp_path / "source")
    out = build_garments(source, tmp_path / "out.npz")
    before = out.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(OSError, match="disk full"):
        build_garments(source, out)
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.npz", "source"]
