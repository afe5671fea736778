"""What every test shares: one thread, since the tensors of a test are too small to be worth a second."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def in_double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)
