"""Sphinx's settings: `make docs` builds the site from the pages here.

Sphinx with MyST, for MkDocs and its Material theme are in maintenance only. Pages stay
plain Markdown, readable on GitHub as they are. Nothing is fetched while it builds.
"""

from mmlit import __version__

project = 'mmlit'
author = 'The mmlit authors'
version = release = __version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
myst_heading_anchors = 3

html_theme = 'furo'
html_title = f'mmlit {version}'
html_copy_source = False
html_show_copyright = False

# Docstrings name code in single backticks, as the comments do.
default_role = 'code'
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # Args says more, and signatures fit on a line.
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# A name of mmlit's own that leads nowhere is a mistake; others would need the network.
nitpicky = True
nitpick_ignore_regex = [(r'py:.*', r'(?!mmlit)[\w.]+')]

#: Files outside of this folder that are pages of the site, and the pages' names.
PAGES = {'../tools/README.md': 'tools.md', '../configs/README.md': 'configs.md'}


def _lead_to_pages(app, name: str, source: list) -> None:
    """Turn links to what is a page here, right on GitHub, into links to the page."""
    for file, page in PAGES.items():
        source[0] = source[0].replace(f']({file})', f']({page})')


def setup(app) -> None:
    """Connect to Sphinx."""
    app.connect('source-read', _lead_to_pages)
