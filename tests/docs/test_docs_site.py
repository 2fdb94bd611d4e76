"""Build the documentation's site without a warning; follow its links."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import mmlit

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """The ids and links of a page."""

    def __init__(self, file: Path):
        super().__init__()
        self.ids, self.addresses = set(), []
        self.feed(file.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get('id'))
        self.addresses += [attributes.get(name) for name in ('href', 'src')]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """Build the pages as `make docs` does; return the folder and them by name."""
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


def test_every_link_of_the_site_leads_somewhere(site):
    folder, pages = site
    for name, page in pages.items():
        for address in filter(None, page.addresses):
            if re.match(r'https?://|data:|mailto:', address):
                continue
            file, _, anchor = address.partition('#')
            file = file.partition('?')[0] or f'{name}.html'
            assert (folder / file).exists(), f'{name}: {address}'
            if anchor and file.endswith('.html') and '/' not in file:
                assert anchor in pages[Path(file).stem].ids, f'{name}: {address}'


def test_the_reference_has_what_import_mmlit_brings(site):
    _, pages = site
    names = {f'mmlit.{name}' for name in mmlit.__all__ if name != '__version__'}
    assert names | {'mmlit.LIT.forward', 'mmlit.archs.ARCHS'} <= pages['api'].ids
