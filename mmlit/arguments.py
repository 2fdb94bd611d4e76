"""Check arguments: return the value, or raise naming argument and value."""

from typing import Optional, Sequence, Tuple, Union


def check_rate(name: str, value: float) -> float:
    """Require a probability of dropping something: 0 <= value < 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f'{name}={value!r} must be a number')
    if not 0 <= value < 1:
        raise ValueError(f'{name}={value!r} must lie in [0, 1)')
    return value


def check_int(name: str, value: int, low: int, high: Optional[int] = None) -> int:
    """Require an integer with low <= value (<= high)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f'{name}={value!r} must be an int')
    if value < low or (high is not None and value > high):
        bounds = f'at least {low}' if high is None else f'in {low}..{high}'
        raise ValueError(f'{name}={value} must be {bounds}')
    return value


def check_bool(name: str, value: bool) -> bool:
    """Require True or False, not something that merely looks like it."""
    if not isinstance(value, bool):
        raise TypeError(f'{name}={value!r} must be True or False')
    return value


def check_img_size(
    img_size: Union[int, Tuple[int, int]], minimum: int
) -> Tuple[int, int]:
    """Return an image side or (h, w), in pixels, as (h, w)."""
    sides = (img_size, img_size) if isinstance(img_size, int) else img_size
    if isinstance(sides, str) or not isinstance(sides, Sequence) or len(sides) != 2:
        raise TypeError(f'img_size={img_size!r} must be an int or a pair (h, w)')
    return tuple(check_int('img_size', side, minimum) for side in sides)


def check_indices(
    name: str, indices: Sequence[int], count: int, may_be_empty: bool = False
) -> Tuple[int, ...]:
    """Return increasing integers out of 0..count-1 as a tuple."""
    if isinstance(indices, str) or not isinstance(indices, Sequence):
        raise TypeError(f'{name}={indices!r} must be a tuple or a list of ints')
    for index in indices:
        check_int(name, index, 0, count - 1)
    if list(indices) != sorted(set(indices)):
        raise ValueError(f'{name}={tuple(indices)} must be increasing')
    if not indices and not may_be_empty:
        raise ValueError(f'{name} is empty: name at least one of 0..{count - 1}')
    return tuple(indices)
