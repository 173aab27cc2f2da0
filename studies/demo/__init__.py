"""Mask R-CNN on mini-COCO with and without GradAug: ``python -m studies.demo``."""
