"""Generation without PyTorch: NumPy by hand, and JAX, whose whole loop is one compiled `lax.scan`."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from sampling import HIDDEN, VOCABULARY, Task


def with_numpy(task: Task) -> Callable[..., Any]:
    """The best loop by hand, in NumPy: the table, and the noise of all draws made at once."""
    weights = task.weights()
    step = {"LSTM": _numpy_lstm, "GRU": _numpy_gru}[task.kind]
    layers = [_numpy_layer(task, k) for k in range(task.layers)]
    table = weights["embedding"] @ layers[0][0] + layers[0][2]
    head = np.ascontiguousarray(weights["head"].T)
    draw = np.random.default_rng(0)
    rows = np.arange(task.batch)

    def generate(count: int, greedy: bool) -> Any:
        states = [[np.zeros((task.batch, HIDDEN), np.float32)] * 2 for _ in layers]
        tokens = np.zeros((count + 1, task.batch), np.int64)
        logits = np.empty((count, task.batch, VOCABULARY), np.float32)
        if not greedy:
            noise = -np.log(draw.standard_exponential(logits.shape, np.float32))
        for t in range(count):
            gates = table[tokens[t]]
            for k, (of_input, own, bias, own_bias) in enumerate(layers):
                if k:
                    gates = x @ of_input + bias  # noqa: F821  (of the layer below)
                states[k] = step(gates, own, own_bias, *states[k])
                x = states[k][0]
            np.matmul(x, head, out=logits[t])
            logits[t] += weights["head_bias"]
            tokens[t + 1] = (logits[t] if greedy else logits[t] + noise[t]).argmax(1)
        peak = logits.max(2, keepdims=True)
        log_p = logits - peak - np.log(np.exp(logits - peak).sum(2, keepdims=True))
        chosen = log_p[np.arange(count)[:, None], rows, tokens[1:]]
        return tokens[1:], logits, chosen

    return generate


def _numpy_layer(task: Task, layer: int) -> list[np.ndarray]:
    """The weights transposed, and all of the biases that may be added to the input's part there."""
    of_input, own, bias, own_bias = task.layer_weights(layer)
    folded = HIDDEN * {"LSTM": 4, "GRU": 2}[task.kind]
    bias[:folded] += own_bias[:folded]
    own_bias[:folded] = 0
    return [np.ascontiguousarray(of_input.T), np.ascontiguousarray(own.T), bias, own_bias]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _numpy_lstm(gates: Any, own: Any, own_bias: Any, h: Any, c: Any) -> list[np.ndarray]:
    gates = gates + h @ own
    two = _sigmoid(gates[:, : 2 * HIDDEN])
    g = np.tanh(gates[:, 2 * HIDDEN : 3 * HIDDEN])
    o = _sigmoid(gates[:, 3 * HIDDEN :])
    c = two[:, HIDDEN:] * c + two[:, :HIDDEN] * g
    return [o * np.tanh(c), c]


def _numpy_gru(gates: Any, own: Any, own_bias: Any, h: Any, _: Any) -> list[np.ndarray]:
    mine = h @ own + own_bias
    two = _sigmoid(gates[:, : 2 * HIDDEN] + mine[:, : 2 * HIDDEN])
    n = np.tanh(gates[:, 2 * HIDDEN :] + two[:, :HIDDEN] * mine[:, 2 * HIDDEN :])
    h = n + two[:, HIDDEN:] * (h - n)
    return [h, h]


def with_jax(task: Task) -> Callable[..., Any]:
    """`lax.scan` over the steps, compiled for each number of them."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    with suppress(AttributeError):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    import jax
    import jax.numpy as jnp

    weights = {name: jnp.asarray(value) for name, value in task.weights().items()}
    layers = [[jnp.asarray(part) for part in _numpy_layer(task, k)] for k in range(task.layers)]

    def lstm(gates, own, own_bias, h, c):
        i, f, g, o = jnp.split(gates + h @ own, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def gru(gates, own, own_bias, h, _):
        r, z, n = jnp.split(gates, 3, axis=-1)
        own_r, own_z, own_n = jnp.split(h @ own + own_bias, 3, axis=-1)
        z = jax.nn.sigmoid(z + own_z)
        n = jnp.tanh(n + jax.nn.sigmoid(r + own_r) * own_n)
        h = n + z * (h - n)
        return h, h

    cell = {"LSTM": lstm, "GRU": gru}[task.kind]

    @partial(jax.jit, static_argnums=(2, 3))
    def run(weights, key, count, greedy):
        table = weights["embedding"] @ layers[0][0] + layers[0][2]

        def step(carried, key):
            token, states = carried
            gates, after = table[token], []
            for k, (of_input, own, bias, own_bias) in enumerate(layers):
                gates = gates if k == 0 else x @ of_input + bias  # noqa: F821
                after.append(cell(gates, own, own_bias, *states[k]))
                x = after[-1][0]
            logits = x @ weights["head"].T + weights["head_bias"]
            token = logits.argmax(1) if greedy else jax.random.categorical(key, logits)
            return (token, after), (token, logits)

        zeros = jnp.zeros((task.batch, HIDDEN))
        first = jnp.zeros(task.batch, int), [(zeros, zeros)] * task.layers
        _, (tokens, logits) = jax.lax.scan(step, first, jax.random.split(key, count))
        log_p = jax.nn.log_softmax(logits)
        return tokens, logits, jnp.take_along_axis(log_p, tokens[..., None], 2)[..., 0]

    def generate(count: int, greedy: bool) -> Any:
        return jax.block_until_ready(run(weights, jax.random.key(0), count, greedy))

    return generate
