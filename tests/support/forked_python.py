"""Run Python command lines in forks of a process that has imported the stack.

A tool spends most of a short run on importing torch, mmdet and mmseg: a fork has them.
"""

import multiprocessing
import os
import runpy
import sys

import torch

FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(
    'torch cv2 mmcv.ops mmdet.apis mmdet.engine mmdet.evaluation mmseg.apis mmlit'
    ' support.forked_python'.split()
)


def run_python(arguments, folder, **environment):
    """Do what `python ARGUMENTS` does in a folder.

    Returns:
        (the exit status, what it prints).
    """
    output = folder / 'output.txt'
    process = FORKS.Process(
        target=_be_python, args=(arguments, folder, output, environment)
    )
    process.start()
    process.join(600)
    process.kill()
    return process.exitcode, output.read_text(errors='replace')


def _be_python(arguments, folder, output, environment):
    with open(output, 'w') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.update(environment, MPLBACKEND='Agg', OMP_NUM_THREADS='1')
    torch.set_num_threads(1)  # What a fork of several does is anyone's guess.
    script, *rest = arguments
    if script == '-c':
        sys.argv = ['-c', *rest[1:]]
        exec(compile(rest[0], '<string>', 'exec'), {'__name__': '__main__'})
    else:
        sys.argv = [script, *rest]
        sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
        runpy.run_path(script, run_name='__main__')
