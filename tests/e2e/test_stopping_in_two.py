"""SIGTERM to one of two processes: both stop before the same iteration, and go on."""

import functools
import json
import os

from mmlit import read_checkpoint
from support.running_tools import in_two
from support.this_stack import STACK
from support.toy_resuming import IMAGES, Untimely, build, check_same_end, noted, stopped

LOOPS = ['epochs', 'iterations'] if STACK == 'openmmlab' else ['epochs']


def train(folder, loop, rank):
    """Train undisturbed; stopped where the second process lacks its data; resumed."""
    os.environ['LOCAL_RANK'] = str(rank)  # mmengine looks for it
    folder, options = folder / loop, dict(by_epoch=loop == 'epochs', workers=1)
    straight = build(folder / 'straight', **options)
    straight.train()
    first = build(folder / 'stopped', **options)
    if rank == 1:
        first._train_dataloader['dataset'] = Untimely()
    stopped(first)
    done = read_checkpoint(noted(folder / 'stopped'))['meta']['iter']
    second = build(folder / 'stopped', resume=True, **options)
    second.train()
    seen = [runner.model.module.seen for runner in (straight, first, second)]
    assert seen[1] + seen[2] == seen[0]
    check_same_end(straight, second)
    (folder / f'{rank}.json').write_text(json.dumps(dict(done=done, seen=seen[0])))


def test_both_stop_and_go_on(tmp_path):
    in_two(*(functools.partial(train, tmp_path, loop) for loop in LOOPS))
    for loop in LOOPS:
        files = [tmp_path / loop / f'{rank}.json' for rank in (0, 1)]
        found = [json.loads(file.read_text()) for file in files]
        assert found[0]['done'] == found[1]['done']
        # Between them every image of the first epoch, once.
        first = [image for one in found for image in one['seen'][: IMAGES // 2]]
        assert sorted(first) == list(range(IMAGES))
