# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where a recurrent gradient comes from
#
# After this page you can say how much of a gradient each time step gave, and tell a right gradient from a wrong one.

# %% tags=["skip-execution"]
# %pip install "rnnkit[plot]"

# %% [markdown]
# ## What comes out
#
# A user of Flux, the Julia library, took a three-step network apart. They worked out the share of each step in the
# gradient of a weight, added up `f[1] + f[2] + f[3]`, and got another number than the one Flux printed. They asked in
# [FluxTraining.jl issue 144](https://github.com/FluxML/FluxTraining.jl/issues/144) which one is right. The issue is
# open since 2023, and the copy we read has no answer.
#
# **The sum is right. Flux was wrong.** The user reported it again in
# [Flux.jl issue 2185](https://github.com/FluxML/Flux.jl/issues/2185), and there a contributor found a case small
# enough to follow with a pencil: one input, one hidden unit, no activation function, two steps, the last output as the
# loss.
#
# $$ h_t = W_i\,x_t + W_h\,h_{t-1} + b, \qquad L = h_2 $$

# %%
import inspect
import math
import statistics
import textwrap
import time
from functools import partial

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from rnnkit import BPTTTrainingPhase, RecurrentSequential, Unroll, detach, seq2one_loss
from rnnkit import gradient_by_step, gradient_flow

# %%
torch.set_num_threads(1)
SEEDS = range(5)  # every claim about random weights is made over these
plt.style.use("rnnkit.style")


# %%
class Recurrence(nn.Module):
    """The cell and the numbers of Flux.jl#2185, called like nn.RNN."""

    def __init__(self):
        super().__init__()
        values = {"Wi": [[5.0]], "Wh": [[4.0]], "b": [0.0], "h0": [[[7.0]]]}
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))

    def forward(self, inputs, state=None):
        h, outputs = (self.h0 if state is None else state)[0], []
        for x in inputs:
            h = x @ self.Wi.T + h @ self.Wh.T + self.b
            outputs.append(h)
        return torch.stack(outputs), h[None]


# %%
def last_output(outputs, targets):
    return outputs[-1].sum()


small = Recurrence()
small_inputs = torch.tensor([2.0, 3.0]).view(2, 1, 1)
small_shares = gradient_by_step(small, last_output, small_inputs, None)
PRINTED = {"Wi": 3.0, "Wh": 38.0, "b": 1.0}  # by Flux, as reported in Flux.jl#2185
for name, printed in PRINTED.items():
    first, second = small_shares[name].flatten().tolist()
    print(f"{name:2}: {first:2g} from step 1 + {second:2g} from step 2", end=" ")
    print(f"= {first + second:2g}; Flux printed {printed:g}")
    assert printed == second, "what Flux printed is the share of the last step alone"

# %% tags=["hide-input"] alt="Three stacked bars, one for each of Wi, Wh and b. Each shows the share of step 1 and the share of step 2 as a part of the right gradient. For Wi they are 8 and 3, for Wh 28 and 38, for b 4 and 1. A label says that Flux printed the share of step 2 alone."
figure, ax = plt.subplots()
for row, name in enumerate(PRINTED):
    first, second = small_shares[name].flatten().tolist()
    cut = second / (first + second)
    for color, left, right, number in (("C0", 0, cut, second), ("C1", cut, 1, first)):
        ax.barh(row, right - left, left=left, color=color, height=0.55)
        inside = dict(color="white", ha="center", va="center", weight="bold")
        ax.text((left + right) / 2, row, f"{number:g}", **inside)
    ax.text(1.02, row, f"= {first + second:g}", va="center")
ax.text(0, -0.55, "step 2: all that Flux printed", color="C0", weight="bold")
ax.text(1, -0.55, "step 1: lost", color="C1", weight="bold", ha="right")
ax.set(xlim=(0, 1.15), ylim=(2.5, -0.9), xlabel="part of the right gradient")
ax.set_title("Flux kept the last step and lost the first")
ax.set_yticks(range(3), ["$W_i$", "$W_h$", "$b$"], size=13)
ax.grid(visible=False)

# %% [markdown]
# ## You will learn
#
# - The chain rule through time, with a number beside each formula: by hand, by autograd, by finite differences.
# - What a detached state costs, and why Flux printed what it printed.
# - How far back a gradient reaches in an RNN, a GRU and an LSTM, and which common sentence about that does not hold.
#
# ## You need
#
# Python, PyTorch, `pip install "rnnkit[plot]"`, and about a quarter of a minute on one CPU core. It helps to have seen
# [Sequence to one](03_seq2one.py).
#
# ## The pattern
#
# ![One weight W, used at three time steps. The loss on the last output sends a share d1, d2, d3 of the gradient to each use. The gradient of W is their sum.](../docs/assets/patterns/06.svg)
#
# A recurrent network uses one weight at every step. Give each step a copy $W_t$ of its own, and the chain rule says
#
# $$ \frac{dL}{dW} = \sum_{t=1}^{T} d_t, \qquad d_t = \frac{\partial L}{\partial W_t}. $$
#
# We call $d_t$ the [share](../docs/glossary.md#gradient-share) of step $t$. Computing them from the last step to the
# first is [backpropagation through time](../docs/glossary.md#bptt), BPTT.

# %% [markdown]
# ## The shapes
#
# Besides the small case, this page uses a network of the form in issue 144: three steps, five hidden units with
# `tanh`, a linear layer, and the squared error of the last output. A share has the shape of its parameter, with time
# in front.

# %%
T, B, FEATURES, H = 3, 1, 2, 5
torch.manual_seed(0)
model = RecurrentSequential(nn.RNN(FEATURES, H), nn.Linear(H, 1)).double()
inputs = torch.randn(T, B, FEATURES).double()
targets = torch.randn(B, 1).double()
loss = seq2one_loss(nn.MSELoss())
outputs, state = model(inputs)
shares = gradient_by_step(model, loss, inputs, targets)
table = {"inputs (T, B, F)": inputs, "targets (B, 1)": targets}
table |= {"outputs (T, B, 1)": outputs, "state (layers, B, H)": state[0]}
for name, tensor in (table | shares).items():
    print(f"{name:21} {tuple(tensor.shape)}")
assert all(shares[name].shape == (T, *w.shape) for name, w in model.named_parameters())
lengths = [len(tensor) for tensor in table.values()]
assert lengths == [T, B, T, 1], "time first, except for targets and state"

# %% [markdown]
# The last six rows are the shares, by the name of the parameter. The network is in float64, so that finite differences
# can judge it.
#
# ## The data
#
# Three things are differentiated on this page.
#
# 1. **Two inputs and a start**: $x = 2, 3$ and $h_0 = 7$, with $W_i = 5$, $W_h = 4$, $b = 0$. They are the numbers of
#    Flux.jl issue 2185, and they stand in
#    [Flux's own tests](https://github.com/FluxML/Flux.jl/blob/v0.14.25/test/layers/recurrent.jl).
# 2. **Random numbers** in a network of the form of issue 144. The matrices of that thread are not in the copy we have,
#    so these are our own: the structure is the thread's, the values are not.
# 3. **Real text**, to see how far back a gradient reaches: the source of Python's `textwrap` module, which lies on
#    your disk already (Python Software Foundation License). One character is one step.

# %%
text = inspect.getsource(textwrap)
vocabulary = sorted(set(text))
V = len(vocabulary)
ids = torch.tensor([vocabulary.index(character) for character in text])
print(f"{len(text)} characters, V = {V} different ones. Five windows of 50:")
for start in range(3000, 8000, 1000):
    print(repr(text[start : start + 50]))

# %% [markdown]
# There is no split: nothing on this page is trained. The skeptic's baseline is a **referee**. Move one weight by
# $\pm\varepsilon$, run the network twice, and take the slope. That needs no chain rule, so it cannot make the same
# mistake.


# %%
def finite_difference(run, weight, epsilon=1e-6):
    """The slope of run() along every number of a weight, by moving it up and down."""
    slope, flat = torch.zeros_like(weight), weight.data.view(-1)
    for i, value in enumerate(flat.tolist()):
        flat[i] = value + epsilon
        up = run().item()
        flat[i] = value - epsilon
        slope.view(-1)[i] = (up - run().item()) / (2 * epsilon)
        flat[i] = value
    return slope


# %% [markdown]
# ## Plain PyTorch
#
# ### By hand
#
# Forward first.

# %%
x1, x2, h0, Wi, Wh, b = 2.0, 3.0, 7.0, 5.0, 4.0, 0.0
h1 = Wi * x1 + Wh * h0 + b
h2 = Wi * x2 + Wh * h1 + b
print(f"h1 = {Wi:g}*{x1:g} + {Wh:g}*{h0:g} + {b:g} = {h1:g}")
print(f"h2 = {Wi:g}*{x2:g} + {Wh:g}*{h1:g} + {b:g} = {h2:g}, the loss")

# %% [markdown]
# Now backward. What arrives at a state is the derivative of the loss by that state. One step back costs one factor
# $W_h$:
#
# $$
# \frac{\partial L}{\partial h_2} = 1, \qquad
# \frac{\partial L}{\partial h_1} = \frac{\partial L}{\partial h_2}\,W_h, \qquad
# \frac{\partial L}{\partial h_0} = \frac{\partial L}{\partial h_1}\,W_h.
# $$

# %%
g2 = 1.0
g1 = g2 * Wh
g0 = g1 * Wh
print(f"arrives at h2: {g2:g}, at h1: {g2:g}*{Wh:g} = {g1:g},", end=" ")
print(f"at h0: {g1:g}*{Wh:g} = {g0:g}")

# %% [markdown]
# Each use of a weight multiplies what arrives with what the weight multiplied in the forward pass:
#
# $$
# \begin{aligned}
# d_t[W_i] &= \frac{\partial L}{\partial h_t}\,x_t &
# d_t[W_h] &= \frac{\partial L}{\partial h_t}\,h_{t-1} &
# d_t[b] &= \frac{\partial L}{\partial h_t}
# \end{aligned}
# $$

# %%
by_hand = {"Wi": (g1 * x1, g2 * x2), "Wh": (g1 * h0, g2 * h1), "b": (g1, g2)}
by_hand["h0"] = (g0, 0.0)
for name, (first, second) in by_hand.items():
    print(f"{name:2}: {first:2g} + {second:2g} = {first + second:g}")
by_hand_sum = {name: sum(pair) for name, pair in by_hand.items()}
in_tests = {"Wi": 11, "Wh": 66, "b": 5, "h0": 16}
assert by_hand_sum == in_tests, "the values of Flux's tests"

# %% [markdown]
# The formulas in Flux's tests give the same four values. ($h_0$ is used once, before step 1.)
#
# ### By autograd, and by the referee
#
# PyTorch's `backward` returns the sums. So do finite differences.

# %%
last_output(small(small_inputs)[0], None).backward()
double = Recurrence().double()
double_inputs = small_inputs.double()
for name, weight in double.named_parameters():
    auto = small.get_parameter(name).grad.item()
    slope = finite_difference(lambda: double(double_inputs)[0][-1], weight).item()
    by_pencil = by_hand_sum[name]
    print(f"{name:2}: by hand {by_pencil:2g}, autograd {auto:2g},", end=" ")
    print(f"finite differences {slope:.6f}")
    assert auto == by_pencil, "autograd adds up the shares"
    assert abs(slope - auto) < 1e-5, "the referee agrees"

# %% [markdown]
# ### Step by step, by autograd
#
# To see the shares without a pencil, do literally what the formula says: run each step with a copy of the weights, and
# read each copy's gradient. This is the whole method.


# %%
def shares_by_copies(rnn, head, inputs, targets):
    """The share of a step: the gradient of the copy of the weights only it uses."""
    copies = []
    h = inputs.new_zeros(inputs.shape[1], rnn.hidden_size)
    for x in inputs:
        copy = [weight.detach().clone().requires_grad_() for weight in rnn.parameters()]
        W_ih, W_hh, b_ih, b_hh = copy
        h = torch.tanh(x @ W_ih.T + b_ih + h @ W_hh.T + b_hh)
        copies.append(copy)
    F.mse_loss(head(h), targets).backward()
    shares = {}
    for i, (name, _) in enumerate(rnn.named_parameters()):
        shares[name] = torch.stack([copy[i].grad for copy in copies])
    return shares


# %%
rnn, head = model
by_copies = shares_by_copies(rnn, head, inputs, targets)
model.zero_grad()
loss(model(inputs)[0], targets).backward()
for name, weight in rnn.named_parameters():
    slope = finite_difference(lambda: loss(model(inputs)[0], targets), weight)
    apart = (by_copies[name].sum(0) - weight.grad).abs().max()
    off = (slope - weight.grad).abs().max()
    print(f"{name}: sum of shares - autograd {apart:.0e}, referee - autograd {off:.0e}")
    assert apart < 1e-12, "the shares add up to autograd's gradient"
    assert off < 1e-7, "finite differences agree"

# %% [markdown]
# So `f[1] + f[2] + f[3]` is the gradient. That is the answer to issue 144. It also shows that the fused `nn.RNN` and a
# loop written by hand have the same gradient.
#
# ## With rnnkit
#
# [gradient_by_step][rnnkit.gradient_by_step] does this for any recurrent model, without touching it. It gives the same
# numbers.

# %%
close = partial(torch.allclose, atol=1e-12)
shares = gradient_by_step(model, loss, inputs, targets)
for name, share in by_copies.items():
    assert close(share, shares[f"0.{name}"]), "the same, step by step"
norms = shares["0.weight_hh_l0"].flatten(1).norm(dim=1)
print("size of the share of weight_hh, by step:", [f"{norm:.4f}" for norm in norms])
assert norms[0] == 0, "the first state is zero"

# %% [markdown]
# The first share of `weight_hh` is zero because the first state is zero: a weight that multiplies zero has no
# influence. A model you would not want to copy by hand, two layers of LSTM, takes the same line.

# %%
torch.manual_seed(0)
deep = RecurrentSequential(nn.LSTM(FEATURES, H, num_layers=2), nn.Linear(H, 1)).double()
deep_shares = gradient_by_step(deep, loss, inputs, targets)
loss(deep(inputs)[0], targets).backward()
apart = []
for name, weight in deep.named_parameters():
    apart.append((deep_shares[name].sum(0) - weight.grad).abs().max())
print(f"{len(apart)} parameters, largest difference from autograd {max(apart):.0e}")
assert max(apart) < 1e-12, "the shares of an LSTM add up to autograd's gradient"

# %% [markdown]
# ## Train, look, doubt
#
# Nothing is trained here. What we look at, and doubt, is the gradient itself.
#
# ### Detach one step earlier, and one step earlier again
#
# [Detaching](../docs/glossary.md#detach) a state keeps its number and cuts its history. Cut before the last `k2`
# steps, and the shares of the earlier steps are gone.


# %%
def gradient_after_detaching(k2):
    """The gradient of every parameter if only the last k2 steps have a history."""
    model.zero_grad()
    state = detach(model(inputs[: T - k2])[1]) if k2 < T else None
    loss(model(inputs[T - k2 :], state)[0], targets).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


# %%
for k2 in (1, 2, 3):
    kept = gradient_after_detaching(k2)
    for name, share in shares.items():
        left = share[T - k2 :].sum(0)
        assert close(kept[name], left), "exactly the last k2 shares are left"
    whole = shares["0.weight_ih_l0"].sum(0)
    missing = (whole - kept["0.weight_ih_l0"]).norm() / whole.norm()
    print(f"k2 = {k2}: of weight_ih's gradient {missing:.0%} is missing")

# %% [markdown]
# That is [truncated BPTT](../docs/glossary.md#tbptt) with `k2 = 1`, `2` and `3`. rnnkit's training phase does the
# same. Its `window` is k2; with a learning rate of 1, plain SGD moves each weight by minus its gradient.

# %%
for k2 in (1, 2, 3):
    twin = RecurrentSequential(nn.RNN(FEATURES, H), nn.Linear(H, 1)).double()
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
    BPTTTrainingPhase(window=k2)(twin, loss, (inputs, targets), optimizer)
    for name, weight in twin.named_parameters():
        moved = model.get_parameter(name) - weight
        left = shares[name][T - k2 :].sum(0)
        assert close(moved, left), "window=k2 keeps the last k2 shares"
print("window=1, 2, 3 moved every weight by its last 1, 2, 3 shares")

# %% [markdown]
# ### What Flux printed, and why
#
# In Flux up to 0.14 a recurrent layer kept its state in a field, and overwrote it at every step. The gradient library,
# Zygote, kept **one** box for the derivative by that field. Each step's backward takes what is in the box and leaves
# what the step before should get. That is right if the steps are visited from last to first, and only then. Here is
# the box in a few lines of Python. It is our model of what we read in Zygote's source, not Zygote itself.


# %%
def through_one_box(x, h, Wh, arriving, order):
    """Gradients with one box for the state's derivative, steps visited in `order`."""
    box = 0.0
    total = [0.0, 0.0, 0.0]
    seen = []
    for t in order:
        g = arriving[t] + box  # what this step's loss sends, and what the box holds
        total = [total[0] + g * x[t], total[1] + g * h[t], total[2] + g]
        box = g * Wh  # for the step before t
        seen.append(total)
    return total, box, seen


# %%
numbers = dict(x=(x1, x2), h=(h0, h1), Wh=Wh, arriving=(0.0, 1.0))
right, box, _ = through_one_box(**numbers, order=(1, 0))
wrong, left_over, _ = through_one_box(**numbers, order=(0, 1))
print(f"last step first:  Wi, Wh, b = {right}; in the box {box:g}, for h0")
print(f"first step first: Wi, Wh, b = {wrong}; in the box {left_over:g}, for nobody")
assert [*right, box] == [11, 66, 5, 16], "visited from last to first, the box is right"
assert wrong == list(PRINTED.values()), "from first to last, it gives what Flux printed"

# %% [markdown]
# Three numbers out of three could be luck. An older thread,
# [Flux.jl issue 1547](https://github.com/FluxML/Flux.jl/issues/1547), has another case: $x = 0.3, 2.5$, $W_h = 0.001$,
# $h_0 = 0$, and the sum of both outputs as the loss. By hand the gradient of $W_i$ is 2.8003. A commenter's program,
# whose state was an overwritten global variable, printed 2.8025.

# %%
# Wi needs no h.
numbers = dict(x=(0.3, 2.5), h=(0.0, 0.0), Wh=0.001, arriving=(1.0, 1.0))
right = through_one_box(**numbers, order=(1, 0))[0][0]
wrong = through_one_box(**numbers, order=(0, 1))[0][0]
print(f"last step first: {right:.4f}, first step first: {wrong:.4f}")
assert round(right, 4) == 2.8003, "the right order gives the number found by hand"
assert round(wrong, 4) == 2.8025, "the wrong order explains this thread as well"

# %% [markdown]
# The wrong order fits both threads to every printed digit.
#
# Issue 144 itself differentiated in Flux's newer, explicit style. There we expect another error. By our reading, each
# step passes on a snapshot of the **running** total, and the snapshots are added up, so that step $t$ is counted $t$
# times: $1\,d_1 + 2\,d_2 + 3\,d_3$.
#
# > [!WARNING]
# > This last part is **derived** from Zygote's source and was not run: we had no Julia. If you have Flux 0.13.14,
# > compare its gradient with `f[1] + 2f[2] + 3f[3]`.

# %%
numbers = dict(x=(x1, x2), h=(h0, h1), Wh=Wh, arriving=(0.0, 1.0))
_, _, seen = through_one_box(**numbers, order=(1, 0))
snapshots = [sum(column) for column in zip(*seen, strict=True)]
counted = []
for name in PRINTED:
    first, second = by_hand[name]
    counted.append(1 * first + 2 * second)
print("derived, snapshots added up:", dict(zip(PRINTED, snapshots, strict=True)))
assert snapshots == counted, "adding running totals counts step t t times"

# %% [markdown]
# The error had a long life. Its reports run from [2020](https://github.com/FluxML/Flux.jl/issues/1209) over the
# [official RNN docs](https://github.com/FluxML/Flux.jl/issues/1638), which gave wrong gradients in 2021, to
# [tests marked as broken](https://github.com/FluxML/Flux.jl/pull/2215) in 2023. The cure came with
# [a new design](https://github.com/FluxML/Flux.jl/pull/2500) in Flux 0.15: the state is a value that goes in and comes
# out. It is so in `torch.nn.RNN`, and in rnnkit.
#
# ### How far back does a gradient reach?
#
# Put the loss on the last step, and ask how large the share of each earlier step is.
# [gradient_flow][rnnkit.gradient_flow] gives the norms by **lag**, the number of steps back from the last one. The
# model reads 60 characters and predicts the next.

# %%
T_TEXT, B_TEXT, H_TEXT = 60, 16, 32
next_character = seq2one_loss(nn.CrossEntropyLoss())


def relative_flow(make, seed, change=lambda layer: None):
    """How large the share of weight_hh is at lag k, as a part of the share at lag 0."""
    torch.manual_seed(seed)
    model = RecurrentSequential(make(V, H_TEXT), nn.Linear(H_TEXT, V))
    change(model[0])
    starts = torch.randint(len(ids) - T_TEXT, (B_TEXT,)).tolist()
    windows = torch.stack([ids[start : start + T_TEXT + 1] for start in starts], dim=1)
    inputs = F.one_hot(windows[:-1], V).float()
    flow = gradient_flow(model, next_character, inputs, windows[-1])["0.weight_hh_l0"]
    return (flow / flow[0])[:-1]  # without the first step, which multiplies h0 = 0


# %%
def over_seeds(make, change=lambda layer: None):
    return torch.stack([relative_flow(make, seed, change) for seed in SEEDS])


fresh = {make.__name__: over_seeds(make) for make in (nn.RNN, nn.GRU, nn.LSTM)}
for name, flows in fresh.items():
    low, middle, high = flows[:, 10].min(), flows[:, 10].median(), flows[:, 10].max()
    factor = flows[:, 20].median() ** (1 / 20)
    print(f"{name:4}: at lag 10 {middle:.2%} of lag 0", end=" ")
    print(f"({low:.2%} to {high:.2%}); a factor of {factor:.2f} a step")
    assert high < 0.05, "ten steps back, under 5% is left, on every seed"


# %% tags=["hide-input"] alt="Size of the share by lag, on a logarithmic axis from 1 down to a billionth, for an RNN, a GRU and an LSTM as PyTorch initializes them. Lines are the median of five seeds, bands the spread. All three fall in nearly straight lines. The GRU and the LSTM lie on each other and pass one ten-thousandth near lag 20. The RNN falls faster, in a wide band."
def draw(ax, flows, label, color, at, above=True):
    low, middle, high = flows.min(0).values, flows.median(0).values, flows.max(0).values
    ax.fill_between(range(len(middle)), low, high, color=color, alpha=0.2, linewidth=0)
    ax.semilogy(middle, color=color)
    offset, side = ((4, 8), "left") if above else ((-4, -14), "right")
    style = dict(textcoords="offset points", color=color, weight="bold", ha=side)
    ax.annotate(label, (at, middle[at]), offset, **style)
    ax.set(ylabel="share, part of lag 0", xlabel="lag (steps back from the loss)")


figure, ax = plt.subplots()
for name, color, at in (("RNN", "C0", 18), ("GRU", "C1", 34), ("LSTM", "C2", 26)):
    draw(ax, fresh[name], name, color, at, above=name == "LSTM")
ax.set(ylim=(1e-9, 2), xlim=(0, 40), title="Fresh from PyTorch, all three forget")
plt.show()

# %% [markdown]
# **What holds:** the share shrinks by about the same factor at every step. That is the
# [vanishing gradient](../docs/glossary.md#vanishing).
#
# **What does not hold:** "an LSTM has no vanishing gradient". Fresh from PyTorch it has one, and a GRU has the same.
# Two numbers explain the slopes. Over many steps, an RNN's gradient shrinks by the largest eigenvalue of `weight_hh`
# (and by the slope of `tanh`). An LSTM's cell state, and the gradient along it, is multiplied by the forget gate. (The
# measured factor lies somewhat above the mean gate: a second path leads back through `h`.)

# %%
radius, gate = [], []
for seed in SEEDS:
    torch.manual_seed(seed)
    rnn, lstm = nn.RNN(V, H_TEXT), nn.LSTM(V, H_TEXT)
    radius.append(torch.linalg.eigvals(rnn.weight_hh_l0.detach()).abs().max().item())
    x = F.one_hot(ids[:T_TEXT, None], V).float()
    h = torch.cat([torch.zeros(1, 1, H_TEXT), lstm(x)[0][:-1]])
    W_ih, W_hh, b_ih, b_hh = lstm.parameters()
    forget = (x @ W_ih.T + h @ W_hh.T + b_ih + b_hh)[..., H_TEXT : 2 * H_TEXT].sigmoid()
    gate.append(forget.mean().item())
print(f"largest eigenvalue of weight_hh, RNN: {min(radius):.2f} to {max(radius):.2f}")
print(f"mean forget gate, LSTM:               {min(gate):.2f} to {max(gate):.2f}")

# %%
assert all(0.45 < mean < 0.55 for mean in gate), "a fresh forget gate keeps half"
largest = max(radius)
assert largest < 0.9, "a fresh weight_hh shrinks what it multiplies, over many steps"

# %% [markdown]
# An LSTM **can** keep a gradient, if the bias of its forget gate is raised. And an RNN can blow one up, if its weight
# is large.


# %%
def forget_bias(value):
    """Set the bias of the forget gate. PyTorch's gates: input, forget, cell, output."""

    def change(lstm):
        with torch.no_grad():
            lstm.bias_ih_l0[H_TEXT : 2 * H_TEXT] = value
            lstm.bias_hh_l0[H_TEXT : 2 * H_TEXT] = 0.0

    return change


def twice_orthogonal(rnn):
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(2 * nn.init.orthogonal_(torch.empty(H_TEXT, H_TEXT)))


# %%
kept = over_seeds(nn.LSTM, forget_bias(3.0))
grown = over_seeds(nn.RNN, twice_orthogonal)
changed = {"LSTM, forget bias 3": kept, "RNN, weight doubled": grown}
changed["LSTM as it comes"] = fresh["LSTM"]
for name, flows in changed.items():
    low, middle, high = flows[:, 30].min(), flows[:, 30].median(), flows[:, 30].max()
    print(f"{name:19}: lag 30 has {middle:.3g} of lag 0 ({low:.3g} to {high:.3g})")
# Bounds: the worst of 20 seeds, with a factor of two to spare.
least_kept, least_grown = kept[:, 30].min(), grown[:, 30].min()
assert least_kept > 0.05, "with an open gate, 30 steps back still count, on every seed"
assert least_grown > 10, "with a large weight the gradient explodes, on every seed"

# %% tags=["hide-input"] alt="The same axes over 58 lags. The RNN whose weight_hh is an orthogonal matrix times two rises in a straight line to above one thousand. The LSTM with forget bias 3 stays between one and one twentieth. The LSTM as it comes falls below one billionth before lag 50."
figure, ax = plt.subplots()
draw(ax, kept, "LSTM, forget bias 3", "C1", 30)
draw(ax, grown, "RNN, weight doubled", "C0", 22)
draw(ax, fresh["LSTM"], "LSTM as it comes", "C2", 22)
ax.set(ylim=(1e-9, 1e5), xlim=(0, 58))
ax.set_title("The start decides: kept, exploding, vanishing")
ax.texts[1].set(ha="right")
plt.show()

# %% [markdown]
# The band is the spread over five seeds. **The doubt that stays:** this is a picture of the start, on one kind of
# text, with 32 hidden units. Training moves the gates, in the direction the loss asks for. A small share is no error
# by itself: where the past does not matter, a small share is right. An exploding gradient is held down by
# [clipping](../docs/glossary.md#clipping), which does nothing for a vanishing one.
#
# ### BPTT as one function
#
# You have seen every part of it. Written as a `torch.autograd.Function`, BPTT is two loops: forward it stores the
# states, backward it walks them from last to first.


# %%
def bptt_forward(ctx, inputs, h, W_ih, W_hh, bias):
    states = [h]
    for driven in inputs @ W_ih.T + bias:
        states.append(torch.tanh(torch.addmm(driven, states[-1], W_hh.T)))
    states = torch.stack(states)
    ctx.save_for_backward(inputs, states, W_ih, W_hh)
    return states[1:]


# %%
def bptt_backward(ctx, arriving, carry=1.0):
    inputs, states, W_ih, W_hh = ctx.saved_tensors
    slope, back = 1 - states[1:] ** 2, torch.zeros_like(states[0])
    g = torch.empty_like(slope)
    for t in reversed(range(len(slope))):
        g[t] = (arriving[t] + back) * slope[t]  # through tanh
        back = carry * g[t] @ W_hh  # to the state before
    d_inputs = g @ W_ih if ctx.needs_input_grad[0] else None
    d_ih = g.flatten(0, 1).T @ inputs.flatten(0, 1)  # sum over steps and rows of g x
    d_hh = g.flatten(0, 1).T @ states[:-1].flatten(0, 1)
    return d_inputs, back, d_ih, d_hh, g.sum((0, 1))


class BPTT(torch.autograd.Function):
    forward, backward = staticmethod(bptt_forward), staticmethod(bptt_backward)


# %% [markdown]
# PyTorch brings a referee of its own: `gradcheck` moves every number of every input, in float64. It passes. It would
# notice: with `carry=0`, nothing comes back from the later steps, as with a state detached at every step, and
# `gradcheck` says no.


# %%
class Forgetful(torch.autograd.Function):
    forward = staticmethod(bptt_forward)
    backward = staticmethod(partial(bptt_backward, carry=0.0))


torch.manual_seed(0)
shapes = [(4, 2, 3), (2, 5), (5, 3), (5, 5), (5,)]  # T = 4, B = 2, F = 3, H = 5
arguments = [torch.randn(shape).double().requires_grad_() for shape in shapes]
gradcheck = partial(torch.autograd.gradcheck, raise_exception=False)
passes = gradcheck(BPTT.apply, arguments)
forgetful_passes = gradcheck(Forgetful.apply, arguments)
print(f"gradcheck passes BPTT: {passes}, without the carry: {forgetful_passes}")
assert passes, "all derivatives agree with finite differences"
assert not forgetful_passes, "gradcheck notices a backward that forgets"

# %% [markdown]
# Is it fast? We compare one forward and one backward pass of three programs with the same weights: the fused `nn.RNN`,
# our function, and a loop over `nn.RNNCell`. The three take turns, we count processor time, and we look at the ratio
# within each round: a busy moment of the machine then hits all three.


# %%
def programs(hidden, time_steps=50, batch=16, features=16):
    x, start = torch.randn(time_steps, batch, features), torch.zeros(batch, hidden)
    rnn = nn.RNN(features, hidden)
    loop = Unroll.from_fused(rnn)  # a loop over nn.RNNCell, on the same parameters
    W_ih, W_hh, b_ih, b_hh = weights = list(rnn.parameters())

    def gradient(run):
        return torch.autograd.grad(run()[-1].square().mean(), weights)

    runs = [
        lambda: rnn(x)[0],
        lambda: BPTT.apply(x, start, W_ih, W_hh, b_ih + b_hh),
        lambda: loop(x)[0],
    ]
    return [partial(gradient, run) for run in runs]


# %%
def seconds(program):
    begin = time.process_time()
    program()
    return time.process_time() - begin


# %%
for hidden in (32, 256):
    three = programs(hidden)
    gradients = [program() for program in three]
    for want, *others in zip(*gradients, strict=True):
        for other in others:
            assert close(want, other, atol=1e-6), "three programs, one gradient"
    rounds = []
    for _ in range(24):
        rounds.append([seconds(program) for program in three])
    for i, name in enumerate(("our BPTT", "RNNCell loop"), start=1):
        ratios = [times[i] / times[0] for times in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"H = {hidden:3}: {name:12} {middle:.2f} of nn.RNN's time", end=" ")
        print(f"({low:.2f} to {high:.2f})")

# %% [markdown]
# In brackets is the middle half of 24 rounds. What is robust is that the gradients agree, and only that is asserted.
# The ratios are this machine's, on one thread: they change with the sizes, the library's version and the hardware, and
# on a GPU the fused kernel is another program altogether. The function is here to be read. Use `nn.RNN`.
#
# ## What goes wrong
#
# ### A state in a field, overwritten
#
# The design that failed in Flux can be written in PyTorch too. A module keeps its state in a tensor, and copies each
# new state into it.


# %%
class Overwriting(Recurrence):
    def forward(self, inputs, state=None):
        field, outputs = self.h0[0].clone(), []
        for x in inputs:
            outputs.append(x @ self.Wi.T + field @ self.Wh.T + self.b)
            field.copy_(outputs[-1])
        return torch.stack(outputs), field[None]


try:
    last_output(Overwriting()(small_inputs)[0], None).backward()
    raise AssertionError("PyTorch let an overwritten state pass")
except RuntimeError as error:
    print("RuntimeError:", str(error).split(" Hint")[0])

# %% [markdown]
# PyTorch counts the versions of each tensor and refuses. The error goes away if you write through `.data`, which is
# not counted. So does the gradient:


# %%
class Silent(Recurrence):
    def forward(self, inputs, state=None):
        field, outputs = self.h0[0].clone(), []
        for x in inputs:
            outputs.append(x @ self.Wi.T + field @ self.Wh.T + self.b)
            field.data.copy_(outputs[-1])
        return torch.stack(outputs), field[None]


# %%
silent = Silent()
last_output(silent(small_inputs)[0], None).backward()
found = {name: weight.grad.item() for name, weight in silent.named_parameters()}
print("through .data:", found)
print("right:        ", by_hand_sum)
assert found["Wi"] == PRINTED["Wi"], "one step is left"
assert found["Wh"] == h2, "and it sees the wrong state"

# %% [markdown]
# $W_i$ and $b$ get the last share alone, as in Flux. $W_h$ gets 167, the **last** state, where 38, the state before,
# was multiplied: it was overwritten before `backward` read it. **The cure** is the form this page has used: a state is
# a new value, `h = ...`, that goes in and comes out.
#
# ### A gradient left on a stored state
#
# Hand-made truncated BPTT often stores states and calls `backward` on each in turn. In a
# [thread of PyTorch's forum](https://discuss.pytorch.org/t/implementing-truncated-backpropagation-through-time/15500?page=2)
# somebody checked such code on paper: $h_t = w\,h_{t-1}$ with $w = 0.2$ and $h_0 = 0.9$. After three steps the
# gradient is $3 w^2 h_0 = 0.108$. The program gave 0.288.


# %%
def hand_made(clear):
    """At each of three steps, the newest state's gradient, through all stored ones."""
    w = torch.tensor(0.2, requires_grad=True)
    stored = [(None, torch.tensor(0.9))]
    for _ in range(3):
        before = stored[-1][1].detach().requires_grad_()
        stored.append((before, w * before))
        w.grad = None
        for entry, _ in stored[1:] if clear else []:
            entry.grad = None  # the cure
        stored[-1][1].backward(retain_graph=True)
        for later, earlier in zip(stored[:1:-1], stored[-2:0:-1], strict=True):
            earlier[1].backward(later[0].grad, retain_graph=True)
    return w.grad.item()


# %%
stale, cleared, paper = hand_made(clear=False), hand_made(clear=True), 3 * 0.2**2 * 0.9
print(f"stale {stale:.3f}, cleared {cleared:.3f}, on paper {paper:.3f}")
assert abs(stale - 0.288) < 1e-6, "a .grad left on a state is counted again"
assert abs(cleared - paper) < 1e-6, "clearing them gives the number on paper"

# %% [markdown]
# `backward` **adds** to `.grad`. Everybody clears it on the weights; here it also stays on the states, and the next
# round passes it on. **The cure** is to clear the states, or to store none: rnnkit re-runs the last `window` steps
# from one detached state.
#
# ## Try it
#
# **1.** In the network of three steps the first share of `weight_hh` was zero. In the small case the first share of
# `Wh` was 28. Which number of the small case makes the difference? Change it so that the first share vanishes.

# %% tags=["solution"]
# The first share is what arrives at h1, times the state before, h0 = 7.
# With h0 = 0 it is zero.
from_zero = Recurrence()
from_zero.h0.data.zero_()
found = gradient_by_step(from_zero, last_output, small_inputs, None)
first, second = found["Wh"].flatten().tolist()
print(f"Wh: {first:g} + {second:g}")
assert (first, second) == (0, Wi * x1), "only the use at step 2 is left: h1 = Wi * x1"

# %% [markdown]
# **2.** A forget gate with bias $\beta$ keeps about $\sigma(\beta)$ of the cell state per step. How far back does the
# share stay above 1% of lag 0, for $\beta = 0, 1, 2, 3$? Compare with the lag that $\sigma(\beta)^k = 0.01$ predicts.

# %% tags=["solution"]
reach = {}
for bias in (0.0, 1.0, 2.0, 3.0):
    flows = over_seeds(nn.LSTM, forget_bias(bias))
    reach[bias] = (flows > 0.01).sum(1)  # lags above 1%; there are 59
    predicted = math.log(0.01) / math.log(1 / (1 + math.exp(-bias)))
    print(f"bias {bias:g}: {reach[bias].tolist()} lags above 1%,", end=" ")
    print(f"predicted {predicted:.0f}")
furthest = reach[0.0].max()
assert furthest < 20, "a half-open gate reaches less than 20 steps back, on every seed"
assert reach[3.0].min() > 45, "an open one reaches further than 45, on every seed"

# %% [markdown] tags=["solution"]
# The prediction has the right order, and the share reaches further than it says (with bias 3, further than the 59 lags
# there are). The gate is one of two paths. Close the other one, through `h`, and the prediction fits.


# %% tags=["solution"]
def gate_alone(lstm):
    forget_bias(1.0)(lstm)
    nn.init.zeros_(lstm.weight_hh_l0)


alone = (over_seeds(nn.LSTM, gate_alone) > 0.01).sum(1)
predicted = math.log(0.01) / math.log(1 / (1 + math.exp(-1.0)))
print(f"bias 1, weight_hh zero: {alone.tolist()} lags above 1%,", end=" ")
print(f"predicted {predicted:.1f}")
assert (alone - predicted).abs().max() < 2, "the forget gate alone explains this reach"

# %% [markdown]
# ## Where next
#
# - [BPTTTrainingPhase][rnnkit.BPTTTrainingPhase]: detaching on purpose, in windows, on a stream too long for memory.
# - [Sequence to one](03_seq2one.py): a task whose loss needs a long reach.
# - [Unroll][rnnkit.Unroll]: a cell you wrote, stepped over time.
# - API: [gradient_by_step][rnnkit.gradient_by_step], [gradient_flow][rnnkit.gradient_flow],
#   [plot_gradient_flow][rnnkit.plot_gradient_flow], [detach][rnnkit.detach],
#   [BPTTTrainingPhase][rnnkit.BPTTTrainingPhase].
# - Papers: the sum over steps, [Werbos 1990](https://doi.org/10.1109/5.58337); vanishing and exploding gradients,
#   [Bengio et al. 1994](https://doi.org/10.1109/72.279181) and [Pascanu et al. 2013](https://arxiv.org/abs/1211.5063);
#   the forget gate, [Gers et al. 2000](https://doi.org/10.1162/089976600300015015); its bias,
#   [Jozefowicz et al. 2015](https://proceedings.mlr.press/v37/jozefowicz15.html).
