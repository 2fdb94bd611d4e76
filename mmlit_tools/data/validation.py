"""Loads each validation image once before a training, for which it may be too late.

An evaluation ends at an image that cannot be loaded, since figures without it would be
those of other data: with COCO after an epoch, with ADE20K after 8000 iterations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmengine.config import Config
from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import DATASETS

from mmlit_tools.data.findings import SHOWN, WORKERS, look_at_all
from mmlit_tools.configs import stop, unwrap


def check_validation(config: Config) -> None:
    """Ends the program at validation images or labels that cannot be loaded.

    Only the loading steps of the pipeline are run. In a distributed run one process
    does it; the others wait for it where they all meet.
    """
    loader = config.get('val_dataloader')
    if not loader:
        return
    if config.launcher != 'none':
        from mmlit_tools.distributed import find_place

        rank, _, _ = find_place(config.launcher)
        if rank:
            return
    scope = config.get('default_scope')
    for part in unwrap(loader['dataset']):
        with DATASETS.switch_scope_and_registry(scope) as registry:
            kind = part['type']
            kind = registry.get(kind) if isinstance(kind, str) else kind
            if kind is None or not issubclass(kind, BaseDataset):
                continue
            try:
                # Not serialized: mmengine cannot do that with an empty split.
                dataset = registry.build(dict(part, pipeline=[], serialize_data=False))
            except Exception:  # May be anything, and is for the Runner to raise.
                continue
            load = Compose(list(_loading_steps(part.get('pipeline') or ())))
        _load_all(dataset, load)


def _loading_steps(pipeline: Sequence[dict]) -> Iterator[dict]:
    for step in pipeline:
        kind = step.get('type')
        name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
        if name == 'PipelineGuard':
            yield from _loading_steps(step['transforms'])
        elif name.startswith('Load'):
            yield step


def _load_all(dataset: BaseDataset, load: Compose) -> None:
    from mmlit.errors import spell_error

    print(f'Loading each of {len(dataset)} validation images once', flush=True)

    def look(index: int) -> str:
        entry = dataset.get_data_info(index)
        names = [entry.get('img_path'), entry.get('seg_map_path')]
        try:
            load(entry)
        except Exception as error:  # A transform may raise anything.
            where = ' with the mask '.join(filter(None, names))
            return f'{where}: {spell_error(error)}'
        return ''

    looks = look_at_all(look, range(len(dataset)), 'validation', WORKERS)
    faults = [said for _, said in looks if said]
    if faults:
        more = f' and {len(faults) - SHOWN} more' if len(faults) > SHOWN else ''
        stop(
            f'{len(faults)} of {len(dataset)} validation images cannot be loaded, and '
            f'an evaluation would end at them: {"; ".join(faults[:SHOWN])}{more}. Mend '
            'them, or leave them out of the data'
        )
