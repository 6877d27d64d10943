"""`sweep` beyond one thread: processes and clusters, workers and sessions that are killed, the same numbers."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import xarray as xr

import flowsim as fs
from flowsim.integrate.sweep import executors
from flowsim.integrate.sweep import run as sweeps
from flowsim.integrate.trajectory import Options

FLOW = fs.GradientFlow(fs.Parallel())
START = fs.initial.matched(8, 2)
TIMES = [0.0, 0.05, 0.2]
OVER = {"schedule.temperature.init": [0.1, 0.3], "seed": [0, 1, 2]}
OPTIONS = {"over": OVER, "ts": TIMES, "chunk": 2}

OPTIONS_OF_A_CHUNK = Options(1e-9, 1e-12, None, 1000, ("loss",), np.dtype(np.float64), 0)

#: A sweep of 80 runs in 40 chunks, which says after each how far it is.
SESSION = """
import sys
import flowsim as fs
if __name__ == "__main__":
    def progress(text, done, total):
        if done:
            print("chunk", flush=True)
    fs.sweep(fs.GradientFlow(fs.Parallel()), fs.initial.matched(8, 2), {"seed": range(80)}, ts=[0.0, 0.05, 0.2],
             chunk=2, to=sys.argv[1], executor=sys.argv[2] if len(sys.argv) > 2 else None, progress=progress)
"""


def assert_identical(a, b):
    """To the last bit."""
    assert set(a.dataset.data_vars) == set(b.dataset.data_vars)
    for name in a.dataset.data_vars:
        np.testing.assert_array_equal(a[name].to_numpy(), b[name].to_numpy(), err_msg=name)


@pytest.fixture(scope="module")
def expected():
    return fs.sweep(FLOW, START, **OPTIONS)


@pytest.mark.parametrize("workers", [1, 2])
def test_threads_of_the_user_give_the_same_bits(expected, workers):
    with ThreadPoolExecutor(workers) as pool:
        assert_identical(fs.sweep(FLOW, START, **OPTIONS, executor=pool), expected)
        assert pool.submit(int).result() == 0  # it stays open


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_processes_give_the_same_bits(expected, workers, tmp_path):
    stored = fs.sweep(FLOW, START, **OPTIONS, executor=f"processes:{workers}", to=tmp_path / "runs.zarr")
    assert_identical(stored, expected)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        assert_identical(fs.sweep(FLOW, START, **OPTIONS, executor=pool), expected)


class Fragile(Executor):
    """Computes at once; the third call ends the process that would compute it."""

    def __init__(self, error):
        self.error, self.calls = error, 0

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        self.calls += 1
        if self.calls >= 3:
            future.set_exception(self.error)
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_lost_workers_lose_unfinished_chunks_only(expected, tmp_path, monkeypatch):
    """One sentence; the same call goes on, in the same chunks although their runs were begun."""
    from concurrent.futures.process import BrokenProcessPool

    folder = tmp_path / "runs.zarr"
    with pytest.raises(fs.FlowsimError, match=r"workers were lost.*BrokenProcessPool.*what has been stored is kept"):
        fs.sweep(FLOW, START, **OPTIONS, to=folder, executor=Fragile(BrokenProcessPool("killed")))
    sizes, chunk = [], sweeps.solve_chunk
    monkeypatch.setattr(sweeps, "solve_chunk", lambda jobs, *args: sizes.append(len(jobs)) or chunk(jobs, *args))
    assert_identical(fs.sweep(FLOW, START, **OPTIONS, to=folder), expected)
    assert sizes == [2]


def test_half_a_chunk_is_computed_again_as_a_whole(expected, tmp_path, monkeypatch):
    import zarr

    folder = tmp_path / "runs.zarr"
    fs.sweep(FLOW, START, **OPTIONS, to=folder)
    zarr.open_group(str(folder), mode="r+")["status"][3] = -1
    sizes, chunk = [], sweeps.solve_chunk
    monkeypatch.setattr(sweeps, "solve_chunk", lambda jobs, *args: sizes.append(len(jobs)) or chunk(jobs, *args))
    assert_identical(fs.sweep(FLOW, START, **OPTIONS, to=folder), expected)
    assert sizes == [2]


def test_errors_of_a_worker_arrive_and_end_the_sweep(monkeypatch):
    def failing(*args):
        raise fs.FlowsimError("This is wrong. Do that.")

    monkeypatch.setattr(sweeps, "solve_chunk", failing)
    with ThreadPoolExecutor(1) as pool, pytest.raises(fs.FlowsimError, match=r"^This is wrong. Do that.$"):
        fs.sweep(FLOW, START, **OPTIONS, executor=pool)


def test_workers_with_other_versions_are_refused(monkeypatch):
    here = sweeps.versions()
    monkeypatch.setattr(sweeps, "versions", lambda: {**here, "jax": "0.0.2"})
    with pytest.raises(fs.FlowsimError, match=r"A worker has jax 0.0.2, but this session .*. Install the same"):
        sweeps._work([], np.zeros(1), 1.0, OPTIONS_OF_A_CHUNK, here, None, ())


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        (3, "`executor` cannot be int. Use a dask.distributed.Client"),
        (sys, "`executor` cannot be module. Use"),
        ("processes:0", "`executor` cannot be 'processes:0'. Use"),
        ("processes:many", "`executor` cannot be 'processes:many'. Use"),
        ("nowhere", "There is no dask scheduler at 'nowhere'. Use"),
    ],
)
def test_bad_executors_get_one_sentence(executor, message, monkeypatch, tmp_path):
    monkeypatch.setattr(sweeps, "solve_chunk", lambda *args: pytest.fail("something was computed"))
    with pytest.raises(fs.FlowsimError, match=message):
        fs.sweep(FLOW, START, **OPTIONS, executor=executor, to=tmp_path / "runs.zarr")
    assert not list(tmp_path.iterdir())


def test_without_dask_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(fs.FlowsimError, match=r"Clusters need dask. Install it: pip install 'flowsim\[cluster\]'"):
        fs.sweep(FLOW, START, **OPTIONS, executor="tcp://127.0.0.1:8786")


def test_a_process_ends_with_its_parent():
    """Whoever is killed cannot tell its children."""
    code = """
import os, sys, time
from flowsim.base import processes
processes._LOOK = 0.05
child = os.fork()
if child == 0:
    processes.follow_parent()
    time.sleep(60)
print(child, flush=True)
time.sleep(0.5)
assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended of itself"
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    for _ in range(200):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(done.stdout), 0)
            time.sleep(0.05)
            continue
        break
    else:
        pytest.fail("the child lives on")


def session(folder, *executor):
    return [sys.executable, "-c", SESSION, str(folder), *executor]


@pytest.mark.slow
def test_a_killed_session_loses_unfinished_chunks_only(tmp_path):
    """SIGKILL after three chunks; the same command goes on; the whole equals one that was never disturbed."""
    folder, options = tmp_path / "runs.zarr", {"ts": TIMES, "chunk": 2}
    with subprocess.Popen(session(folder), stdout=subprocess.PIPE, text=True) as killed:
        for _ in range(3):
            assert killed.stdout.readline() == "chunk\n"
        killed.send_signal(signal.SIGKILL)
    import zarr

    status = zarr.open_group(str(folder), mode="r")["status"]
    assert isinstance(status, zarr.Array)
    done = int((np.asarray(status[:]) >= 0).sum())
    assert 6 <= done < 80
    again = subprocess.run(session(folder), capture_output=True, text=True, timeout=300, check=True)
    assert again.stdout.count("chunk") == (80 - done + 1) // 2
    stored = fs.sweep(FLOW, START, {"seed": range(80)}, **options, to=folder)
    assert_identical(stored, fs.sweep(FLOW, START, {"seed": range(80)}, **options))


# --- a cluster of processes on this machine -----------------------------------------------------------

#: A dask cluster in a process of its own; it kills one of its workers at random for each line that it reads.
HOST = """
import os, random, signal, sys
from distributed import LocalCluster
if __name__ == "__main__":
    choice = random.Random(0)
    with LocalCluster(n_workers=int(sys.argv[1]), threads_per_worker=1, dashboard_address=None) as cluster:
        print(cluster.scheduler_address, flush=True)
        for _ in sys.stdin:
            pid = choice.choice([nanny.pid for nanny in cluster.workers.values() if nanny.pid])
            os.kill(pid, signal.SIGKILL)
            print(pid, flush=True)
"""
#: So many chunks that whatever is killed early on leaves some undone.
MANY = {"over": {"seed": range(80)}, "ts": TIMES, "chunk": 2}


@contextlib.contextmanager
def cluster(workers):
    """(process of the scheduler, its address)."""
    pytest.importorskip("distributed")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", HOST, str(workers)], **pipes, text=True) as host:
        try:
            yield host, host.stdout.readline().strip()
        finally:
            host.stdin.close()


@pytest.mark.slow
def test_a_worker_killed_in_mid_sweep_changes_nothing(tmp_path):
    """A random worker gets SIGKILL, twice: all runs are there, to the last bit."""
    folder, killed = tmp_path / "runs.zarr", set()
    with cluster(2) as (host, address):

        def progress(text, done, total):
            if done in (2, 6):
                print("kill", file=host.stdin, flush=True)
                killed.add(int(host.stdout.readline()))

        runs = fs.sweep(FLOW, START, **MANY, executor=address, to=folder, progress=progress)
    assert len(killed) == 2
    assert_identical(runs, fs.sweep(FLOW, START, **MANY))
    xr.testing.assert_equal(fs.sweep(FLOW, START, **MANY, to=folder).dataset, runs.dataset)


@pytest.mark.slow
def test_a_killed_scheduler_gets_one_sentence_and_the_same_call_goes_on(tmp_path):
    folder = tmp_path / "runs.zarr"
    with cluster(1) as (host, address):

        def progress(text, done, total):
            if done == 3:
                host.send_signal(signal.SIGKILL)

        with pytest.raises(fs.FlowsimError, match="workers were lost before the end"):
            fs.sweep(FLOW, START, **MANY, executor=address, to=folder, progress=progress)
    assert_identical(fs.sweep(FLOW, START, **MANY, to=folder), fs.sweep(FLOW, START, **MANY))


@pytest.mark.slow
def test_a_study_of_heads_on_a_cluster_is_that_of_this_machine(tmp_path):
    """Also if a worker is killed on the way; the same call again trains nothing."""
    settings = fs.heads.Training(
        data=fs.data.emoji().take(slice(300)), steps=10, batch_size=32, hidden=16, dim=8, pairs=50, evaluations=3
    )
    names, told = ("Baseline", "FLT 1e-2", "FLT 1e-1", "TS S3"), []
    with cluster(2) as (host, address):

        def progress(text, done, total):
            told.append(done)
            if done == 1:
                print("kill", file=host.stdin, flush=True)
                host.stdout.readline()

        options = {"executor": address, "progress": progress}
        there = fs.heads.study(settings, tmp_path / "cluster", names, 1, **options)
        assert told == [1, 2, 3, 4]
        again = fs.heads.study(settings, tmp_path / "cluster", names, 1, **options)
    assert told == [1, 2, 3, 4]
    here = fs.heads.study(settings, tmp_path / "here", names, 1)
    for name, record in here.items():
        for other in (there, again):
            np.testing.assert_array_equal(record.training["train_loss"], other[name].training["train_loss"])
            np.testing.assert_array_equal(record.series["modality_gap"], other[name].series["modality_gap"])


@pytest.mark.slow
def test_a_study_of_heads_whose_scheduler_dies_says_what_is_kept(tmp_path):
    settings = fs.heads.Training(
        data=fs.data.emoji().take(slice(300)), steps=10, batch_size=32, hidden=16, dim=8, pairs=50, evaluations=3
    )
    with cluster(1) as (host, address):

        def progress(text, done, total):
            host.send_signal(signal.SIGKILL)

        # Records are written without asking the scheduler, which is gone.
        with pytest.raises(fs.FlowsimError, match="workers were lost .* what has been stored is kept"):
            fs.heads.study(settings, tmp_path, "short", 3, executor=address, progress=progress)
    stored = list(tmp_path.glob("*.nc"))
    assert 1 <= len(stored) < 27
    assert all(fs.load(path).status.ok for path in stored)


def test_a_result_that_cannot_be_fetched_is_not_waited_for():
    """A call ends, and the scheduler dies before it hands out the result: dask alone tells nobody."""

    class Remote:
        status = "finished"

        def add_done_callback(self, function):
            ThreadPoolExecutor(1).submit(function, self)

        def result(self):
            raise OSError("Timed out trying to connect")

    class Client:
        def submit(self, *_, **__):
            return Remote()

    cluster = executors._Cluster(Client())
    with pytest.raises(fs.FlowsimError, match="workers were lost before the end"):
        list(executors.completed(cluster, int, [()]))


@pytest.mark.slow
def test_a_client_of_the_user_stays_open(expected):
    with cluster(1) as (_, address):
        from distributed import Client

        with Client(address) as client:
            assert_identical(fs.sweep(FLOW, START, **OPTIONS, executor=client), expected)
            assert client.submit(int).result() == 0


def test_no_call_is_made_twice_and_the_rest_is_cancelled():
    """`completed` gives each result once; where one fails, what has not begun does not begin."""
    with ThreadPoolExecutor(2) as pool:
        assert dict(executors.completed(pool, divmod, [(7, 2), (9, 4)])) == {0: (3, 1), 1: (2, 1)}
    started = []

    def work(index):
        started.append(index)
        if index == 0:
            raise KeyError(index)
        time.sleep(0.05)

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyError):
            list(executors.completed(pool, work, [(i,) for i in range(50)]))
        assert len(started) < 50
