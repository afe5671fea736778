"""What every test shares: one thread, since the tensors of a test are too small to be worth a second."""

import torch

torch.set_num_threads(1)
