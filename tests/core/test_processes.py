"""Two processes (gloo): what one of them finds is decided by both, and said in both."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18

from gradaug_det.core.gradients import (
    EarlyGradients,
    average_gradients,
    check_gradients,
    sent_dtype,
)
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.processes import Meeting, synchronized_norms
from gradaug_det.core.regularizer import sub_network_passes
from gradaug_det.core.sampling import sample_sub_networks
from gradaug_det.errors import GradAugError, NonFiniteLossError
from gradaug_det.pretrain.classifier import Classifier

SUBS = sample_sub_networks(GradAugOptions(2, 0.7, (1.0,), seed=4), 5)


class Bad(Classifier):
    """Sub-network 0 goes wrong in the second process alone."""

    how, whole = None, None

    @property
    def module(self):
        return self.whole or self.backbone

    def sub_network_pass(self, batch, soft_target, sub):
        bad = sub.index == 0 and dist.get_rank() == 1
        if bad and self.how == "stops":
            raise FloatingPointError("Training has diverged.")
        losses = super().sub_network_pass(batch, soft_target, sub)
        return {k: v * torch.nan for k, v in losses.items()} if bad and self.how else losses


def gradients(module):
    return {n: None if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}


def said(run):
    try:
        run()
    except GradAugError as error:
        return type(error).__name__, str(error), getattr(error, "here", None)


def said_of_hook(hook):
    model = DistributedDataParallel(nn.Linear(2, 2))
    if hook:
        model.register_comm_hook(None, hook)
    found = []
    return said(lambda: found.append(str(sent_dtype(model)))) or found[0]


def averaged(rank, meeting, dtype=None, early=False):
    torch.manual_seed(0)
    module = nn.ModuleDict(
        {
            "both": nn.Linear(3000, 3000),  # 36 MB: more than a bucket
            "one": nn.Linear(4, 4).double(),  # used on rank 1 alone, and of another dtype
            "none": nn.Linear(4, 4),
            "frozen": nn.Linear(4, 4).requires_grad_(False),
        }
    )
    for parameter in module["both"].parameters():
        parameter.grad = torch.full_like(parameter, rank + 1.0 if dtype is None else 1 / 3)
    if rank == 1:
        for parameter in module["one"].parameters():
            parameter.grad = torch.full_like(parameter, 4.0)
    sent = None
    if early:
        trained = [p for p in module.parameters() if p.requires_grad]
        sent = EarlyGradients(trained, dtype)
        if rank == 0:
            sent.send()  # the other process comes later, and with more
            module["one"].weight.grad.add_(1.0)
    average_gradients(module, meeting, dtype, sent)
    return gradients(module)


def _work(rank, address, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    meeting, seen = Meeting(), {}
    seen["average"] = averaged(rank, meeting)
    seen["early"] = averaged(rank, meeting, early=True)
    seen["hooks"] = [said_of_hook(hook) for hook in (None, fp16_compress_hook, powerSGD_hook)]
    seen["in 16 bits"] = averaged(rank, meeting, torch.float16)
    seen["none"], seen["both"] = meeting.problems(), meeting.problems(f"problem of {rank}")
    seen["gathered"] = meeting.gather({"rank": rank})
    torch.manual_seed(0)
    network = Bad(resnet18(num_classes=4).train())
    batch = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    target = network.module(batch[0]).detach()

    def passes(how, skip, subs=SUBS):
        network.how = how
        network.module.zero_grad()
        return sub_network_passes(
            network, batch, target, subs, nonfinite="skip" if skip else "raise", meeting=meeting
        )

    passes(None, False, SUBS[1:])
    seen["second alone"] = gradients(network.module)
    for how in ("nan", "stops"):
        results = passes(how, True)
        seen[f"{how} skipped"] = [str(r.problem or "") for r in results]
        seen[f"{how} gradients"] = gradients(network.module)
        seen[f"{how} raised"] = said(lambda how=how: passes(how, False))
    # Accumulated gradients, not averaged yet: of the second process alone not finite.
    layer = nn.Linear(2, 2)
    for skip in (False, True):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, torch.inf if rank else 1.0)
        args = layer, 7, skip, None, meeting
        seen[f"gradient {skip}"] = said(lambda args=args: seen.update(whole=check_gradients(*args)))
        seen[f"zeros {skip}"] = all(p.grad.eq(0).all().item() for p in layer.parameters())
    # A norm over all processes in what follows the backbone: nobody can be told.
    network.whole = nn.ModuleDict({"body": network.backbone, "head": nn.SyncBatchNorm(4)})
    if rank == 1:
        seen["norm"] = said(lambda: passes("stops", True))
        meeting.close()
        seen["left"] = said(meeting.problems)
    else:
        seen["left"] = said(meeting.problems)
    torch.save(seen, f"{out}/{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(_work, (str(folder / "store"), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


def test_problems_and_values_are_known_to_all(seen):
    for one in seen:
        assert one["none"] == {} and one["both"] == {0: "problem of 0", 1: "problem of 1"}
    assert seen[0]["gathered"] == [{"rank": 0}, {"rank": 1}] and seen[1]["gathered"] == []


@pytest.mark.parametrize(
    ("how", "reason"), [("nan", "has the losses"), ("stops", "stopped: Training has diverged.")]
)
def test_a_sub_network_is_left_out_by_all_or_none(seen, how, reason):
    for rank, one in enumerate(seen):
        first, second = one[f"{how} skipped"]
        assert reason in first and first.startswith("in process 1: ") == (rank == 0)
        assert second == ""
        for name, gradient in one["second alone"].items():
            assert torch.equal(one[f"{how} gradients"][name], gradient), name
        kind, text, here = one[f"{how} raised"]
        assert kind == "NonFiniteLossError" and reason in text and here == (rank == 1)


def test_gradients_before_their_average(seen):
    for rank, one in enumerate(seen):
        kind, text, _ = one["gradient False"]
        assert kind == "NonFiniteLossError" and "2 of 2 parameters" in text
        assert text.startswith("in process 1") == (rank == 0) and not one["zeros False"]
        assert one["gradient True"] is None and one["whole"] is False and one["zeros True"]


def test_what_cannot_be_told_is_said_at_once(seen):
    kind, text, _ = seen[1]["norm"]
    assert kind == "NonFiniteLossError" and "wait for this one in head (SyncBatchNorm)" in text
    assert seen[0]["left"][0] == "GradAugError"
    assert "this process has left" in seen[1]["left"][1]
    assert "another process of this training has stopped" in seen[0]["left"][1]


def test_average_gradients(seen):
    for grads in (one["average"] for one in seen):
        assert (grads["both.weight"] == 1.5).all() and (grads["both.bias"] == 1.5).all()
        assert (grads["one.weight"] == 2.0).all() and grads["one.weight"].dtype == torch.float64
        assert grads["none.weight"] is None  # an optimizer must not touch it
        assert grads["frozen.weight"] is None


def test_what_is_added_to_a_gradient_after_it_was_sent_is_sent_again(seen):
    for grads in (one["early"] for one in seen):
        assert (grads["both.weight"] == 1.5).all() and (grads["one.bias"] == 2.0).all()
        assert (grads["one.weight"] == 2.5).all()
        assert grads["none.weight"] is None and grads["frozen.weight"] is None


def test_gradients_are_sent_as_ddps_hook_sends_them(seen):
    third = torch.tensor(1 / 6).half().float() * 2  # each process divides by their number first
    for one in seen:
        assert torch.equal(one["in 16 bits"]["both.bias"], third.expand(3000))
        plain, half, (kind, text, _) = one["hooks"]
        assert (plain, half, kind) == ("None", "torch.float16", "ConfigError")
        assert "was called with powerSGD_hook, which gradients of sub-networks" in text


def test_norms_over_all_processes():
    module = nn.ModuleDict({"body": nn.SyncBatchNorm(2), "head": nn.SyncBatchNorm(2)})
    assert synchronized_norms(module, module["body"]) == ["head (SyncBatchNorm)"]
    assert synchronized_norms(module.eval(), nn.Identity()) == []


def test_alone_there_is_nothing_to_wait_for():
    meeting = Meeting()
    assert meeting.problems() == {} and meeting.problems("mine") == {0: "mine"}
    assert meeting.gather(3) == [3]
    own = NonFiniteLossError("mine")
    assert meeting.first_problem(own) is own and meeting.first_problem(None) is None
    meeting.close()
