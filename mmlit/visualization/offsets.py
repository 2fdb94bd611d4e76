"""Draw the points that token merging samples, and summarise their offsets."""

from typing import TYPE_CHECKING, Dict, Optional, Sequence, Tuple

import numpy as np

from .image import SingleImage
from .probe import TokenMergingRecord, stride_of

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # inches
DPI = 110
COLOUR_MAP = 'plasma_r'  # long offsets are dark, on a light picture
#: Maximum number of points whose offsets are drawn as lines.
MAX_LINES = 2500


def offset_statistics(
    merging: TokenMergingRecord, image: SingleImage
) -> Dict[str, float]:
    """Summarise the offsets of the cells whose centre lies in the picture.

    Returns:
        ``mean_displacement`` and ``max_displacement`` in tokens of the stage before;
        ``outside``, the share of points beyond the edge of the map.
    """
    shown = image.contains(merging.anchors().mean(dim=2))
    displacements = merging.displacements().cpu().numpy()[shown]
    outside = merging.outside().cpu().numpy()[shown]
    return dict(
        mean_displacement=float(displacements.mean(dtype=np.float64)),
        max_displacement=float(displacements.max()),
        outside=float(outside.mean()),
    )


def draw_offsets(
    merging: TokenMergingRecord,
    image: SingleImage,
    cells: Optional[Sequence[Tuple[int, int]]] = None,
) -> 'Figure':
    """Draw the points that merged tokens sampled, coloured by their displacement.

    ``cells`` are (row, column) of the merged tokens; ``None`` draws all whose centre
    lies in the picture.
    """
    from matplotlib.collections import LineCollection

    if cells is None:
        chosen = image.contains(merging.anchors().mean(dim=2))
    else:
        chosen = tuple(np.transpose(cells))
    points = image.to_picture(merging.points())[chosen].reshape(-1, 2)
    anchors = image.to_picture(merging.anchors())[chosen].reshape(-1, 2)
    lengths = merging.displacements().cpu().numpy()[chosen].reshape(-1)

    figure, axis = _picture_figure(image)
    top = max(float(lengths.max()), 1e-6)
    few, alone = len(points) <= MAX_LINES, cells is not None
    if alone:
        _outline_cells(axis, merging, image, cells)
    order = np.argsort(lengths, kind='stable')  # the longest on top
    points, anchors, lengths = points[order], anchors[order], lengths[order]
    if few:
        lines = LineCollection(
            np.stack([anchors, points], axis=1),
            array=lengths,
            cmap=COLOUR_MAP,
            clim=(0, top),
            linewidths=1.4 if alone else 0.6,
            alpha=1.0 if alone else 0.6,
            zorder=2,
        )
        axis.add_collection(lines)
    dots = axis.scatter(
        *points.T,
        c=lengths,
        s=_dot_size(merging, image, alone),
        alpha=None if few else np.clip(0.35 + 0.65 * lengths / top, 0, 1),
        cmap=COLOUR_MAP,
        vmin=0,
        vmax=top,
        linewidths=0.4 if few else 0,
        edgecolors='black',
        zorder=3,
    )
    bar = figure.colorbar(dots, cax=axis.inset_axes([1.012, 0, 0.025, 1]))
    before, stride = stride_of(merging.stage - 1), stride_of(merging.stage)
    bar.set_label(f'displacement (tokens of {before} x {before} input pixels)')
    bar.solids.set_alpha(1)
    figures = offset_statistics(merging, image)
    many = f'{len(cells)} of the' if alone else 'all'
    rest = ', joined to where each\nwould be without its offset' if few else ''
    axis.set_title(
        f'Token merging into stage {merging.stage} (stride {stride}): where {many} '
        f'merged tokens sampled, 4 points each{rest}\nOf all tokens: displacement '
        f'mean {figures["mean_displacement"]:.3g}, max '
        f'{figures["max_displacement"]:.3g} tokens; '
        f'{figures["outside"]:.2%} of the points outside of the map',
        fontsize=9,
    )
    return figure


def show_picture(axis: 'Axes', image: SingleImage) -> None:
    """Show the picture on axes in its pixels, in light grey, to draw colours over."""
    width, height = image.size
    grey = image.picture.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
    shown = np.repeat((125 + 0.51 * grey)[..., None], 3, axis=2).astype(np.uint8)
    axis.imshow(shown, extent=(0, width, height, 0))
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def render(figure: 'Figure') -> np.ndarray:
    """Render a figure to pixels (h, w, 3) in RGB order."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _picture_figure(image: SingleImage) -> Tuple['Figure', 'Axes']:
    """Return a figure of the faded picture, with room for a title and a colour bar."""
    from matplotlib.figure import Figure

    inches = 0.86 * WIDTH * image.size[1] / image.size[0]
    total = inches + 0.78
    figure = Figure(figsize=(WIDTH, total))
    axis = figure.add_axes([0.015, 0.08 / total, 0.86, inches / total])
    show_picture(axis, image)
    return figure, axis


def _dot_size(merging: TokenMergingRecord, image: SingleImage, alone: bool) -> float:
    """Return the area of a dot in square points, so that neighbours stay apart."""
    if alone:
        return 26.0
    inches = 0.86 * WIDTH * stride_of(merging.stage - 1) / image.scale[0]
    room = 72 * inches / image.size[0]
    return float(np.clip((0.5 * room) ** 2, 0.8, 18.0))


def _outline_cells(axis, merging, image, cells) -> None:
    """Outline the square of pixels that each merged token covers."""
    from matplotlib.patches import Rectangle

    stride = stride_of(merging.stage)
    width, height = (stride / s for s in image.scale)
    style = dict(fill=False, color='#0072B2', lw=1.2)
    for row, column in cells:
        corner = (column * width, row * height)
        axis.add_patch(Rectangle(corner, width, height, **style))
