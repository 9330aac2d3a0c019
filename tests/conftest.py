"""What holds for all tests."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.descriptors import no_leak
from tests.support.relay import Farm

# How long an example takes says something about the machine, and who else is on it, only.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("any machine")


@pytest.fixture
def farm() -> Iterator[Farm]:
    """A server for a worker in this process, which leaves no descriptor behind."""
    with no_leak():
        made = Farm()
        yield made
        made.close()
