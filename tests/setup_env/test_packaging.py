"""Check what the wheel holds, and what `.mim` says about the configs as a whole.

What it says about each, `config_helpers.check_metafile` compares with the config.
"""

import re
import zipfile
from pathlib import Path

import pytest
import yaml

from support import dists

CHECKOUT = dists.CHECKOUT
MIM = CHECKOUT / 'mmlit' / '.mim'


def models():
    """Return the entries of all metafiles, found as mim finds them."""
    index = yaml.safe_load((MIM / 'model-index.yml').read_text())
    found = []
    for name in index['Import']:
        metafile = yaml.safe_load((MIM / name).read_text())
        collections = {entry['Name'] for entry in metafile['Collections']}
        for model in metafile['Models']:
            assert model['In Collection'] in collections
            found.append(model)
    return found


def names_in(wheel):
    return {
        name for name in zipfile.ZipFile(wheel).namelist() if '.dist-info' not in name
    }


def files_of(folder, *patterns):
    return {
        path.relative_to(CHECKOUT).as_posix()
        for pattern in patterns
        for path in (CHECKOUT / folder).glob(pattern)
    }


@pytest.mark.slow
def test_the_wheel_is_the_package_and_what_mim_wants(tmp_path):
    wheel = dists.build(CHECKOUT, tmp_path / 'wheel', 'bdist_wheel')
    wanted = {'model-index.yml'}
    wanted |= files_of('configs', 'README.md', '*/*.py', '*/metafile.yml')
    wanted |= files_of('tools', 'README.md', '*.py', '*.sh')
    assert {'tools/train.py', 'tools/dist_train.sh'} <= wanted
    expected = {f'mmlit/.mim/{name}' for name in wanted}
    expected |= files_of('mmlit', '*.py', '*/*.py')
    expected |= files_of('mmlit_doctor', '*.py')
    expected |= files_of('mmlit_tools', '*.py', '*/*.py', '*/*.html')
    assert names_in(wheel) == expected
    for info in zipfile.ZipFile(wheel).infolist():
        if info.filename.endswith('.sh'):
            assert info.external_attr >> 16 & 0o111, f'{info.filename} does not run'

    # The same by way of an sdist, whose tree has no links.
    sdist = dists.build(CHECKOUT, tmp_path / 'sdist', 'sdist')
    tree = dists.unpack(sdist, tmp_path / 'tree')
    # Its Makefile can do what it says: the documentation and the tests.
    shipped = files_of('docs', '*.md', '*.py', 'images/*.png')
    shipped |= files_of('tests', '*.py', '*/*.py', 'data/*.npz')
    assert {'docs/images/offsets.png', 'tests/data/golden.npz'} <= shipped
    assert [name for name in sorted(shipped) if not (tree / name).is_file()] == []
    again = dists.build(tree, tmp_path / 'again', 'bdist_wheel')
    assert names_in(again) == expected


def test_an_editable_installation_has_the_same_files_by_links():
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (MIM / name).is_symlink()
        assert not Path((MIM / name).readlink()).is_absolute()
        assert (MIM / name).resolve() == CHECKOUT / name


def test_every_config_is_in_a_metafile_and_the_other_way_round():
    configs = {
        path
        for kind in ('detection', 'segmentation')
        for path in (CHECKOUT / 'configs' / kind).glob('*.py')
    }
    named = [CHECKOUT / model['Config'] for model in models()]
    assert len(named) == len(set(named)) and set(named) == configs
    assert [model['Name'] for model in models()] == [path.stem for path in named]


def test_results_are_the_authors_and_those_of_the_readme():
    """And weights are there for these alone."""
    readme = (CHECKOUT / 'README.md').read_text()
    for model in models():
        metrics = {
            name: value
            for result in model.get('Results', ())
            for name, value in result['Metrics'].items()
        }
        row = re.search(rf'\({model["Config"]}\) \|([^\n]*)', readme)
        figures = re.findall(r'(?<= )\d\d\.\d(?= \|)', row.group(1)) if row else []
        assert list(map(str, metrics.values())) == figures, model['Name']
        assert all(name.endswith(' (authors)') for name in metrics)
        assert ('Weights' in model) == bool(metrics)
        assert (model['Metadata']['Recipe'] == 'authors') == bool(metrics)
        if metrics:
            release = 'https://github.com/ziplab/LIT/releases/download/v2.0/'
            assert model['Weights'].startswith(release)
