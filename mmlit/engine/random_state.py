"""The state of all random numbers of a process, as a checkpoint can hold it."""

import random
from typing import Any, Dict

import numpy as np
import torch


def get_random_state() -> Dict[str, Any]:
    """The state of Python's, numpy's and torch's generators, a GPU's among them.

    Tensors, numbers and text alone, so that any `torch.load` reads it.
    """
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    state = dict(
        python=[version, torch.tensor(numbers), gauss],
        numpy=[name, torch.from_numpy(keys.astype(np.int64)), *rest],
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Dict[str, Any]) -> None:
    """Go on with the numbers that would have followed on `get_random_state`."""
    version, numbers, gauss = state['python']
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    # A checkpoint is read onto the GPU, and generators take bytes of the CPU.
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
