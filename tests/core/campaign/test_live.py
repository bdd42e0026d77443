import multiprocessing
import time

import numpy as np
import pytest

from core.campaign.live import LiveFrame, LiveReader, LiveWriter


def frame(step: int, n: int = 50) -> LiveFrame:
    return LiveFrame(
        step=step, time=0.5 * step, energy=-1.0, temperature=300.0, sigma_energy=0.01,
        probability=0.97, energy_bound=0.02, force_bound=0.1, steps_per_s=400.0, phase="running",
        trusted=True, positions=np.full((n, 3), float(step)), sigma_atoms=np.full(n, float(step)),
    )  # fmt: skip


def write_many(folder, seconds: float) -> None:
    writer, end, step = LiveWriter(folder, 50), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        step += 1
        writer.write(frame(step), force=True)


def test_nothing_is_read_before_the_first_frame(tmp_path):
    reader = LiveReader(tmp_path)
    assert reader.read() is None
    LiveWriter(tmp_path, 50)
    assert reader.read() is None


def test_the_newest_frame_wins(tmp_path):
    writer = LiveWriter(tmp_path, 50)
    for step in (1, 2, 3):
        writer.write(frame(step), force=True)
    read = LiveReader(tmp_path).read()
    assert (read.step, read.time, read.phase, read.trusted) == (3, 1.5, "running", True)
    assert read.positions.shape == (50, 3) and (read.sigma_atoms == 3).all()
    assert read.timestamp == pytest.approx(time.time(), abs=5)


def test_frames_beyond_the_rate_are_dropped(tmp_path):
    writer = LiveWriter(tmp_path, 50)
    assert writer.write(frame(1))
    assert not writer.write(frame(2))


def test_a_writer_that_died_inside_leaves_a_usable_file(tmp_path):
    first = LiveWriter(tmp_path, 50)
    first.write(frame(1), force=True)
    first._put_sequence(first._sequence + 1)
    assert LiveReader(tmp_path).read() is None
    LiveWriter(tmp_path, 50).write(frame(2), force=True)
    assert LiveReader(tmp_path).read().step == 2


def test_no_torn_frame_while_another_process_writes(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=write_many, args=(tmp_path, 0.6))
    process.start()
    reader, seen = LiveReader(tmp_path), set()
    while process.is_alive():
        read = reader.read()
        if read is not None:
            assert (read.positions == read.step).all() and (read.sigma_atoms == read.step).all()
            seen.add(read.step)
    process.join()
    assert len(seen) > 3
