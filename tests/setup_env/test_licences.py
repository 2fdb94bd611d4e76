"""docs/licences.md has every pinned package, with what its metadata say."""

import email
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / 'tools' / 'setup'))

import list_licences  # noqa: E402
from setup_packages import normalise, read_pins  # noqa: E402

ROWS = list_licences.read_page(list_licences.PAGE.read_text(encoding='utf-8'))


def test_every_pinned_package_has_a_licence_and_no_other_is_there():
    lists = sorted((CHECKOUT / 'requirements').rglob('*.txt'))
    pins = {pin for file in lists for pin in read_pins(file).items()}
    names = {name for name, _ in pins}
    assert len(pins) > 150 and names >= {'torch', 'mmcv', 'onedl-mmcv', 'openmim'}
    assert set(ROWS) == pins
    assert list(ROWS) == sorted(ROWS)
    assert all(re.search(r'[A-Za-z]{2}', licence) for licence in ROWS.values())
    assert not {'UNKNOWN', 'None'} & set(ROWS.values())


def test_it_is_what_the_installed_packages_say():
    compared = 0
    for distribution in metadata.distributions():
        name = normalise(distribution.metadata['Name'])
        pin = name, distribution.version.partition('+')[0]
        said = list_licences.licence_of(distribution)
        if pin in ROWS and pin not in list_licences.READ_IN_FILES:
            assert ROWS[pin] == said, pin
            compared += 1
    assert compared > 50


class Package:
    """Stands in for a distribution with these metadata."""

    def __init__(self, text):
        self.metadata = email.message_from_string(text)


@pytest.mark.parametrize(
    ('text', 'licence'),
    [
        (
            'License-Expression: MIT OR Apache-2.0\nLicense: other\n',
            'MIT OR Apache-2.0',
        ),
        ('License: BSD\nClassifier: License :: OSI Approved :: BSD License\n', 'BSD'),
        (
            'License: Copyright (c) 2020\n        All rights reserved.\n'
            'Classifier: License :: OSI Approved :: MIT License\n',
            'MIT License',
        ),
        (
            'License: UNKNOWN\nClassifier: License :: Public Domain\n'
            'Classifier: License :: OSI Approved :: ISC License (ISCL)\n',
            'Public Domain; ISC License (ISCL)',
        ),
        ('Name: a\nClassifier: Programming Language :: Python\n', ''),
    ],
)
def test_the_clearest_field_is_taken(text, licence):
    assert list_licences.licence_of(Package(text)) == licence


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(list_licences, 'PAGE', tmp_path / 'page.md')
    monkeypatch.setattr(sys, 'argv', ['list_licences.py', str(tmp_path)])
    assert list_licences.main() == 1
    assert 'numpy==' in capsys.readouterr().err
    assert not (tmp_path / 'page.md').exists()
