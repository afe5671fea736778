"""fastai: `Learner.fit` with `GradientClip`; `opt_func` is its own Adam, with the epsilon of PyTorch's."""

from functools import partial

from contest import CLIP, RATE, Task, torch_model, torch_task
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import Adam
from torch import nn


def start(task: Task):
    parts, batches = torch_task(task)
    loss_fn = nn.CrossEntropyLoss()

    def loss(outputs, targets):
        return loss_fn(outputs.flatten(0, 1), targets.flatten())

    learner = Learner(
        DataLoaders([], []),
        torch_model(parts),
        loss_func=loss,
        opt_func=partial(Adam, mom=0.9, sqr_mom=0.999, eps=1e-8, wd=0.0),
        cbs=[GradientClip(CLIP)],
    )
    learner.remove_cbs([cb for cb in learner.cbs if type(cb).__name__ == "ProgressCallback"])

    def train(loader) -> float:
        learner.dls = DataLoaders(loader, [])
        with learner.no_bar(), learner.no_logging():
            learner.fit(1, lr=RATE)
        return float(learner.recorder.log[1])

    return train, batches
