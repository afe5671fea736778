"""Lightning: a LightningModule and a Trainer, automatic optimization, its own clipping; no logger, no checkpoints."""

import logging
import warnings

import lightning
import torch
from contest import CLIP, RATE, Task, torch_model, torch_task
from torch import nn


def start(task: Task):
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    parts, batches = torch_task(task)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = torch_model(parts)
            self.loss_fn = nn.CrossEntropyLoss()

        def training_step(self, batch, index):
            inputs, targets = batch
            loss = self.loss_fn(self.model(inputs).flatten(0, 1), targets.flatten())
            self.log("loss", loss, on_step=False, on_epoch=True, batch_size=inputs.shape[1])
            return loss

        def on_train_epoch_end(self):
            self.trainer.train_dataloader.stop()  # the batch after the last is fetched before it

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), RATE)

    module = Module()

    def train(loader) -> float:
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            gradient_clip_val=CLIP,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
        return trainer.callback_metrics["loss"]

    return train, batches
