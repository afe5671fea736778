# ---
# rnnkit:
#   description: >-
#     Check a gradient in PyTorch against finite differences, see how much of it each time
#     step of an RNN, GRU or LSTM gives, and mend one that vanishes or explodes.
#   needs: one CPU core for about forty seconds; matplotlib beside torch
#   data: made on the spot, one number to remember; and the text of a module of Python
#   minutes: 12
#   prerequisites: PyTorch and a training loop; what the state of an RNN and an LSTM is (01)
#   learn: [how to check a gradient that you do not trust, how much of a gradient each time
#     step gives, how to see that it vanishes or explodes, what helps against either]
# ---

# %% [markdown]
# # Vanishing, exploding, or wrong: look at a recurrent gradient
#
# After this page you can check a gradient that you do not trust, see how much of it each
# time step gives, and do something about one that vanishes or explodes. If a gradient of yours
# looks wrong, begin with [the check](#check-a-gradient-that-you-do-not-trust): ten lines that
# work for any model.

# %% tags=["skip-execution"]
# %pip install "rnnkit[plot]"

# %% tags=["fold"]
from copy import deepcopy
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import nn

SEEDS = (0, 1, 2)  # what depends on random weights is claimed for all three
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_default_device(device)  # each new tensor is made there
torch.set_num_threads(1)  # small arrays: more threads would wait for each other
plt.style.use("rnnkit.style")

# %% [markdown]
# ## The pattern
#
# A recurrent network uses the same weight $W$ at every time step. Each use has a part in the
# loss $L$, and the gradient of $W$ is the sum of these parts.
#
# ![One weight W, used at three time steps. The loss on the last output sends a share d1, d2, d3 of the gradient to each use. The gradient of W is their sum.](../docs/assets/patterns/06.svg)
#
# Imagine that each step has a copy $W_t$ of its own. Then the chain rule says
#
# $$ \frac{dL}{dW} = \sum_{t=1}^{T} d_t, \qquad d_t = \frac{\partial L}{\partial W_t}, $$
#
# and we call $d_t$ the [share](../docs/glossary.md#gradient-share) of step $t$. Computing the
# shares from the last step back to the first is *backpropagation through time*. If the early
# shares are tiny, the network cannot learn from what it read early: the gradient **vanishes**.
# If they are huge, it **explodes**.

# %% [markdown]
# ## Check a gradient that you do not trust
#
# A wrong gradient raises no error, and often the loss still falls. Here is a network small
# enough for a pencil, with one number for each weight, and a copy of it with a mistake that is
# common: a `.detach()` too many.

# %%
class Cell(nn.Module):
    """One step: Wi x + Wh h + b. The first state is h0."""

    def __init__(self):
        super().__init__()
        self.Wi = nn.Parameter(torch.tensor(5.0))
        self.Wh = nn.Parameter(torch.tensor(4.0))
        self.b = nn.Parameter(torch.tensor(0.0))
        self.h0 = nn.Parameter(torch.tensor(7.0))

    def forward(self, x, h=None):
        if h is None:
            h = self.h0
        return self.Wi * x + self.Wh * h + self.b

# %%
class Detached(Cell):
    def forward(self, x, h=None):
        if h is not None:
            h = h.detach()  # keeps the number, cuts its history
        return super().forward(x, h)

def last_state(cell):
    h = cell(2.0)  # step 1 reads 2, step 2 reads 3
    return cell(3.0, h)  # the loss is the last state

# %% [markdown]
# A gradient is a promise: move the weight a little, and the loss moves by so much. So move it
# up and down, run the network twice, and see. This **referee** never calls `backward`. It
# cannot make the same mistake.

# %%
@torch.no_grad()
def measured_slope(compute_loss, weight, direction):
    """How the loss changes as a weight moves in a direction, by two runs."""
    start, epsilon = weight.clone(), 1e-6
    weight.copy_(start + epsilon * direction)
    above = compute_loss()
    weight.copy_(start - epsilon * direction)
    below = compute_loss()
    weight.copy_(start)
    return (above - below).item() / (2 * epsilon)

# %%
for kind in (Cell, Detached):
    cell = kind().double()  # a step of 1e-6 needs float64
    loss = last_state(cell)
    loss.backward()
    print(f"{kind.__name__}, loss {loss:g}")
    for name, weight in cell.named_parameters():
        slope = measured_slope(lambda: last_state(cell), weight, direction=1.0)
        claim = 0.0 if weight.grad is None else weight.grad.item()
        print(f"  {name:2} backward {claim:2g}, measured {slope:.4f}")

# %% [markdown]
# Both networks have the loss 167, and the referee measures 11, 66, 5 and 16 for both. For the
# first `backward` says the same. For the second it says 3, 38, 1 and 0: that gradient is wrong.
# Where do the missing parts come from?

# %% [markdown]
# ## Plain PyTorch: the share of each step
#
# With a pencil: $h_1 = 5 \cdot 2 + 4 \cdot 7 = 38$ and $L = h_2 = 5 \cdot 3 + 4 \cdot 38 = 167$.
# Going back, a change of $h_2$ counts once in the loss, and a change of $h_1$ counts $W_h = 4$
# times. Each use of a weight gives what arrives at its step, times what it was multiplied with:
#
# $$
# \begin{aligned}
# d_1 &= 4 \cdot 2 = 8, & d_2 &= 1 \cdot 3 = 3 && \text{for } W_i \\
# d_1 &= 4 \cdot 7 = 28, & d_2 &= 1 \cdot 38 = 38 && \text{for } W_h \\
# d_1 &= 4, & d_2 &= 1 && \text{for } b
# \end{aligned}
# $$
#
# PyTorch does the same if each step really has a copy of the weights:

# %%
cell = Cell()
copies = [deepcopy(cell), deepcopy(cell)]  # one for each step
h = copies[0](2.0)
loss = copies[1](3.0, h)
loss.backward()
by_copies = {}
for name in ("Wi", "Wh", "b"):
    d1, d2 = (copy.get_parameter(name).grad.item() for copy in copies)
    by_copies[name] = [d1, d2]
    print(f"{name:2}: {d1:2g} from step 1 and {d2:2g} from step 2, in sum {d1 + d2:g}")

# %% [markdown]
# The detached network has the last share alone: 3, 38 and 1. A detached state stops everything
# that would flow back through it.

# %% [markdown]
# ## With rnnkit
#
# [gradient_by_step][rnnkit.gradient_by_step] gives the shares of any recurrent model.
# [Unroll][rnnkit.Unroll] makes a model of our cell, one that is called like `nn.RNN`:

# %%
from rnnkit import Unroll, gradient_by_step

def last_output(outputs, targets):
    return outputs[-1].sum()

two_steps = torch.tensor([2.0, 3.0]).view(2, 1, 1)  # (T, B, F)
shares = gradient_by_step(Unroll(Cell()), last_output, two_steps, targets=None)
for name, by_hand in by_copies.items():
    share = shares[f"cells.0.{name}"]  # (T, *shape of the weight)
    print(name, share.tolist())
    assert share.tolist() == by_hand, "the same, step by step"

# %% tags=["check"]
golden = {"Wi": 11, "Wh": 66, "b": 5, "h0": 16}
whole = Cell()
last_state(whole).backward()
cut = Detached()
last_state(cut).backward()
for name, total in golden.items():
    assert whole.get_parameter(name).grad == total, "backward adds up the shares"
    share = shares[f"cells.0.{name}"]
    assert share.sum() == total, "and so do the shares of rnnkit"
    slope = measured_slope(partial(last_state, cell.double()), cell.get_parameter(name), 1.0)
    assert abs(slope - total) < 1e-4, "the referee agrees"
for name, (_, last) in by_copies.items():
    assert cut.get_parameter(name).grad == last, "detached: the last share alone"
assert cut.h0.grad is None, "and nothing for what lies before it"

# %% [markdown]
# ## The data: a number to remember
#
# Now a task that cannot be learned without a long gradient. At the first of 40 steps the
# network reads a number; at every step it reads noise beside it. At the end it is asked for
# the number.

# %%
T, B, H = 40, 32, 32  # steps, rows, numbers in a state

def batch():
    inputs = torch.zeros(T, B, 2)
    inputs[0, :, 0] = torch.randn(B)  # the number
    inputs[:, :, 1] = torch.randn(T, B)  # noise
    return inputs, inputs[0, :, :1].clone()

# %% [markdown]
# ## The shapes

# %%
from rnnkit import RecurrentSequential

model = RecurrentSequential(nn.LSTM(2, H), nn.Linear(H, 1))  # called like nn.LSTM
inputs, targets = batch()
outputs, state = model(inputs)
print("inputs ", tuple(inputs.shape), "(T, B, features)")
print("targets", tuple(targets.shape), "(B, 1): one for the whole sequence")
print("outputs", tuple(outputs.shape), "(T, B, 1): the last is compared with the targets")

# %% [markdown]
# The baseline is to answer 0, the mean, whatever was read. Its mean squared error is the
# variance of the number, **1**. Every batch is new, so an error in training is as good as one
# in a test.
#
# ## How far back does the gradient reach?
#
# [gradient_flow][rnnkit.gradient_flow] gives the size of each share, by **lag**: steps back
# from the last one. We look at a bias, because its share is what arrives at a step and nothing
# else. [seq2one_loss][rnnkit.seq2one_loss] compares the last output with the target.

# %%
from rnnkit import gradient_flow, seq2one_loss

loss = seq2one_loss(nn.MSELoss())

def reach(build, seed):
    """What arrives at each lag, as a part of what arrives at lag 0: (T,)."""
    torch.manual_seed(seed)
    model = RecurrentSequential(build(), nn.Linear(H, 1))
    inputs, targets = batch()
    flow = gradient_flow(model, loss, inputs, targets)["0.bias_ih_l0"]
    return flow / flow[0]

# %% [markdown]
# Six networks are compared. Three are as PyTorch makes them. In the others one thing differs.
# An LSTM multiplies its memory $c$ by the forget gate at every step; with a bias of 5 that gate
# starts at $\sigma(5) = 0.993$, so nearly everything is kept. An RNN multiplies its state by
# `weight_hh`; an orthogonal matrix turns a vector without changing its length, and a factor in
# front makes up for the slope of `tanh`, which is below 1.

# %%
def open_lstm(bias=5.0):
    lstm = nn.LSTM(2, H)
    gate = slice(H, 2 * H)  # PyTorch's order: input, forget, cell, output
    with torch.no_grad():
        lstm.bias_ih_l0[gate] = bias
        lstm.bias_hh_l0[gate] = 0.0
    return lstm

def orthogonal_rnn(factor):
    rnn = nn.RNN(2, H)
    nn.init.orthogonal_(rnn.weight_hh_l0, gain=factor)
    return rnn

# %%
networks = {
    "RNN": partial(nn.RNN, 2, H),
    "GRU": partial(nn.GRU, 2, H),
    "LSTM": partial(nn.LSTM, 2, H),
    "LSTM, bias 5": open_lstm,
    "RNN, 1.2 orth.": partial(orthogonal_rnn, 1.2),
    "RNN, 2 orth.": partial(orthogonal_rnn, 2.0),
}
flows = {}
for name, build in networks.items():
    flows[name] = torch.stack([reach(build, seed) for seed in SEEDS])  # (3, T)
    low, high = flows[name][:, 30].min(), flows[name][:, 30].max()
    print(f"{name:15} at lag 30: {low:.2g} to {high:.2g} of lag 0")

# %% alt="Size of the gradient by lag, 0 to 39, on a logarithmic axis. RNN, GRU and LSTM as PyTorch makes them fall together in a straight line to about one part in a hundred million. The LSTM with forget bias 5 and the RNN with 1.2 times an orthogonal matrix stay near 1. The RNN with 2 times an orthogonal matrix rises to about a thousand." caption="What arrives at each step of 40, for six networks before training, as a part of what arrives at the last step. Medians of three seeds." tags=["hero", "hide-input"]
from rnnkit import plot_gradient_flow

fig, ax = plt.subplots()
medians = {name: flow.median(dim=0).values for name, flow in flows.items()}
plot_gradient_flow(medians, ax)
ax.axhline(1, color="#666666", linewidth=0.8)
ax.set(ylabel="size of the gradient", xticks=range(0, 40, 10))
ax.set_title("How a network starts decides how far it sees")
plt.show()

# %% [markdown]
# As PyTorch makes them, all three networks forget: what arrives shrinks by nearly half at every
# step, and at lag 30 less than a millionth is left. **"An LSTM has no vanishing gradient" is
# wrong**: a new one has it, like a GRU. It has what it takes to keep a gradient, but its forget
# gate starts half closed. ([Where the factors come from](#evidence-where-the-factors-come-from);
# [the same on text](#evidence-the-same-on-text).)

# %% tags=["check"]
for name in ("RNN", "GRU", "LSTM"):
    assert flows[name][:, 30].max() < 1e-5, "a new network forgets, on every seed"
    factor = (flows[name][:, 30] / flows[name][:, 10]) ** (1 / 20)
    assert 0.4 < factor.min() and factor.max() < 0.75, "about half is lost at every step"
for name in ("LSTM, bias 5", "RNN, 1.2 orth."):
    assert flows[name][:, 30].min() > 0.02, "kept"
    assert flows[name][:, 30].max() < 20, "and not exploding"
assert flows["RNN, 2 orth."][:, 30].min() > 10, "exploding"

# %% [markdown]
# ## What helps against a vanishing gradient
#
# Does a gradient that arrives make a network that learns? We train four of the networks, each
# from three seeds, with the same loop. (The clipping in it comes next.)

# %%
def train(build, seed, optimizer, clip=True, updates=240, batch=batch):
    torch.manual_seed(seed)
    model = RecurrentSequential(build(), nn.Linear(H, 1))
    optimizer = optimizer(model.parameters())
    errors = []
    for _ in range(updates):
        optimizer.zero_grad()
        error = loss.on(model, *batch())  # runs the model and compares
        error.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        errors.append(error.item())
    return torch.tensor(errors, device="cpu")

# %%
rates = {"LSTM": 0.01, "LSTM, bias 5": 0.01, "RNN": 0.002, "RNN, 1.2 orth.": 0.002}
final = {}
for name, rate in rates.items():
    adam = partial(torch.optim.Adam, lr=rate)
    runs = [train(networks[name], seed, adam) for seed in SEEDS]
    final[name] = torch.stack(runs)[:, -30:].mean(dim=1)  # of the last 30 batches
    print(f"{name:15} error", *[f"{error:.3f}" for error in final[name]])

# %% [markdown]
# The networks that forget stay at the error of the baseline. The other two learn to remember
# the number. The changes cost two lines, and no time in training:
#
# - **LSTM**: a bias of the forget gate between 1 and 5. The longer the memory is to be, the
#   larger: $\sigma(\beta)^k$ of it is left after $k$ steps. A GRU has
#   [such a gate too](#try-it).
# - **RNN**: an orthogonal `weight_hh`, a little enlarged.
#
# It is no cure for everything. On a harder task of the same length the bias alone
# [does not help](#evidence-an-open-gate-is-not-enough), and a GRU as it comes learns it.

# %% tags=["check"]
for name in ("LSTM", "RNN"):
    assert final[name].min() > 0.8, "a network that forgets learns nothing, on every seed"
assert final["LSTM, bias 5"].max() < 0.1, "an open gate remembers, on every seed"
assert final["RNN, 1.2 orth."].max() < 0.3, "and so does an orthogonal start"

# %% [markdown]
# ## What helps against an exploding gradient
#
# A large gradient makes a large step, which can throw the weights to a place from where they do
# not come back. **Clipping** shortens a gradient that is longer than `max_norm`, and keeps its
# direction. Here is an RNN that starts with 1.5 times an orthogonal matrix, trained by plain
# gradient descent: as it is, clipped, and with a rate that is ten times smaller.

# %%
exploding = partial(orthogonal_rnn, 1.5)
sgd = partial(torch.optim.SGD, lr=0.1)
slow = partial(torch.optim.SGD, lr=0.01)
raw = torch.stack([train(exploding, seed, sgd, clip=False) for seed in SEEDS])
clipped = torch.stack([train(exploding, seed, sgd) for seed in SEEDS])
slower = torch.stack([train(exploding, seed, slow, clip=False) for seed in SEEDS])
for name, runs in {"raw": raw, "clipped": clipped, "slower": slower}.items():
    print(f"{name:7} error", *[f"{error:.2g}" for error in runs[:, -30:].mean(dim=1)])

# %% alt="Error by update on a logarithmic axis, three seeds each. Without clipping the error jumps within the first updates to more than ten to the tenth and stays there. With clipping it falls from 1 to about a tenth." caption="The same network, the same three seeds, the same learning rate of 0.1." tags=["hide-input"]
fig, ax = plt.subplots()
for runs, color, dash in ((raw, "C1", "--"), (clipped, "C0", "-")):
    for errors in runs.unflatten(1, (-1, 8)).mean(dim=2):  # means of 8 updates
        ax.semilogy(range(4, 240, 8), errors, dash, color=color, linewidth=1.5)
ax.text(120, 1e12, "not clipped", color="C1")
ax.text(120, 30, "clipped", color="C0")
ax.set(xlabel="update", ylabel="mean squared error")
ax.set_title("Clipping survives the steps that ruin training")
plt.show()

# %% [markdown]
# Without clipping all three runs are lost. With clipping all three learn. The smaller rate
# learns too, and here quite as well: clipping is no better optimizer. It lets you keep a rate
# that a few steep places would otherwise forbid. And it does nothing for a gradient that
# vanishes: the two networks that learned nothing above were clipped as well.

# %% tags=["check"]
assert not (raw[:, -30:].mean(dim=1) < 100).any(), "not clipped: lost, on every seed"
assert clipped[:, -30:].mean(dim=1).max() < 0.3, "clipped: it learns, on every seed"
assert slower[:, -30:].mean(dim=1).max() < 0.3, "and at a smaller rate as well"

# %% [markdown]
# ## Use it: check a model of your own
#
# For a network with many weights, move all numbers of a parameter at once, in a random
# direction. That is two runs for each parameter, whatever its size.

# %%
def check_gradient(model, compute_loss):
    """For each parameter: the slope that backward claims, and the slope measured."""
    model.zero_grad()
    compute_loss().backward()
    for name, weight in model.named_parameters():
        direction = torch.randn_like(weight)
        claim = (weight.grad * direction).sum().item()
        yield name, claim, measured_slope(compute_loss, weight, direction)

model = RecurrentSequential(nn.LSTM(2, 8, num_layers=2), nn.Linear(8, 1)).double()
inputs, targets = (tensor.double() for tensor in batch())
found = list(check_gradient(model, lambda: loss.on(model, inputs, targets)))
for name, claim, slope in found[:4]:
    print(f"{name:15} backward {claim:+.6f}, measured {slope:+.6f}")

# %% tags=["check"]
assert len(found) == 10, "every parameter"
for name, claim, slope in found:
    assert abs(claim - slope) < 1e-7, "PyTorch's gradient of an LSTM is right"

# %% [markdown]
# Three things must hold, or the referee complains of a gradient that is right: model and inputs
# are in float64, dropout is off (`model.eval()`), and two runs give the same loss. If a
# parameter is found to be wrong, `gradient_by_step` says at which steps. For a function with a
# backward of your own use `torch.autograd.gradcheck`, as
# [the evidence](#evidence-a-backward-of-your-own) does.
#
# ## What goes wrong
#
# ### A small share, taken for a vanishing gradient
#
# The share of a weight is what arrives at the step **times what the weight is multiplied with**.
# If that is zero, the share is zero, however much arrives. Look at the LSTM that learned:

# %%
torch.manual_seed(0)
model = RecurrentSequential(open_lstm(), nn.Linear(H, 1))
shares = gradient_by_step(model, loss, *batch())
arrives = shares["0.bias_ih_l0"].norm(dim=1)
of_number = shares["0.weight_ih_l0"][:, :, 0].norm(dim=1)  # reads the number
of_state = shares["0.weight_hh_l0"].flatten(1).norm(dim=1)
for t in (0, 1, T - 1):
    print(f"step {t:2}: arrives {arrives[t]:.3f}, ", end="")
    print(f"weight on the number {of_number[t]:.3f}, weight_hh {of_state[t]:.3f}")

# %% [markdown]
# The weight on the number has a share at step 0 only, because its input is zero afterwards. The
# share of `weight_hh` is zero at step 0, because the first state is zero. Neither has anything
# to do with a vanishing gradient. **The cure** is to look at a bias.
#
# ### A state that is overwritten
#
# Writing each new state into the same tensor saves memory, and PyTorch refuses it: *one of the
# variables needed for gradient computation has been modified by an inplace operation*. The
# error goes away with `.data`. So does the gradient:

# %%
cell = Cell()
h = cell.h0.clone()
for x in (2.0, 3.0):
    output = cell(x, h)
    h.data.copy_(output)  # not seen by autograd
output.backward()
overwritten = {name: weight.grad for name, weight in cell.named_parameters()}
for name, total in golden.items():
    print(f"{name:2}: backward {overwritten[name]:g}, right is {total}")

# %% [markdown]
# $W_i$ and $b$ get the last share alone, and $h_0$ is taken to count 4 times at step 2. $W_h$ gets
# 167, the **last** state: the state that it had been multiplied with, 38, was overwritten
# before `backward` read it. **The cure**: a new state is a new tensor, `h = cell(x, h)`.
#
# ### A referee in float32
#
# The referee divides a small difference by a small number. In float32 that difference is mostly
# rounding:

# %%
def disagreement(dtype):
    torch.manual_seed(0)
    model = RecurrentSequential(nn.LSTM(2, H), nn.Linear(H, 1)).to(dtype)
    inputs, targets = (tensor.to(dtype) for tensor in batch())
    worst = 0.0
    for _, claim, slope in check_gradient(model, lambda: loss.on(model, inputs, targets)):
        worst = max(worst, abs(claim - slope) / abs(claim))
    return worst

for dtype in (torch.float32, torch.float64):
    print(f"{dtype}: off by up to {disagreement(dtype):.0e} of the slope")

# %% tags=["check"]
assert (of_number[1:] == 0).all() and of_number[0] > 0, "the number is read once"
assert of_state[0] == 0, "the first state is zero"
assert arrives.min() > 0.05 * arrives[-1], "and yet a gradient arrives at every step"
assert [overwritten[name] for name in golden] == [3, 167, 1, 4], "overwritten"
assert disagreement(torch.float32) > 0.02, "float32 sees errors that are none"
assert disagreement(torch.float64) < 1e-4, "float64 does not"

# %% [markdown]
# **The cure** is `model.double()` and inputs in float64, for the check alone.
#
# ## In short
#
# - A gradient that you doubt: move a weight up and down, in float64, and compare.
# - The gradient of a recurrent weight is a sum over steps; `gradient_by_step` gives its terms,
#   `gradient_flow` their size by lag.
# - It vanishes: open the forget gate, or start orthogonal. It explodes: clip, or lower the rate.
# - Look at a bias: the share of a weight is small also where its input is.
#
# ## Try it
#
# **1. A GRU that remembers.** Its state is $h_t = (1 - z_t) \odot n_t + z_t \odot h_{t-1}$.
# Change the bias of the gate $z$, rows `H` to `2 * H`, so that a GRU learns the task in 240
# updates. Guess the sign first.

# %% tags=["solution"]
def open_gru():
    gru = nn.GRU(2, H)
    with torch.no_grad():
        gru.bias_ih_l0[H : 2 * H] = 5.0
    return gru

adam = partial(torch.optim.Adam, lr=0.01)
opened = torch.stack([train(open_gru, seed, adam) for seed in SEEDS])[:, -30:].mean(dim=1)
print("bias +5:", *[f"{error:.4f}" for error in opened])
assert opened.max() < 0.1, "with z near 1 the state is kept"

# %% [markdown] tags=["solution"]
# Positive: $z$ near 1 keeps the old state. (Some texts exchange $z$ and $1 - z$; then the sign
# is the other one.)

# %% [markdown]
# **2. How far does a gate reach?** A forget gate with bias $\beta$ keeps about
# $\sigma(\beta)$ of the memory at each step. At which lag should less than 1 % be left, for
# $\beta$ = 0, 1 and 2? Measure it. Then set `weight_hh_l0` to zero and measure again: guess
# what changes.

# %% tags=["solution"]
def gate_alone(bias):
    lstm = open_lstm(bias)
    nn.init.zeros_(lstm.weight_hh_l0)
    return lstm

for bias in (0.0, 1.0, 2.0):
    kept = torch.tensor(bias).sigmoid().log10().item()
    predicted = -2 / kept
    lags = []
    for build in (partial(open_lstm, bias), partial(gate_alone, bias)):
        lags.append([int((reach(build, seed) > 0.01).sum()) for seed in SEEDS])
    print(f"bias {bias:g}: predicted {predicted:.1f}, LSTM {lags[0]}, gate alone {lags[1]}")
    for lag in lags[1]:
        assert abs(lag - predicted) < 5, "the gate alone reaches as far as it says"

# %% [markdown] tags=["solution"]
# The gate is one of two paths back; the other leads through $h$ and `weight_hh`. With that one
# closed, the prediction fits.

# %% [markdown]
# **3. A loss at every step.** Ask for the number at every step, not only at the last. Does
# `gradient_flow` still show that the LSTM as it comes forgets? Guess first.

# %% tags=["solution"]
from rnnkit import seq2seq_loss

torch.manual_seed(0)
model = RecurrentSequential(nn.LSTM(2, H), nn.Linear(H, 1))
inputs, targets = batch()
every = seq2seq_loss(nn.MSELoss())
flow = gradient_flow(model, every, inputs, targets.expand(T, B, 1))["0.bias_ih_l0"]
print("of lag 0:", *[f"lag {k} {flow[k] / flow[0]:.2f}," for k in (10, 20, 30)])
assert flow[30] > 0.1 * flow[0], "it looks as if nothing vanished"

# %% [markdown] tags=["solution"]
# It does not: each step is fed by the loss of its neighbors, and the sizes look healthy. To see
# how far a gradient reaches, put the loss on the last step.

# %% [markdown]
# ## Where next
#
# - Cutting the gradient on purpose, on a stream too long for memory:
#   [07 Truncated backpropagation](07_truncated.py).
# - A task whose loss needs a long reach: [03 Sequence to one](03_seq2one.py).
# - A gradient that came out wrong in another library, and why: [The thread,
#   answered](../docs/thread.md#the-open-question).
# - Papers: the sum over steps, [Werbos 1990](https://doi.org/10.1109/5.58337); vanishing and
#   exploding gradients, [Bengio and others 1994](https://doi.org/10.1109/72.279181) and
#   [Pascanu and others 2013](https://arxiv.org/abs/1211.5063), who also propose clipping; the
#   bias of the forget gate, [Gers and others 2000](https://doi.org/10.1162/089976600300015015),
#   [Jozefowicz and others 2015](https://proceedings.mlr.press/v37/jozefowicz15.html), and one
#   that grows with the length of the memory,
#   [Tallec and Ollivier 2018](https://arxiv.org/abs/1804.11188).
