"""PyTorch's switches for the speed of kernels."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.backends import cuda, cudnn


@contextmanager
def backends(tf32: bool, benchmark: bool = False) -> Iterator[None]:
    """Within the block, sets TF32 for convolutions and matrix products, and cudnn.benchmark."""
    before = cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    # Not by cudnn.flags, which in torch 2.9 sets a second switch of TF32 too.
    cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = tf32, tf32, benchmark
    try:
        yield
    finally:
        cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
