"""Configs within checkpoints, which mmengine would run, arrive as settings alone."""

import contextlib
import logging
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmlit.checkpoints.embedded_config import is_settings, remove_config_code
from support.toy_resuming import build

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
PROGRAMS = {
    'import': 'import os',
    'call': "a = open('ran', 'w')",
    'within a setting': "model = dict(a=[dict(b=__import__('os'))])",
    'dict itself': 'dict = 1',
    'star': 'a = dict(**b)',
    'base': "_base_ = 'other.py'",
    'comprehension': 'a = [0 for _ in range(10**9)]',
    'power': 'a = 9**9**9',
    'attribute': 'a.b = 1',
    'no Python': 'a = = 1',
    'nested too deep': 'a = ' + '[' * 10_000,
    'zero byte': 'a = "\0"',
    'too long': 'a = "' + 'a' * 1_000_000 + '"',
    'no text': b'a = 1',
    'after a substitution': """a = {{'$NOPE:1|print("ran")#'}}""",
    'after one in a string': r'''a = "{{$NOPE:x|\042;print(1)#}}"''',
}


@pytest.mark.parametrize('text', PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_is_no_settings(text):
    assert not is_settings(text)


@pytest.mark.parametrize('name', ['mask-rcnn_lit-b_fpn_fsdp_1x_coco', 'lit-s_upernet*'])
def test_what_mmengine_saves_is_settings(name):
    (path,) = CONFIGS.rglob(f'{name}.py')
    assert is_settings(Config.fromfile(path).pretty_text)


def test_programs_are_left_out(caplog):
    meta = dict(config='import os', cfg='a = 1', epoch=3)
    hub = dict(runtime_info=dict(cfg='import os', lr=1), log_scalars={})
    with caplog.at_level(logging.WARNING):
        kept = remove_config_code(dict(meta=meta, message_hub=hub), 'file.pth')
    assert kept == dict(
        meta=dict(cfg='a = 1', epoch=3),
        message_hub=dict(runtime_info=dict(lr=1), log_scalars={}),
    )
    for nothing in (dict(meta=None), dict(message_hub=dict()), [1], None):
        assert remove_config_code(nothing, 'file.pth') == nothing


@pytest.mark.parametrize(
    'program',
    ["a = open(MARKER,'w').close()", """a = {{"$NOPE:1|open(MARKER,'w').close()#"}}"""],
    ids=['program', 'substitution'],
)
def test_resuming_runs_nothing(tmp_path, monkeypatch, program):
    """Through mmengine's Runner, which runs `meta['config']`."""
    build(tmp_path, epochs=1).train()
    path, marker = tmp_path / 'epoch_1.pth', tmp_path / 'ran'
    checkpoint = torch.load(path, weights_only=False)
    checkpoint['meta']['config'] = program.replace('MARKER', repr(str(marker)))
    torch.save(checkpoint, path)
    runner = build(tmp_path / 'again', epochs=2)
    runner.call_hook('before_run')  # as in train(), ahead of resuming
    runner.resume(str(path))
    assert runner.epoch == 1 and not marker.exists()
    # Without the guard it would have: once this fails, there need be none.
    for module in ('engine.checkpoint_hook', 'checkpoints.http_loader'):
        name = f'mmlit.{module}.remove_config_code'
        monkeypatch.setattr(name, lambda found, _: found)
    with contextlib.suppress(TypeError):  # a config is not made of what open() gives
        runner.resume(str(path))
    assert marker.exists()
