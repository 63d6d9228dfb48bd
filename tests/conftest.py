"""One torch thread, the same examples in every run, and the planted problem, trained once."""

import planted as small
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("same", derandomize=True, deadline=None)       # on a busy machine no time is a failure
settings.load_profile("same")


@pytest.fixture(scope="session")
def planted():
    return small.problem()


@pytest.fixture
def off_screen():
    """Figures are drawn without a window, and closed."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    yield
    plt.close("all")
