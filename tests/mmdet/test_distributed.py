"""Two processes (gloo) against the same sums computed in one."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.regularizer import gradaug_step
from gradaug_det.core.sampling import sample_own_pass, sample_sub_networks
from gradaug_det.mmdet.batch import make_batch
from gradaug_det.mmdet.detector import GradAugDetector
from tests.mmdet.ddp_worker import ITERATIONS, TRAININGS, build
from tests.mmdet.helpers import TinyDataset, assert_same, collated, parameters

ROOT = Path(__file__).parents[2]
WORLD = 2


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Trains once in two processes, without and with accumulation."""
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(WORLD):
        env = os.environ | dict(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(WORLD),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            OMP_NUM_THREADS="1",
        )
        command = [sys.executable, "-m", "tests.mmdet.ddp_worker", str(folder)]
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    outputs = [process.communicate(timeout=300)[0].decode() for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return {
        name: [torch.load(folder / f"{name}_rank{rank}.pth") for rank in range(WORLD)]
        for name in TRAININGS
    }


def expected(kind, counts, hook):
    """The same training by hand: mean over ranks of each rank's sum of all passes."""
    model, data = build(kind), TinyDataset(length=8)
    network = GradAugDetector(model, GradAugOptions(**hook))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for iteration in range(ITERATIONS):
        for rank in range(WORLD):
            items = model.data_preprocessor(collated([data[WORLD * iteration + rank]]), True)
            subs = sample_sub_networks(network.options, iteration)
            # A sub-network's own random numbers differ from rank to rank.
            subs = [replace(sub, seed=sub.seed + rank) for sub in subs]
            torch.manual_seed(1000 + iteration)
            gradaug_step(
                network,
                make_batch(items["inputs"], items["data_samples"]),
                subs,
                lambda loss: (loss / (WORLD * counts)).backward(),
                own=sample_own_pass(network.options, iteration),
            )
        if (iteration + 1) % counts == 0:
            optimizer.step()
            optimizer.zero_grad()
    return parameters(model)


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_equal_one(name, results):
    first, second = results[name]
    assert_same(first["parameters"], second["parameters"])
    assert first["losses"] != second["losses"]
    one_pass = "w1" if name == "alternating" else "sub0"
    assert first["losses"].keys() >= {"train/loss", f"train/gradaug/{one_pass}/loss"}
    # DDP itself reduced nothing: gradients crossed the network once for all passes; but for
    # the full pass that ends a step of alternating ones.
    assert first["reductions"] == second["reductions"]
    assert bool(first["reductions"]) == (name == "alternating")
    # Buffers are still broadcast, if asked to.
    assert first["require_forward_param_sync"]
    assert_same(first["buffers"], second["buffers"])
    for key, value in expected(*TRAININGS[name]).items():
        ours, double = first["parameters"][key], value.dtype == torch.float64
        error = (ours - value).abs().max().item()
        assert error < (1e-12 if double else 1e-6), (key, error)
