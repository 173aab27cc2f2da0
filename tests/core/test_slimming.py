"""Plans and sub-networks of the three frameworks' ResNets."""

import copy
import io

import pytest
import torch
import torchvision
from torch import nn
from torch.func import functional_call
from torchvision.ops import FrozenBatchNorm2d

from gradaug_det.benchmark.cost import peak_growth
from gradaug_det.core.slimming import at_width, no_traces, set_width, slim_detector, slim_plan
from gradaug_det.core.tracing import ExamplePass
from gradaug_det.errors import ConfigError, GradAugError, UnslimmableError


def group_norm(channels):
    return nn.GroupNorm(32, channels)


NETWORKS = {
    **{f"resnet{d}": lambda d=d: getattr(torchvision.models, f"resnet{d}")() for d in (18, 34, 50)},
    "resnet101": torchvision.models.resnet101,
    "resnet152": torchvision.models.resnet152,
    "resnext50_32x4d": torchvision.models.resnext50_32x4d,
    "resnet50_gn": lambda: torchvision.models.resnet50(norm_layer=group_norm),
    "resnet50_frozen": lambda: torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d),
}


@pytest.fixture
def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_belongs_to_the_plan(name):
    network = NETWORKS[name]()
    plan = slim_plan(network)
    assert set(dict(network.named_parameters())) <= set(plan.tensors)
    for parameter, tensor in network.named_parameters():
        shape = plan.tensor_shape(parameter, tensor.shape, 0.75)
        if parameter not in ("fc.bias",):
            assert shape != tuple(tensor.shape), f"{parameter} stays at full width"
    assert plan.tensor_shape("conv1.weight", network.conv1.weight.shape, 0.75)[1] == 3
    assert plan.tensor_shape("fc.weight", network.fc.weight.shape, 0.75)[0] == 1000


def test_resnext_keeps_whole_groups():
    network = torchvision.models.resnext50_32x4d()
    conv = network.layer1[0].conv2
    with at_width(network, 0.9), torch.no_grad():
        assert conv.groups == 29  # 32 * 0.9 = 28.8
        assert conv.weight.shape == (29 * 4, 4, 3, 3)
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)
    assert conv.groups == 32


@pytest.mark.parametrize("divisor", [8, 16])
@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "resnet50_gn"])
def test_a_divisor_keeps_the_nearest_multiple(name, divisor):
    network = NETWORKS[name]()
    plan = slim_plan(network)
    for group, channels in zip(plan.groups, plan.channels(0.9, divisor), strict=True):
        if group.fixed:
            assert channels == group.channels
        else:
            assert channels % divisor == channels % group.quantum == 0
            step = max(divisor, group.quantum)
            assert abs(channels - 0.9 * group.channels) <= step / 2
    assert plan.channels(1.0, divisor) == plan.channels(1.0)
    with at_width(network, 0.9, divisor=divisor), torch.no_grad():
        assert network.layer2[0].conv2.weight.shape[0] % divisor == 0
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)


def test_a_divisor_above_all_channels_leaves_the_network_whole(resnet18):
    assert slim_plan(resnet18).channels(0.5, 1024) == slim_plan(resnet18).channels(1.0)


@pytest.mark.parametrize("divisor", [0, -8, 1.5, True])
def test_divisor_out_of_range(resnet18, divisor):
    with pytest.raises(ConfigError, match="divisor must be an integer of at least 1"):
        with at_width(resnet18, 0.9, divisor=divisor):
            pass


def test_group_norm_keeps_whole_groups():
    network = NETWORKS["resnet50_gn"]()
    with at_width(network, 0.9):
        assert network.bn1.num_groups == 29
        assert network.bn1.weight.shape == (58,)
    assert network.bn1.num_groups == 32


def test_sub_network_equals_a_narrow_network(resnet18):
    """The slice computes what a network built narrow with the same numbers computes."""
    network = resnet18.eval()
    plan = slim_plan(network)
    narrow = copy.deepcopy(network)
    for name, tensor in [*narrow.named_parameters(), *narrow.named_buffers()]:
        shape = plan.tensor_shape(name, tensor.shape, 0.5)
        tensor.data = tensor.data[tuple(slice(n) for n in shape)].clone()
    image = torch.randn(2, 3, 64, 64)
    with at_width(network, 0.5):
        sliced = network(image)
    assert torch.equal(sliced, narrow(image))
    assert not torch.allclose(sliced, network(image))


def test_stage_outputs_are_padded_with_zeros():
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torchvision.models.resnet18()
            del self.net.fc

        def forward(self, x):
            net = self.net
            one = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))
            two = net.layer2(one)
            return {"res2": one, "pair": (two, net.layer4(net.layer3(two)))}

    network = Features().eval()
    with at_width(network, 0.9):
        out = network(torch.randn(1, 3, 64, 64))
    assert out["res2"].shape[1] == 64
    assert out["pair"][1].shape[1] == 512
    assert out["res2"][:, 58:].abs().sum() == 0
    assert out["res2"][:, :58].abs().sum() > 0


def test_gradients_reach_exactly_the_first_channels(resnet18):
    plan = slim_plan(resnet18)
    with at_width(resnet18, 0.75):
        resnet18(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in resnet18.named_parameters():
        kept = torch.zeros_like(parameter, dtype=torch.bool)
        kept[tuple(slice(n) for n in plan.tensor_shape(name, parameter.shape, 0.75))] = True
        assert parameter.grad[~kept].abs().sum() == 0, name
        assert parameter.grad[kept].abs().sum() > 0, name


def test_gradients_are_those_of_autograds_own_slices_and_add_up(resnet18):
    plan, image = slim_plan(resnet18), torch.randn(2, 3, 64, 64)
    slices = {
        name: tensor[tuple(slice(n) for n in plan.tensor_shape(name, tensor.shape, 0.75))]
        for name, tensor in [*resnet18.named_parameters(), *resnet18.named_buffers()]
    }
    resnet18.eval()
    functional_call(resnet18, slices, image).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in resnet18.named_parameters()}
    resnet18.zero_grad()
    held = [p.grad for p in resnet18.parameters()]
    for times in (1, 2):
        with at_width(resnet18, 0.75):
            resnet18(image).square().sum().backward()
        for name, parameter in resnet18.named_parameters():
            assert torch.equal(parameter.grad, times * expected[name]), name
    assert held == [None] * len(held)


def test_frozen_parameters_get_no_gradient(resnet18):
    resnet18.conv1.requires_grad_(False)
    with at_width(resnet18, 0.75):
        resnet18(torch.randn(2, 3, 64, 64)).square().sum().backward()
        assert not resnet18.conv1.weight.requires_grad
    assert resnet18.conv1.weight.grad is None and resnet18.fc.weight.grad is not None


def test_a_backward_after_the_block_reaches_the_parameters_too(resnet18):
    with at_width(resnet18, 0.75):
        loss = resnet18(torch.randn(2, 3, 64, 64)).square().sum()
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in resnet18.parameters())


def test_gradients_of_slices_are_not_held_until_the_end_of_backward(resnet18):
    """The whole network's gradients are there already: a pass needs its activations beside them,
    and one layer's gradient at a time."""
    resnet18.train()
    image = torch.randn(1, 3, 32, 32)  # next to no activations
    resnet18(image.repeat(2, 1, 1, 1)).sum().backward()

    def step():
        with at_width(resnet18, 0.9):
            resnet18(image.repeat(2, 1, 1, 1)).square().sum().backward()

    step()
    largest = max(p.nbytes for p in resnet18.parameters())
    whole = sum(p.nbytes for p in resnet18.parameters())
    assert peak_growth(step, torch.device("cpu")) < 3 * largest < 0.7 * whole


def test_channels_last_weights_stay_so_and_gradients_are_the_same(resnet18):
    resnet18.double()
    image = torch.randn(2, 3, 64, 64, dtype=torch.double)
    gradients = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        resnet18.to(memory_format=memory_format).zero_grad()
        with at_width(resnet18, 0.75, norm="frozen"):
            resnet18(image).square().sum().backward()
        gradients.append({k: p.grad.clone() for k, p in resnet18.named_parameters()})
    weight = resnet18.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.grad.is_contiguous(memory_format=torch.channels_last)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-12)


def state_and_attributes(network):
    return (
        {k: v.clone() for k, v in network.state_dict().items()},
        [
            (name, layer.training, getattr(layer, "track_running_stats", None))
            for name, layer in network.named_modules()
        ],
        [id(p) for p in network.parameters()],
    )


def assert_same(before, network):
    state, attributes, ids = state_and_attributes(network)
    assert all(torch.equal(before[0][k], v) for k, v in state.items())
    assert attributes == before[1]
    assert ids == before[2]


@pytest.mark.parametrize("norm", ["auto", "batch", "frozen"])
def test_full_width_and_statistics_come_back(resnet18, norm):
    resnet18.train()
    image = torch.randn(2, 3, 64, 64)
    slim_plan(resnet18)
    before = state_and_attributes(resnet18)
    with at_width(resnet18, 0.9, norm=norm):
        resnet18(image)
    assert_same(before, resnet18)
    with pytest.raises(RuntimeError, match="boom"), at_width(resnet18, 0.9, norm=norm):
        raise RuntimeError("boom")
    assert_same(before, resnet18)
    with pytest.raises(RuntimeError), at_width(resnet18, 0.9, norm=norm):
        resnet18(torch.randn(2, 7, 64, 64))  # fails in the middle of the forward pass
    assert_same(before, resnet18)


def test_norm_policies_differ_as_documented(resnet18):
    image = torch.randn(4, 3, 64, 64)
    resnet18.train()
    for _ in range(3):
        resnet18(image)  # running statistics that are neither 0/1 nor the batch's
    outputs = {}
    for mode in (True, False):
        resnet18.train(mode)
        for norm in ("auto", "batch", "frozen"):
            with torch.no_grad(), at_width(resnet18, 0.9, norm=norm):
                outputs[mode, norm] = resnet18(image)
    assert torch.equal(outputs[True, "auto"], outputs[True, "batch"])
    assert torch.equal(outputs[False, "auto"], outputs[False, "frozen"])
    assert torch.equal(outputs[True, "batch"], outputs[False, "batch"])
    assert not torch.allclose(outputs[True, "batch"], outputs[True, "frozen"])


def test_batch_policy_needs_batch_norm():
    network = NETWORKS["resnet50_frozen"]()
    with pytest.raises(ConfigError, match=r"subnet_norm is 'batch'.*use 'frozen'"):
        with at_width(network, 0.9, norm="batch"):
            pass
    with at_width(network, 0.9, norm="auto"):
        assert network.bn1.running_var.shape == (57,)
    assert network.bn1.running_var.shape == (64,)


@pytest.mark.parametrize("width", [0, -0.1, 1.01, "0.9", None, True, float("nan")])
def test_width_out_of_range(resnet18, width):
    with pytest.raises(ConfigError, match=r"width must be a number in \(0, 1\]"):
        with at_width(resnet18, width):
            pass


def test_unknown_policy_and_nesting(resnet18):
    with pytest.raises(ConfigError, match="subnet_norm must be one of"):
        with at_width(resnet18, 0.9, norm="bn"):
            pass
    with pytest.raises(UnslimmableError, match="nested"):
        with at_width(resnet18, 0.9), at_width(resnet18, 0.5):
            pass
    assert resnet18.conv1.weight.shape[0] == 64


def test_a_width_that_is_set_stays_until_the_next_one(resnet18):
    whole = resnet18.conv1.weight
    for width, channels in ((0.5, 32), (0.75, 48), (0.5, 32)):
        set_width(resnet18, width)
        assert resnet18.conv1.weight.shape[0] == channels
        assert resnet18.conv1.weight.data_ptr() == whole.data_ptr()
    with pytest.raises(ConfigError, match="width must be"):
        set_width(resnet18, 2)
    assert resnet18.conv1.weight.shape[0] == 32
    for use in (nn.Sequential(resnet18).state_dict, resnet18.layer1.state_dict):
        with pytest.raises(UnslimmableError, match=r"tensors that are cut; set_width\(module, 1\)"):
            use()
    for use in (copy.deepcopy, lambda network: torch.save(network, io.BytesIO())):
        with pytest.raises(UnslimmableError, match=r"set_width\(module, 1\) first"):
            use(resnet18)
    set_width(resnet18, 1)
    assert resnet18.conv1.weight is whole and not resnet18._forward_hooks
    assert resnet18.state_dict()["conv1.weight"].shape == whole.shape


def test_slices_that_are_kept_follow_their_network(resnet18):
    """Of a width used before, after whatever may have happened to the network meanwhile."""

    def swap_data():
        resnet18.conv1.weight.data = torch.randn_like(resnet18.conv1.weight)

    def replace_parameter():
        resnet18.fc.weight = nn.Parameter(torch.randn_like(resnet18.fc.weight))

    def replace_layer():
        resnet18.bn1 = nn.SyncBatchNorm(64)
        nn.init.uniform_(resnet18.bn1.weight)

    changes = [swap_data, replace_parameter, replace_layer, resnet18.double, resnet18.float]
    changes += [lambda: resnet18.layer1.requires_grad_(False), resnet18.layer1.requires_grad_]
    changes += [lambda: resnet18.bn1.running_var.mul_(2), lambda: resnet18.load_state_dict(state)]
    state = torchvision.models.resnet18(num_classes=5).state_dict()
    resnet18.eval()
    with torch.inference_mode(), at_width(resnet18, 0.5):
        resnet18(torch.randn(1, 3, 32, 32))
    for change in [lambda: None, lambda: None, *changes]:
        change()
        fresh = copy.deepcopy(resnet18)
        images = torch.randn(2, 3, 32, 32, dtype=resnet18.fc.weight.dtype)
        outputs = []
        for network in (resnet18, fresh):
            network.zero_grad()
            with at_width(network, 0.5):
                outputs.append(network(images))
                outputs[-1].sum().backward()
        assert torch.equal(*outputs)
        for one, other in zip(resnet18.parameters(), fresh.parameters(), strict=True):
            assert one.grad is other.grad is None or torch.equal(one.grad, other.grad)


class OwnNorm(nn.Module):
    """A norm that records whatever it is told, as Detectron2's and MMCV's synchronized ones do."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("calls", torch.tensor(0))
        self.steps, self.first, self.ema = 0, True, torch.zeros(3)

    def forward(self, x):
        with torch.no_grad():
            self.running_mean += x.mean((0, 2, 3))
            self.calls += 1
            self.ema += 1
        self.steps, self.first = self.steps + 1, False
        return x * self.weight[:, None, None] - self.running_mean[:, None, None]


def own_norms():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        OwnNorm(8),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8, momentum=None),
        nn.Conv2d(8, 8, 1),
        nn.BatchNorm2d(8, affine=False),
    ).train()


def test_no_traces():
    """Of layers of any kind, and autograd still has what the forward pass read."""
    network = own_norms()
    slim_plan(network)  # runs the network too
    assert network[1].steps == network[1].calls == 0 and network[1].first
    before, own = state_and_attributes(network), dict(vars(network[1]))
    own["ema"] = own["ema"].clone()
    with no_traces(network):
        network(torch.randn(2, 3, 16, 16)).square().sum().backward()
        assert network[1].steps == 1 and network[1].calls == 1
    assert_same(before, network)
    assert (network[1].steps, network[1].first) == (0, True)
    assert torch.equal(network[1].ema, own["ema"])


@pytest.mark.parametrize("norm", ["auto", "batch"])
def test_running_statistics_are_never_written_at_a_width(norm):
    network = own_norms()
    slim_plan(network)
    before = {n: b.clone() for n, b in network.named_buffers() if "running" in n}
    assert len(before) == 5
    with at_width(network, 0.5, norm):
        network(torch.randn(2, 3, 16, 16)).square().sum().backward()
        assert network[1].running_mean.abs().min() > 0
    after = dict(network.named_buffers())
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (torchvision.models.densenet121, "denselayer1.*'cat'"),
        (torchvision.models.swin_t, "'permute'"),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2)), "'1'.*'pixel_shuffle'"),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 1, groups=4)), "'1'.*8 to 16"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), "no convolution"),
        # The first convolution reads more channels than the image has, as YOLOX's.
        (
            lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3)),
            "Sequential: .* blank image stops with RuntimeError: .*got 48 channels",
        ),
    ],
)
def test_unslimmable_networks_name_the_layer(build, layer):
    with pytest.raises(UnslimmableError, match=layer):
        slim_plan(build())


class Maximum(nn.Module):
    def forward(self, maps):
        return maps.clamp(-6, 6).amax((2, 3), keepdim=True).neg().exp()


@pytest.mark.parametrize(
    "layer",
    [nn.SELU(), nn.SELU(True), nn.Mish(True), nn.Hardsigmoid(), nn.Softplus(), Maximum()],
)
def test_functions_of_each_channel_are_followed(layer):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.AdaptiveMaxPool2d(2), nn.Conv2d(8, 4, 1))
    plan = slim_plan(network)
    assert plan.tensor_shape("0.weight", network[0].weight.shape, 0.5) == (4, 3, 3, 3)
    assert plan.tensor_shape("3.weight", network[3].weight.shape, 0.5) == (2, 4, 1, 1)


def test_unused_parameters_are_named():
    network = torchvision.models.resnet18()
    network.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(UnslimmableError, match=r"layer 'spare' \(Conv2d\)"):
        slim_plan(network)


def test_tracing_leaves_the_network_alone(resnet18):
    resnet18.train()
    resnet18.layer1.eval()
    before = state_and_attributes(resnet18)
    slim_plan(resnet18)
    assert_same(before, resnet18)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in resnet18.modules())


def test_bfloat16_autocast_forward_and_backward(resnet18):
    with torch.autocast("cpu", dtype=torch.bfloat16), at_width(resnet18, 0.9):
        out = resnet18(torch.randn(2, 3, 64, 64))
        out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(p.grad.isfinite().all() for p in resnet18.parameters())


def test_a_plan_survives_a_copy(resnet18):
    slim_plan(resnet18)
    clone = copy.deepcopy(resnet18)
    assert slim_plan(clone) == slim_plan(resnet18)
    assert set(clone.state_dict()) == set(torchvision.models.resnet18(num_classes=5).state_dict())


class Pooler(nn.Module):
    out_channels = 8

    def forward(self, maps, boxes):
        pooled = boxes.new_zeros(len(boxes), self.out_channels, 2, 2)
        return pooled + sum(x.mean((2, 3))[:, :, None, None] for x in maps)


class Detector(nn.Module):
    """A neck of two maps, a head for both of them, and two for what is pooled from them."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.neck = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 2)])
        self.shared = nn.Sequential(nn.Conv2d(8, 8, 3, groups=4), nn.GroupNorm(2, 8), nn.ReLU())
        self.scores = nn.Conv2d(8, 3, 1)
        self.pooler = Pooler()
        self.box = nn.Sequential(nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 4))
        self.mask = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.Conv2d(6, 3, 1))

    def forward(self, image):
        features = self.backbone(image)
        maps = [layer(features) for layer in self.neck]
        scores = [self.scores(self.shared(x)).permute(0, 2, 3, 1).flatten() for x in maps]
        pooled = self.pooler(maps, torch.cat(scores)[:2, None])
        return torch.cat(scores).topk(3), self.box(pooled).softmax(1), self.mask(pooled)


def example(*whole):
    return ExamplePass(lambda d: d(torch.zeros(1, 3, 32, 32)), (Pooler,), whole)


def test_a_whole_detector_is_narrow_up_to_its_predictions():
    torch.manual_seed(0)
    detector = slim_detector(Detector(), example()).eval()
    whole = detector.box[1].weight
    with at_width(detector, 0.5):
        shapes = {name: tuple(tensor.shape) for name, tensor in detector.named_parameters()}
        # A flattened map has the four pixels of each channel in a row.
        assert torch.equal(detector.box[1].weight, whole[:6, : 4 * 4])
        assert detector.pooler.out_channels == 4 and detector.shared[0].groups == 2
        assert detector.shared[1].num_groups == 1
        _, boxes, masks = detector(torch.randn(1, 3, 64, 64))
    assert boxes.shape == (2, 4) and masks.shape == (2, 3, 4, 4)
    assert shapes["neck.0.weight"] == (4, 4, 1, 1) and shapes["shared.0.weight"] == (4, 2, 3, 3)
    assert shapes["scores.weight"] == (3, 4, 1, 1) and shapes["box.3.weight"] == (4, 6)
    assert shapes["mask.0.weight"] == (4, 3, 2, 2) and shapes["mask.2.weight"] == (3, 3, 1, 1)
    assert detector.pooler.out_channels == 8 and detector.box[1].weight is whole


def test_a_part_that_is_kept_whole_reads_whole_maps():
    detector = slim_detector(Detector(), example("mask"))
    with at_width(detector, 0.5):
        assert detector.mask[0].weight.shape == (8, 6, 2, 2)
        assert detector.neck[0].weight.shape == (8, 4, 1, 1)  # of a narrow backbone's map
        assert detector.box[1].weight.shape == (6, 32)
    with pytest.raises(ConfigError, match="keep_whole has 'masks', not a part as mask"):
        slim_detector(detector, example("masks"))


def test_a_plan_is_not_derived_of_a_narrow_detector():
    detector = slim_detector(Detector(), example())
    set_width(detector, 0.5)
    for part in (detector, nn.Sequential(detector)):
        with pytest.raises(GradAugError, match=r"at width 0.5 already; set_width\("):
            slim_plan(part, example())
    set_width(detector, 1)
    set_width(detector, 0.5)  # the plan is still there
    assert detector.box[1].weight.shape == (6, 16)


class Stages(Detector):
    """A cascade, of which evaluation runs the last stage's mask alone."""

    def __init__(self):
        super().__init__()
        self.poolers = nn.ModuleList([Pooler(), Pooler()])
        self.masks = nn.ModuleList([copy.deepcopy(self.mask), self.mask])
        del self.pooler, self.mask

    def forward(self, image):
        maps = [layer(self.backbone(image)) for layer in self.neck]
        scores = [self.scores(self.shared(x)).flatten() for x in maps]
        pooled = self.poolers[1](maps, torch.cat(scores)[:2, None])
        return self.box(pooled).softmax(1), [mask(pooled) for mask in self.masks]


def test_stages_pool_alike_and_are_kept_whole_together():
    with at_width(slim_detector(Stages(), example()), 0.5) as detector:
        assert [pooler.out_channels for pooler in detector.poolers] == [4, 4]
    with at_width(slim_detector(Stages(), example("masks")), 0.5) as detector:
        assert [mask[0].weight.shape[:2] for mask in detector.masks] == [(8, 6)] * 2
    detector.other = Pooler()
    with pytest.raises(UnslimmableError, match="layer 'other': no pass in evaluation mode runs"):
        slim_detector(detector, example())


class Hidden(nn.Module):
    """A layer whose function nobody sees, as a deformable convolution is."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))

    def forward(self, x):
        return torch.from_numpy(x.numpy() * self.weight.sum().numpy())


class Refined(nn.Conv2d):
    """Scores that a layer reads on the way to where they are flattened."""

    def __init__(self):
        super().__init__(8, 3, 1)
        self.refine = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        scores = super().forward(x)
        return self.refine(scores) + scores.softmax(1)


def shuffle():
    return nn.Sequential(nn.Conv2d(8, 8, 1), nn.PixelShuffle(2), nn.Conv2d(2, 1, 1))


@pytest.mark.parametrize(
    ("part", "build", "problem"),
    [
        ("mask", shuffle, "layer 'mask.1'.*'pixel_shuffle'.*keep_whole"),
        ("mask", Hidden, "layer 'mask': Hidden computes what cannot be followed"),
        ("scores", Refined, "layer 'scores': function 'softmax'"),
        ("spare", lambda: nn.Conv2d(1, 1, 1), r"layer 'spare' \(Conv2d\)"),
    ],
)
def test_what_cannot_be_cut_is_named_or_kept_whole(part, build, problem):
    detector = Detector()
    setattr(detector, part, build())
    with pytest.raises(UnslimmableError, match=problem):
        slim_detector(detector, example())
    left = [vars(layer) for layer in detector.modules()]
    assert not any(own["_forward_hooks"] or "forward" in own for own in left)
    if part == "spare":
        with pytest.raises(ConfigError, match="keep_whole has 'spare', which no pass in eval"):
            slim_detector(detector, example(part))
    else:
        with at_width(slim_detector(detector, example(part)), 0.5):
            assert detector.box[1].weight.shape[0] == 6
            assert detector.neck[0].weight.shape[0] == 8
