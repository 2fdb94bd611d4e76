"""Compare nested data exactly."""

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def equal(a, b):
    """Deep equality with equal types, array dtypes included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, HistoryBuffer):
        return equal(vars(a), vars(b))
    return a == b
