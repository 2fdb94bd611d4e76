"""Draw one image of the shapes dataset, with the visible mask of each object.

Everything a dataset needs (boxes, areas, instance masks, a semantic map) follows from
what `draw_scene` returns, so that writers of any format start here.

Colour, texture, size and rotation are drawn alike for every category, and objects and
backgrounds share one set of textures: only the outline tells what an object is.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

CATEGORIES = ('circle', 'triangle', 'ring')
# An object's diameter, as a fraction of the image side (24 to 100 pixels of 160).
DIAMETERS = (0.15, 0.625)
# Below this visible part of an object, people start to guess what it is.
MIN_VISIBLE = 0.4
# Smallest distance of an object's mean colour from its background's (RGB, 0 to 255
# each): below it, the rim gets lost in the two textures.
MIN_CONTRAST = 80.0
# Masks are filled on a finer grid, then averaged: the cover of a rim pixel is a
# fraction, as in a photograph.
FINER = 4


class Scene(NamedTuple):
    """A drawn image and its objects."""

    image: np.ndarray  # (size, size, 3) uint8, blue green red
    # Index into `CATEGORIES` and (size, size) bool mask of what can be seen of the
    # object, from the rearmost object to the foremost.
    objects: list[tuple[int, np.ndarray]]


class _Placed(NamedTuple):
    category: int
    cover: np.ndarray  # (size, size) float32, 0 to 1
    area: float  # of the whole outline in pixels, hidden and cut-off parts included

    @property
    def mask(self) -> np.ndarray:
        return self.cover >= 0.5


def draw_scene(rng: np.random.Generator, size: int) -> Scene:
    """Draw a textured background and one to four objects, which may overlap."""
    placed = place_objects(rng, size, count=int(rng.integers(1, 5)))
    image = texture(rng, size, rng.uniform(20, 235, 3))
    for item in placed:
        below = image[item.mask].mean(axis=0)
        paint = texture(rng, size, contrasting_colour(rng, below))
        image += (paint - image) * item.cover[..., None]
    light = 1 + rng.uniform(-0.15, 0.15) * ramp(rng, size)
    grain = rng.standard_normal(image.shape, np.float32) * rng.uniform(1, 6)
    image = np.clip(image * light[..., None] + grain, 0, 255).astype(np.uint8)
    masks = visible_masks(placed)
    return Scene(image, [(p.category, m) for p, m in zip(placed, masks)])


def place_objects(rng: np.random.Generator, size: int, count: int) -> list[_Placed]:
    """Place up to `count` objects, each in front of those before it.

    A place that hides too much of an earlier object, or lies too far outside the
    image, is tried again elsewhere; an object that finds no place is left out.
    """
    placed: list[_Placed] = []
    for _ in range(count):
        for _ in range(20):
            trial = [*placed, place_one(rng, size)]
            masks = visible_masks(trial)
            seen = [m.sum() / p.area for p, m in zip(trial, masks)]
            if min(seen) >= MIN_VISIBLE:
                placed = trial
                break
    return placed or place_objects(rng, size, count)


def place_one(rng: np.random.Generator, size: int) -> _Placed:
    """Draw the outline of an object of random category, size, rotation and position."""
    category = int(rng.integers(len(CATEGORIES)))
    # Log-uniform: as many objects between 24 and 48 pixels as between 48 and 96.
    radius = size / 2 * np.exp(rng.uniform(*np.log(DIAMETERS)))
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    angle = rng.uniform(0, 2 * np.pi)
    centre = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    contours = [
        np.float32((points * radius * [stretch, 1 / stretch]) @ turn + centre)
        for points in outline(rng, CATEGORIES[category])
    ]
    # Outer contour first, then holes.
    areas = [cv2.contourArea(points) for points in contours]
    return _Placed(category, fill(contours, size), areas[0] - sum(areas[1:]))


def outline(rng: np.random.Generator, name: str) -> list[np.ndarray]:
    """Return the contours of a shape within the unit circle, the outer one first."""
    if name == 'circle':
        return [polygon(48)]
    if name == 'triangle':
        return [polygon(3)]
    if name == 'ring':
        return [polygon(48), polygon(48) * rng.uniform(0.45, 0.65)]
    raise ValueError(f'name must be one of {", ".join(CATEGORIES)}, got {name!r}')


def polygon(corners: int) -> np.ndarray:
    """Return the corners of a regular polygon on the unit circle, (corners, 2)."""
    angles = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def fill(contours: list[np.ndarray], size: int) -> np.ndarray:
    """Return the covered part of each pixel, (size, size) float32 from 0 to 1."""
    fine = np.zeros((size * FINER, size * FINER), np.uint8)
    # Even-odd rule: a contour within another one is a hole.
    cv2.fillPoly(fine, [np.rint(c * FINER).astype(np.int32) for c in contours], 255)
    cover = cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA)
    return cover.astype(np.float32) / 255


def visible_masks(placed: list[_Placed]) -> list[np.ndarray]:
    """Return the pixels of each object that no later one covers."""
    masks = []
    hidden = np.zeros_like(placed[0].mask)
    for item in reversed(placed):
        masks.append(item.mask & ~hidden)
        hidden |= item.mask
    return masks[::-1]


def contrasting_colour(rng: np.random.Generator, below: np.ndarray) -> np.ndarray:
    """Draw a random colour that can be told from the mean colour `below`."""
    while True:
        colour = rng.uniform(20, 235, 3)
        if np.linalg.norm(colour - below) >= MIN_CONTRAST:
            return colour


def texture(rng: np.random.Generator, size: int, colour: np.ndarray) -> np.ndarray:
    """Draw a random pattern around a colour, (size, size, 3) float32."""
    pattern = PATTERNS[rng.integers(len(PATTERNS))](rng, size)
    change = rng.standard_normal(3)
    change *= rng.uniform(15, 45) / np.linalg.norm(change)
    return (colour + pattern[..., None] * change).astype(np.float32)


# Patterns: (size, size) float32, from -1 to 1 with a mean of about 0.


def ramp(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a straight gradient in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    steps = np.linspace(-1, 1, size, dtype=np.float32)
    along = np.cos(angle) * steps[None, :] + np.sin(angle) * steps[:, None]
    return along / np.abs(along).max()


def clouds(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw noise at several scales, the coarsest strongest or all alike."""
    total = np.zeros((size, size), np.float32)
    keep = rng.uniform(0.5, 1)
    for octave in range(5):
        cells = 3 * 2**octave
        noise = rng.standard_normal((cells, cells), np.float32)
        noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
        total += keep**octave * noise
    total -= total.mean()
    return total / np.abs(total).max()


def blobs(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw two-tone patches with irregular borders, as in camouflage."""
    cells = int(rng.integers(5, 13))
    noise = rng.standard_normal((cells, cells), np.float32)
    noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip((noise - np.median(noise)) * 8, -1, 1)


def stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw soft or sharp parallel stripes in a random direction."""
    count = rng.uniform(4, 16)
    wave = np.sin(np.pi * count * ramp(rng, size) + rng.uniform(0, 2 * np.pi))
    return np.clip(wave * rng.uniform(1, 4), -1, 1)


def checker(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a board of squares or diamonds in a random direction."""
    angle, count = rng.uniform(0, 2 * np.pi), rng.uniform(5, 14)
    steps = np.linspace(-1, 1, size, dtype=np.float32) * np.pi * count / 2
    x, y = steps[None, :], steps[:, None]
    across = np.sin(np.cos(angle) * x + np.sin(angle) * y)
    down = np.sin(np.cos(angle) * y - np.sin(angle) * x)
    return np.clip(across * down * 6, -1, 1)


PATTERNS = (ramp, clouds, blobs, stripes, checker)
