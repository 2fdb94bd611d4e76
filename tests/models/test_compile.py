"""Test torch.compile of the backbone: one graph, any size, the same numbers."""

from shutil import which

import pytest
import torch
import torch._inductor.config
from torch._dynamo.utils import counters

from mmlit import LIT
from support.official_files import RELATIVE_MICRO

pytestmark = pytest.mark.skipif(
    torch.__version__ < '2.4', reason='torch < 2.4 has no Python operators'
)
compiled_on_a_cpu = pytest.mark.skipif(
    not any(map(which, ('c++', 'g++', 'clang++'))),
    reason='no C++ compiler, which inductor needs on a CPU',
)
# The graphs are those of torch.compile; generating their code takes minutes.
TRACED = pytest.param('eager', id='traced')
GENERATED = pytest.param(
    'inductor', id='generated', marks=[compiled_on_a_cpu, pytest.mark.soak]
)
TOLERANCE = 3e-5
ARCH = dict(RELATIVE_MICRO, embed_dims=(12, 20, 48, 80), depths=(1, 1, 1, 1))


@pytest.fixture
def build():
    """LIT and its compiled self, which share parameters; any graph break raises.

    The sizes below lie on one side of the sizes from which torch's code generator
    writes other loops (4096 tokens), where it compiles once more. Nor is anything
    taken from its cache on disk: what another run left there holds for its sizes.
    """
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)

    def build(pos_embed, **how):
        model = LIT(dict(ARCH, pos_embed=pos_embed), img_size=96)
        for name, parameter in model.named_parameters():
            if 'conv_offset' in name:  # zero at first, where samples hit tokens
                torch.nn.init.normal_(parameter, std=0.1)
        return model, torch.compile(model, fullgraph=True, **how)

    with torch._inductor.config.patch(force_disable_caches=True):
        yield build
    torch._dynamo.reset()


def values_and_gradients(function, model, image):
    """Outputs, then gradients; BatchNorm's statistics stay as they were."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    outs = function(image)
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator)).mean() for out in outs
    )
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return outs, gradients


def check_close(actual, expected):
    """Gradients against the largest of all: some are zero but for rounding."""
    for one, other in zip(actual[0], expected[0], strict=True):
        assert (one - other).abs().max() <= TOLERANCE * other.abs().max()
    largest = max(gradient.abs().max() for gradient in expected[1])
    for one, other in zip(actual[1], expected[1], strict=True):
        assert (one - other).abs().max() <= TOLERANCE * largest


@pytest.mark.slow
@pytest.mark.parametrize('backend', [TRACED, GENERATED])
@pytest.mark.parametrize('pos_embed', ['relative', 'absolute'])
def test_training(build, pos_embed, backend):
    model, compiled = build(pos_embed, dynamic=True, backend=backend)
    graphs = []
    for size in [(160, 224), (192, 288), (160, 352), (224, 256)]:
        image = torch.randn(2, 3, *size)
        check_close(
            values_and_gradients(compiled, model, image),
            values_and_gradients(model, model, image),
        )
        graphs.append(counters['stats']['unique_graphs'])
    assert graphs == [1, 1, 1, 1]
    assert not counters['graph_break']


def infer(model, compiled, batch, sizes):
    """How many graphs there are after each size; all give the same numbers."""
    model.eval()
    for size in sizes:
        image = torch.randn(batch, 3, *size)
        with torch.no_grad():
            levels = zip(compiled(image), model(image), strict=True)
        for out, expected in levels:
            difference = (out - expected).abs().max() / expected.abs().max()
            assert difference <= TOLERANCE
        yield counters['stats']['unique_graphs']


@pytest.mark.parametrize('backend', [TRACED, GENERATED])
def test_inference(build, backend):
    """Sizes as users meet them, without asking for dynamic shapes."""
    sizes = [(160, 224), (192, 288), (288, 192), (160, 352)]
    graphs = list(infer(*build('relative', backend=backend), 2, sizes))
    # The first for its one size, the second for all others.
    assert graphs == [1, 2, 2, 2]


@pytest.mark.slow
@compiled_on_a_cpu
def test_generated_code(build):
    """What `make test-all` generates: inference at any size, tried at two."""
    sizes = [(160, 224), (192, 288)]
    assert list(infer(*build('relative', dynamic=True), 1, sizes)) == [1, 1]
