from pathlib import Path

import pytest

from gradaug_det.mini_coco import build_mini_coco


@pytest.fixture(scope="session")
def mini_coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build large enough to hold crowds and empty images; read it only."""
    return build_mini_coco(tmp_path_factory.mktemp("shared") / "coco", train=80, val=40, seed=0)
