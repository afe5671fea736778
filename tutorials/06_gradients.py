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
# # Vanishing, exploding and wrong gradients
#
# After this page you can check a gradient that you do not trust, see how much of it each time
# step gives, and mend one that vanishes or explodes. If a gradient of yours looks wrong, begin
# with [the check](#check-a-gradient-that-you-do-not-trust), which works for any model.

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
torch.manual_seed(0)
plt.style.use("rnnkit.style")

# %% [markdown]
# ## The pattern
#
# A recurrent network uses the same weight $W$ at every time step.
#
# ![One weight W, used at three time steps. The loss on the last output sends a share d1, d2, d3 of the gradient to each use. The gradient of W is their sum.](../docs/assets/patterns/06.svg)
#
# If each step $t$ had a copy $W_t$ of its own, the chain rule would say
# $dL/dW = \sum_t d_t$ with $d_t = \partial L / \partial W_t$. We call $d_t$ the
# [share](../docs/glossary.md#gradient-share) of step $t$. If the early shares are tiny, the
# network cannot learn from what it read early: the gradient **vanishes**. If they are huge, it
# **explodes**. Computing them from the last step back to the first is *backpropagation through
# time*.

# %% [markdown]
# ## Check a gradient that you do not trust
#
# A wrong gradient raises no error, and often the loss still falls. Here is a network small
# enough for a pencil, and the same with one `.detach()` too many, a common mistake.

# %%
class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.Wi = nn.Parameter(torch.tensor(5.0))
        self.Wh = nn.Parameter(torch.tensor(4.0))
        self.b = nn.Parameter(torch.tensor(0.0))
        self.h0 = nn.Parameter(torch.tensor(7.0))  # the first state

    def forward(self, x, h=None):
        h = self.h0 if h is None else h
        return self.Wi * x + self.Wh * h + self.b

# %%
class Detached(Cell):
    def forward(self, x, h=None):
        h = self.h0 if h is None else h.detach()  # keeps the number, cuts its history
        return super().forward(x, h)

def last_state(cell):
    return cell(3.0, cell(2.0))  # reads 2, then 3; the last state is the loss

# %% [markdown]
# A gradient is a promise: move a weight a little, and the loss moves by so much. So move it up
# and down, run the network twice, and see. This **referee** never calls `backward` and cannot
# make the same mistake. A large weight is moved in a random direction.

# %%
@torch.no_grad()
def measured_slope(compute_loss, weight, direction, epsilon=1e-6):
    start = weight.clone()
    weight.copy_(start + epsilon * direction)
    above = compute_loss()
    weight.copy_(start - epsilon * direction)
    below = compute_loss()
    weight.copy_(start)
    return (above - below).item() / (2 * epsilon)

# %%
def check_gradient(model, compute_loss):
    """For each parameter: the slope that backward claims, and the slope measured."""
    model.zero_grad()
    compute_loss().backward()
    for name, weight in model.named_parameters():
        direction = torch.rand_like(weight)
        direction /= direction.norm()  # for a single number: 1
        claim = 0.0 if weight.grad is None else (weight.grad * direction).sum().item()
        yield name, claim, measured_slope(compute_loss, weight, direction)

# %%
right, wrong = Cell().double(), Detached().double()  # so small a step needs float64
of_right = list(check_gradient(right, lambda: last_state(right)))
of_wrong = list(check_gradient(wrong, lambda: last_state(wrong)))
for (name, claim, slope), (_, detached, _) in zip(of_right, of_wrong, strict=True):
    print(f"{name:2} measured {slope:.4f}, backward {claim:2g}, detached {detached:2g}")

# %% [markdown]
# Both networks have the same loss, 167, and the same slopes: 11, 66, 5 and 16. The first
# `backward` says so. The second says 3, 38, 1 and 0, and is wrong.
#
# **Use it** on any model: `check_gradient(model, lambda: loss(model(inputs)[0], targets))`. Three
# things must hold, or it complains of a gradient that is right: model and inputs are in
# [float64](#evidence-the-referee-needs-float64), dropout is off, and two runs give the same loss.
# For a backward that you wrote yourself there is
# [torch.autograd.gradcheck](#evidence-a-backward-of-your-own).

# %% [markdown]
# ## Plain PyTorch: the share of each step
#
# Where are the missing parts? By pencil: $h_1 = 5 \cdot 2 + 4 \cdot 7 = 38$ and
# $L = h_2 = 5 \cdot 3 + 4 \cdot 38 = 167$. A change of $h_2$ arrives in the loss once, a change of
# $h_1$ arrives $W_h = 4$ times. Each use of a weight gives what arrives at its step, times what
# it was multiplied with: for $W_h$, $d_1 = 4 \cdot 7$ and $d_2 = 1 \cdot 38$.
#
# PyTorch finds the same if each step really has a copy of the weights:

# %%
cell = Cell()
copies = [deepcopy(cell), deepcopy(cell)]  # one for each step
loss = copies[1](3.0, copies[0](2.0))
loss.backward()
by_copies = {}
for name in ("Wi", "Wh", "b"):
    d1, d2 = (copy.get_parameter(name).grad.item() for copy in copies)
    by_copies[name] = [d1, d2]
    print(f"{name:2} {d1:2g} from step 1 and {d2:2g} from step 2, in sum {d1 + d2:g}")

# %% [markdown]
# The detached network has the last share alone: a detached state stops all that would flow back
# through it.
#
# ## With rnnkit
#
# [gradient_by_step][rnnkit.gradient_by_step] gives the shares of any recurrent model, with time
# in front. [Unroll][rnnkit.Unroll] makes a model of our cell, called like `nn.RNN`:

# %%
from rnnkit import Unroll, gradient_by_step

def last_output(outputs, targets):
    return outputs[-1].sum()

two_steps = torch.tensor([2.0, 3.0]).view(2, 1, 1)  # (T, B, F)
shares = gradient_by_step(Unroll(Cell()), last_output, two_steps, targets=None)
for name, by_hand in by_copies.items():
    assert shares[f"cells.0.{name}"].tolist() == by_hand, "the same, step by step"

# %% [markdown]
# ## The data and the shapes
#
# Now a task that needs a long gradient: to remember a number. It is read at the first of 40
# steps, with noise beside it at every step, and asked for at the end.

# %%
T, B, H = 40, 32, 32  # steps, rows, numbers in a state

def batch():
    inputs = torch.zeros(T, B, 2)
    inputs[0, :, 0] = torch.randn(B)  # the number
    inputs[:, :, 1] = torch.randn(T, B)  # noise
    return inputs, inputs[0, :, :1].clone()

inputs, targets = batch()
print("inputs", tuple(inputs.shape), "targets", tuple(targets.shape))

# %% [markdown]
# Time first, then the batch; one target for a whole sequence. The baseline answers 0, the mean:
# its mean squared error is the variance of the number, **1**. Every batch is new, so an error in
# training is as good as one in a test.
#
# ## How far back does the gradient reach?
#
# [gradient_flow][rnnkit.gradient_flow] gives the size of each share by **lag**: steps back from
# the last one. We look at a bias, since its share is what arrives at a step and nothing else.

# %%
from rnnkit import RecurrentSequential, gradient_flow, seq2one_loss

torch.manual_seed(0)
model = RecurrentSequential(nn.LSTM(2, H), nn.Linear(H, 1))  # called like nn.LSTM
loss = seq2one_loss(nn.MSELoss())  # of the last output
flow = gradient_flow(model, loss, inputs, targets)["0.bias_ih_l0"]  # (T,)
for lag in (0, 10, 20, 30):
    print(f"lag {lag:2}: {flow[lag]:.1e}")

# %% [markdown]
# That is an LSTM as PyTorch makes it: at every step only some 0.6 of what arrived is left. Two
# changes, a line each, help:
#
# - An LSTM multiplies its memory $c$ by the forget gate at every step. With a bias of 5 that gate
#   starts at $\sigma(5) = 0.993$ and keeps nearly everything: `lstm.bias_ih_l0[H : 2 * H] = 5.0`,
#   under `torch.no_grad()`. (The gates stand in the order input, forget, cell, output.)
# - An RNN multiplies its state by `weight_hh`. An orthogonal matrix keeps a vector's length, and a
#   factor makes up for the slope of `tanh`, which is below 1:
#   `nn.init.orthogonal_(rnn.weight_hh_l0, gain=1.2)`.

# %% tags=["fold"] summary="Six networks from three seeds each, and a training loop as for any network"
def reach(build, seed):
    torch.manual_seed(seed)
    model = RecurrentSequential(build(), nn.Linear(H, 1))
    inputs, targets = batch()
    flow = gradient_flow(model, loss, inputs, targets)["0.bias_ih_l0"]
    return flow / flow[0]  # (T,), as a part of lag 0

# %% tags=["fold"]
def open_lstm(bias=5.0):
    lstm = nn.LSTM(2, H)
    with torch.no_grad():  # PyTorch's order of the gates: input, forget, cell, output
        lstm.bias_ih_l0[H : 2 * H] = bias
        lstm.bias_hh_l0[H : 2 * H] = 0.0
    return lstm

def orthogonal_rnn(factor):
    rnn = nn.RNN(2, H)
    nn.init.orthogonal_(rnn.weight_hh_l0, gain=factor)
    return rnn

# %% tags=["fold"]
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

# %% tags=["fold"]
def train(build, seed, optimizer, clip=True, updates=200, batch=batch):
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

# %% alt="Size of the gradient by lag, 0 to 39, on a logarithmic axis. RNN, GRU and LSTM as PyTorch makes them fall together in a straight line to about one part in a hundred million. The LSTM with forget bias 5 and the RNN with 1.2 times an orthogonal matrix stay near 1. The RNN with 2 times an orthogonal matrix rises to about a thousand." caption="What arrives at each step back, as a part of lag 0, before training. Medians of three seeds." tags=["hero", "hide-input"]
from rnnkit import plot_gradient_flow

fig, ax = plt.subplots(figsize=(5.2, 2.6))
medians = {name: flow.median(dim=0).values for name, flow in flows.items()}
plot_gradient_flow(medians, ax)
ax.plot([0, T - 1], [1, 1], color="#666666", linewidth=0.8)
labels = ["1e-8", "1e-6", "1e-4", "0.01", "1", "100"]
ax.set_yticks([float(label) for label in labels], labels)
ax.set(ylabel="size of the gradient", xticks=range(0, 40, 10))
ax.set_title("How a network starts decides how far it sees")
plt.show()

# %% [markdown]
# RNN, GRU and LSTM all forget. **"An LSTM has no vanishing gradient" is wrong**: it can keep one,
# but its forget gate starts half closed. ([Why these
# factors](#evidence-where-the-factors-come-from); [the same on
# text](#evidence-the-same-on-text).)

# %% [markdown]
# ## What helps against a vanishing or exploding gradient
#
# Does a network that keeps its gradient learn better? Train four of them, from three seeds each:

# %%
rates = {"LSTM": 0.01, "LSTM, bias 5": 0.01, "RNN": 0.002, "RNN, 1.2 orth.": 0.002}
final = {}
for name, rate in rates.items():
    adam = partial(torch.optim.Adam, lr=rate)
    runs = [train(networks[name], seed, adam) for seed in SEEDS]
    final[name] = torch.stack(runs)[:, -30:].mean(dim=1)  # of the last 30 batches
    print(f"{name:15} error", *[f"{error:.3f}" for error in final[name]])

# %% [markdown]
# The two that forget stay at the baseline; the other two learn to remember. The longer the memory
# is to be, the larger the bias: after $k$ steps $\sigma(\beta)^k$ of it is left. A GRU has
# [such a gate too](#try-it). The bias does not cure everything: on a harder task of the same
# length it [does not help](#evidence-an-open-gate-is-not-enough), and a GRU as it comes learns it.

# %% [markdown]
# ### Exploding: clip
#
# A large gradient makes a large step, which can throw the weights to a place from where they do
# not come back. **Clipping**, between `backward` and `step`, shortens a gradient that is longer
# than a limit: `nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)`, or the callback
# [ClipGradients][rnnkit.ClipGradients]. Here is an RNN with 1.5 times an orthogonal matrix,
# trained by plain gradient descent.

# %%
exploding = partial(orthogonal_rnn, 1.5)
ways = {"not clipped": (0.1, False), "clipped": (0.1, True), "slower": (0.005, False)}
curves = {}
for name, (rate, clip) in ways.items():
    sgd = partial(torch.optim.SGD, lr=rate)
    curves[name] = torch.stack([train(exploding, seed, sgd, clip) for seed in SEEDS])
    final[name] = curves[name][:, -30:].mean(dim=1)
    print(f"{name:11} error", *[f"{error:.2g}" for error in final[name]])

# %% [markdown]
# Without clipping all three runs are lost; with it all three learn. At a rate twenty times smaller
# they learn too: clipping is no better optimizer, it lets you keep a rate that a few steep
# places would forbid. Against a vanishing gradient it does nothing: the networks above were
# clipped as well.

# %% tags=["check"]
lstm = nn.LSTM(2, 8, num_layers=2).double()
some = torch.randn(40, 3, 2).double()
differences = []
for _, claim, slope in check_gradient(lstm, lambda: lstm(some)[0].square().mean()):
    differences.append(abs(claim - slope))
assert len(differences) == 8 and max(differences) < 1e-7, "PyTorch's gradient is right"

# %% tags=["check"]
golden = {"Wi": 11, "Wh": 66, "b": 5, "h0": 16}
for name, claim, slope in of_right:
    assert claim == golden[name], "backward adds up the shares"
    assert shares[f"cells.0.{name}"].sum() == golden[name], "and so does rnnkit"
for name, _, slope in of_right + of_wrong:
    assert abs(slope - golden[name]) < 1e-4, "the referee agrees, of both networks"
detached = {name: claim for name, claim, _ in of_wrong}
assert list(detached.values()) == [3, 38, 1, 0]
for name, (_, last) in by_copies.items():
    assert detached[name] == last, "detached: the last share alone"

# %% tags=["check"]
for name in ("RNN", "GRU", "LSTM"):
    assert flows[name][:, 30].max() < 1e-5, "a new network forgets, on every seed"
    factor = (flows[name][:, 30] / flows[name][:, 10]) ** (1 / 20)
    assert 0.4 < factor.min() and factor.max() < 0.75, "some 0.6 is left at every step"
for name in ("LSTM, bias 5", "RNN, 1.2 orth."):
    assert flows[name][:, 30].min() > 0.02, "kept"
    assert flows[name][:, 30].max() < 20, "and not exploding"
assert flows["RNN, 2 orth."][:, 30].min() > 10, "exploding"

# %% tags=["check"]
for name in ("LSTM", "RNN"):
    assert final[name].min() > 0.8, "who forgets learns nothing, on every seed"
assert final["LSTM, bias 5"].max() < 0.1, "an open gate remembers, on every seed"
assert final["RNN, 1.2 orth."].max() < 0.3, "and so does an orthogonal start"

# %% tags=["check"]
assert not (final["not clipped"] < 100).any(), "lost, on every seed"
assert final["clipped"].max() < 0.3, "clipped: it learns, on every seed"
assert final["slower"].max() < 0.4, "and at a smaller rate as well"

# %% [markdown]
# ## What goes wrong
#
# ### A small share, taken for a vanishing gradient
#
# The share of a weight is what arrives at the step **times what the weight is multiplied with**.
# Take the LSTM with forget bias 5:

# %%
torch.manual_seed(0)
model = RecurrentSequential(open_lstm(), nn.Linear(H, 1))
shares = gradient_by_step(model, loss, inputs, targets)
arrives = shares["0.bias_ih_l0"].norm(dim=1)
of_number = shares["0.weight_ih_l0"][:, :, 0].norm(dim=1)  # reads the number
of_state = shares["0.weight_hh_l0"].flatten(1).norm(dim=1)
print("step  arrives  weight on the number  weight_hh")
for t in (0, 1, T - 1):
    print(f"{t:4}  {arrives[t]:7.3f}  {of_number[t]:20.3f}  {of_state[t]:9.3f}")

# %% [markdown]
# The weight on the number has no share after step 0, where its input is zero, and `weight_hh` has
# none at step 0, where the state is zero. **The cure** is to look at a bias.
#
# ### A loss at every step
#
# The LSTM as PyTorch makes it, asked for the number at every step:

# %%
from rnnkit import seq2seq_loss

torch.manual_seed(0)
model = RecurrentSequential(nn.LSTM(2, H), nn.Linear(H, 1))
at_every_step = seq2seq_loss(nn.MSELoss())
flow = gradient_flow(model, at_every_step, inputs, targets.expand(T, B, 1))
every = flow["0.bias_ih_l0"]
print(f"lag 0: {every[0]:.1e}, lag 30: {every[30]:.1e}")

# %% [markdown]
# Each step hears the losses of its neighbors: the sizes look healthy, and the network forgets as
# before. **The cure** is a loss on the last step alone.

# %% tags=["check"]
assert (of_number[1:] == 0).all() and of_number[0] > 0, "the number is read once"
assert of_state[0] == 0, "the first state is zero"
assert arrives.min() > 0.05 * arrives[-1], "and yet a gradient arrives at every step"
assert every[30] > 0.1 * every[0], "it looks as if nothing vanished"

# %% [markdown]
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
# Change the bias of the gate $z$, rows `H` to `2 * H`, so that a GRU learns the task in 120
# updates. Guess the sign first.

# %% tags=["solution"]
def open_gru():
    gru = nn.GRU(2, H)
    with torch.no_grad():
        gru.bias_ih_l0[H : 2 * H] = 5.0
    return gru

adam = partial(torch.optim.Adam, lr=0.01)
runs = [train(open_gru, seed, adam, updates=120) for seed in SEEDS]
opened = torch.stack(runs)[:, -30:].mean(dim=1)
print("bias +5:", *[f"{error:.4f}" for error in opened])
assert opened.max() < 0.1, "with z near 1 the state is kept"

# %% [markdown] tags=["solution"]
# Positive: $z$ near 1 keeps the old state. (Some texts exchange $z$ and $1 - z$; then the sign
# is the other one.)

# %% [markdown]
# **2. How far does a gate reach?** A forget gate with bias $\beta$ keeps about
# $\sigma(\beta)$ of the memory at each step. At which lag should less than 1 % be left, for
# $\beta$ = 0, 0.5 and 1? Measure it. Then set `weight_hh_l0` to zero and measure again: guess
# what changes.

# %% tags=["solution"]
def gate_alone(bias):
    lstm = open_lstm(bias)
    nn.init.zeros_(lstm.weight_hh_l0)
    return lstm

# %% tags=["solution"]
for bias in (0.0, 0.5, 1.0):
    kept = torch.tensor(bias).sigmoid().log10().item()
    predicted = -2 / kept
    lags = []
    for build in (partial(open_lstm, bias), partial(gate_alone, bias)):
        lags.append([int((reach(build, seed) > 0.01).sum()) for seed in SEEDS])
    print(f"bias {bias:3}: predicted {predicted:.1f}", end=", ")
    print(f"LSTM {lags[0]}, gate alone {lags[1]}")
    for lag in lags[1]:
        assert abs(lag - predicted) < 2, "the gate alone reaches as far as it says"
    assert min(lags[0]) > predicted + 1, "with the other path it reaches further"

# %% [markdown] tags=["solution"]
# The gate is one of two paths back; the other leads through $h$ and `weight_hh`. With that one
# closed, the prediction fits.

# %% [markdown]
# **3. A state that is overwritten.** In the two-step network, keep the state in one tensor, and
# write each new state into it with `h.copy_(output)`. PyTorch refuses. Write `h.data.copy_`
# instead, and it does not. Guess the gradient of $W_h$; right is 66.

# %% tags=["solution"]
cell = Cell()
h = cell.h0.clone()
for x in (2.0, 3.0):
    output = cell(x, h)
    h.data.copy_(output)  # not seen by autograd
output.backward()
overwritten = {name: weight.grad.item() for name, weight in cell.named_parameters()}
print(overwritten)
assert list(overwritten.values()) == [3, 167, 1, 4]

# %% tags=["solution"]
cell = Cell()
h = cell.h0.clone()
for x in (2.0, 3.0):
    output = cell(x, h)
    h.copy_(output)
try:
    output.backward()
    refused = False
except RuntimeError as error:
    refused = "modified by an inplace operation" in str(error)
assert refused, "PyTorch counts the versions of a tensor"

# %% [markdown] tags=["solution"]
# 167, the **last** state: the 38 that $W_h$ had been multiplied with was overwritten before
# `backward` read it. $W_i$ and $b$ get the last share alone, and $h_0$ gets 4, as if step 2 had read
# $h_0$ itself. The cure: a new state is a new tensor, `h = cell(x, h)`.

# %% [markdown]
# ## Where next
#
# - Cutting the gradient on purpose, on a stream too long for memory:
#   [07 Truncated backpropagation](07_truncated.py).
# - A gradient that came out wrong in another library, and why: [The thread,
#   answered](../docs/thread.md#the-open-question).
# - [The papers](#evidence-papers); a task that needs a long reach: [03](03_seq2one.py).

# %% [markdown] tags=["evidence"]
# ## Evidence: detaching keeps exactly the last shares
#
# Two layers of LSTM, in float64. Detached before its last steps, the network has the sum of
# their shares as its gradient, and [BPTTTrainingPhase][rnnkit.BPTTTrainingPhase] with that
# `window` moves each weight by it: with a rate of 1, plain descent subtracts the gradient.

# %% tags=["evidence"]
from rnnkit import BPTTTrainingPhase, detach

torch.manual_seed(0)
model = RecurrentSequential(nn.LSTM(2, 5, num_layers=2), nn.Linear(5, 1)).double()
inputs, targets = (tensor.double() for tensor in batch())
shares = gradient_by_step(model, loss, inputs, targets)

def gradient_of_last(window):
    model.zero_grad()
    state = None
    if window < T:
        state = detach(model(inputs[:-window])[1])
    loss(model(inputs[-window:], state)[0], targets).backward()
    return {name: weight.grad for name, weight in model.named_parameters()}

# %% tags=["evidence"]
equal = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-10)
for window in (1, 5, T):
    twin = deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
    BPTTTrainingPhase(window=window)(twin, loss, (inputs, targets), optimizer)
    cut = gradient_of_last(window)
    for name, share in shares.items():
        kept = share[-window:].sum(dim=0)
        equal(cut[name], kept)
        equal(model.get_parameter(name) - twin.get_parameter(name), kept)
    part = cut["0.weight_hh_l0"].norm() / shares["0.weight_hh_l0"].sum(0).norm()
    print(f"the last {window:2} steps: {part:.1%} of the size of the gradient")

# %% [markdown] tags=["evidence"]
# ## Evidence: where the factors come from
#
# `nn.RNN` draws `weight_hh` from $U(-1/\sqrt H, 1/\sqrt H)$, which has the variance $1/(3H)$.
# The largest eigenvalue of such a matrix tends to $1/\sqrt 3 = 0.577$ as $H$ grows, and over
# many steps a vector shrinks by that factor; `tanh` takes a little more. The largest singular
# value, what *one* step can do at most, is another number, nearly twice as large. An LSTM's memory is
# multiplied by the forget gate, which starts at about one half.

# %% tags=["evidence"]
for size in (32, 128, 512):
    torch.manual_seed(0)
    weight = nn.RNN(2, size).weight_hh_l0.detach().cpu()
    radius = torch.linalg.eigvals(weight).abs().max().item()
    stretch = torch.linalg.matrix_norm(weight, 2).item()
    print(f"H = {size:3}: eigenvalue {radius:.3f}, singular value {stretch:.3f}")
    assert 0.45 < radius < 0.75, "near 0.577"
    assert stretch > 1.4 * radius, "the singular value is another number"

# %% tags=["evidence"]
torch.manual_seed(0)
lstm = nn.LSTM(2, H)
inputs, _ = batch()
h = torch.cat([torch.zeros(1, B, H), lstm(inputs)[0][:-1]])  # before each step
W_ih, W_hh, b_ih, b_hh = lstm.parameters()
gates = (inputs @ W_ih.T + h @ W_hh.T + b_ih + b_hh).chunk(4, dim=-1)
forget = gates[1].sigmoid().mean().item()
print(f"mean forget gate {forget:.2f}; measured factor a step", end=" ")
factor = (flows["LSTM"][:, 30] / flows["LSTM"][:, 10]) ** (1 / 20)
print(*[f"{value:.2f}" for value in factor])
assert 0.4 < forget < 0.6, "half open"
assert factor.min() > forget, "the path through h adds to it"

# %% [markdown] tags=["evidence"]
# ## Evidence: the same on text
#
# The task above is made. Here the networks read 60 characters of the source of Python's
# `textwrap` module and predict the next one; nothing is trained.

# %% tags=["evidence"]
import inspect
import textwrap

text = inspect.getsource(textwrap)
vocabulary = sorted(set(text))
V = len(vocabulary)
ids = torch.tensor([vocabulary.index(character) for character in text])
next_character = seq2one_loss(nn.CrossEntropyLoss())

# %% tags=["evidence"]
def reach_on_text(layer, seed):
    torch.manual_seed(seed)
    model = RecurrentSequential(layer(V, H), nn.Linear(H, V))
    starts = torch.randint(len(ids) - 60, (16,)).tolist()
    windows = torch.stack([ids[start : start + 61] for start in starts], dim=1)
    inputs = nn.functional.one_hot(windows[:-1], V).float()
    flow = gradient_flow(model, next_character, inputs, windows[-1])["0.bias_ih_l0"]
    return flow / flow[0]

# %% tags=["evidence"]
for layer in (nn.RNN, nn.GRU, nn.LSTM):
    on_text = torch.stack([reach_on_text(layer, seed) for seed in SEEDS])
    print(f"{layer.__name__:4} lag 30:", *[f"{flow[30]:.1e}" for flow in on_text])
    assert on_text[:, 30].max() < 1e-4, "they forget on text as well"

# %% [markdown] tags=["evidence"]
# ## Evidence: clipping, update by update

# %% alt="Error by update on a logarithmic axis, three seeds each. Without clipping the error leaves the figure within the first forty updates. With clipping it falls from 1 to about a tenth." caption="The RNN with 1.5 times an orthogonal matrix, at a rate of 0.1. Means of 8 updates, three seeds." tags=["evidence", "hide-input"]
fig, ax = plt.subplots()
for name, color, dash in (("not clipped", "C1", "--"), ("clipped", "C0", "-")):
    for errors in curves[name].unflatten(1, (-1, 8)).mean(dim=2):
        ax.semilogy(range(4, 200, 8), errors, dash, color=color, linewidth=1.5)
ax.set_yticks([0.01, 1, 100, 1e4], ["0.01", "1", "100", "10000"])
ax.text(60, 1e4, "not clipped", color="C1")
ax.text(120, 0.4, "clipped", color="C0")
ax.set(xlabel="update", ylabel="mean squared error", ylim=(0.01, 1e6))
ax.set_title("Clipping survives the steps that ruin training")
plt.show()

# %% [markdown] tags=["evidence"]
# ## Evidence: an open gate is not enough
#
# The adding problem (Hochreiter and Schmidhuber 1997) of the same length: the network reads 40
# numbers, two of the first ten are marked, and it is asked for their sum. To answer the mean
# has an error of 1/6. We train the LSTM with forget bias 5 and a GRU as it comes.

# %% tags=["evidence"]
def adding_batch():
    numbers = torch.rand(T, B)
    marks = torch.zeros(T, B)
    marks.scatter_(0, torch.rand(10, B).argsort(dim=0)[:2], 1.0)
    sums = (numbers * marks).sum(dim=0)
    return torch.stack([numbers, marks], dim=-1), sums.unsqueeze(1)

# %% tags=["evidence"]
adam = partial(torch.optim.Adam, lr=0.01)
adding = {}
for name in ("LSTM, bias 5", "GRU"):
    build = networks[name]
    runs = [train(build, seed, adam, updates=240, batch=adding_batch) for seed in SEEDS]
    adding[name] = torch.stack(runs)[:, -30:].mean(dim=1)
    print(f"{name:12} error", *[f"{error:.4f}" for error in adding[name]])
assert adding["LSTM, bias 5"].min() > 0.13, "the open gate learns nothing in this time"
assert adding["GRU"].max() < 0.05, "the GRU learns, though its gradient starts small"

# %% [markdown] tags=["evidence"]
# So how far a gradient reaches before training is a warning and no verdict: it is a picture of
# the start. Here the network must also learn *which* numbers to store, and a gradient that
# arrives does not do that by itself. The GRU, whose gradient starts out small, gets there.
#
# The learning rates, the bias and the factors were picked from about twenty trials with these
# errors in view. What learns would learn at other settings too; the exact errors are a little
# too good.

# %% [markdown] tags=["evidence"]
# ## Evidence: the referee needs float64
#
# It divides a small difference by a small number, and in float32 that difference is mostly
# rounding. For the check alone, take `model.double()` and inputs in float64.

# %% tags=["evidence"]
def disagreement(dtype):
    torch.manual_seed(0)
    model = RecurrentSequential(nn.LSTM(2, H), nn.Linear(H, 1)).to(dtype)
    inputs, targets = (tensor.to(dtype) for tensor in batch())
    worst = 0.0
    compute_loss = partial(loss.on, model, inputs, targets)
    for _, claim, slope in check_gradient(model, compute_loss):
        worst = max(worst, abs(claim - slope) / abs(claim))
    return worst

# %% tags=["evidence"]
off = {dtype: disagreement(dtype) for dtype in (torch.float32, torch.float64)}
for dtype, worst in off.items():
    print(f"{dtype}: off by up to {worst:.0e} of the slope")
assert off[torch.float32] > 0.02, "float32 sees errors that are none"
assert off[torch.float64] < 1e-4, "float64 does not"

# %% [markdown] tags=["evidence"]
# ## Evidence: a backward of your own
#
# Backpropagation through time, written as a `torch.autograd.Function`: forward it keeps the
# states, backward it walks them from last to first.

# %% tags=["evidence"]
def walk_back(ctx, arriving, through_time=1.0):
    inputs, states, W_ih, W_hh = ctx.saved_tensors
    back = torch.zeros_like(states[0])
    before_tanh = []
    for t in reversed(range(1, len(states))):
        g = (arriving[t] + back) * (1 - states[t] ** 2)
        back = through_time * (g @ W_hh)  # to the state before
        before_tanh.insert(0, g)
    g = torch.stack(before_tanh)  # (T, B, H)
    d_ih = torch.einsum("tbh,tbf->hf", g, inputs)  # sums of shares
    d_hh = torch.einsum("tbh,tbk->hk", g, states[:-1])
    return g @ W_ih, arriving[0] + back, d_ih, d_hh, g.sum(dim=(0, 1))

# %% tags=["evidence"]
class BPTT(torch.autograd.Function):
    @staticmethod
    def forward(inputs, h, W_ih, W_hh, bias):
        states = [h]
        for x in inputs:
            states.append(torch.tanh(x @ W_ih.T + states[-1] @ W_hh.T + bias))
        return torch.stack(states)  # (T + 1, B, H), the first state included

    @staticmethod
    def setup_context(ctx, arguments, states):
        inputs, _, W_ih, W_hh, _ = arguments
        ctx.save_for_backward(inputs, states, W_ih, W_hh)

    backward = staticmethod(walk_back)

# %% [markdown] tags=["evidence"]
# `torch.autograd.gradcheck` is PyTorch's referee for functions: it moves every number of every
# argument, and `gradgradcheck` does so for second derivatives. Beside our function they judge
# one that carries nothing back through time, and one that saves the states as plain numbers,
# which is what saving a tensor made inside `forward` amounts to.

# %% tags=["evidence"]
class Forgetful(BPTT):
    backward = staticmethod(partial(walk_back, through_time=0.0))

class Numbers(BPTT):
    @staticmethod
    def setup_context(ctx, arguments, states):
        BPTT.setup_context(ctx, arguments, states.detach().clone())

# %% tags=["evidence"]
from torch.autograd import gradcheck, gradgradcheck

torch.manual_seed(0)
shapes = [(4, 2, 3), (2, 5), (5, 3), (5, 5), (5,)]  # T = 4, B = 2, F = 3, H = 5
arguments = [torch.randn(shape).double().requires_grad_() for shape in shapes]
verdicts = {}
for function in (BPTT, Forgetful, Numbers):
    first = gradcheck(function.apply, arguments, raise_exception=False)
    second = gradgradcheck(function.apply, arguments, raise_exception=False)
    verdicts[function] = (first, second)
    print(f"{function.__name__:9} first derivatives {first}, second {second}")
assert verdicts[BPTT] == (True, True)
assert not verdicts[Forgetful][0], "gradcheck notices what is not carried back"
assert verdicts[Numbers] == (True, False), "only gradgradcheck notices the other"

# %% [markdown] tags=["evidence"]
# `Numbers` is dangerous: training works, and what differentiates twice, such as a penalty on the
# size of the gradient, is wrong without an error. Return what you save, as `BPTT` does, or mark
# the backward with `@once_differentiable`, and PyTorch refuses:

# %% tags=["evidence"]
from torch.autograd.function import once_differentiable

class Once(Numbers):
    backward = staticmethod(once_differentiable(walk_back))

def penalty_slope(function):
    """The gradient by W_hh of the squared size of all gradients, its norm."""
    total = function(*arguments).square().sum()
    gradients = torch.autograd.grad(total, arguments, create_graph=True)
    arguments[3].grad = None
    sum(gradient.square().sum() for gradient in gradients).backward()
    return arguments[3].grad.norm().item()

# %% tags=["evidence"]
by_loop = penalty_slope(BPTT.forward)  # plain PyTorch, no backward of ours
ours, numbers = penalty_slope(BPTT.apply), penalty_slope(Numbers.apply)
print(f"loop {by_loop:.1f}, BPTT {ours:.1f}, Numbers {numbers:.1f}")
try:
    penalty_slope(Once.apply)
    refused = "nothing was refused"
except RuntimeError as error:
    refused = str(error)
print("Once:", refused)
assert abs(ours / by_loop - 1) < 1e-6, "our second derivatives are PyTorch's"
assert abs(numbers / by_loop - 1) > 0.1, "these are wrong, and nothing says so"
assert "once_differentiable" in refused, "and these are refused"

# %% [markdown] tags=["evidence"]
# ## Evidence: a gradient left on a stored state
#
# Truncated backpropagation by hand often stores states and calls `backward` on each in turn. In
# a [thread of PyTorch's forum](https://discuss.pytorch.org/t/implementing-truncated-backpropagation-through-time/15500?page=2)
# somebody checked such code on paper: $h_t = w\,h_{t-1}$ with $w = 0.2$ and $h_0 = 0.9$ has the
# gradient $3 w^2 h_0 = 0.108$ after three steps. The program gave 0.288.

# %% tags=["evidence"]
def hand_made(clear):
    w = torch.tensor(0.2, requires_grad=True)
    befores, afters, last = [], [], torch.tensor(0.9)
    for step in range(3):
        befores.append(last.detach().requires_grad_())
        last = w * befores[-1]
        afters.append(last)
        w.grad = None
        if clear:
            clear(befores)
        last.backward(retain_graph=True)
        for k in range(step, 0, -1):  # from the newest state to the oldest
            afters[k - 1].backward(befores[k].grad, retain_graph=True)
    return w.grad.item()

# %% tags=["evidence"]
def forget_gradients(states):
    for state in states:
        state.grad = None

stale, cleared = hand_made(clear=None), hand_made(clear=forget_gradients)
print(f"left on the states {stale:.3f}, cleared {cleared:.3f}")
assert abs(stale - 0.288) < 1e-5, "what was left is counted again"
assert abs(cleared - 0.108) < 1e-5, "cleared, it is the number on paper"

# %% [markdown] tags=["evidence"]
# `backward` **adds** to `.grad`. On weights everybody clears it; here it stays on the states too,
# and the next round passes it on. Clear it there, or store no states: rnnkit runs the last
# `window` steps again from one detached state.

# %% [markdown] tags=["evidence"]
# ## Evidence: the small case
#
# The numbers 11, 66, 5 and 16 are also what the formulas in
# [Flux's tests](https://github.com/FluxML/Flux.jl/blob/v0.14.25/test/layers/recurrent.jl) give
# for this cell. 3, 38 and 1 are what that Julia library once printed instead;
# [the thread](../docs/thread.md#the-open-question) has the reason.

# %% [markdown] tags=["evidence"]
# ## Evidence: papers
#
# [Werbos 1990](https://doi.org/10.1109/5.58337) on the sum over steps;
# [Bengio and others 1994](https://doi.org/10.1109/72.279181) and
# [Pascanu and others 2013](https://arxiv.org/abs/1211.5063) on vanishing, exploding and clipping;
# [Gers and others 2000](https://doi.org/10.1162/089976600300015015),
# [Jozefowicz and others 2015](https://proceedings.mlr.press/v37/jozefowicz15.html) and
# [Tallec and Ollivier 2018](https://arxiv.org/abs/1804.11188) on the forget gate and its bias.
