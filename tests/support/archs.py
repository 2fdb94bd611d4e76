"""Provide micro architectures for tests."""

import torch

from mmlit import LIT

RELATIVE = dict(
    **dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 3, 4)),
    **dict(mlp_ratios=(2, 2, 2, 2), pos_embed='relative', norm_eps=1e-5),
    drop_path_rate=0.0,
)
ABSOLUTE = {**RELATIVE, 'pos_embed': 'absolute', 'norm_eps': 1e-6}


def randomised(**kwargs):
    """A small LIT whose offsets and norms are not at their initial values."""
    torch.manual_seed(0)
    model = LIT(**{'arch': RELATIVE, **kwargs})
    model.init_weights()
    for name, parameter in model.named_parameters():
        if 'conv_offset' in name or 'norm' in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model
