"""Test what holds for any network, image size, batch and dtype, by hypothesis.

`make test` tries the same few cases each time, `make soak` many, and others each time.
"""

import copy
import io
import pickle
from typing import NamedTuple, Tuple

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mmlit import LIT
from mmlit.archs import ARCHS, resolve_arch
from support.official_files import ABSOLUTE_MICRO, RELATIVE_MICRO

#: How far a number may be off where another order of sums is no error, by dtype and
#: relative to the largest number of its tensor. In bfloat16, whose numbers are 2^-8
#: apart, each of the layers rounds anew.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 0.1}
EFFORTS = ['some', pytest.param('many', marks=pytest.mark.soak)]
FACTOR = 10  # many for each of some


class Case(NamedTuple):
    """A network, and what it sees."""

    arch: dict
    img_size: int
    out_indices: Tuple[int, ...]
    dtype: torch.dtype
    batch: int
    size: Tuple[int, int]

    def model(self, **kwargs):
        torch.manual_seed(0)
        kwargs.update(img_size=self.img_size, out_indices=self.out_indices)
        model = LIT(self.arch, **kwargs)
        # Not at the start, where offsets are zeros and norms do nothing.
        for name, parameter in model.named_parameters():
            if 'conv_offset' in name or 'norm' in name:
                torch.nn.init.normal_(parameter, std=0.3)
        return model.to(self.dtype)

    def images(self):
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(self.batch, 3, *self.size, generator=generator)
        return images.to(self.dtype)


@st.composite
def archs(draw):
    """The authors' micro networks, or any other of a few channels."""
    arch = draw(st.sampled_from([RELATIVE_MICRO, ABSOLUTE_MICRO]))
    if draw(st.booleans()):
        return arch
    heads = draw(st.tuples(*[st.integers(1, 3)] * 4))
    return dict(
        arch,
        embed_dims=tuple(h * draw(st.sampled_from([1, 4, 7, 8])) for h in heads),
        depths=draw(st.tuples(*[st.integers(1, 2)] * 4)),
        num_heads=heads,
        mlp_ratios=draw(st.tuples(*[st.integers(1, 3)] * 4)),
        drop_path_rate=draw(st.sampled_from([0.0, 0.3])),
    )


@st.composite
def sizes(draw):
    """Any two sides from the least one on, or a strip many times as long as wide."""
    if draw(st.booleans()):
        return draw(st.tuples(st.integers(29, 140), st.integers(29, 140)))
    sides = draw(st.integers(29, 40)), draw(st.integers(200, 1000))
    return sides if draw(st.booleans()) else sides[::-1]


def cases(dtypes=tuple(TOLERANCE), fewest=1):
    levels = st.sets(st.integers(0, 3), min_size=1).map(lambda s: tuple(sorted(s)))
    return st.builds(
        Case,
        arch=archs(),
        img_size=st.sampled_from([32, 75, 224]),
        out_indices=st.one_of(st.just((0, 1, 2, 3)), levels),
        dtype=st.sampled_from(dtypes),
        batch=st.integers(fewest, 4),
        size=sizes(),
    )


def trained(*dtypes):
    """Of a single token a BatchNorm in training makes nothing: two images or more."""
    return cases(dtypes or tuple(TOLERANCE), fewest=2)


def hold(effort, some, strategy, check, *examples):
    """Have hypothesis look for a case in which `check` fails, among so many."""
    many = effort == 'many'

    @settings(
        max_examples=some * (FACTOR if many else 1),
        derandomize=not many,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(case):
        check(case)

    for one in examples:
        each = example(one)(each)
    each()


def off(actual, expected):
    """The largest difference, relative to the largest number."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    error = (actual.double() - expected.double()).abs().max()
    return error.item() / expected.abs().max().item()


def check_shapes(case):
    channels = resolve_arch(case.arch).embed_dims
    for training in (False, True)[: case.batch]:  # see `trained`
        levels = case.model().train(training)(case.images())
        assert len(levels) == len(case.out_indices)
        for index, level in zip(case.out_indices, levels):
            # Padded to whole patches; each merging drops an odd last row or column.
            grid = [-(-side // 4) // 2**index for side in case.size]
            assert level.shape == (case.batch, channels[index], *grid)
            assert level.is_contiguous()
            assert level.dtype == case.dtype
            assert level.isfinite().all()


def check_batch(case):
    model, images = case.model().eval(), case.images()
    with torch.no_grad():
        together = model(images)
        for i in range(case.batch):
            for level, alone in zip(together, model(images[i : i + 1])):
                assert off(level[i : i + 1], alone) <= TOLERANCE[case.dtype]


def train_once(model, images):
    """All that a step computes: outputs, gradients, running averages."""
    torch.manual_seed(2)
    model.train().zero_grad()
    levels = model(images)
    sum(level.float().square().mean() for level in levels).backward()
    found = [*levels, *(p.grad for p in model.parameters()), *model.buffers()]
    return [tensor.detach().clone() for tensor in found]


def check_state(case):
    model = case.model()
    train_once(model, case.images())  # running averages that are no round numbers
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = case.model()
    for tensor in other.state_dict().values():
        tensor.fill_(3)
    other.load_state_dict(torch.load(file), strict=True)
    assert list(other.state_dict()) == list(model.state_dict())
    for one, two in zip(model.state_dict().values(), other.state_dict().values()):
        assert one.dtype == two.dtype and torch.equal(one, two)
    twins = other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        expected = model.eval()(case.images())
        for twin in twins:
            assert all(map(torch.equal, twin.eval()(case.images()), expected))


@pytest.mark.parametrize('effort', EFFORTS)
class TestAnyNetwork:
    def test_shapes_and_strides(self, effort):
        least = Case(RELATIVE_MICRO, 32, (3,), torch.float32, 1, (29, 29))
        hold(effort, 24, cases(), check_shapes, least)

    def test_a_batch_equals_its_images_one_by_one(self, effort):
        hold(effort, 20, cases(), check_batch)

    def test_state_dict_round_trip(self, effort):
        hold(effort, 12, trained(), check_state)


@pytest.mark.slow
@pytest.mark.parametrize('name', ARCHS)
def test_named_archs(name):
    case = Case(name, 224, (0, 1, 2, 3), torch.float32, batch=2, size=(45, 98))
    check_shapes(case)
    check_batch(case)
    if name in ('tiny', 'small'):  # one of each family
        check_state(case)
