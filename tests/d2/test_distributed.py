"""Two processes: one gradient crossing a step, the gradients of a single process."""

import gc

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from gradaug_det.core.depth import at_depth
from gradaug_det.core.gradients import BUCKET_BYTES, EarlyGradients
from gradaug_det.core.sampling import sample_own_pass, sample_sub_networks
from gradaug_det.core.slimming import at_width
from gradaug_det.d2 import GradAugHook
from gradaug_det.d2.detector import GradAugDetector
from gradaug_det.errors import GradAugError

from .helpers import make_trainer, storage, tiny_batch, tiny_cfg, tiny_model

OPTIONS = {"num_subnets": 2, "min_width": 0.8, "scales": [1.0, 0.75], "seed": 5}


def _work(rank, address, out, options):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    comm._LOCAL_PROCESS_GROUP = dist.new_group([0, 1])  # what Detectron2's launch does
    model = tiny_model("mask_rcnn", double=True)
    hook = GradAugHook(**options)
    seen, reduced, all_reduce = {}, [], dist.all_reduce

    def counting(tensor, *args, **kwargs):
        reduced.append(tensor.nbytes)
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = counting
    # As a backward pass leaves the neck: three times in a step of three passes.
    neck = model.backbone.fpn_lateral5.weight
    neck.register_post_accumulate_grad_hook(lambda _: reduced.append(0))
    ddp = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.register_step_pre_hook(
        lambda *_: seen.update({n: p.grad.clone() for n, p in model.named_parameters()})
    )
    trainer = make_trainer(ddp, hook, data=[tiny_batch(10 + rank)] * 2, optimizer=optimizer)
    torch.manual_seed(100 + rank)
    trainer.train(0, 1)
    gradients = dict(seen)
    trainer.train(1, 2)
    gc.collect()
    torch.save(
        {
            "gradients": gradients,
            "weights": model.state_dict(),
            "bytes": reduced,
            "left": sum(isinstance(one, EarlyGradients) for one in gc.get_objects()),
            "scalars": {k: v for k, (v, _) in trainer.storage.latest().items()},
        },
        f"{out}/{rank}.pth",
    )
    dist.destroy_process_group()


def _single(options):
    """Mean over the two ranks' batches of the gradients, computed in this process."""
    total = {}
    hook = GradAugHook(**options)
    own = sample_own_pass(hook.options, 0).width
    for rank in range(2):
        model = tiny_model("mask_rcnn", double=True)
        network, batch = GradAugDetector(model, hook.options), tiny_batch(10 + rank)
        torch.manual_seed(100 + rank)
        with storage():
            with at_width(network.slimmed, own):
                losses, target = network.full_pass(batch)
                sum(losses.values()).backward()
            for sub in sample_sub_networks(hook.options, 0):
                torch.manual_seed(sub.seed + rank)
                with (
                    at_width(network.slimmed, sub.width),
                    at_depth(network.backbone, sub.block_survival, sub.seed),
                ):
                    losses = network.sub_network_pass(batch, target, sub)
                    sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            total[name] = total.get(name, 0) + parameter.grad / 2
    return total, sum(p.nbytes for p in model.parameters())


def _check(tmp_path, options):
    mp.spawn(_work, (str(tmp_path / "store"), str(tmp_path), options), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    expected, size = _single(options)
    for name, gradient in expected.items():
        assert torch.equal(one["gradients"][name], two["gradients"][name]), name
        scale = gradient.abs().max().item()
        assert (one["gradients"][name] - gradient).abs().max().item() <= 1e-8 * scale, name
    for name, value in one["weights"].items():
        assert torch.equal(value, two["weights"][name]), name
    assert one["left"] == two["left"] == 0, "a step's graph and gradients are never freed"
    # Every gradient crossed once in each of the two steps, beside one flag a parameter, one for the
    # heads' message and one for all losses; in a step of one full pass by DDP itself, beside the
    # backward pass.
    subs = options.get("num_subnets", 0)
    flags = 4 * (len(expected) + bool(subs))
    assert one["bytes"].count(4) == (2 if subs else 0)
    crossings = [n for n in one["bytes"] if n not in (flags, 4, 0)]
    steps = 2 if subs else 1
    if subs:  # the heads' gradients leave while the last backward pass is at the neck
        heads = [n for n in expected if not n.startswith("backbone.")]
        sent = sum(expected[n].nbytes for n in heads)
        assert one["bytes"][:4] == two["bytes"][:4] == [0, 0, sent, 0]
    assert sum(crossings) == steps * size
    assert len(crossings) <= steps * (size // BUCKET_BYTES + 3)
    for one_pass in [f"sub{index}" for index in range(subs)] or ["w1"]:
        name = f"gradaug/{one_pass}/loss"
        assert one["scalars"][name] > 0
        assert name not in two["scalars"]  # written by the main process, averaged


@pytest.mark.parametrize(
    "options",
    [
        {**OPTIONS, "supervision": "soft"},
        {**OPTIONS, "supervision": "labels"},
        # Both processes skip the same blocks, whose parameters have no gradient in that pass.
        {**OPTIONS, "min_width": 1.0, "block_survival": 0.0},
        # The first step is narrow, the second one is not.
        {"passes": "alternating", "widths": [0.5], "full_share": 0.5, "seed": 1},
    ],
    ids=["soft", "labels", "skipped blocks", "alternating"],
)
def test_gradients_of_two_processes(options, tmp_path):
    _check(tmp_path, options)


# ---- norms over all processes, and what goes wrong in one process -------------------------------


def synchronized():
    """Detectron2's own synchronized BatchNorm in the backbone, the neck and both heads."""
    cfg = tiny_cfg("mask_rcnn", norm="naiveSyncBN")
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 1, 16
    for part in (cfg.MODEL.FPN, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
        part.NORM = "naiveSyncBN"
    return tiny_model(cfg=cfg)


def _norms(rank, address, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    comm._LOCAL_PROCESS_GROUP = dist.new_group([0, 1])
    seen = {}

    def train(lr=0.0, bad=None, build=synchronized, **options):
        """Trains two steps; the first sub-network of the second process may go wrong."""
        model = build()
        if bad and rank == 1:
            calls = iter([None, bad])  # the full pass, the first sub-network
            model.roi_heads.box_predictor.register_forward_hook(
                lambda _m, _i, out: (next(calls, None) or (lambda x: x))(out)
            )
        ddp = DistributedDataParallel(model, broadcast_buffers=False)
        hook = GradAugHook(**{**OPTIONS, "supervision": "both", **options})
        trainer = make_trainer(ddp, hook, lr=lr, data=[tiny_batch(10 + rank)] * 2)
        torch.manual_seed(100 + rank)
        trainer.train(0, 2)
        return hook, model

    for name, number in ("plain", 0), ("gradaug", 2):
        seen[name] = dict(train(num_subnets=number)[1].named_buffers())
    hook, model = train(0.01, lambda out: tuple(x * torch.nan for x in out), nonfinite="skip")
    seen["skipped"], seen["weights"] = hook._skipped, model.state_dict()
    try:
        train(bad=lambda out: 1 / 0, build=tiny_model)  # whose norms are frozen
    except (GradAugError, ZeroDivisionError) as error:
        seen["error"] = str(error)
    torch.save(seen, f"{out}/{rank}.pth")
    dist.destroy_process_group()


def test_synchronized_norms_and_faults_of_one_process(tmp_path):
    mp.spawn(_norms, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    assert sum("running" in name for name in one["plain"]) > 50
    for seen in (one, two):
        moved = [n for n, b in seen["plain"].items() if not torch.equal(b, seen["gradaug"][n])]
        assert moved == []
    assert one["skipped"] == two["skipped"] == 1
    for name, value in one["weights"].items():
        assert torch.equal(value, two["weights"][name]) and value.isfinite().all(), name
    assert two["error"] == "division by zero"
    assert "another process of this training has stopped" in one["error"]
