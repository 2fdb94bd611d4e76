"""Packaging of mmlit: metadata, and `.mim`; nothing is compiled."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# What mim and mmengine look for in an installed package, under mmlit/.mim. An editable
# installation makes links there, which the repository cannot hold: they do not survive
# every way in which one is copied.
MIM_LINKS = ('configs', 'tools', 'model-index.yml')
MIM_FILES = (
    'model-index.yml',
    'configs/README.md',
    'configs/*/*.py',
    'configs/*/metafile.yml',
    # A user's tools: what sets up the checkout is in tools/setup/.
    'tools/README.md',
    'tools/*.py',
    'tools/*.sh',
)


class BuildWithMim(build_py):
    """Build the package and put the files for mim beside its modules."""

    def run(self) -> None:
        """Copy into the build folder, or link into an editable source tree."""
        super().run()
        if self.editable_mode:
            link_mim(ROOT / 'mmlit' / '.mim')
            return
        mim = Path(self.build_lib) / 'mmlit' / '.mim'
        # A config that is no more would live on in a build folder used again.
        shutil.rmtree(mim, ignore_errors=True)
        for pattern in MIM_FILES:
            for source in sorted(ROOT.glob(pattern)):
                target = mim / source.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)


def link_mim(folder: Path) -> None:
    """Make `folder` anew, with links to the files of the checkout around it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in MIM_LINKS:
        (folder / name).symlink_to(Path('..', '..', name))


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
    # The doctor is not in mmlit, whose import refuses where the doctor is needed.
    packages=find_packages(include=['mmlit*']),
    package_data={'mmlit_tools.visualize': ['page.html']},
    entry_points={'console_scripts': ['mmlit-doctor = mmlit_doctor.cli:main']},
    cmdclass={'build_py': BuildWithMim},
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
        # tools/export_onnx.py; older onnxruntimes have no DeformConv.
        'onnx': ['onnx', 'onnxscript', 'onnxruntime>=1.25'],
        'dev': ['pytest', 'ruff'],
    },
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
