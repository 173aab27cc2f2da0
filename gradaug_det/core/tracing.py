"""Derives a :class:`SlimPlan` by watching one forward pass of a tiny image.

Convolutions and linear layers open a new group of channels, elementwise layers carry the group on,
residual additions merge two groups. Whatever else touches channels is named in an error where a
layer reads what it made: a layer is never left at full width in silence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradaug_det.core.plan import ChannelGroup, SlimPlan, flatten_output
from gradaug_det.errors import ConfigError, UnslimmableError

# Functions that map each channel to itself. Their result is also checked by its shape.
# fmt: off
_CHANNELWISE = frozenset({
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "selu", "celu", "silu", "gelu",
    "mish", "softplus", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh", "clamp",
    "clamp_", "clamp_min", "neg", "abs", "exp", "sqrt", "clone", "contiguous", "to", "float",
    "half", "bfloat16", "double", "detach", "dropout", "dropout2d", "dropout_", "mean", "amax",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d", "boolean_dispatch",
    "fn", "interpolate", "pad", "squeeze", "div", "__truediv__",
})
# fmt: on
_ADDITIONS = frozenset({"add", "add_", "__add__", "__iadd__", "__radd__"})
_PRODUCTS = frozenset({"mul", "mul_", "__mul__", "__imul__", "__rmul__"})
_CONSTANT = re.compile("new_.*|.*_like|__get__")
_UNKNOWN = "its input comes from an operation that cannot be followed"
_CONVOLUTIONS = (F.conv2d, F.conv_transpose2d)
_VIEWS = frozenset({"flatten", "reshape", "reshape_as", "unflatten", "view", "view_as"})


@dataclass(eq=False)
class _Node:
    """A channel group under construction: union-find with the facts that merging combines."""

    channels: int
    fixed: bool = False
    residual: bool = False
    quantum: int = 1
    read: bool = False  # by a layer
    lost: str = ""  # why not all that becomes of it can be followed, if so
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
            one.read |= two.read
            one.lost = one.lost or two.lost
        return one


class _Dim(NamedTuple):
    """The dimension of an activation or a parameter that a group's channels make up."""

    node: _Node
    entries: int = 1  # in a row for each channel, as where a map was flattened

    def root(self) -> _Dim:
        return _Dim(self.node.root(), self.entries)


class _Tracer(TorchFunctionMode):
    """Sees every torch function of a pass, and follows the channel groups of its tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names: dict[int, list[str]] = {}  # of a parameter: several, where layers share it
        for all_names in (module.named_parameters, module.named_buffers):
            for name, tensor in all_names(remove_duplicate=False):
                self.names.setdefault(id(tensor), []).append(name)
        self.scope: list[str] = []  # names of the modules whose forward is running, for errors
        self.muted = 0  # in how many modules, which are looked at as a whole
        # Of activations, by what tells tensors apart: the group of their channels, or why there is
        # none.
        self.dims: dict[tuple, _Dim | str] = {}
        self.alive: list[Tensor] = []  # an address is only unique while its tensor lives
        self.tensors: dict[str, tuple[_Dim | None, ...]] = {}
        self.counts: dict[tuple[str, str], tuple[_Node, int]] = {}
        self.linear_outputs: set[tuple] = set()
        self.run: set[str] = set()  # names of the modules whose forward ran

    def tag(self, tensor: Tensor, dim: _Dim | str) -> None:
        self.dims[_key(tensor)] = dim
        self.alive.append(tensor)

    def known(self, values: Any) -> list[Tensor]:
        """Returns the activations among (nested) arguments."""
        leaves, _ = flatten_output(values)
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and _key(leaf) in self.dims]

    def fail(self, what: str) -> UnslimmableError:
        where = self.scope[-1] if self.scope and self.scope[-1] else "the module itself"
        return UnslimmableError(f"cannot slim layer '{where}': {what}")

    def dim_of(self, tensor: Tensor) -> _Dim:
        dim = self.dims.get(_key(tensor))
        if dim is None:
            raise self.fail(_UNKNOWN)
        if isinstance(dim, str):
            raise UnslimmableError(dim)
        return dim.root()

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.muted:
            return result
        name = getattr(func, "__name__", str(func))
        if func in _CONVOLUTIONS or (func is F.linear and result.dim() == 2):
            self._weighted_layer(func, result, args, kwargs)
        # Without an activation among its inputs a function makes parameters or constants, which
        # only matter once they meet one; so do x.new_zeros and the like, and "__get__" reads an
        # attribute of a tensor, as x.shape.
        elif (
            not _CONSTANT.match(name)
            and any(isinstance(leaf, Tensor) for leaf in flatten_output(result)[0])
            and (inputs := self.known((args, kwargs)))
        ):
            try:
                self.tag(result, self._followed(name, result, inputs))
            except UnslimmableError as error:
                # So it is with predictions. It only matters if a layer reads them, or the result.
                for dim in (self.dims[_key(tensor)] for tensor in inputs):
                    if not isinstance(dim, str):
                        dim.root().node.lost = str(error)
                self.lose(result, str(error), in_place=name.endswith("_"))
        return result

    def _weighted_layer(self, func: Callable, out: Tensor, args: tuple, kwargs: dict) -> None:
        """Opens the group of a convolution's or a linear layer's output."""
        # The layers' own calls pass them by position, others may pass them by name.
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        input, weight, bias = given["input"], given["weight"], given.get("bias")
        groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
        source = self.dim_of(input)
        source.node.read = True
        rest = [None] * (weight.dim() - 2)
        if groups == 1:
            target = _Dim(_Node(out.shape[1]))
            first = (source, target) if func is F.conv_transpose2d else (target, source)
            self._cut(weight, (*first, *rest))
        else:
            if out.shape[1] != input.shape[1] or source.entries > 1:
                raise self.fail(
                    f"a grouped convolution from {input.shape[1]} to {out.shape[1]} channels"
                )
            # Whole groups are kept, and each group's input channels stay as they are.
            target, size = source, out.shape[1] // groups
            target.node.quantum = math.lcm(target.node.quantum, size)
            self._cut(weight, (target, None, *rest))
            for name in self.names[id(weight)]:
                self.counts[name.rpartition(".")[0], "groups"] = (target.node, size)
        if bias is not None:
            self._cut(bias, (target,))
        self.tag(out, target)
        if func is F.linear:
            self.linear_outputs.add(_key(out))

    def _cut(self, tensor: Tensor, dims: tuple[_Dim | None, ...]) -> None:
        """Notes the groups of a parameter; a layer's second call unites them with the first's."""
        if id(tensor) not in self.names:
            raise self.fail("its weight is computed, not a parameter")
        for name in self.names[id(tensor)]:
            for one, other in zip(self.tensors.setdefault(name, dims), dims, strict=True):
                self._unite([one, other] if one is not None else [])

    def _unite(self, dims: Sequence[_Dim]) -> None:
        for dim in dims[1:]:
            if dim.entries != dims[0].entries or dim.node.channels != dims[0].node.channels:
                raise self.fail("it reads maps of different numbers of channels")
            dims[0].node.merge(dim.node)

    def _followed(self, name: str, result: Any, inputs: list[Tensor]) -> _Dim:
        """Returns the dimension of a function's result that its inputs' channels make up."""
        dims = [self.dim_of(tensor) for tensor in inputs]
        first, (node, entries) = inputs[0], dims[0]
        if not isinstance(result, Tensor) or result.dim() < 2:
            raise self.fail(f"function '{name}' splits or drops channels")
        if name in _VIEWS and len(result) == len(first) and result.shape[1] % node.channels == 0:
            # Rows of an image's numbers: as many for each channel, one channel after the other.
            return _Dim(node, result.shape[1] // node.channels)
        if len(inputs) == 2 and name in _ADDITIONS | _PRODUCTS:
            if inputs[0].shape[1] != inputs[1].shape[1]:
                raise self.fail(f"function '{name}' combines different numbers of channels")
            # What is added or multiplied channel by channel must be cut alike: two groups become
            # one. An addition is a residual connection, and those count channels by another rule
            # than the inside of a block; a product is a gate, as in squeeze and excitation.
            self._unite(dims)
            node.root().residual |= name in _ADDITIONS
        elif len(inputs) > 1 or name not in _CHANNELWISE | _ADDITIONS | _PRODUCTS | _VIEWS:
            # Refused rather than guessed: a concatenation or a matrix product of activations
            # would leave its result without a first share of channels.
            raise self.fail(f"function '{name}' is not known to keep channels apart")
        # A reshape or a mean passes by its name, but not if it touches the channels.
        if result.shape[1] != first.shape[1]:
            raise self.fail(f"function '{name}' changes the number of channels")
        return _Dim(node, entries)

    def lose(self, result: Any, reason: str, in_place: bool = False) -> None:
        """Notes of a function's results why they cannot be followed."""
        for leaf in flatten_output(result)[0]:
            # What is known already is the same numbers under another name, unless they changed.
            if isinstance(leaf, Tensor) and (in_place or _key(leaf) not in self.dims):
                self.tag(leaf, reason)

    # ---- modules --------------------------------------------------------------------------------

    def watch(self, name: str, look: _Look | None, layer: nn.Module, stack: ExitStack) -> None:
        """Sees what a module reads and makes, until the end of ``stack``."""
        forward, own = layer.forward, vars(layer)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.scope.append(name)
            self.run.add(name)
            self.muted += look is not None
            out = forward(*args, **kwargs)
            self.leave(name, look, layer, args, kwargs, out)
            return out

        # Not the module's hooks: MMDetection calls a dense head's `forward` itself.
        before = {"forward": own["forward"]} if "forward" in own else {}
        stack.callback(own.update, before)
        stack.callback(own.pop, "forward")
        own["forward"] = watched

    def leave(
        self, name: str, look: _Look | None, layer: nn.Module, args: tuple, kwargs: dict, out: Any
    ) -> None:
        self.muted -= look is not None
        if not self.muted:
            inputs = self.known((args, kwargs))
            if look is not None:
                look(self, name, layer, inputs, out)
            elif (
                inputs
                and isinstance(out, Tensor)
                and _key(out) not in self.dims
                and any(True for _ in layer.parameters(recurse=False))
            ):
                raise self.fail(f"{type(layer).__name__} computes what cannot be followed")
        self.scope.pop()

    def channelwise(self, name: str, layer: nn.Module, inputs: list[Tensor], out: Tensor) -> None:
        """Any kind of norm, PReLU, scale: whatever it computes, channel by channel."""
        known = [self.dims[_key(tensor)] for tensor in inputs] or [_UNKNOWN]
        if isinstance(known[0], str) and not any(True for _ in layer.parameters()):
            self.lose(out, known[0])  # a function of predictions, say
            return
        dim = self.dim_of(inputs[0]) if inputs else self.dim_of(out)
        for tensor in _own_tensors(layer):
            if tensor.dim() == 1:
                self._cut(tensor, (dim,))
        if hasattr(layer, "num_groups"):
            size = inputs[0].shape[1] // layer.num_groups
            dim.node.quantum = math.lcm(dim.node.quantum, size)
            self.counts[name, "num_groups"] = (dim.node, size)
        self.tag(out, dim)

    def pooling(self, name: str, layer: nn.Module, inputs: list[Tensor], out: Tensor) -> None:
        """Takes the same channels from several maps."""
        # Regions are predictions.
        dims = [self.dim_of(tensor) for tensor in inputs if tensor.dim() > 2]
        self._unite(dims)
        if getattr(layer, "out_channels", None) == dims[0].node.channels:
            self.counts[name, "out_channels"] = (dims[0].node, 1)
        self.tag(out, dims[0])

    def whole(self, name: str, layer: nn.Module, inputs: list[Tensor], out: Any) -> None:
        """Is left as it is, and so is what it reads."""
        for tensor in inputs:
            if not isinstance(dim := self.dims[_key(tensor)], str):
                dim.root().node.fixed = True
        for leaf in flatten_output(out)[0]:
            if isinstance(leaf, Tensor) and leaf.dim() > 1:
                self.tag(leaf, _Dim(_Node(leaf.shape[1], fixed=True)))


_Look = Callable[[_Tracer, str, nn.Module, list[Tensor], Any], None]


def _key(tensor: Tensor) -> tuple:
    # Not the object: a function of autograd may hand on the same numbers in another one.
    if tensor.numel():
        return tensor.data_ptr(), tensor.shape, tensor.stride()
    return (id(tensor),)


def _own_tensors(layer: nn.Module) -> list[Tensor]:
    return [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]


def _is_channelwise(layer: nn.Module) -> bool:
    # All of its tensors are vectors of one length (but for counters, which have no dimension).
    sizes = {tensor.shape for tensor in _own_tensors(layer) if tensor.dim() > 0}
    return not list(layer.children()) and len(sizes) == 1 and len(next(iter(sizes))) == 1


def example_image(module: nn.Module) -> Tensor:
    """Returns a blank (1, C, 64, 64) image as the first convolution takes it."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            return layer.weight.new_zeros(1, layer.in_channels, 64, 64)
    raise UnslimmableError(f"{type(module).__name__} has no convolution to slim")


@dataclass(frozen=True)
class ExamplePass:
    """How a detector is run on a blank image, and which of its parts are looked at as a whole.

    Args:
        run: of the detector in evaluation mode; its ``backbone`` reads the image.
        pooling: classes of modules that take the same channels from several maps for regions.
        whole: names of modules that are left as they are, with the channels that they read.
    """

    run: Callable[[nn.Module], Any]
    pooling: tuple[type, ...] = ()
    whole: Sequence[str] = ()


@torch.no_grad()
def trace_plan(module: nn.Module, example: ExamplePass | None = None) -> SlimPlan:
    """Derives which channels of ``module`` are cut together from one pass of a blank image.

    Args:
        module: in evaluation mode. A CNN that takes (N, C, H, W) images and returns tensors, or a
            dict, list or tuple of them.
        example: makes it a detector, whose predictions (what no layer reads) are never cut.

    Raises:
        UnslimmableError: names the first layer or parameter that cannot be slimmed.
    """
    tracer = _Tracer(module)
    reader = module if example is None else module.backbone

    def start(_module: nn.Module, args: tuple) -> None:
        tracer.tag(args[0], _Dim(_Node(args[0].shape[1], fixed=True)))

    with ExitStack() as stack:
        stack.enter_context(reader.register_forward_pre_hook(start))
        for name, layer in module.named_modules():
            look = None
            if example and name in example.whole:
                look = _Tracer.whole
            elif example and isinstance(layer, example.pooling):
                look = _Tracer.pooling
            elif _is_channelwise(layer):
                look = _Tracer.channelwise
            tracer.watch(name, look, layer, stack)
        stack.enter_context(tracer)
        output = example.run(module) if example else module(example_image(module))
    return _finish(module, tracer, example, [] if example else flatten_output(output)[0])


def _finish(
    module: nn.Module, tracer: _Tracer, example: ExamplePass | None, outputs: list[Any]
) -> SlimPlan:
    whole = tuple(f"{name}." for name in example.whole) if example else ()
    for name in example.whole if example else ():
        if name not in tracer.run:
            raise ConfigError(
                "keep_whole",
                f"has {name!r}, which no pass in evaluation mode runs, so that what it reads is "
                "unknown; name what it is in, or slim the backbone alone",
            )
    for name, layer in module.named_modules() if example else ():
        if (
            isinstance(layer, example.pooling)
            and hasattr(layer, "out_channels")
            and name not in tracer.run
            and not f"{name}.".startswith(whole)
        ):
            # Stages of a cascade pool from the same maps, and not all do in evaluation mode.
            folder = name.rpartition(".")[0]
            beside = [key for key in tracer.counts if key[0].rpartition(".")[0] == folder]
            if not beside:
                raise UnslimmableError(
                    f"cannot slim layer '{name}': no pass in evaluation mode runs it, so that what "
                    "it reads is unknown"
                )
            tracer.counts[name, "out_channels"] = tracer.counts[beside[0]]
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name not in tracer.tensors and parameter.dim() > 0 and not name.startswith(whole):
            layer = name.rpartition(".")[0]
            kind = type(module.get_submodule(layer)).__name__
            raise UnslimmableError(
                f"cannot slim layer '{layer or name}' ({kind}): its parameter '{name}' is used in "
                "a way that cannot be followed, or not at all"
            )
    for output in outputs:
        if not isinstance(output, Tensor):
            raise UnslimmableError(f"cannot slim a module that returns a {type(output).__name__}")
        dim = tracer.dims.get(_key(output))
        if isinstance(dim, str):
            raise UnslimmableError(dim)
        if dim and _key(output) in tracer.linear_outputs:
            dim.root().node.fixed = True  # a classifier's logits

    for dim in (dim.root() for dims in tracer.tensors.values() for dim in dims if dim):
        if example and dim.node.read and dim.node.lost and not dim.node.fixed:
            raise UnslimmableError(dim.node.lost)
    numbers: dict[_Dim, int] = {}

    def number(dim: _Dim | None) -> int | None:
        return None if dim is None else numbers.setdefault(dim.root(), len(numbers))

    norms = {
        name: isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for name, layer in module.named_modules()
        if dict(layer.named_buffers(recurse=False)).get("running_mean") is not None
        and not f"{name}.".startswith(whole)
    }
    return SlimPlan(
        tensors={name: tuple(map(number, dims)) for name, dims in tracer.tensors.items()},
        counts={key: (number(_Dim(node)), size) for key, (node, size) in tracer.counts.items()},
        outputs=tuple(number(tracer.dims.get(_key(output))) for output in outputs),
        groups=tuple(
            ChannelGroup(
                node.channels,
                node.residual,
                node.quantum,
                node.fixed or (example is not None and not node.read),
                entries,
            )
            for node, entries in numbers
        ),
        batch_norms=tuple(name for name, trained in norms.items() if trained),
        has_frozen_norms=not all(norms.values()),
    )
