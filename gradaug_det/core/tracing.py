"""Derives a :class:`SlimPlan` by watching one forward pass of a tiny image.

Convolutions and linear layers open a new group of channels, elementwise layers carry the group on,
residual additions merge two groups. Whatever else touches channels is named in an error: a layer
is never left at full width in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradaug_det.core.plan import ChannelGroup, SlimPlan, flatten_output
from gradaug_det.errors import UnslimmableError

# Functions that map each channel to itself. Their result is also checked by its shape.
# fmt: off
_CHANNELWISE = frozenset({
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "silu", "gelu", "hardtanh",
    "hardswish", "sigmoid", "tanh", "clone", "contiguous", "to", "float", "half", "bfloat16",
    "double", "detach", "dropout", "dropout2d", "dropout_", "flatten", "reshape", "view", "mean",
    "adaptive_avg_pool2d", "avg_pool2d", "max_pool2d", "boolean_dispatch", "fn", "interpolate",
    "pad", "squeeze", "div", "__truediv__",
})
# fmt: on
_ADDITIONS = frozenset({"add", "add_", "__add__", "__iadd__", "__radd__"})
_PRODUCTS = frozenset({"mul", "mul_", "__mul__", "__imul__", "__rmul__"})


@dataclass(eq=False)
class _Node:
    """A channel group under construction: union-find with the facts that merging combines."""

    channels: int
    fixed: bool = False
    residual: bool = False
    quantum: int = 1
    parent: _Node | None = None

    def root(self) -> _Node:
        node = self
        while node.parent is not None:
            node = node.parent
        return node

    def merge(self, other: _Node) -> _Node:
        one, two = self.root(), other.root()
        if one is not two:
            two.parent = one
            one.fixed |= two.fixed
            one.residual |= two.residual
            one.quantum = math.lcm(one.quantum, two.quantum)
        return one


class _Tracer(TorchFunctionMode):
    """Sees every torch function of a pass, and follows the channel groups of its tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names = {id(p): n for n, p in module.named_parameters(remove_duplicate=False)}
        self.scope: list[str] = []  # names of the modules whose forward is running, for errors
        self.muted = 0  # in how many channelwise layers, which are looked at as a whole
        self.nodes: dict[int, _Node] = {}  # id of an activation -> the group of its channels
        self.alive: list[Tensor] = []  # an id is only unique while its tensor lives
        self.tensors: dict[str, tuple[_Node | None, ...]] = {}
        self.counts: dict[tuple[str, str], _Node] = {}
        self.linear_outputs: set[int] = set()

    def tag(self, tensor: Tensor, node: _Node) -> None:
        self.nodes[id(tensor)] = node
        self.alive.append(tensor)

    def fail(self, what: str) -> UnslimmableError:
        where = self.scope[-1] if self.scope and self.scope[-1] else "the module itself"
        return UnslimmableError(f"cannot slim layer '{where}': {what}")

    def node_of(self, tensor: Tensor) -> _Node:
        node = self.nodes.get(id(tensor))
        if node is None:
            raise self.fail("its input comes from an operation that cannot be followed")
        return node.root()

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.muted:
            return result
        if func in (F.conv2d, torch.conv2d, F.linear):
            # The layers' own calls pass them by position, others may pass them by name.
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            given = dict(zip(names, args, strict=False)) | kwargs
            groups = given.get("groups", 1)
            self._weighted_layer(result, given["input"], given["weight"], given.get("bias"), groups)
            if func is F.linear:
                self.linear_outputs.add(id(result))
        else:
            self._other(func, result, args, kwargs)
        return result

    def _weighted_layer(
        self, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int
    ) -> None:
        """Opens the group of a convolution's or a linear layer's output."""
        source, rest = self.node_of(input), weight.dim() - 2
        if groups == 1:
            target = _Node(weight.shape[0])
            self.tensors[self._name_of(weight)] = (target, source, *[None] * rest)
        else:
            name = self._name_of(weight)
            if weight.shape[0] != input.shape[1]:
                raise self.fail(
                    f"a grouped convolution from {input.shape[1]} to {weight.shape[0]} channels"
                )
            # Whole groups are kept, and each group's input channels stay as they are.
            target = source
            target.quantum = math.lcm(target.quantum, weight.shape[0] // groups)
            self.tensors[name] = (target, None, *[None] * rest)
            self.counts[name.rpartition(".")[0], "groups"] = target
        if bias is not None:
            self.tensors[self._name_of(bias)] = (target,)
        self.tag(out, target)

    def _name_of(self, weight: Tensor) -> str:
        if id(weight) not in self.names:
            raise self.fail("its weight is computed, not a parameter")
        return self.names[id(weight)]

    def _other(self, func: Callable, result: Any, args: tuple, kwargs: dict) -> None:
        if not isinstance(result, (Tensor, tuple, list)):
            return  # shapes, flags, ...
        inputs, _ = flatten_output((args, kwargs))
        inputs = [t for t in inputs if isinstance(t, Tensor) and id(t) in self.nodes]
        name = getattr(func, "__name__", str(func))
        # Without an activation among its inputs a function makes parameters or constants, which
        # only matter once they meet one; "__get__" reads an attribute of a tensor, as x.shape.
        if not inputs or name == "__get__":
            return
        if not isinstance(result, Tensor) or result.dim() < 2:
            raise self.fail(f"function '{name}' splits or drops channels")
        node = self.node_of(inputs[0])
        if len(inputs) == 2 and name in _ADDITIONS | _PRODUCTS:
            if inputs[0].shape[1] != inputs[1].shape[1]:
                raise self.fail(f"function '{name}' combines different numbers of channels")
            # What is added or multiplied channel by channel must be cut alike: two groups become
            # one. An addition is a residual connection, and those count channels by another rule
            # than the inside of a block; a product is a gate, as in squeeze and excitation.
            node = node.merge(self.node_of(inputs[1]))
            node.residual |= name in _ADDITIONS
        elif len(inputs) > 1 or name not in _CHANNELWISE | _ADDITIONS | _PRODUCTS:
            # Refused rather than guessed: a concatenation or a matrix product of activations
            # would leave its result without a first share of channels.
            raise self.fail(f"function '{name}' is not known to keep channels apart")
        # A reshape or a mean passes by its name, but not if it touches the channels.
        if result.shape[1] != inputs[0].shape[1]:
            raise self.fail(f"function '{name}' changes the number of channels")
        self.tag(result, node)

    def enter(self, name: str, channelwise: bool, _layer: nn.Module, _args: tuple) -> None:
        self.scope.append(name)
        self.muted += channelwise

    def leave(
        self, name: str, channelwise: bool, layer: nn.Module, args: tuple, out: Tensor
    ) -> None:
        self.muted -= channelwise
        if channelwise and not self.muted:
            # Any kind of norm, PReLU, scale: whatever it computes, channel by channel.
            node = self.node_of(args[0])
            for key, tensor in _own_tensors(layer):
                if tensor.dim() == 1:
                    self.tensors[f"{name}.{key}" if name else key] = (node,)
            if hasattr(layer, "num_groups"):
                node.quantum = math.lcm(node.quantum, args[0].shape[1] // layer.num_groups)
                self.counts[name, "num_groups"] = node
            self.tag(out, node)
        self.scope.pop()


def _own_tensors(layer: nn.Module) -> list[tuple[str, Tensor]]:
    return [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]


def _is_channelwise(layer: nn.Module) -> bool:
    # All of its tensors are vectors of one length (but for counters, which have no dimension).
    sizes = {t.shape for _, t in _own_tensors(layer) if t.dim() > 0}
    return not list(layer.children()) and len(sizes) == 1 and len(next(iter(sizes))) == 1


def example_image(module: nn.Module) -> Tensor:
    """Returns a blank (1, C, 64, 64) image as the first convolution takes it."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            return layer.weight.new_zeros(1, layer.in_channels, 64, 64)
    raise UnslimmableError(f"{type(module).__name__} has no convolution to slim")


@torch.no_grad()
def trace_plan(module: nn.Module) -> SlimPlan:
    """Derives which channels of ``module`` are cut together from one pass of a blank image.

    Args:
        module: a CNN that takes (N, C, H, W) images and returns tensors, or a dict, list or
            tuple of them.

    Raises:
        UnslimmableError: names the first layer or parameter that cannot be slimmed.
    """
    image = example_image(module)
    tracer = _Tracer(module)
    tracer.tag(image, _Node(image.shape[1], fixed=True))

    with ExitStack() as stack:
        for name, layer in module.named_modules():
            # Not module.eval(): frameworks override train() with side effects.
            stack.callback(setattr, layer, "training", layer.training)
            layer.training = False
            channelwise = _is_channelwise(layer)
            enter = partial(tracer.enter, name, channelwise)
            leave = partial(tracer.leave, name, channelwise)
            stack.enter_context(layer.register_forward_pre_hook(enter))
            stack.enter_context(layer.register_forward_hook(leave))
        stack.enter_context(tracer)
        output = module(image)
    leaves, _ = flatten_output(output)
    return _finish(module, tracer, leaves)


def _finish(module: nn.Module, tracer: _Tracer, outputs: list[Any]) -> SlimPlan:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name not in tracer.tensors and parameter.dim() > 0:
            layer = name.rpartition(".")[0]
            kind = type(module.get_submodule(layer)).__name__
            raise UnslimmableError(
                f"cannot slim layer '{layer or name}' ({kind}): its parameter '{name}' is used in "
                "a way that cannot be followed, or not at all"
            )
    for output in outputs:
        if not isinstance(output, Tensor):
            raise UnslimmableError(f"cannot slim a module that returns a {type(output).__name__}")
        if id(output) in tracer.linear_outputs:
            tracer.nodes[id(output)].root().fixed = True  # a classifier's logits

    numbers: dict[_Node, int] = {}

    def number(node: _Node | None) -> int | None:
        return None if node is None else numbers.setdefault(node.root(), len(numbers))

    batch_norms = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
    ]
    frozen = any(
        "running_mean" in dict(layer.named_buffers(recurse=False)) and name not in batch_norms
        for name, layer in module.named_modules()
    )
    return SlimPlan(
        tensors={name: tuple(map(number, dims)) for name, dims in tracer.tensors.items()},
        counts={key: number(node) for key, node in tracer.counts.items()},
        outputs=tuple(number(tracer.nodes.get(id(output))) for output in outputs),
        groups=tuple(
            ChannelGroup(node.channels, node.residual, node.quantum, node.fixed) for node in numbers
        ),
        batch_norms=tuple(batch_norms),
        has_frozen_norms=frozen,
    )
