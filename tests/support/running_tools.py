"""Run tools and functions in processes of their own, two at once, or cut short."""

import functools
import importlib.util
import inspect
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmlit import read_checkpoint
from support.archs import ABSOLUTE

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'
TRAIN = TOOLS / 'train.py'
PIPED = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
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
    return subprocess.Popen(command, cwd=cwd, **PIPED)


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
    for checkpoint, done in ((first, steps), (second, 2 * steps)):
        losses = checkpoint['message_hub']['log_scalars']['train/loss'].data[0]
        assert checkpoint['meta']['iter'] == len(losses) == done
        assert torch.tensor(losses).isfinite().all()
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


def in_two(*works):
    """Call each work(rank) in two processes that have a group; raise their errors.

    Works are functions at the top of a module, or partials of these. They go by file
    and name: pytest's names of test modules do not import.
    """
    pairs = [(getattr(w, 'func', w), getattr(w, 'args', ())) for w in works]
    places = [(inspect.getfile(f), f.__name__, arguments) for f, arguments in pairs]
    mp.spawn(_join, (free_port(), places), nprocs=2)


def _join(rank, port, works):
    torch.set_num_threads(1)
    # Not by a file: once one process waited for that after the other had ended.
    dist.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )
    for file, name, arguments in works:
        getattr(_load(file), name)(*arguments, rank)
    dist.destroy_process_group()


@functools.lru_cache
def _load(file):
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_port():
    """Return a free port for MASTER_PORT."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


def launch(script, *arguments, cwd, **variables):
    """Start a script of tools/ with this Python, on a port of its own."""
    own = dict(PYTHON=sys.executable, OMP_NUM_THREADS=1, PORT=free_port())
    own = {key: str(value) for key, value in {**own, **variables}.items()}
    environment = {**os.environ, **own}
    command = ['bash', str(TOOLS / script), *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env=environment, **PIPED)


SHAPES = ROOT / 'configs' / 'detection' / 'mask-rcnn_lit-ti_fpn_shapes.py'
#: A LIT of all its parts, in thousands of parameters.
TINY = {**ABSOLUTE, 'embed_dims': (16, 24, 32, 48), 'num_heads': (1, 1, 2, 4)}
TINY.update(depths=(1, 1, 1, 1), drop_path_rate=0.2)


def write_config(folder, **settings):
    """The demo's config on other data, with `settings` as its last lines."""
    data = folder / 'data'
    evaluator = dict(ann_file=f'{data}/annotations/val.json')
    settings.update(val_evaluator=evaluator, test_evaluator=evaluator)
    settings['shapes']['out'] = str(data)
    for split in SPLITS:
        loader = settings.setdefault(f'{split}_dataloader', {})
        loader.setdefault('dataset', {})['data_root'] = f'{data}/'
    lines = [f'{name} = {value!r}\n' for name, value in settings.items()]
    (folder / 'config.py').write_text(''.join([f'_base_ = {str(SHAPES)!r}\n', *lines]))
    return folder / 'config.py'


def write_tiny(folder):
    """Four iterations an epoch, seconds in all; data by a worker."""
    backbone = dict(arch=dict(TINY, _delete_=True))
    neck = dict(in_channels=list(TINY['embed_dims']))
    test_cfg = dict(rcnn=dict(score_thr=0.0, max_per_img=20))
    return write_config(
        folder,
        **dict(shapes=dict(train=8, val=4, size=64, seed=0), scale=(64, 64)),
        model=dict(backbone=backbone, neck=neck, test_cfg=test_cfg),
        train_dataloader=dict(batch_size=2, num_workers=1),
        train_cfg=dict(max_epochs=4),
        default_hooks=dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=1)),
    )


class Training:
    """One start of train.py, in a group of processes of its own."""

    def __init__(self, config, work_dir, *options, **popen):
        self.work_dir = Path(work_dir)
        command = [TOOLS / 'train.py', config, '--work-dir', work_dir, '--resume']
        self.process = subprocess.Popen(
            [sys.executable, '-u', *map(str, [*command, *options])],
            cwd=self.work_dir.parent,
            # Bit by bit the same is promised of one thread.
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
            start_new_session=True,
            **{**PIPED, **popen},
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        self.lines.extend(self.process.stdout)

    @property
    def output(self):
        return ''.join(self.lines)

    def wait_for(self, condition, patience=300):
        """Until the condition holds; False where the training was over before."""
        end = time.monotonic() + patience
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < end, self.output[-3000:]
            time.sleep(0.0005)
        return True

    def kill(self, number=signal.SIGKILL):
        """Send a signal to it and its workers at once, as Slurm does."""
        os.killpg(self.process.pid, number)
        return self.finish()

    def finish(self):
        """The exit status."""
        status = self.process.wait(timeout=900)
        self._reader.join(10)
        return status

    def writes(self):
        """Whether a checkpoint is being written right now."""
        try:
            return any(p.stat().st_size for p in self.work_dir.glob('.*.pth.part'))
        except FileNotFoundError:
            return False  # It has taken its place meanwhile.


def progress(work_dir):
    """Epochs and iterations of the newest whole checkpoint; all must be whole."""
    done = (0, 0)
    for path in work_dir.glob('*.pth'):
        meta = read_checkpoint(path)['meta']
        done = max(done, (meta['epoch'], meta['iter']))
    note = work_dir / 'last_checkpoint'
    if note.exists():
        noted = read_checkpoint(note.read_text())['meta']
        # A kill between the two leaves the note one behind.
        assert noted['epoch'] >= done[0] - 1
    else:
        assert done[0] <= 1
    return done


def resumed(output):
    """Where a run says that it went on, as `progress` has it."""
    found = re.search(r'resumed epoch: (\d+), iter: (\d+)', output)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def last_checkpoint(work_dir):
    return read_checkpoint((work_dir / 'last_checkpoint').read_text())


def final_metrics(work_dir, epochs):
    """What was measured after the last epoch."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            record = json.loads(line) if line.endswith('}') else {}
            if record.get('step') == epochs and 'coco/bbox_mAP' in record:
                found = record
    return {k: v for k, v in found.items() if k.startswith('coco/')}


def chance(name):
    """Random numbers that can be had again: the seed is printed with a failure."""
    seed = int(os.environ.get('MMLIT_KILL_SEED') or time.time())
    print(f'MMLIT_KILL_SEED={seed} repeats {name}')
    return random.Random(seed)


def limit_files(size):
    """For `preexec_fn`: no file grows beyond `size`, as if the disk were full."""
    resource = pytest.importorskip('resource')
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
