"""SIGTERM to one of two processes: both stop before the same iteration, and go on."""

import functools
import json
import os

from mmlit import read_checkpoint
from support.toy_resuming import (
    BY_EPOCH,
    IMAGES,
    Untimely,
    build,
    check_same_end,
    noted,
    stopped,
)
from support.two_processes import in_two


def train(folder, by_epoch, rank):
    """Undisturbed; stopped where the second lacks its data; resumed."""
    os.environ['LOCAL_RANK'] = str(rank)  # mmengine looks for it
    options = dict(by_epoch=by_epoch, workers=1)
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
    found = dict(done=done, seen=seen)
    (folder / f'{rank}.json').write_text(json.dumps(found))


@BY_EPOCH
def test_both_stop_and_go_on(tmp_path, by_epoch):
    in_two(functools.partial(train, tmp_path, by_epoch))
    found = [json.loads((tmp_path / f'{r}.json').read_text()) for r in (0, 1)]
    assert found[0]['done'] == found[1]['done']
    # Between them every image of the first epoch, once.
    first = [image for one in found for image in one['seen'][0][: IMAGES // 2]]
    assert sorted(first) == list(range(IMAGES))
