"""Image files that are odd, and such that are broken: written where a test wants them.

The file's name says nothing of its format: loaders look at the content.
"""

import io
import json

import cv2
import numpy as np
from PIL import Image

from support.tiny_data import CLASSES, write_mask

WIDTH, HEIGHT = 64, 48


def picture(width=WIDTH, height=HEIGHT):
    """Noise, so that a JPEG of it has something to lose: (height, width, 3)."""
    random = np.random.RandomState(width * 7919 + height)
    return random.randint(0, 255, (height, width, 3), dtype=np.uint8)


def encoded(mode='RGB', kind='JPEG', width=WIDTH, height=HEIGHT, **options):
    stream = io.BytesIO()
    Image.fromarray(picture(width, height)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def turned(orientation):
    """A photo whose EXIF data turn it to 64x48 px."""
    exif = Image.Exif()
    exif[274] = orientation
    sides = (HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT)
    return encoded(width=sides[0], height=sides[1], exif=exif)


DEEP, PNG = picture().astype(np.uint16) * 257, encoded(kind='PNG')
#: Odd, but as sound as any other: 64x48 px once loaded.
ODD = {
    'grey': encoded('L'),
    'cmyk': encoded('CMYK'),
    'progressive': encoded(progressive=True),
    'grey16': cv2.imencode('.png', DEEP[..., :1])[1].tobytes(),
    'colour16': cv2.imencode('.png', DEEP)[1].tobytes(),
    'alpha': encoded('RGBA', 'PNG'),
    'grey-alpha': encoded('LA', 'PNG'),
    'palette': encoded('P', 'PNG'),
    'one-bit': encoded('1', 'PNG'),
    'sideways': turned(6),
    'mirrored-sideways': turned(5),
}
#: Nobody can train on them.
BROKEN = {
    'empty': b'',
    'no-image': b'<html>404 Not Found</html>',
    'header-only': encoded()[:300],
    'half': encoded()[: len(encoded()) // 2],
    'cut-off': encoded()[:-200],
    'half-png': PNG[:4000],
    'flipped-png': PNG[:3000] + bytes([PNG[3000] ^ 255]) + PNG[3001:],
    'float-tiff': encoded('F', 'TIFF'),
}
#: Of another size than the others: (width, height).
SIZES = {'one-pixel': (1, 1), 'line': (1, 5000), 'lying-line': (5000, 1)}
SIZES.update({'strip': (3, 2000), 'lying-strip': (2000, 3)})


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def coco_of(sizes, **values):
    """COCO content of `{name: (width, height)}`: all of an image is a circle.

    Annotations have `values` besides or instead.
    """
    images, annotations = [], []
    for i, (name, (width, height)) in enumerate(sizes.items(), start=1):
        images.append(dict(id=i, file_name=f'{name}.jpg', width=width, height=height))
        outline = [0, 0, width, 0, width, height, 0, height]
        annotation = dict(id=i, image_id=i, category_id=1, area=width * height)
        annotation.update(bbox=[0, 0, width, height], segmentation=[outline], iscrowd=0)
        annotations.append({**annotation, **values})
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, start=1)]
    return dict(images=images, annotations=annotations, categories=categories)


def write_files(root, files, sizes=None):
    """COCO data of `{name: content}`, or of blank images where there is no content."""
    sizes = {name: (WIDTH, HEIGHT) for name in files} if sizes is None else sizes
    for name, content in files.items():
        write(root / 'images' / f'{name}.jpg', content)
    (root / 'all.json').write_text(json.dumps(coco_of(sizes)))


def write_pairs(root, files, sizes=None):
    """The same for segmentation: masks beside the images, of all three classes."""
    sizes = sizes or {}
    for name, content in files.items():
        write(root / 'images' / f'{name}.jpg', content)
        width, height = sizes.get(name, (WIDTH, HEIGHT))
        write_mask(root / 'masks' / f'{name}.png', (1, 2, 3), width, height)


def of_sizes(sizes):
    """{name: content} of JPEGs of these sizes."""
    return {n: encoded(width=size[0], height=size[1]) for n, size in sizes.items()}
