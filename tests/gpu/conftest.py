"""Tests of a GPU; without one each is skipped, and says so."""

import pytest
import torch


@pytest.fixture(autouse=True)
def gpu():
    """The GPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that PyTorch can use (torch.cuda.is_available())")
    return torch.device("cuda")
