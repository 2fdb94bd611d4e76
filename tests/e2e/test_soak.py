"""Test a LIT that works for long: its memory, and threads that share it."""

import ctypes
import gc
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import psutil
import pytest
import torch

from support.archs import RELATIVE, randomised

#: Many heads of few channels: bias tables are much of the memory.
ARCH = {**RELATIVE, 'embed_dims': (8, 8, 64, 64), 'num_heads': (1, 1, 32, 32)}
ARCH['depths'] = (1, 1, 1, 1)
WARM_UP, ITERATIONS, EVERY = 500, 2000, 25
THREADS = 8
#: MiB per 1000 iterations: 0.5 was measured, and 2.7 where resized tables were kept.
GROWTH = 1.5


def drawn_image(draw, pixels=28_000):
    """From a strip to a square, lying or standing: of hundreds of token grids."""
    short = draw.randrange(29, int(pixels**0.5))
    size = [short, draw.randrange(short, pixels // short)]
    draw.shuffle(size)
    return torch.randn(1, 3, *size)


def mebibytes():
    """Resident memory. glibc keeps what is free, ever more scattered: not counted."""
    gc.collect()
    if sys.platform == 'linux':
        ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss / 2**20


def tensors_alive():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.soak
def test_memory_stays_flat():
    """One model learns, another one never leaves eval mode."""
    draw = random.Random(0)
    trained, served = randomised(arch=ARCH).train(), randomised(arch=ARCH).eval()
    optimizer = torch.optim.SGD(trained.parameters(), 1e-3)
    start, figures = mebibytes(), []
    for i in range(1, ITERATIONS + 1):
        optimizer.zero_grad()
        # Two images: of a single token a BatchNorm in training makes nothing.
        levels = trained(drawn_image(draw, 7_000).expand(2, -1, -1, -1))
        sum(level.square().mean() for level in levels).backward()
        optimizer.step()
        with torch.no_grad():
            levels = served(drawn_image(draw))
        if i % 100 == 0:
            trained.load_state_dict(trained.state_dict())
        if i >= WARM_UP and i % EVERY == 0:
            figures.append((i, mebibytes()))
        if i == WARM_UP:
            alive = tensors_alive()
    growth = np.polyfit(*zip(*figures), 1)[0] * 1000
    print(f'{start=:.1f} MiB, {figures[0]} to {figures[-1]}, {growth:+.2f} per 1000')
    assert all(level.isfinite().all() for level in levels)
    assert growth < GROWTH
    assert tensors_alive() == alive


@pytest.mark.soak
@pytest.mark.parametrize('kernel', ['auto', 'eager', 'sdpa', 'chunked'])
def test_threads_share_a_model(request, kernel):
    """Bit for bit: the same operations on the same numbers, in each thread."""
    # Threads take turns as often as they can.
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)
    draw = random.Random(1)
    model = randomised(arch=ARCH, attn_kernel=kernel).eval()
    images = [drawn_image(draw) for _ in range(12)]

    def infer(order):
        # torch's switch for gradients is each thread's own.
        with torch.inference_mode():
            return [(i, model(images[i])) for i in order]

    expected = dict(infer(range(len(images))))
    for _ in range(10):
        orders = [draw.sample(range(len(images)), len(images)) for _ in range(THREADS)]
        with ThreadPoolExecutor(THREADS) as pool:
            answers = [answer for found in pool.map(infer, orders) for answer in found]
        assert len(answers) == THREADS * len(images)
        for i, levels in answers:
            assert all(map(torch.equal, levels, expected[i]))
