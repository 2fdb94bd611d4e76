"""No checkpoint runs code, hangs, takes the memory or ends in anything but a sentence.

Each file is read, converted and loaded by `hostile_worker.py`, a process of its own
with limited memory, so that a file that gets through is seen and not suffered. `make
fuzz` makes many more, and other ones each time.
"""

import pytest
from hypothesis import HealthCheck, given, settings

from support import hostile_cases
from support.hostile_pickles import archive, attacks, checkpoint
from support.hostile_reader import HostileReader

WAYS = ('torch', 'own')
#: Cases of each strategy in `make test` and in `make fuzz`.
EFFORTS = [
    pytest.param(60, id='some'),
    pytest.param(1500, id='many', marks=pytest.mark.fuzz),
]


@pytest.fixture(scope='module')
def reader():
    with HostileReader(archive(checkpoint())) as reader:
        yield reader


def hold(strategy, cases, check):
    """Have hypothesis look for a case in which `check` fails."""
    few = cases < 1000

    @settings(
        max_examples=cases,
        derandomize=few,  # The same ones each time; new ones every night.
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(case):
        nonlocal tried
        tried += 1
        check(case)

    tried = 0
    each()
    assert tried >= cases


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('name', attacks())
def test_an_attack_is_refused(reader, way, name):
    answer = reader(attacks()[name], way)
    assert answer['outcome'] in ('refused', 'broken')


@pytest.mark.parametrize('cases', EFFORTS)
def test_damaged_files(reader, cases):
    """What carries checksums is read as it was, or not at all."""
    sound = [reader(content)['digest'] for content, _ in hostile_cases.sound_files()]
    assert '' not in sound and sound[::2] == sound[1::2]
    refused = []

    def check(case):
        index, content = case
        answer = reader(content, WAYS[len(content) % 2])
        refused.append(answer['outcome'] != 'read')
        if hostile_cases.sound_files()[index][1] and answer['outcome'] == 'read':
            assert answer['digest'] == sound[index]

    hold(hostile_cases.damaged(), cases, check)
    assert 0.3 < sum(refused) / len(refused) < 1


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('cases', EFFORTS)
@pytest.mark.parametrize('strategy', ['rewritten', 'pickles', 'calls', 'weights'])
def test_made_up_files(reader, strategy, cases):
    outcomes = set()

    def check(content):
        answer = reader(content, WAYS[len(content) % 2])
        outcomes.add(answer['outcome'])
        outcomes.update(
            text for text in answer['said'] if text in ('loaded', 'converted')
        )

    hold(getattr(hostile_cases, strategy)(), cases, check)
    # They get as far as they are meant to.
    assert (
        outcomes
        >= {
            'rewritten': {'read', 'refused', 'broken'},
            'pickles': {'refused', 'broken'},
            'calls': {'read', 'refused', 'broken'},
            'weights': {'read', 'loaded', 'converted'},
        }[strategy]
    )
