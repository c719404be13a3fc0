"""What all tests share."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported: kernels for a GPU run on this machine too
torch.set_num_threads(1)  # the tests run side by side, and their tensors are small
