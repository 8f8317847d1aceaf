"""Frames that other processes reduce to numbers, while the model goes on."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context
from typing import Any

import torch
from mmdet3d.structures import LiDARInstance3DBoxes

# Frames that may wait for each process; then the model waits.
WAITING = 4
# Of a data sample, what no metric reads.
NOT_SENT = {
    *('img_path', 'lidar2img', 'history'),
    *('box_type_3d', 'box_mode_3d', 'img_norm_cfg'),
}
# Seconds after which a process notices that it has been left alone.
WATCH_SECONDS = 5.0

Reduce = Callable[[dict], Any]


class FramePool:
    """Reduces frames, and gives the results in the order of the frames.

    Processes start with the first frame and end with ``rest``. What fails in
    one of them is raised here, as if it had failed here.

    Args:
        num_workers: Number of processes; 0 reduces each frame at once.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None
        self._waiting: deque[Future] = deque()

    def submit(self, reduce: Reduce, frame: dict) -> list[Any]:
        """Takes a frame; returns results of earlier ones that are ready.

        Args:
            reduce: From a frame to what is kept; can be pickled.
            frame: Nested dicts of arrays and boxes.

        Raises:
            ChildProcessError: A process has died.
        """
        if not self.num_workers:
            return [reduce(frame)]
        if self._pool is None:
            self._pool = _start(self.num_workers)
        ready = []
        try:
            task = self._pool.submit(_reduced, reduce, _sent(frame))
            self._waiting.append(task)
            while self._waiting and (
                self._waiting[0].done()
                or len(self._waiting) > WAITING * self.num_workers
            ):
                ready.append(self._waiting.popleft().result())
        except BaseException as error:
            self._give_up(error)
        return ready

    def rest(self) -> list[Any]:
        """Returns the results that are left, and ends the processes.

        Raises:
            ChildProcessError: A process has died.
        """
        try:
            ready = [task.result() for task in self._waiting]
        except BaseException as error:
            self._give_up(error)
        self._stop()
        return ready

    def _give_up(self, error: BaseException) -> None:
        self._stop()
        if isinstance(error, BrokenProcessPool):
            raise ChildProcessError(
                f'one of the {self.num_workers} processes that compute '
                'metrics has died, as when memory runs out; give the '
                'evaluator a smaller num_workers, or 0'
            ) from error
        raise error

    def _stop(self) -> None:
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _start(num_workers: int) -> ProcessPoolExecutor:
    # A fork has all modules; a new process would import for seconds.
    forks = 'fork' in get_all_start_methods()
    return ProcessPoolExecutor(
        num_workers,
        mp_context=get_context('fork' if forks else None),
        initializer=_prepare,
        initargs=(os.getpid(),),
    )


def _prepare(parent: int) -> None:
    """Prepares a process to do nothing but reduce frames."""
    # Threads that torch has started are not there after a fork.
    torch.set_num_threads(1)
    # Ctrl-C is for the parent, which then ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """Ends this process when its parent was killed."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def _sent(frame: dict) -> dict:
    """What is pickled of a frame: boxes as arrays, in one piece."""
    out = {}
    for key, value in frame.items():
        if isinstance(value, dict):
            value = _sent(value)
        elif isinstance(value, LiDARInstance3DBoxes):
            value = _Boxes(value.tensor.detach().cpu().numpy())
        if key not in NOT_SENT:
            out[key] = value
    return out


class _Boxes:
    """Boxes on their way; tensors would take shared memory and a file."""

    def __init__(self, numbers: Any) -> None:
        self.numbers = numbers


def _received(frame: dict) -> dict:
    out = {}
    for key, value in frame.items():
        if isinstance(value, dict):
            value = _received(value)
        elif isinstance(value, _Boxes):
            numbers = torch.from_numpy(value.numbers)
            value = LiDARInstance3DBoxes(numbers, box_dim=numbers.shape[-1])
        out[key] = value
    return out


def _reduced(reduce: Reduce, frame: dict) -> Any:
    return reduce(_received(frame))
