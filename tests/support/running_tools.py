"""Run tools, in this process or in their own, and read what they leave."""

import json
import subprocess
import sys

import pytest
import torch

SPLITS = {'train': 'train', 'val': 'val', 'test': 'val'}


def stopped(main, *arguments):
    """Return the one line that a command's `main` ends with, at exit status 1."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, str) and '\n' not in stop.value.code
    return stop.value.code


def start(tool, *arguments, cwd):
    """Start a tool from a folder that has nothing to do with the checkout."""
    command = [sys.executable, str(tool), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process, timeout=900):
    """Return the output of a tool that has to succeed."""
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output[-5000:]
    return output


def run(tool, *arguments, cwd, timeout=900):
    return finish(start(tool, *arguments, cwd=cwd), timeout)


def metrics(work_dir, newest):
    """Return the metrics that test.py has written; so many runs have left some."""
    files = sorted(work_dir.glob('*/*.json'), key=lambda f: f.stat().st_mtime)
    assert len(files) == newest, files
    return json.loads(files[-1].read_text())


def check_continued(first, second, steps):
    """Check that checkpoint `second` is of as many steps again as `first`."""
    first, second = (torch.load(path, weights_only=False) for path in (first, second))
    assert (first['meta']['iter'], second['meta']['iter']) == (steps, 2 * steps)
    curves = [c['message_hub']['log_scalars']['train/loss'] for c in (first, second)]
    lengths = [len(curve.data[0]) for curve in curves]
    assert lengths == [steps, 2 * steps]
    assert all(map(torch.isfinite, map(torch.tensor, curves[1].data[0])))
    # AdamW's moments were in the first file and went on from there.
    steps_done = {s['step'].item() for s in second['optimizer']['state'].values()}
    assert steps_done == {2.0 * steps}
    moved = [
        not torch.equal(value, second['state_dict'][key])
        for key, value in first['state_dict'].items()
        if key.startswith('backbone.') and value.is_floating_point()
    ]
    assert sum(moved) > len(moved) / 2
    return first['meta'], second['meta']
