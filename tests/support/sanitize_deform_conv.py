"""Run mmcv's deformable convolution for the CPU under address and UB sanitizers.

No test, for it compiles mmcv's two files for some minutes. By hand, with g++ 12 or so:

    python tests/support/sanitize_deform_conv.py MMCV_SOURCES

MMCV_SOURCES is an unpacked source distribution of mmcv. It says what each kind of
offset does, and fails if finite ones of up to 1e6 tokens are reported. Of mmcv 2.1.0
they are not; further out (1e30, infinity) an index overflows without an access, and
at a NaN the backward pass reads outside the map, which can end the process.
"""

import argparse
import collections
import os
import re
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

FLAGS = '-std=c++20 -O1 -g1 -w -fsanitize=address,undefined -fno-sanitize=vptr'.split()
WITHIN = ('random 0', 'edges 0', 'all 1e+06', 'all -1e+06', 'one 1e+06')


def build(sources: Path, folder: Path) -> Path:
    ops = sources / 'mmcv' / 'ops' / 'csrc'
    files = [ops / 'pytorch' / 'deform_conv.cpp', ops / 'pytorch/cpu/deform_conv.cpp']
    headers = [ops / 'common', *cpp_extension.include_paths()]
    headers.append(sysconfig.get_paths()['include'])
    libraries = Path(torch.__file__).parent / 'lib'
    program = folder / 'cases'
    command = ['g++', *FLAGS, *(f'-I{header}' for header in headers)]
    command += [Path(__file__).with_suffix('.cpp'), *files, '-o', program]
    command += [f'-L{libraries}', f'-Wl,--no-as-needed,-rpath,{libraries}']
    subprocess.run([*command, '-ltorch', '-ltorch_cpu', '-lc10'], check=True)
    return program


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('sources', type=Path)
    sources = parser.parse_args().sources
    with tempfile.TemporaryDirectory() as folder:
        # torch itself, which is not built with them, leaks what it keeps for good.
        env = dict(os.environ, ASAN_OPTIONS='detect_leaks=0')
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        ran = subprocess.run([build(sources, Path(folder))], env=env, **pipes)
    counts = collections.defaultdict(collections.Counter)
    for case in re.split(r'^(?=Float|Double)', ran.stdout, flags=re.M)[1:]:
        found = counts[re.search('offsets: ([^:]+):', case)[1]]
        found['cases'] += 1
        found['refused'] += 'refused' in case
        found['integer overflow'] += 'runtime error' in case
        found['bad access'] += 'AddressSanitizer' in case
        found['process ended'] += 'STOPPED' in case
    for offsets, found in counts.items():
        print(f'{offsets:>10}: {dict(found)}')
    assert set(WITHIN) < set(counts), ran.stdout
    seen = ('integer overflow', 'bad access', 'process ended')
    raise SystemExit(any(counts[name][what] for name in WITHIN for what in seen))


if __name__ == '__main__':
    main()
