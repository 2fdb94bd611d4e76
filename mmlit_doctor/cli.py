"""Run the checks and print a report: `mmlit-doctor`, `python tools/doctor.py`."""

import argparse
import contextlib
import json
import sys
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from .checks import CHECKS, Check
from .worker import DiedError, Worker

DESCRIPTION = """Says what is wrong with this environment, and the command that mends
it. It works where `import mmlit` does not. Exit status: 1 with a fault, else 0 (advice
does not count). A fault that has another one for its cause is 'unchecked'."""
JSON_HELP = """print nothing but {"versions": {name: version}, "findings": [{"name",
"level", "seen", "why", "mend"}]}; level is ok, advice, fault or unchecked; mend is ''
where there is nothing to run"""
PATIENCE = 300


class Finding(NamedTuple):
    """What came of one check.

    Attributes:
        name: The check, with its device: 'mmcv-ops', 'lit/cuda:0'.
        level: 'ok', 'advice' (nothing is wrong), 'fault' or 'unchecked' (another
            fault has to be mended first, or is the cause).
        seen: What is there.
        why: Why it matters.
        mend: The command that mends a fault, or follows an advice; '' without one.
    """

    name: str
    level: str
    seen: str
    why: str
    mend: str


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser('mmlit-doctor', description=DESCRIPTION)
    parser.add_argument(
        '--quick',
        action='store_true',
        help='leave out what takes longest: running an op, importing and running mmlit',
    )
    parser.add_argument('--json', action='store_true', help=JSON_HELP)
    parser.add_argument(
        '--patience',
        type=_seconds,
        default=PATIENCE,
        help='seconds after which a check counts as hanging (%(default)s)',
    )
    options = parser.parse_args(arguments)
    worker = Worker(options.patience)
    try:
        versions = worker.ask('versions')
        if not options.json:
            print(_headline(versions))
        findings = []
        for finding in examine(worker, options.quick, _announce):
            findings.append(finding)
            if not options.json:
                print(_spell(finding), flush=True)
    except KeyboardInterrupt:
        return 130
    except DiedError as error:
        print(f'mmlit-doctor: {sys.executable} runs no check: {error}', file=sys.stderr)
        return 1
    finally:
        worker.stop()
    if options.json:
        report = [finding._asdict() for finding in findings]
        print(json.dumps({'versions': versions, 'findings': report}, indent=2))
    else:
        print(_summary(findings))
    return int(any(finding.level == 'fault' for finding in findings))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} must be more than 0, and finite')
    return value


def examine(
    worker: Worker, quick: bool, announce: Callable[[str], None]
) -> Iterator[Finding]:
    """Yield the finding of each check.

    Args:
        worker: Runs them.
        quick: Whether to leave out the slow ones.
        announce: Is given the name of each check before it is run, '' after the last.
    """
    causes: Dict[str, str] = {}  # {what is not sound: the fault that is to blame}
    mended_by: Dict[str, str] = {}  # {command: the first fault that wants it}
    devices = ['cpu']
    for check in CHECKS:
        if check.slow and quick:
            continue
        for arguments in [(x,) for x in devices] if check.per_device else [()]:
            name, needs = _fill_in(check, arguments)
            announce(name)
            cause = next((causes[x] for x in needs if x in causes), None)
            if cause:
                finding = _unchecked(check, name, f'not checked, because of {cause}')
            else:
                finding = _look(worker, check, name, arguments)
                cause = name
            if finding.level == 'fault' and finding.mend:
                cause = mended_by.setdefault(finding.mend, name)
                if cause != name:
                    said = f'{finding.seen}; what mends {cause} mends this, too'
                    finding = _unchecked(check, name, said)
            if finding.level in ('fault', 'unchecked'):
                causes[name] = cause
            elif name == 'devices':
                devices = worker.ask('devices')
            announce('')
            yield finding


def _fill_in(check: Check, device: Tuple[str, ...]) -> Tuple[str, List[str]]:
    """Return the name and the needs of a check on a device."""
    fill = dict(zip(['device'], device))
    return check.name.format(**fill), check.needs.format(**fill).split()


def _look(
    worker: Worker, check: Check, name: str, arguments: Tuple[str, ...]
) -> Finding:
    try:
        answer = worker.ask('check', check.name, *arguments)
    except DiedError as error:
        answer = {'level': 'fault', 'seen': str(error), 'mend': ''}
        with contextlib.suppress(DiedError):
            answer['mend'] = worker.ask('mend', check.name, *arguments)
    if answer['level'] == 'fault':
        worker.stop()  # A failed import leaves a process half done: begin anew.
    return Finding(name=name, why=check.why, **answer)


def _unchecked(check: Check, name: str, seen: str) -> Finding:
    return Finding(name, 'unchecked', seen, check.why, '')


def _announce(name: str) -> None:
    """Show on a terminal which check runs."""
    if sys.stderr.isatty():
        print(f'\r\033[K{name and f"looking at {name} ..."}', end='', file=sys.stderr)
        sys.stderr.flush()


def _headline(versions: Dict[str, str]) -> str:
    found = ', '.join(f'{name} {v}' for name, v in versions.items() if v)
    return f'mmlit doctor: {found}\n'


def _spell(finding: Finding) -> str:
    lines = [f'{finding.level:<10} {finding.name:<19} {finding.seen}']
    if finding.level in ('advice', 'fault'):
        lines.append(f'{"":<10} why:  {finding.why}')
        if finding.mend:
            lines.append(f'{"":<10} mend: {finding.mend}')
    return '\n'.join(lines)


def _summary(findings: List[Finding]) -> str:
    levels = [finding.level for finding in findings]
    faults, advice = levels.count('fault'), levels.count('advice')
    said = f'\n{faults or "no"} fault{"" if faults == 1 else "s"}, {advice} of advice'
    if not faults:
        return said
    rest = levels.count('unchecked')
    return f'{said}, {rest} unchecked: mend them from the top, and run this again'
