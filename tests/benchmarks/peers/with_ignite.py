"""ignite: `create_supervised_trainer` has no clipping, so its own update function, as the docs write one."""

import torch
from contest import CLIP, RATE, Task, torch_model, torch_task
from ignite.engine import Engine, Events
from ignite.metrics import Average
from torch import nn


def start(task: Task):
    parts, batches = torch_task(task)
    model = torch_model(parts)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    loss_fn = nn.CrossEntropyLoss()

    def update(engine, batch):
        model.train()
        inputs, targets = batch
        optimizer.zero_grad()
        loss = loss_fn(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.detach()

    trainer = Engine(update)
    Average(output_transform=lambda loss: loss).attach(trainer, "loss")

    def train(loader) -> float:
        trainer.run(loader, max_epochs=1, epoch_length=len(loader))
        return trainer.state.metrics["loss"]

    # Else the batch after the last is asked for only when another epoch begins.
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: engine.state.dataloader.stop())
    return train, batches
