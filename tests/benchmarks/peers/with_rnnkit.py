"""rnnkit: a Learner with History, ProgressBar and ClipGradients; the phase alone; and both as the site recommends."""

import torch
from contest import CLIP, RATE, Task, torch_task
from torch import nn

import rnnkit as rk


def start(task: Task, variant: str):
    parts, batches = torch_task(task)
    model = rk.RecurrentSequential(*parts)
    parameters = list(model.parameters())
    fast = variant in ("fast", "gru")
    if variant == "gru":
        layer = rk.GRU(task.hidden, task.hidden)
        layer.load_state_dict(model[1].state_dict())
        model[1] = layer
        parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, RATE, fused=fast)
    loss = rk.seq2seq_loss(nn.CrossEntropyLoss())
    phase = rk.BPTTTrainingPhase()
    if variant == "phase":

        def train(loader) -> float:
            total = torch.zeros(())
            for batch in loader:
                # The phase updates once a window; clipping is a step of the optimizer's own.
                total += phase(model, loss, batch, optimizer).loss
            return total / len(loader)

        optimizer.register_step_pre_hook(
            lambda *_: nn.utils.clip_grad_norm_(parameters, CLIP) and None
        )
        return train, batches

    history = rk.History()
    learner = rk.Learner(
        model, loss, optimizer, [rk.ClipGradients(CLIP), history, rk.ProgressBar()]
    )

    def train(loader) -> float:
        learner.fit(1, loader, training=phase)
        return history.rows[-1]["loss"]

    return train, batches
