"""A short run of bench/chaos.py: the long ones are run by hand, with seeds that nobody has seen."""

import pytest

from bench import chaos

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(400)]


def test_nothing_is_lost_stuck_or_doubled_under_fire(services):
    report = chaos.play(seed=5, jobs=60, faults=10, seconds=30, patience=100)
    assert report.is_good, str(report)
    assert (report.jobs, report.faults) == (60, 10)
