"""Keras 3, on PyTorch or on JAX: `compile` and `fit`, its clipping by the global norm. It takes `(B, T)`."""

import os

import numpy as np
from contest import CLIP, RATE, VOCABULARY, Task


def start(task: Task, variant: str):
    os.environ["KERAS_BACKEND"] = variant
    import keras

    if variant == "torch":
        import torch

        torch.set_num_threads(task.threads)
    kind = {"RNN": "SimpleRNN"}.get(task.kind, task.kind)
    model = keras.Sequential(
        [
            keras.Input((task.steps,), dtype="int32"),
            keras.layers.Embedding(VOCABULARY, task.hidden),
            getattr(keras.layers, kind)(task.hidden, return_sequences=True),
            keras.layers.Dense(VOCABULARY),
        ]
    )
    model.set_weights(converted(task))
    model.compile(
        optimizer=keras.optimizers.Adam(RATE, epsilon=1e-8, global_clipnorm=CLIP),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    batches = [(np.ascontiguousarray(x.T), np.ascontiguousarray(y.T)) for x, y in task.data()]

    def train(loader) -> float:
        def given():
            yield from loader

        # A batch is fetched before the epoch, to learn its shape.
        clock = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda *_: loader.start(), on_epoch_end=lambda *_: loader.stop()
        )
        history = model.fit(
            given(), steps_per_epoch=len(loader), epochs=1, verbose=0, callbacks=[clock]
        )
        return history.history["loss"][-1]

    return train, batches


def converted(task: Task) -> list[np.ndarray]:
    """The weights in Keras' order: gates i, f, g, o as PyTorch's for an LSTM; z, r, n for a GRU."""
    weights = task.weights()
    bias = weights["bias_ih"] + weights["bias_hh"]
    kernel, recurrent = weights["weight_ih"], weights["weight_hh"]
    if task.kind == "GRU":
        reset, update, new = np.split(np.arange(3 * task.hidden), 3)
        order = np.concatenate([update, reset, new])
        kernel, recurrent = kernel[order], recurrent[order]
        bias = np.stack([weights["bias_ih"][order], weights["bias_hh"][order]])
    return [
        weights["embedding"], kernel.T, recurrent.T, bias, weights["head"].T, weights["head_bias"],
    ]  # fmt: skip
