"""The site of the documentation builds without a warning, and is whole."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import mmlit

ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """The ids, links and pictures of a page."""

    def __init__(self, file: Path):
        super().__init__()
        self.ids, self.pictures, self.addresses = set(), set(), []
        self.feed(file.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get('id'))
        if tag == 'img':
            self.pictures.add(Path(attributes['src']).name)
        self.addresses += [attributes.get(name) for name in ('href', 'src')]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The pages by name, built as `make docs` builds them."""
    folder = tmp_path_factory.mktemp('site')
    recipe = subprocess.run(
        ['make', '-n', 'docs', f'SITE={folder}'],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    (line,) = (line for line in recipe if ' -m sphinx ' in line)
    _, *arguments = line.split()
    assert '-W' in arguments
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    pages = {file.stem: Page(file) for file in folder.glob('*.html')}
    return folder, pages


def test_every_document_is_a_page(site):
    _, pages = site
    names = {path.stem for path in (ROOT / 'docs').glob('*.md')}
    assert len(names) >= 12 and names <= set(pages)
    assert 'fenced-code' not in pages and 'detection' in pages['custom_data'].ids


def test_every_link_of_the_site_leads_somewhere(site):
    folder, pages = site
    followed = 0
    for name, page in pages.items():
        for address in filter(None, page.addresses):
            if re.match(r'https?://|data:|mailto:', address):
                continue
            file, _, anchor = address.partition('#')
            file = file.partition('?')[0] or f'{name}.html'
            assert (folder / file).exists(), f'{name}: {address}'
            if anchor and file.endswith('.html') and '/' not in file:
                assert anchor in pages[Path(file).stem].ids, f'{name}: {address}'
            followed += 1
    assert followed > 500


def test_the_model_is_explained_with_what_the_tools_drew(site):
    _, pages = site
    assert pages['model'].pictures >= {'offsets.png', 'attention.png', 'features.png'}


def test_the_reference_has_what_import_mmlit_brings(site):
    _, pages = site
    names = {f'mmlit.{name}' for name in mmlit.__all__ if name != '__version__'}
    assert len(names) >= 9 and names <= pages['api'].ids
    assert {
        'mmlit.LIT.forward',
        'mmlit.ops.attention.auto',
        'mmlit.archs.ARCHS',
    } <= pages['api'].ids
