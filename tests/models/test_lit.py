"""Test the backbone: sizes, levels, precisions, freezing and refusals."""

import copy

import pytest
import torch
from mmengine.registry import MODELS

from mmlit import LIT
from mmlit.archs import ARCHS
from support.archs import ABSOLUTE, RELATIVE, randomised

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='no CUDA device here'
)
BOTH = pytest.mark.parametrize('arch', [RELATIVE, ABSOLUTE], ids=['rel', 'abs'])


def image(height=64, width=64, batch=1):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, height, width, generator=generator)


COUNTS = dict(tiny=19_370_264, small=27_964_848, medium=50_669_760, base=89_022_712)


@pytest.mark.parametrize(('arch', 'count'), COUNTS.items())
def test_parameter_counts(arch, count):
    with torch.device('meta'):  # from the root registry
        model = MODELS.build(dict(type='LIT', arch=arch, img_size=800))
    assert type(model) is LIT
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.embed_dims == ARCHS[arch].embed_dims


@pytest.mark.parametrize(
    ('kwargs', 'expected'),
    [
        ({}, [0.2 * i / 11 for i in range(12)]),  # depths 2, 2, 6, 2 and drop path 0.2
        (dict(out_indices=(0, 1), drop_path_rate=0.11), [0.0, 0.01, 0.02, 0.03]),
    ],
)
def test_drop_path_rises_linearly_over_all_blocks(kwargs, expected):
    with torch.device('meta'):
        model = LIT('small', **kwargs)
    rates = [b.drop_path.drop_prob for stage in model.stages for b in stage.blocks]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ('kwargs', 'normed'),
    [
        (dict(arch=RELATIVE), [1, 2, 3]),
        (dict(arch=ABSOLUTE), []),
        (dict(arch=RELATIVE, out_norm_indices=(0, 1, 2, 3)), [0, 1, 2, 3]),
        (dict(arch=ABSOLUTE, out_norm_indices=(0, 3)), [0, 3]),
        (dict(arch=RELATIVE, out_indices=(0, 2)), [2]),
    ],
)
def test_output_norms(kwargs, normed):
    model = LIT(**kwargs)
    assert [i for i, s in enumerate(model.stages) if s.out_norm is not None] == normed


@BOTH
@pytest.mark.parametrize('out_indices', [(1,), (0, 1, 2, 3)])
def test_every_parameter_gets_a_gradient(arch, out_indices):
    """Also where later stages are not wanted: those are not built."""
    model = LIT(arch, out_indices=out_indices)
    assert len(model.stages) == out_indices[-1] + 1
    sum(level.sum() for level in model(image())).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_norm_and_table_names_match_custom_keys():
    model = LIT(RELATIVE, out_norm_indices=(0, 1, 2, 3))
    norms = (torch.nn.LayerNorm, torch.nn.BatchNorm2d)
    for name, module in model.named_modules():
        assert isinstance(module, norms) == (len(list(module.parameters(False))) > 0
                                             and 'norm' in name)  # fmt: skip
    tables = [n for n, _ in model.named_parameters() if 'relative_position_bias' in n]
    assert len(tables) == 3
    assert all(n.endswith('.relative_position_bias_table') for n in tables)


@BOTH
def test_initialisation(arch):
    model = LIT(arch)
    model.init_weights()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert 0.015 < module.weight.std() < 0.025, name
            assert not module.bias.any()
        elif isinstance(module, (torch.nn.LayerNorm, torch.nn.BatchNorm2d)):
            assert (module.weight == 1).all() and not module.bias.any()
    for name, parameter in model.named_parameters():
        if 'conv_offset' in name:
            assert not parameter.any()
        if 'relative_position' in name or 'absolute_pos' in name:
            assert 0.015 < parameter.std() < 0.025, name


def test_users_init_cfg_is_used():
    model = LIT(RELATIVE, init_cfg=dict(type='Constant', layer='Linear', val=0.5))
    model.init_weights()
    assert (model.stages[0].blocks[0].mlp.fc1.weight == 0.5).all()


@pytest.mark.parametrize('size', [(896, 896), (1792, 448)])
def test_absolute_embeddings_where_a_later_stage_has_as_many_tokens_as_stage_1(size):
    """The authors' tiny mistakes such maps for stage 1's and crashes."""
    with torch.no_grad():
        levels = LIT(ABSOLUTE, out_indices=(0, 1, 2)).eval()(image(*size))
    assert [level.shape[2] for level in levels] == [size[0] // s for s in (4, 8, 16)]


@pytest.mark.parametrize('size', [(28, 64), (64, 28), (1, 1), (3, 500)])
def test_small_images_are_refused(size):
    with pytest.raises(ValueError, match=f'{size[0]}x{size[1]} px.* 32 px'):
        LIT(RELATIVE)(image(*size))


def test_other_inputs_are_refused():
    model = LIT(RELATIVE)
    with pytest.raises(ValueError, match=r'\(1, 4, 64, 64\).*\(batch, 3'):
        model(torch.randn(1, 4, 64, 64))
    with pytest.raises(ValueError, match=r'\(3, 64, 64\)'):
        model(torch.randn(3, 64, 64))
    with pytest.raises(TypeError, match='torch.uint8'):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert LIT(RELATIVE, in_channels=5)(torch.randn(1, 5, 64, 64))[0].shape[1] == 8


@pytest.mark.parametrize('out_indices', [(3,), (0, 2), [1, 2, 3]])
def test_out_indices_choose_levels(out_indices):
    full = randomised().eval()
    part = LIT(RELATIVE, out_indices=out_indices).eval()
    part.load_state_dict(full.state_dict(), strict=False)
    levels = full(image())
    for index, level in zip(out_indices, part(image())):
        torch.testing.assert_close(level, levels[index])


def test_reference_size_changes_tables_not_images():
    model = LIT(RELATIVE, img_size=(800, 512))
    table = model.stages[2].blocks[0].attn.position_bias.relative_position_bias_table
    assert table.shape == (3, 99, 63)
    assert model(image())[3].shape == (1, 32, 2, 2)
    sizes = {p.shape for p in LIT(ABSOLUTE, img_size=800).parameters()}
    assert sizes == {p.shape for p in LIT(ABSOLUTE).parameters()}


@BOTH
def test_checkpointing_changes_no_number(arch):
    results = []
    for with_cp in (False, True):
        rates = dict(drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.2)
        model = randomised(arch=arch, with_cp=with_cp, **rates)
        torch.manual_seed(3)
        levels = model(image(48, 64, 2))
        sum(level.square().mean() for level in levels).backward()
        results.append([*levels, *(p.grad for p in model.parameters()),
                        *model.buffers()])  # fmt: skip
    for expected, actual in zip(*results):
        assert torch.equal(actual, expected)


@BOTH
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=needs_cuda)])
def test_autocast(arch, dtype, training, device):
    model = randomised(arch=arch).to(device).train(training)
    images = image(64, 96, 2).to(device)
    exact = copy.deepcopy(model)(images)
    with torch.autocast(device, dtype):
        levels = model(images)
    for level, expected in zip(levels, exact):
        assert level.dtype == torch.float32
        assert (level - expected).abs().max() < 0.1 * expected.abs().max()
    if training:
        sum(level.square().mean() for level in levels).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@BOTH
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_weights_in_other_precisions(arch, dtype):
    model = randomised(arch=arch)
    expected = copy.deepcopy(model).eval()(image())
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    for images in (image(), image().to(dtype)):
        levels = model.to(dtype).eval()(images)
        for level, exact in zip(levels, expected):
            assert level.dtype == dtype
            error = (level.float() - exact).abs().max()
            assert error < tolerance * exact.abs().max()


@BOTH
@pytest.mark.parametrize('name', ['drop_rate', 'attn_drop_rate', 'drop_path_rate'])
def test_each_dropout_acts_in_training_only(arch, name):
    model = randomised(arch=arch, **{name: 0.5})
    model.requires_grad_(False)
    images = image(48, 48, 4)
    torch.manual_seed(0)
    assert not torch.equal(model(images)[3], model(images)[3])
    model.eval()
    assert torch.equal(model(images)[3], model(images)[3])


@BOTH
@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 3, 4])
def test_frozen_stages(arch, frozen_stages):
    model = LIT(arch, frozen_stages=frozen_stages, out_norm_indices=(0, 1, 2, 3))
    frozen = [model.stages[0].patch_embed] if frozen_stages == 0 else []
    frozen += list(model.stages[: max(frozen_stages, 0)])
    expected = {id(p) for part in frozen for p in part.parameters()}
    assert {id(p) for p in model.parameters() if not p.requires_grad} == expected
    still = {id(m) for part in frozen for m in part.modules()}
    assert model.train() is model and model.eval() is model
    for mode in (model, model.eval().train(), model.train(True)):
        assert {id(m) for m in mode.modules() if not m.training} == still
    before = copy.deepcopy(model.state_dict())
    model.train()(image(64, 64, 2))
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    names = ('running_mean', 'running_var', 'num_batches_tracked')
    thawed = [f'stages.{i}.downsample.norm' for i in range(max(frozen_stages, 1), 4)]
    assert moved == {f'{norm}.{name}' for norm in thawed for name in names}
    shorter = LIT(arch, frozen_stages=frozen_stages, out_indices=(0, 1))
    assert (frozen_stages < 2) == any(p.requires_grad for p in shorter.parameters())


def test_norm_eval():
    model = LIT(RELATIVE, norm_eval=True).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert not module.training and module.weight.requires_grad
        elif isinstance(module, torch.nn.LayerNorm):
            assert module.training


@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'),
    [
        (dict(depth=50), TypeError, 'depth'),
        (dict(arch='large'), ValueError, "arch='large'.*tiny, small, medium, base"),
        (dict(in_channels=0), ValueError, 'in_channels=0'),
        (dict(img_size=16), ValueError, 'img_size=16'),
        (dict(img_size='800'), TypeError, "img_size='800'"),
        (dict(img_size=(800, 800, 3)), TypeError, 'img_size='),
        (dict(out_indices=(0, 4)), ValueError, 'out_indices=4'),
        (dict(out_indices=()), ValueError, 'out_indices is empty'),
        (dict(out_indices=3), TypeError, 'out_indices=3'),
        (dict(out_indices=(3, 2)), ValueError, r'out_indices=\(3, 2\)'),
        (dict(out_norm_indices=(1, 7)), ValueError, 'out_norm_indices=7'),
        (dict(frozen_stages=-2), ValueError, 'frozen_stages=-2'),
        (dict(frozen_stages=5), ValueError, 'frozen_stages=5'),
        (dict(drop_rate=-0.1), ValueError, 'drop_rate=-0.1'),
        (dict(attn_drop_rate=1.5), ValueError, 'attn_drop_rate=1.5'),
        (dict(drop_path_rate='0.1'), TypeError, "drop_path_rate='0.1'"),
        (dict(norm_eval='False'), TypeError, "norm_eval='False'"),
        (dict(with_cp=1), TypeError, 'with_cp=1'),
        (dict(attn_kernel='flash'), ValueError, "attn_kernel='flash'.*eager, sdpa"),
    ],
)
def test_bad_arguments_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        LIT(**kwargs)
