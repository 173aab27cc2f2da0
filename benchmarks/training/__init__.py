"""The cost of a GradAug training step, beside what its FLOPs say that it must.

Measured on real steps of the pretraining loop, of Detectron2's trainer and of MMEngine's loop.
"""
