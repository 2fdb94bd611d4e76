"""dist_train.sh and dist_test.sh with two processes on CPUs, on drawn shapes."""

import pickle
import re

import torch

from mmlit import read_checkpoint
from mmlit_tools.test import main
from support.running_tools import check_continued, finish, free_port, launch, metrics

from support.running_tools import write_tiny  # isort: skip

# Five images to evaluate: two processes get three each, one of them twice.
CHANGES = """
shapes.update(train=4, val=5)
train_dataloader.update(batch_size=1)
default_hooks['checkpoint'].update(max_keep_ckpts=2)
metric = dict(
    type='CocoMetric', metric=['bbox', 'segm'], format_only=False, **val_evaluator)
val_evaluator = [metric, dict(type='DumpDetResults', out_file_path='training.pkl')]
test_evaluator = dict(_delete_=True, **metric)
"""


def predictions(path):
    """By image, as plain values that can be compared."""
    found = {}
    for result in pickle.loads(path.read_bytes()):
        assert result['img_id'] not in found
        values = [value for _, value in sorted(result['pred_instances'].items())]
        found[result['img_id']] = [
            getattr(v, 'tolist', lambda v=v: v)() for v in values
        ]
    return found


def test_stop_resume_and_evaluate(tmp_path, monkeypatch):
    config = write_tiny(tmp_path)
    config.write_text(config.read_text() + CHANGES)
    # torchrun passes SIGTERM on to its processes and theirs; they save, and it waits.
    running = launch('dist_train.sh', config, 2, cwd=tmp_path)
    output = ''
    for line in running.stdout:
        output += line
        # Four images are two steps for two processes.
        if 'Epoch(train) [1][1/2]' in line:
            break
    if not torch.cuda.is_available():
        assert '2 processes on CPUs, over gloo' in output
    running.terminate()
    output, _ = running.communicate(timeout=300)
    stopped = re.search(r'Stopped by SIGTERM after iteration (\d), with', output)
    assert stopped, output[-3000:]
    assert running.returncode == 1  # torchrun's own
    work_dir = tmp_path / 'work_dirs' / 'config'
    saved = read_checkpoint((work_dir / 'last_checkpoint').read_text())['meta']
    assert saved['iter'] == int(stopped[1]) <= 2

    # Two machines, one process each.
    twice = ('--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    port = free_port()
    variables = [dict(NNODES=2, NODE_RANK=rank, PORT=port) for rank in range(2)]
    command = ('dist_train.sh', config, 1, *twice)
    machines = [launch(*command, cwd=tmp_path, **each) for each in variables]
    output = [finish(machine) for machine in machines][0]
    assert f'resumed epoch: {saved["epoch"]}, iter: {saved["iter"]}' in output
    checkpoint = work_dir / 'epoch_2.pth'
    check_continued(work_dir / 'epoch_1.pth', checkpoint, steps=2)

    out = [tmp_path / f'{name}.pkl' for name in ('training', 'two', 'one')]
    arguments = (config, checkpoint, 2, '--out', out[1], '--work-dir', 'two')
    finish(launch('dist_test.sh', *arguments, cwd=tmp_path))
    monkeypatch.chdir(tmp_path)
    arguments = (config, checkpoint, '--out', out[2], '--work-dir', 'one')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    main([str(argument) for argument in arguments])
    torch.set_num_threads(threads)
    during, two, one = map(predictions, out)
    assert len(one) == 5 and all(len(values[0]) == 20 for values in one.values())
    assert two == one
    found = [metrics(tmp_path / name, newest=1).items() for name in ('two', 'one')]
    two, alone = ({k: v for k, v in f if k.startswith('coco/')} for f in found)
    assert len(alone) == 12 and two == alone
    # What two processes measured in training is what their checkpoint gives, although
    # each had BatchNorm statistics of its own.
    assert during == one
