"""SIGTERM is noted, and those that load images outlive it, but not the training."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from gradaug_det.core.preemption import TerminationNotice, workers_outlive_sigterm
from tests.faults.killing import processes_with


class Groups(Dataset):
    """Images that say in which process group they were loaded, and by whom."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return os.getpgid(0), os.getpid()


def count(worker):
    os.environ["WORKER"] = str(worker)


class Counted(Groups):
    def __getitem__(self, index):
        return int(os.environ["WORKER"])


@pytest.fixture(autouse=True, scope="module")
def nothing_left_of_other_tests():
    """Of trainings that an exception ended."""
    last = TerminationNotice()
    last.listen()
    last.close()


@pytest.fixture
def notice():
    before, made = signal.getsignal(signal.SIGTERM), TerminationNotice()
    yield made
    made.close()
    signal.signal(signal.SIGTERM, before)


def test_it_notes_one_and_ignores_the_rest(notice):
    notice.listen()
    assert not notice.received()
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.received()
    notice.close()
    os.kill(os.getpid(), signal.SIGTERM)  # while the process ends


def test_without_a_signal_all_is_as_before(notice):
    before, original = signal.getsignal(signal.SIGTERM), DataLoader._get_iterator
    notice.listen()
    assert signal.getsignal(signal.SIGTERM) != before
    notice.close()
    notice.close()
    assert signal.getsignal(signal.SIGTERM) is before and DataLoader._get_iterator is original


def test_a_training_that_an_exception_ended_leaves_nothing_to_the_next(notice):
    before, original = signal.getsignal(signal.SIGTERM), DataLoader._get_iterator
    TerminationNotice().listen()  # and is never closed
    notice.listen()
    notice.close()
    assert signal.getsignal(signal.SIGTERM) is before and DataLoader._get_iterator is original


def test_a_fork_of_the_training_dies_of_it(notice):
    """As a Pool's processes must, whose end waits for them."""
    notice.listen()
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        os.write(tell, b"x")  # Python forgets what comes while it forks
        time.sleep(30)
        os._exit(0)
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert not notice.received()
    notice.close()


def test_workers_have_groups_of_their_own():
    loader = DataLoader(Groups(), 2, num_workers=2, worker_init_fn=None)
    with workers_outlive_sigterm():
        batches = list(loader)
        assert next(iter(DataLoader(Groups(), 4)))[0].tolist() == [os.getpgid(0)] * 4
    for groups, processes in batches:
        assert groups.tolist() == processes.tolist()
    assert {int(group) for groups, _ in loader for group in groups} == {os.getpgid(0)}


def test_a_worker_init_fn_of_the_users_is_called():
    loader = DataLoader(Counted(), 1, num_workers=2, worker_init_fn=count)
    with workers_outlive_sigterm():
        assert sorted(int(batch) for batch in loader) == [0] * 4 + [1] * 4
    assert loader.worker_init_fn is count


def test_workers_that_were_there_before(notice):
    loader = iter(DataLoader(Groups(), 1, num_workers=1, prefetch_factor=1))
    with workers_outlive_sigterm():
        assert [int(g) == int(p) for g, p in loader][-1]


TRAINING = """
import sys
from torch.utils.data import DataLoader
from gradaug_det.core.preemption import TerminationNotice
from tests.core.test_preemption import Large
if __name__ == "__main__":
    notice = TerminationNotice()
    notice.listen()
    loader = DataLoader(Large(), 1, num_workers=2, multiprocessing_context=sys.argv[1])
    for step, batch in enumerate(loader):
        if step == 2:
            print("steps", flush=True)
        if notice.received():
            print("told", step, flush=True)
            sys.exit(75)
"""


class Large(Dataset):
    """More than a pipe holds, so that workers wait to hand it over; a slow one."""

    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        time.sleep(0.02)
        return bytes(2**17)


@pytest.mark.parametrize(
    ("context", "number"),
    [
        ("fork", signal.SIGTERM),
        ("fork", signal.SIGKILL),
        ("forkserver", signal.SIGTERM),
        ("spawn", signal.SIGKILL),
    ],
)
def test_a_group_is_told_and_nobody_is_left(context, number, tmp_path):
    (tmp_path / "training.py").write_text(TRAINING)
    mark = f"GRADAUG_MARK={tmp_path}"
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, tmp_path / "training.py", context],
        env={**os.environ, "PYTHONPATH": str(root), **dict([mark.split("=", 1)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "steps\n"
    os.killpg(process.pid, number)
    if number == signal.SIGTERM:
        assert process.stdout.readline().startswith("told"), process.stderr.read()
        os.killpg(process.pid, number)
    assert process.wait(60) == (75 if number == signal.SIGTERM else -number)
    deadline = time.monotonic() + 20
    while processes_with(mark):
        assert time.monotonic() < deadline, "processes are left behind"
        time.sleep(0.1)


class Others:
    """Another process, which is told to go when this one is asked for the first time."""

    several = True

    def __init__(self):
        self.periods = []

    def largest(self, own):
        if not self.periods:
            os.kill(os.getpid(), signal.SIGTERM)
        self.periods.append(-own[1])
        return own

    def close(self):
        pass


def test_a_signal_while_processes_agree_is_for_the_next_time(notice):
    """It was lost when it came between the question and the answer."""
    notice.listen()
    notice._meeting = others = Others()
    assert not notice.received()
    assert others.periods[0] > 100  # no step has taken any time here
    asked = [notice.received() for _ in range(others.periods[0])]
    assert asked == [False] * (others.periods[0] - 1) + [True]
    assert len(others.periods) == 2
    notice.close()
