"""JAX: by hand, with equinox, with flax' nnx; optax' Adam, and the whole step compiled, as their docs do."""

import os
from contextlib import suppress

import numpy as np
from contest import CLIP, RATE, VOCABULARY, Task


def start(task: Task, variant: str):
    if task.threads == 1:
        os.environ["XLA_FLAGS"] = (
            "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        )
        with suppress(AttributeError):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    import jax
    import jax.numpy as jnp

    weights = {name: jnp.asarray(value) for name, value in task.weights().items()}
    batches = [
        (jnp.asarray(x.astype(np.int32)), jnp.asarray(y.astype(np.int32))) for x, y in task.data()
    ]
    update, carried = MAKERS[variant](task, weights)

    def train(loader) -> float:
        nonlocal carried
        total = jnp.zeros(())
        for inputs, targets in loader:
            carried, loss = update(carried, inputs, targets)
            total = total + loss
        jax.block_until_ready((carried, total))
        loader.stop()
        return total / len(loader)

    return train, batches


def optimizer_of():
    import optax

    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(RATE))


def cross_entropy(logits, targets):
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def raw(task: Task, weights):
    """Parameters in a dict, `lax.scan` over the steps, the input's product outside of it."""
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = optimizer_of()
    hidden = task.hidden

    def lstm(weights, state, gates):
        h, c = state
        gates = gates + h @ weights["weight_hh"].T + weights["bias_hh"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def gru(weights, h, gates):
        mine = h @ weights["weight_hh"].T + weights["bias_hh"]
        r, z, n = jnp.split(gates, 3, axis=-1)
        own_r, own_z, own_n = jnp.split(mine, 3, axis=-1)
        z = jax.nn.sigmoid(z + own_z)
        n = jnp.tanh(n + jax.nn.sigmoid(r + own_r) * own_n)
        h = (1 - z) * n + z * h
        return h, h

    def rnn(weights, h, gates):
        h = jnp.tanh(gates + h @ weights["weight_hh"].T + weights["bias_hh"])
        return h, h

    cell = {"LSTM": lstm, "GRU": gru, "RNN": rnn}[task.kind]

    def loss_of(weights, inputs, targets):
        embedded = weights["embedding"][inputs]
        gates = embedded @ weights["weight_ih"].T + weights["bias_ih"]
        zeros = jnp.zeros((inputs.shape[1], hidden))
        state = (zeros, zeros) if task.kind == "LSTM" else zeros
        _, outputs = jax.lax.scan(lambda s, g: cell(weights, s, g), state, gates)
        logits = outputs @ weights["head"].T + weights["head_bias"]
        return cross_entropy(logits, targets)

    @jax.jit
    def update(carried, inputs, targets):
        weights, state = carried
        loss, gradients = jax.value_and_grad(loss_of)(weights, inputs, targets)
        updates, state = optimizer.update(gradients, state, weights)
        return (optax.apply_updates(weights, updates), state), loss

    return update, (weights, optimizer.init(weights))


def with_equinox(task: Task, weights):
    """equinox: its cell in `lax.scan`, `filter_jit`. There is no cell of a plain RNN."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    key = jax.random.PRNGKey(0)

    class Model(eqx.Module):
        embedding: eqx.nn.Embedding
        cell: eqx.Module
        head: eqx.nn.Linear

        def __call__(self, tokens):  # (T,), one row
            zeros = jnp.zeros(task.hidden)
            state = (zeros, zeros) if task.kind == "LSTM" else zeros

            def step(state, token):
                state = self.cell(self.embedding(token), state)
                hidden = state[0] if task.kind == "LSTM" else state
                return state, self.head(hidden)

            return jax.lax.scan(step, state, tokens)[1]

    make = {"LSTM": eqx.nn.LSTMCell, "GRU": eqx.nn.GRUCell}[task.kind]
    model = Model(
        eqx.nn.Embedding(VOCABULARY, task.hidden, key=key),
        make(task.hidden, task.hidden, key=key),
        eqx.nn.Linear(task.hidden, VOCABULARY, key=key),
    )
    bias = weights["bias_ih"] + weights["bias_hh"]
    places = [
        (lambda m: m.embedding.weight, weights["embedding"]),
        (lambda m: m.cell.weight_ih, weights["weight_ih"]),
        (lambda m: m.cell.weight_hh, weights["weight_hh"]),
        (lambda m: m.cell.bias, bias),
        (lambda m: m.head.weight, weights["head"]),
        (lambda m: m.head.bias, weights["head_bias"]),
    ]
    if task.kind == "GRU":
        places.append((lambda m: m.cell.bias_n, weights["bias_hh"][2 * task.hidden :]))
    for where, value in places:
        model = eqx.tree_at(where, model, value)
    optimizer = optimizer_of()

    def loss_of(model, inputs, targets):
        logits = jax.vmap(model, in_axes=1, out_axes=1)(inputs)
        return cross_entropy(logits, targets)

    @eqx.filter_jit
    def update(carried, inputs, targets):
        model, state = carried
        loss, gradients = eqx.filter_value_and_grad(loss_of)(model, inputs, targets)
        updates, state = optimizer.update(gradients, state, model)
        return (eqx.apply_updates(model, updates), state), loss

    return update, (model, optimizer.init(eqx.filter(model, eqx.is_array)))


def with_nnx(task: Task, weights):
    """flax: `nnx.RNN` over its cell, `nnx.jit`, `nnx.Optimizer`. It takes `(B, T)`, so it is told time first."""
    from flax import nnx

    rngs = nnx.Rngs(0)
    make = {"LSTM": nnx.LSTMCell, "GRU": nnx.GRUCell, "RNN": nnx.SimpleCell}[task.kind]

    class Model(nnx.Module):
        def __init__(self):
            self.embedding = nnx.Embed(VOCABULARY, task.hidden, rngs=rngs)
            self.layer = nnx.RNN(make(task.hidden, task.hidden, rngs=rngs), time_major=True)
            self.head = nnx.Linear(task.hidden, VOCABULARY, rngs=rngs)

        def __call__(self, tokens):
            return self.head(self.layer(self.embedding(tokens)))

    model = Model()
    _put(task, model, weights)
    optimizer = nnx.Optimizer(model, optimizer_of(), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, inputs, targets):
        loss, gradients = nnx.value_and_grad(lambda model: cross_entropy(model(inputs), targets))(
            model
        )
        optimizer.update(model, gradients)
        return loss

    cached = nnx.cached_partial(step, model, optimizer)
    return lambda carried, inputs, targets: (carried, cached(inputs, targets)), ()


def _put(task: Task, model, weights) -> None:
    """PyTorch's weights into flax' cells, which have a kernel for each gate and one bias."""
    import numpy as np

    bias = weights["bias_ih"] + weights["bias_hh"]
    model.embedding.embedding[...] = weights["embedding"]
    model.head.kernel[...] = weights["head"].T
    model.head.bias[...] = weights["head_bias"]
    cell = model.layer.cell
    if task.kind == "RNN":
        cell.dense_i.kernel[...] = weights["weight_ih"].T
        cell.dense_h.kernel[...] = weights["weight_hh"].T
        cell.dense_i.bias[...] = bias
        return
    if task.kind == "GRU":
        cell.dense_i.kernel[...] = weights["weight_ih"].T
        cell.dense_h.kernel[...] = weights["weight_hh"].T
        cell.dense_i.bias[...] = bias
        return
    gates = [np.arange(k * task.hidden, (k + 1) * task.hidden) for k in range(4)]
    for gate, rows in zip("ifgo", gates, strict=True):
        # `if` is a word of Python's.
        getattr(cell, {"f": "if_"}.get(gate, f"i{gate}")).kernel[...] = weights["weight_ih"][rows].T
        own = getattr(cell, f"h{gate}")
        own.kernel[...] = weights["weight_hh"][rows].T
        own.bias[...] = bias[rows]


MAKERS = {"raw": raw, "equinox": with_equinox, "nnx": with_nnx}
