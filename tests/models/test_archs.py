"""Test the table of architectures and its refusals."""

import dataclasses

import pytest

from mmlit.archs import ARCHS, resolve_arch

SMALL = dataclasses.asdict(ARCHS['small'])


def test_names_and_dicts_give_the_same_arch():
    assert list(ARCHS) == ['tiny', 'small', 'medium', 'base']
    assert resolve_arch(SMALL) == resolve_arch('small') == ARCHS['small']
    # mmengine's configs turn tuples into lists
    as_lists = {k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.items()}
    assert resolve_arch(as_lists) == ARCHS['small']


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(embed_dims=(96, 192, 384)), ValueError, r'embed_dims=\(96, 192, 384\)'),
        (dict(depths=(2, 2, 6, 2, 2)), ValueError, 'depths=.*5 entries.*4 stages'),
        (dict(num_heads=(3, 6, 11, 24)), ValueError, r'num_heads\[2\]=11 .*384'),
        (dict(num_heads=(3, 6, 12, '24')), TypeError, "num_heads=.*'24'"),
        (dict(mlp_ratios=(4, 4, 0, 4)), ValueError, 'mlp_ratios='),
        (dict(depths=4), TypeError, 'depths=4'),
        (dict(pos_embed='rotary'), ValueError, "pos_embed='rotary'"),
        (dict(norm_eps=0.0), ValueError, 'norm_eps=0.0'),
        (dict(drop_path_rate=1.0), ValueError, 'drop_path_rate=1.0'),
        (dict(mlp_ratio=4), ValueError, r"unknown keys \['mlp_ratio'\]"),
    ],
)
def test_bad_fields_are_named(change, error, message):
    with pytest.raises(error, match=message):
        resolve_arch({**SMALL, **change})


@pytest.mark.parametrize(
    ('arch', 'error', 'message'),
    [
        ({k: SMALL[k] for k in SMALL if k != 'depths'}, ValueError, r"\['depths'\]"),
        ('Small', ValueError, "'Small'.*tiny, small, medium, base"),
        (3, TypeError, 'arch=3'),
    ],
)
def test_other_archs_are_refused(arch, error, message):
    with pytest.raises(error, match=message):
        resolve_arch(arch)
