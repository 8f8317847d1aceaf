"""FramePool: results in the order of the frames, whoever is faster."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.evaluator import Evaluator
from test_vad_metric import sample, with_token

from projects.VAD.metrics import VADMetric, frame_pool
from projects.VAD.metrics.frame_pool import FramePool


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def name_after_the_other(frame: dict) -> str:
    """The first frame is ready only when the second one is."""
    if frame['name'] == 'first':
        wait_for(Path(frame['signal']))
    else:
        Path(frame['signal']).touch()
    return frame['name']


def refuse(frame: dict) -> None:
    raise ValueError(f'frame {frame["name"]} cannot be used')


def die(frame: dict) -> None:
    os._exit(1)


def sleep(frame: dict) -> None:
    time.sleep(60)


def look_at(frame: dict) -> tuple:
    boxes = frame['found']['boxes']
    return type(boxes), boxes.tensor.tolist(), boxes.gravity_center.tolist()


def shifted(count: int) -> list:
    """Frames whose plans and boxes are worse one after the other."""
    near = [[0.0, 9.0]]
    return [
        with_token(sample(near, [[0.1 * i, 9.0]], 0.1 * i), f'{i:02}', i)
        for i in range(count)
    ]


def evaluated(num_workers: int) -> dict[str, float]:
    evaluator = Evaluator(VADMetric(num_workers=num_workers))
    for one in shifted(20):
        evaluator.process([one])
    return evaluator.evaluate(20)


@pytest.mark.parametrize('num_workers', [1, 2])
def test_numbers_are_those_of_one_process(num_workers):
    assert evaluated(num_workers) == evaluated(0)


def test_the_order_is_that_of_the_frames(tmp_path):
    pool, path = FramePool(2), str(tmp_path / 'signal')
    ready = [
        result
        for name in ('first', 'second')
        for result in pool.submit(
            name_after_the_other, dict(name=name, signal=path)
        )
    ]
    assert ready + pool.rest() == ['first', 'second']


def test_a_frame_is_not_waited_for(tmp_path):
    pool, path = FramePool(1), tmp_path / 'signal'
    frame = dict(name='first', signal=str(path))
    assert pool.submit(name_after_the_other, frame) == []
    path.touch()
    assert pool.rest() == ['first']


def test_no_more_frames_wait_than_are_worked_on_soon(tmp_path):
    pool, path = FramePool(1), tmp_path / 'signal'
    path.touch()
    frame = dict(name='first', signal=str(path))
    for _ in range(20):
        pool.submit(name_after_the_other, frame)
        assert len(pool._waiting) <= frame_pool.WAITING
    pool.rest()


def test_boxes_arrive_as_they_were_sent():
    boxes = LiDARInstance3DBoxes(torch.arange(18.0).view(2, 9), box_dim=9)
    nothing = LiDARInstance3DBoxes(torch.zeros(0, 9), box_dim=9)
    for sent in (boxes, nothing):
        frame = dict(found=dict(boxes=sent), img_path=['a'])
        pool = FramePool(1)
        ready = pool.submit(look_at, frame) + pool.rest()
        assert ready == [look_at(frame)]


@pytest.mark.parametrize('num_workers', [0, 1])
def test_what_fails_in_a_process_fails_here(num_workers):
    pool = FramePool(num_workers)
    with pytest.raises(ValueError, match='^frame 3 cannot be used$'):
        pool.submit(refuse, dict(name=3))
        pool.rest()
    assert pool._pool is None
    path = Path(__file__)
    frame = dict(name='first', signal=str(path))
    assert pool.submit(name_after_the_other, frame) + pool.rest() == ['first']


def test_a_process_that_dies_is_one_sentence():
    pool = FramePool(1)
    with pytest.raises(OSError, match='compute metrics has died, as when mem'):
        pool.submit(die, {})
        pool.rest()


def test_processes_end_with_the_evaluation():
    pool = FramePool(2)
    pool.submit(name_of, dict(name='a'))
    (child, *_) = pool._pool._processes.values()
    pool.rest()
    assert not child.is_alive()


def name_of(frame: dict) -> str:
    return frame['name']


def start_and_hang(connection) -> None:
    frame_pool.WATCH_SECONDS = 0.05
    pool = FramePool(1)
    pool.submit(sleep, {})
    connection.send([p.pid for p in pool._pool._processes.values()])
    time.sleep(60)


def test_processes_of_a_killed_parent_do_not_stay():
    context = multiprocessing.get_context('fork')
    mine, theirs = context.Pipe()
    parent = context.Process(target=start_and_hang, args=(theirs,))
    parent.start()
    (child,) = mine.recv()
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    until = time.monotonic() + 30
    while time.monotonic() < until and is_running(child):
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        status = Path(f'/proc/{pid}/stat').read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(')')[2].split()[0] != 'Z'


def test_a_number_of_processes_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match='asked for num_workers=-1; give 0'):
        VADMetric(num_workers=-1)
