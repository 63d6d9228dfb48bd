"""One torch thread, and the planted problem, trained once."""

import planted as small
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def planted():
    return small.problem()
