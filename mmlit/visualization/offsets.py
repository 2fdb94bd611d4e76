"""Where each merged token sampled, drawn over the image; and its figures."""

from typing import TYPE_CHECKING, Dict, Optional, Sequence, Tuple

import numpy as np

from .image import SingleImage
from .probe import Merging, stride_of

if TYPE_CHECKING:  # matplotlib takes a second to import, which few need.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # inches
DPI = 110
COLOURS = 'plasma_r'  # Strong where it is much, on a light picture.
#: Up to so many points each is joined to where it would be without its offset.
FEW_POINTS = 2500


def offset_statistics(merging: Merging, image: SingleImage) -> Dict[str, float]:
    """Figures of a token merging, over the cells whose middle shows the picture.

    Returns:
        ``mean_displacement`` and ``max_displacement`` in tokens of the stage before;
        ``outside``, the share of points beyond the edge of the map.
    """
    shown = image.holds(merging.anchors().mean(dim=2))
    displacements = merging.displacements().cpu().numpy()[shown]
    outside = merging.outside().cpu().numpy()[shown]
    return dict(
        mean_displacement=float(displacements.mean(dtype=np.float64)),
        max_displacement=float(displacements.max()),
        outside=float(outside.mean()),
    )


def draw_offsets(
    merging: Merging,
    image: SingleImage,
    cells: Optional[Sequence[Tuple[int, int]]] = None,
) -> 'Figure':
    """Draw the points that merged tokens sampled, coloured by their displacement.

    Args:
        merging: What to draw.
        image: The picture to draw it over.
        cells: (row, column) of the merged tokens; ``None`` for all whose middle shows
            the picture.
    """
    chosen = np.zeros(merging.offsets.shape[:2], dtype=bool)
    if cells is None:
        chosen = image.holds(merging.anchors().mean(dim=2))
    else:
        chosen[tuple(np.transpose(cells))] = True
    points = image.to_picture(merging.points())[chosen].reshape(-1, 2)
    anchors = image.to_picture(merging.anchors())[chosen].reshape(-1, 2)
    lengths = merging.displacements().cpu().numpy()[chosen].reshape(-1)

    figure, axis = _picture_figure(image)
    top = max(float(lengths.max()), 1e-6)
    few = len(points) <= FEW_POINTS
    if cells is not None:
        _outline_cells(axis, merging, image, cells)
    order = np.argsort(lengths, kind='stable')  # The longest come to lie on top.
    points, anchors, lengths = points[order], anchors[order], lengths[order]
    if few:
        _join(axis, anchors, points, lengths, top, alone=cells is not None)
    dots = axis.scatter(
        *points.T,
        c=lengths,
        s=_dot_size(merging, image, alone=cells is not None),
        alpha=None if few else np.clip(0.35 + 0.65 * lengths / top, 0, 1),
        cmap=COLOURS,
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
    many = 'all' if cells is None else f'{len(cells)} of the'
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


def show_picture(axis: 'Axes', image: SingleImage, faded: bool) -> None:
    """The picture on axes that are its pixels; faded, in light grey under colours."""
    width, height = image.size
    shown = image.picture
    if faded:
        grey = shown.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
        shown = np.repeat((125 + 0.51 * grey)[..., None], 3, axis=2).astype(np.uint8)
    axis.imshow(shown, extent=(0, width, height, 0))
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    axis.set_xticks([])
    axis.set_yticks([])


def render(figure: 'Figure') -> np.ndarray:
    """A figure as pixels (h, w, 3) in RGB order."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _picture_figure(image: SingleImage) -> Tuple['Figure', 'Axes']:
    """A figure of the faded picture, with room for a title and a colour bar."""
    from matplotlib.figure import Figure

    width, height = image.size
    inches = 0.86 * WIDTH * height / width
    figure = Figure(figsize=(WIDTH, inches + 0.78))
    total = inches + 0.78
    axis = figure.add_axes([0.015, 0.08 / total, 0.86, inches / total])
    show_picture(axis, image, faded=True)
    return figure, axis


def _dot_size(merging: Merging, image: SingleImage, alone: bool) -> float:
    """Area of a dot in square points: a part of the room that each has."""
    if alone:
        return 26.0
    inches = 0.86 * WIDTH * stride_of(merging.stage - 1) / image.scale[0]
    room = 72 * inches / image.size[0]
    return float(np.clip((0.5 * room) ** 2, 0.8, 18.0))


def _join(axis, anchors, points, lengths, top: float, alone: bool) -> None:
    """Lines from where the points would be without offsets."""
    from matplotlib.collections import LineCollection

    lines = LineCollection(
        np.stack([anchors, points], axis=1),
        array=lengths,
        cmap=COLOURS,
        clim=(0, top),
        linewidths=1.4 if alone else 0.6,
        alpha=1.0 if alone else 0.6,
        zorder=2,
    )
    axis.add_collection(lines)


def _outline_cells(axis, merging, image, cells) -> None:
    """The square of input pixels that each merged token stands for."""
    from matplotlib.patches import Rectangle

    stride = stride_of(merging.stage)
    width, height = (stride / s for s in image.scale)
    for row, column in cells:
        corner = (column * width, row * height)
        axis.add_patch(
            Rectangle(corner, width, height, fill=False, color='#0072B2', lw=1.2)
        )
