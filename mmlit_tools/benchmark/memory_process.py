"""Measure the memory of one step in this process, which was started for it.

`measure.cpu_memory` passes JSON as the argument and reads JSON from the last line. The
resident set comes from /proc: `ru_maxrss` of a child process starts at the peak of its
parent.
"""

from __future__ import annotations

import contextlib
import gc
import json
import re
import sys
from pathlib import Path

from mmlit_tools.benchmark.measure import spell_failure, use_threads
from mmlit_tools.benchmark.models import Settings, Spec, build_model
from mmlit_tools.benchmark.steps import Step


def main() -> None:
    """Build the model, run one step, print its memory in bytes."""
    asked = json.loads(sys.argv[1])
    settings = Settings(**asked['settings'])
    use_threads(settings.threads)
    try:
        spec = Spec(**asked['spec'])
        model = build_model(spec, settings)
        step = Step(model, spec.scope, tuple(asked['shape']), settings)
        gc.collect()
        built = _status('VmHWM')
        reset = _reset_peak()
        before = _status('VmRSS')
        step()
    except Exception as error:
        sys.exit(spell_failure(error))
    top = _status('VmHWM')
    figures = dict(before=before, peak=max(built, top), above=top - before, reset=reset)
    print(json.dumps(figures))


def _status(key: str) -> int:
    text = Path('/proc/self/status').read_text()
    return 1024 * int(re.search(rf'^{key}:\s*(\d+) kB', text, re.MULTILINE)[1])


def _reset_peak() -> bool:
    """Restart VmHWM from now, where the system permits it."""
    before = _status('VmHWM')
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')
        return _status('VmHWM') <= before
    return False


if __name__ == '__main__':
    main()
