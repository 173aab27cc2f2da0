"""Data and trainings that nobody kills, one of each a session."""

import pytest

from gradaug_det.mini_coco import build_mini_coco
from tests.faults.killing import finish, start


@pytest.fixture(scope="session")
def faults_data(tmp_path_factory):
    return build_mini_coco(tmp_path_factory.mktemp("faults") / "mini_coco", train=12, val=2)


@pytest.fixture(scope="session")
def whole(tmp_path_factory, faults_data):
    """Gives the folder of an engine's training that was left alone."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("whole") / name
            assert finish(start(name, folder, faults_data)) == 0
            made[name] = folder
        return made[name]

    return of
