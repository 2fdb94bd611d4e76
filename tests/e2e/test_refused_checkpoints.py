"""A checkpoint that asks for code ends each tool that reads one, in one line."""

import importlib
import os
import sys

import pytest
import torch

from support.config_helpers import CONFIGS
from support.looking_helpers import write_noise


class Evil:
    def __reduce__(self):
        return os.mkdir, ('run',)


TOOLS = {
    'visualize': 'offsets a.png --config {} --checkpoint evil.pth --out-dir out',
    'export': '{} evil.pth out.onnx --part backbone',
    'infer': 'a.png --config {} --checkpoint evil.pth --out-dir out --device cpu',
}


@pytest.mark.parametrize('tool', TOOLS)
def test_a_refused_checkpoint(tmp_path, monkeypatch, tool):
    monkeypatch.chdir(tmp_path)
    write_noise(tmp_path / 'a.png')
    torch.save(dict(state_dict=Evil()), 'evil.pth')
    config = CONFIGS / 'detection' / 'retinanet_lit-ti_fpn_1x_coco.py'
    words = [f'{tool}.py', *TOOLS[tool].format(config).split()]
    monkeypatch.setattr(sys, 'argv', words)
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f'mmlit_tools.{tool}.command').main()
    assert 'mkdir' in stopped.value.code and 'evil.pth' in stopped.value.code
    assert not (tmp_path / 'run').exists()
    files = {path.name for path in tmp_path.rglob('*') if path.is_file()}
    assert files == {'a.png', 'evil.pth'}
