"""Write the HTML page: click a pixel, see its attention and sampling points.

The page holds queries, keys and position bias of the attention blocks and computes the
attention of any pixel from them; the maps would be hundreds of times as large. Rounding
q and k to 8 bits changes a weight by at most 4 % of the largest, as a test asserts.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from mmlit.checkpoints.atomic import write_whole
from mmlit.visualization.image import SingleImage
from mmlit.visualization.probe import (
    AttentionRecord,
    ProbeResult,
    TokenMergingRecord,
    stride_of,
)

TEMPLATE = Path(__file__).with_suffix('.html')
MARK = '{{DATA}}'
MAX_SIDE = 1280  # of the picture in the page, in pixels
MB = 10**6


def write_page(path: Path, images: Sequence[dict], weights: str) -> str:
    """Write the page.

    Args:
        path: The file; replaced if it exists.
        images: Results of `describe`.
        weights: Where the weights come from, in words.

    Returns:
        Its size, and what was left out, for the user.
    """
    about = (
        f'Weights: {weights}. Coordinates are pixels of the image file. Attention is '
        'computed here, from queries and keys in 8 bits: right to some percent.'
    )
    data = json.dumps(dict(about=about, images=images), separators=(',', ':'))
    # A name must not end the script that holds the data.
    page = TEMPLATE.read_text('utf-8').replace(MARK, data.replace('<', '\\u003c'))
    content = page.encode()
    write_whole(path, memoryview(content))
    notes = ''.join(f'\n{i["name"]}: {i["missing"]}' for i in images if i['missing'])
    return f'{path} ({len(content) / MB:.1f} MB) opens in a browser{notes}'


def describe(
    name: str, image: SingleImage, result: ProbeResult, megabytes: float
) -> dict:
    """Collect the data of one image for the page.

    Args:
        name: What to call it.
        image: The image.
        result: What the network did with it.
        megabytes: Size in the page; attention that does not fit is left out.
    """
    entry = dict(
        name=name,
        width=image.size[0],
        height=image.size[1],
        scale=image.scale,
        jpeg=_jpeg(image.picture),
        mergings=[_merging(merging) for merging in result.token_mergings],
    )
    room = megabytes * MB - len(json.dumps(entry))
    held = choose_blocks(result.attentions, room)
    kept = [one for one, fits in zip(result.attentions, held) if fits]
    left = [one for one, fits in zip(result.attentions, held) if not fits]
    entry['attention'] = [_attended(one) for one in kept]
    names = ', '.join(f'{one.stage}.{one.block}' for one in left)
    entry['missing'] = names and (
        f'Left out for the size of the page, attention of (stage.block) {names}: '
        '--page-mb allows more, a smaller --max-side needs less.'
    )
    return entry


def choose_blocks(attended: Sequence[AttentionRecord], room: float) -> list[bool]:
    """Choose the blocks that fit: the last of each stage first, then backwards."""
    last = {}
    for one in attended:
        last[one.stage] = max(last.get(one.stage, 0), one.block)
    held = [False] * len(attended)
    depths = [last[one.stage] - one.block for one in attended]
    for place in sorted(range(len(attended)), key=lambda i: (depths[i], -i)):
        size = _size(attended[place])
        if size <= room:
            held[place] = True
            room -= size
    return held


def _merging(merging: TokenMergingRecord) -> dict:
    rows, columns = merging.offsets.shape[:2]
    data, scale = _whole_numbers(merging.offsets.cpu().numpy())
    return dict(
        stage=merging.stage,
        stride=stride_of(merging.stage),
        rows=rows,
        columns=columns,
        scale=scale,
        data=data,
    )


def _attended(attended: AttentionRecord) -> dict:
    """Pack q and k in 8 bits with a scale per vector, the bias table in 16 bits."""
    rows, columns = attended.tokens.shape[:2]
    q, k = attended.queries_and_keys()
    # What all keys have in common cancels in the softmax, and would cost accuracy.
    k = k - k.mean(dim=1, keepdim=True)
    entry = dict(
        stage=attended.stage,
        block=attended.block,
        stride=stride_of(attended.stage),
        rows=rows,
        columns=columns,
        heads=len(q),
        size=q.shape[-1],
        table=None,
    )
    for name, vectors in (('q', q), ('k', k)):
        vectors = vectors.transpose(0, 1).cpu().numpy()  # tokens, heads, d
        scales = np.maximum(np.abs(vectors).max(axis=-1), 1e-30) / 127
        entry[name] = _base64(np.rint(vectors / scales[..., None]).astype(np.int8))
        entry[f'{name}_scales'] = _base64(scales.astype(np.float32))
    table = attended.bias_table()
    if table is not None:
        entry['table'], entry['table_scale'] = _whole_numbers(table.cpu().numpy())
    return entry


def _size(attended: AttentionRecord) -> int:
    """Return the bytes of a block in the page."""
    rows, columns, channels = attended.tokens.shape
    heads = attended.attn.num_heads
    count = 2 * rows * columns * (channels + 4 * heads)
    if attended.attn.position_bias is not None:
        count += 2 * heads * (2 * rows - 1) * (2 * columns - 1)
    return 4 * count // 3 + 300


def _whole_numbers(values: np.ndarray) -> tuple[str, float]:
    """Pack values in 16 bits; also return the value of one unit."""
    scale = max(float(np.abs(values).max(initial=0)), 1e-30) / 32767
    return _base64(np.rint(values / scale).astype(np.int16)), scale


def _base64(values: np.ndarray) -> str:
    little = values.astype(values.dtype.newbyteorder('<'))
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode()


def _jpeg(picture: np.ndarray) -> str:
    factor = min(1, MAX_SIDE / max(picture.shape[:2]))
    if factor < 1:
        size = [max(1, round(factor * side)) for side in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, content = cv2.imencode(
        '.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88]
    )
    return 'data:image/jpeg;base64,' + base64.b64encode(content.tobytes()).decode()
