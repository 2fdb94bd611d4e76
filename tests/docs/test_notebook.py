"""Run demo/lit_quickstart.ipynb: it prints what is stored in it."""

import os
import re
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from support.this_stack import without_imports_lines

pytest.importorskip('mmdet', reason='the notebook trains a detector')
NOTEBOOK = Path(__file__).resolve().parents[2] / 'demo/lit_quickstart.ipynb'


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    # What Jupyter and IPython write, they write there.
    for name in ('IPYTHONDIR', 'JUPYTER_CONFIG_DIR', 'JUPYTER_RUNTIME_DIR'):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    before = set(NOTEBOOK.parent.iterdir())
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources=dict(metadata=dict(path=NOTEBOOK.parent))
    )
    written = [printed(cell) for cell in notebook.cells]
    client.execute()
    # What is stored is what comes out.
    assert [printed(cell) for cell in notebook.cells] == written
    assert set(NOTEBOOK.parent.iterdir()) == before


def printed(cell) -> str:
    """Return what a cell printed."""
    parts = (part for part in cell.get('outputs', ()) if part.get('name') == 'stdout')
    return without_imports_lines(''.join(part['text'] for part in parts))


def test_the_notebook_is_light_and_of_no_machine():
    text = NOTEBOOK.read_text(encoding='utf-8')
    assert len(text) < 300_000
    assert not re.search(r'(?<![\w.:/])/(?:home|root|tmp|work|usr)/', text)
    assert os.path.basename(sys.prefix) not in text
