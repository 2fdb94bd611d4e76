"""Packaging of mmlit: metadata only, nothing is compiled."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Return the version string without importing the package (and so torch)."""
    names: dict = {}
    exec((ROOT / 'mmlit' / 'version.py').read_text(encoding='utf-8'), names)
    return names['__version__']


def read_readme() -> str:
    """Return the README, or nothing in a tree that has none."""
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.exists() else ''


setup(
    name='mmlit',
    version=read_version(),
    description='The LIT vision backbone for MMDetection 3.x and MMSegmentation 1.x',
    long_description=read_readme(),
    long_description_content_type='text/markdown',
    author='The mmlit authors',
    license='Apache-2.0',
    packages=['mmlit'],
    python_requires='>=3.8',
    # Empty on purpose. torch, mmengine and mmcv have to be there, but naming mmcv
    # would let pip build it in isolation, where it sees no torch and silently
    # leaves its ops out; `import mmlit` says what is missing instead.
    install_requires=[],
    # Neither mmdet nor mmsegmentation declares torch, mmcv or OpenCV themselves
    # (only their extra `mim` does), so these touch none of the three either.
    extras_require={
        'det': ['mmdet>=3.0.0'],
        # ftfy and regex: imported by mmsegmentation, declared only in its extras.
        'seg': ['mmsegmentation>=1.0.0', 'ftfy', 'regex'],
        'dev': ['pytest', 'ruff'],
    },
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
