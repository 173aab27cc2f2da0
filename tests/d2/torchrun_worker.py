"""``tools/train_net.py`` with several processes on CPUs, for which Detectron2 would name GPUs."""

import runpy

from detectron2.engine import defaults
from torch.nn.parallel import DistributedDataParallel

defaults.create_ddp_model = lambda model, **options: DistributedDataParallel(model, **options)
runpy.run_path("tools/train_net.py", run_name="__main__")
