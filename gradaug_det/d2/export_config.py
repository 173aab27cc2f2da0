"""A narrow ResNet-18 or -34 in Detectron2: a LazyConfig, as no yaml config can say it.

``build_resnet_backbone`` asserts 64 channels at these depths. ``ResNet`` itself does not, and a
model that is made from a yaml config takes a backbone beside it: Detectron2's explicit arguments
precede what ``from_config`` reads.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from gradaug_det.errors import ConfigError

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def lazy_config(cfg: CfgNode, channels: int) -> str:
    """The LazyConfig's content: ``model``, ``dataloader`` and ``train``, for inference.

    Args:
        cfg: the full detector's yaml config: a ResNet-18 or -34 under an FPN.
        channels: of the stem and the first stage.

    Raises:
        ConfigError: the norm or the architecture cannot be given so.
    """
    detector = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if not hasattr(detector, "from_config") or detector.__module__.startswith("gradaug_det"):
        raise ConfigError(
            "MODEL.META_ARCHITECTURE",
            f"is {cfg.MODEL.META_ARCHITECTURE}, which takes no backbone beside a config, as the "
            "export of a ResNet-18 or -34 needs; one of Detectron2's own does",
        )
    resnets, fpn, inputs = cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.INPUT
    retina = cfg.MODEL.BACKBONE.NAME == "build_retinanet_resnet_fpn_backbone"
    values = {
        "DEPTH": resnets.DEPTH,
        "MODULE": detector.__module__,
        "CLASS": detector.__name__,
        "CHANNELS": channels,
        "BLOCKS": _BLOCKS[resnets.DEPTH],
        "NORM": resnets.NORM,
        "OUT_FEATURES": list(resnets.OUT_FEATURES),
        "FREEZE_AT": cfg.MODEL.BACKBONE.FREEZE_AT,
        "IN_FEATURES": list(fpn.IN_FEATURES),
        "FPN_CHANNELS": fpn.OUT_CHANNELS,
        "FPN_NORM": fpn.NORM,
        "FUSE_TYPE": fpn.FUSE_TYPE,
        "TOP_BLOCK": "LastLevelP6P7" if retina else "LastLevelMaxPool",
        "TOP_ARGUMENTS": f"in_channels={8 * channels}, out_channels={fpn.OUT_CHANNELS}"
        if retina
        else "",
        "TEST": cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else "",
        "SHORT": inputs.MIN_SIZE_TEST,
        "LONG": inputs.MAX_SIZE_TEST,
        "FORMAT": inputs.FORMAT,
        "MASKS": cfg.MODEL.MASK_ON,
        "MASK_FORMAT": inputs.MASK_FORMAT,
        "WEIGHTS": cfg.MODEL.WEIGHTS,
        "WORKERS": cfg.DATALOADER.NUM_WORKERS,
        "PIXELS": len(cfg.MODEL.PIXEL_MEAN),
        "SETTINGS": cfg.dump().replace("\\", "\\\\").rstrip(),
    }
    text = _TEMPLATE
    for name, value in values.items():
        plain = name in ("DEPTH", "MODULE", "CLASS", "TOP_BLOCK", "TOP_ARGUMENTS", "SETTINGS")
        text = text.replace(f"<{name}>", value if plain and name != "DEPTH" else repr(value))
    return text


_TEMPLATE = '''"""A detector with a ResNet-<DEPTH> of <CHANNELS> channels, for Detectron2 alone.

Written by `gradaug-det export`. Detectron2's yaml configs know this network with 64 channels only:
LazyConfig.load("config.py"), then instantiate(cfg.model).
"""

import detectron2.data.transforms as T
from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import <TOP_BLOCK>
from detectron2.modeling.backbone.resnet import BasicBlock
from <MODULE> import <CLASS>

# The heads' settings; its backbone, which has the full network's channels, is replaced below.
_SETTINGS = """
<SETTINGS>
"""

_channels = <CHANNELS>
_stages = [
    L(ResNet.make_stage)(
        block_class=BasicBlock,
        num_blocks=blocks,
        stride_per_block=[1 if stage == 0 else 2] + [1] * (blocks - 1),
        in_channels=_channels * 2 ** max(stage - 1, 0),
        out_channels=_channels * 2**stage,
        norm=<NORM>,
    )
    for stage, blocks in enumerate(<BLOCKS>)
]
model = L(<CLASS>)(
    cfg=L(CfgNode.load_cfg)(cfg_file_obj_or_str=_SETTINGS),
    backbone=L(FPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=<PIXELS>, out_channels=_channels, norm=<NORM>),
            stages=_stages,
            out_features=<OUT_FEATURES>,
            freeze_at=<FREEZE_AT>,
        ),
        in_features=<IN_FEATURES>,
        out_channels=<FPN_CHANNELS>,
        norm=<FPN_NORM>,
        top_block=L(<TOP_BLOCK>)(<TOP_ARGUMENTS>),
        fuse_type=<FUSE_TYPE>,
    ),
)

_resize = L(T.ResizeShortestEdge)(short_edge_length=<SHORT>, max_size=<LONG>, sample_style="choice")
dataloader = dict(
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names=<TEST>, filter_empty=False),
        mapper=L(DatasetMapper)(is_train=False, augmentations=[_resize], image_format=<FORMAT>),
        num_workers=<WORKERS>,
    ),
    # How ground truth is read; there is no training in this file.
    train=dict(
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[_resize],
            image_format=<FORMAT>,
            use_instance_mask=<MASKS>,
            instance_mask_format=<MASK_FORMAT>,
        )
    ),
    evaluator=L(COCOEvaluator)(dataset_name="${..test.dataset.names}"),
)
train = dict(device="cpu", init_checkpoint=<WEIGHTS>)
'''
