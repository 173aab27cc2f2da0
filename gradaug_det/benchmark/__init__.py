"""Benchmark of detectors on a COCO-format dataset, whichever framework they come from."""
