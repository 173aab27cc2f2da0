"""What one test leaves in a process, and the next one must not find; tests that need a GPU."""

import sys

import pytest
import torch


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        items[:] = [item for item in items if not item.get_closest_marker("cuda")]


@pytest.fixture(autouse=True)
def forget_visualizers():
    """MMEngine's visualizer is global: it would write into the folder of a test that has ended."""
    yield
    if (visualization := sys.modules.get("mmengine.visualization")) is not None:
        for kind in (visualization.Visualizer, *visualization.Visualizer.__subclasses__()):
            kind._instance_dict.clear()
