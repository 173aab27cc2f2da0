"""The cost model of many GPUs, its measured pieces and its page."""

import json
from pathlib import Path

import pytest

from benchmarks.scaling.__main__ import main
from benchmarks.scaling.model import Cluster, Pieces, Training, predict, predictions
from gradaug_det.errors import ConfigError

ROOT = Path(__file__).parents[2]
PIECES = Pieces(
    plain_seconds=0.3,
    images_per_gpu=2,
    gradient_bytes=180_000_000,
    head_bytes=60_000_000,
    load_seconds=0.05,
    loaders=4,
    host_seconds={"fixed": 0.0005, "continuous": 0.002},
    cold_convolutions=100,
    cold_seconds=0.001,
)
GRADAUG = Training(2.5, subs=1)


def test_an_all_reduce_is_a_ring_in_the_node_and_one_between_nodes():
    links = {"node_bandwidth": 60e9, "network_bandwidth": 10e9, "latency": 1e-5}
    assert Cluster(1, **links).all_reduce_seconds(10**9, 5) == 0
    inside = 2 * 7 / 8 * 1e9 / 60e9
    assert Cluster(8, **links).all_reduce_seconds(10**9) == pytest.approx(inside + 14e-5)
    both = inside + 2 * 7 / 8 * 1e9 / 10e9
    assert Cluster(64, **links).all_reduce_seconds(10**9, 3) == pytest.approx(both + 3 * 28e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gpus": 0}, "gpus must be an integer of at least 1, got 0"),
        ({"gpus": 8, "node_bandwidth": 0.0}, "node_bandwidth must be a number in"),
        ({"gpus": 8, "latency": -1.0}, "latency must be a number in"),
    ],
)
def test_a_cluster_that_cannot_be(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Cluster(**wrong)


def test_the_slowest_part_is_the_bottleneck():
    alone = predict(PIECES, Cluster(1), GRADAUG)
    assert alone["step"] == pytest.approx(0.752) and alone["bottleneck"] == "compute"
    assert alone["hours"] == pytest.approx(90_000 * 8 * 0.752 / 3600)
    assert alone["loaders"] == 1, "0.1 s of loading in a step of 0.75 s"
    slow_disk = Pieces(**{**vars(PIECES), "load_seconds": 4.0})
    starved = predict(slow_disk, Cluster(8), Training())
    assert (starved["step"], starved["bottleneck"]) == (pytest.approx(2.0), "data")
    slow_network = Cluster(64, network_bandwidth=1e8)
    assert predict(PIECES, slow_network, GRADAUG)["bottleneck"] == "all_reduce"


def test_gradaug_pays_for_what_a_plain_step_hides():
    free = Pieces(
        **{**vars(PIECES), "host_seconds": {"fixed": 0, "continuous": 0}} | {"cold_seconds": 0}
    )
    trainings = {"plain": Training(), "labels-3": Training(3.0, subs=3)}
    plain, gradaug = predictions(free, {"c": Cluster(64)}, trainings)
    assert plain["all_reduce"] == 0 and plain["ratio"] == 1 and plain["efficiency"] == 1
    cost = Cluster(64).all_reduce_seconds(PIECES.gradient_bytes, PIECES.messages)
    cost -= Cluster(64).all_reduce_seconds(PIECES.head_bytes)  # sent while a backward pass runs
    assert gradaug["all_reduce"] == pytest.approx(cost) and cost > 0
    assert gradaug["ratio"] == pytest.approx((0.9 + cost) / 0.3)
    assert gradaug["efficiency"] == pytest.approx(0.9 / (0.9 + cost))
    assert PIECES.messages == 8


def test_new_widths_make_cold_convolutions_and_fixed_ones_do_not():
    trainings = [Training(2.0, *own) for own in ((), (1,), (3,), (3, True))]
    found = [PIECES.around_passes(training) for training in trainings]
    # The smallest width is always there, so that it is new once.
    assert found == pytest.approx([0, 0.002, 3 * 0.002 + 2 * 100 * 0.001, 3 * 0.0005])
    rows = predictions(PIECES, {"c": Cluster(1)}, dict(enumerate(trainings)))
    assert [row["step"] for row in rows] == pytest.approx([0.6 + around for around in found])


def test_the_page_holds_what_was_measured_and_what_was_given(tmp_path):
    command = "--size 64 96 --iterations 1 --steps 3 --images 3 --gpus 1 16 --plain-step 0.5"
    assert main([*command.split(), "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "scaling.json").read_text())
    measured, text = content["measured"], (tmp_path / "scaling.md").read_text()
    assert list(measured["flops_ratios"]) == ["labels-1", "labels-2", "labels-3"]
    assert 1 < measured["flops_ratios"]["labels-1"] < measured["flops_ratios"]["labels-3"] < 8
    assert 150e6 < measured["gradient_bytes"] < 180e6, "44 million weights, the first ones frozen"
    assert 60e6 < measured["head_bytes"] < 75e6, "most of them of the box head"
    assert 0 < measured["load_seconds"] < 5
    for name, row in measured["check"]["rows"].items():
        assert row["error"] == pytest.approx(row["model"] / row["together"] - 1)
        exposed = measured["check"]["all_reduce"] if name != "plain" else 0
        assert row["model"] == pytest.approx(row["side by side"] + exposed)
        assert f"| {name} | {1000 * row['alone']:.0f} ms |" in text
    assert [(r["cluster"], r["training"]) for r in content["predictions"]][:2] == [
        ("1 GPU", "plain"),
        ("1 GPU", "labels-1"),
    ]
    assert len(content["predictions"]) == 14 and "16 GPUs | labels-3, fixed widths" in text
    # 53 layers, of which 11 are frozen: the others have two gradients each.
    assert measured["cold_convolutions"] == 42 * 3 + 11
    host = measured["host_seconds"]
    assert 0 < host["fixed"] < host["continuous"] < 1
    assert "| plain step, 2 images a GPU | 0.5 s | given" in text
    assert str(tmp_path) not in text and str(ROOT) not in text
