import numpy as np
import pytest

from gradaug_det.errors import ConfigError, DataError
from gradaug_det.mini_coco import CLASS_NAMES, load_garments
from gradaug_det.mini_coco.garments import EMBEDDED, read_idx
from tests.mini_coco.helpers import write_fake_fashion_mnist, write_idx


def test_embedded_file_is_small_and_holds_only_arrays():
    assert EMBEDDED.stat().st_size < 4e6
    with np.load(EMBEDDED, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    assert set(arrays) == {
        f"{s}_{n}" for s in ("train", "test") for n in ("images", "labels", "index")
    }
    assert (EMBEDDED.parent / "LICENSE-fashion-mnist.txt").is_file()


@pytest.mark.parametrize(("split", "per_class"), [("train", 400), ("test", 120), ("val", 120)])
def test_every_class_is_equally_frequent(split, per_class):
    images, labels = load_garments(split)
    assert images.shape == (10 * per_class, 28, 28)
    assert images.dtype == labels.dtype == np.uint8
    assert np.bincount(labels).tolist() == [per_class] * len(CLASS_NAMES)


def test_no_garment_is_in_both_splits():
    train, test = ({image.tobytes() for image in load_garments(s)[0]} for s in ("train", "test"))
    assert not train & test


def test_an_unknown_split_is_named():
    with pytest.raises(ConfigError, match=r"split 'dev'.*'test', 'train', 'val'"):
        load_garments("dev")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", ["", "raw", "FashionMNIST/raw"])
def test_full_fashion_mnist_in_the_layouts_of_debian_and_torchvision(tmp_path, suffix, place):
    write_fake_fashion_mnist(tmp_path / place, train=12, test=5, suffix=suffix)
    images, labels = load_garments("train", tmp_path)
    assert images.shape == (12, 28, 28)
    assert images[3, 10, 10] == 103
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert len(load_garments("test", tmp_path)[0]) == 5


def test_a_missing_directory_says_what_to_give(tmp_path):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*dataset-fashion-mnist"):
        load_garments("train", tmp_path)


def _spoil_magic(path):
    path.write_bytes(b"\x00\x00\x0d" + path.read_bytes()[3:])


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def _label_eleven(path):
    write_idx(path.with_name("train-labels-idx1-ubyte"), np.full(12, 11, np.uint8))


def _fewer_labels(path):
    write_idx(path.with_name("train-labels-idx1-ubyte"), np.zeros(7, np.uint8))


def _other_size(path):
    write_idx(path, np.zeros((12, 32, 32), np.uint8))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil_magic, "not an idx file of uint8"),
        (_truncate, "states shape"),
        (_label_eleven, r"beyond 0\.\.9"),
        (_fewer_labels, "12 train images but labels"),
        (_other_size, r"not \(N, 28, 28\)"),
    ],
)
def test_damaged_files_are_data_errors(tmp_path, spoil, message):
    write_fake_fashion_mnist(tmp_path, train=12, suffix="")
    spoil(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match=message):
        load_garments("train", tmp_path)


def test_a_damaged_gzip_is_a_data_error(tmp_path):
    path = tmp_path / "x.gz"
    write_idx(path, np.zeros((4, 5), np.uint8))
    assert read_idx(path).shape == (4, 5)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"x\.gz cannot be read"):
        read_idx(path)
