"""What all tests share."""

import os

import pytest
import torch
from browser import chromium, fresh_page

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported: kernels for a GPU run on this machine too
torch.set_num_threads(1)  # the tests run side by side, and their tensors are small


@pytest.fixture(scope="module")
def browser_context(tmp_path_factory):
    """A browser with an empty profile; without one the test is skipped."""
    with chromium(tmp_path_factory.mktemp("profile")) as context:
        yield context


@pytest.fixture
def page(browser_context):
    """A page on which no error may happen."""
    with fresh_page(browser_context) as opened:
        yield opened
