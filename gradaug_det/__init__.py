"""GradAug (Yang, Zhu and Chen, NeurIPS 2020) for Detectron2 and MMDetection.

Importing this package needs neither framework. ``import gradaug_det.d2`` registers the slimmable
backbones in Detectron2; nothing else has side effects.
"""

__version__ = "0.1.0"
