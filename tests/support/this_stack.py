"""Tell which of the set-up's stacks the tests run on."""

from importlib import metadata

import pytest

NAMES = {distribution.metadata['Name'] for distribution in metadata.distributions()}
STACK = 'onedl' if 'onedl-mmengine' in NAMES else 'openmmlab'


def only_on(stack: str, reason: str):
    """Return the mark of a test that holds for one stack alone."""
    return pytest.mark.skipif(
        stack != STACK, reason=f'for the stack {stack}, not {STACK}: {reason}'
    )


def without_imports_lines(output: str) -> str:
    """Return a tool's output without what the stack prints when it is imported.

    onedl-mmdetection and onedl-mmsegmentation say that a package for data sets of
    OneDL's own is not installed.
    """
    lines = output.splitlines(keepends=True)
    return ''.join(x for x in lines if not x.startswith('Could not import OneDL'))
