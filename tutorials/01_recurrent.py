# ---
# rnnkit:
#   description: >-
#     What a recurrent network is, in PyTorch: an RNN cell by hand, the LSTM and GRU
#     equations checked against nn.LSTM and nn.GRU, batches, padding, windows and splits.
#   needs: one CPU core for half a minute; matplotlib and statsmodels beside torch
#   data: a handful of numbers, and monthly CO2 at Mauna Loa from statsmodels (public domain)
#   minutes: 15
#   prerequisites: PyTorch tensors and a training loop; nothing about recurrent networks
#   learn: [what a state is for, how nn.RNN and nn.LSTM and nn.GRU compute theirs,
#     which axis is time, to batch sequences of different lengths, to cut a series into
#     windows and split them without a leak]
# ---

# %% [markdown]
# # What a recurrent network is: RNN, LSTM and GRU by hand
#
# After this page you can write a recurrent network as code of your own, say what its state
# is for, and cut a time series into batches that a network can read.

# %% tags=["skip-execution"]
# %pip install "rnnkit[plot]" statsmodels

# %% tags=["fold"]
import matplotlib.pyplot as plt
import torch
from torch import nn

SEEDS = (0, 1, 2)  # what depends on a seed is claimed for all three
device = "cuda" if torch.cuda.is_available() else "cpu"  # for what is trained
torch.set_num_threads(1)  # small arrays: more threads would wait for each other
plt.style.use("rnnkit.style")

# %% [markdown]
# ## The pattern
#
# An ordinary network answers each input by itself. A recurrent network reads a sequence step
# by step and takes notes: a few numbers called its **state**. At each step it reads one input
# and the state, and leaves a new state, from which it answers.
#
# ![Unrolled over five steps: each input x goes up into a state h, each state goes on to the right into the next and up into an output y.](../docs/assets/patterns/01.svg)
#
# The same weights serve at every step, so one network reads sequences of any length. The
# work of one step is done by the [cell](../docs/glossary.md#cell).

# %% [markdown]
# ## A cell by hand
#
# The simplest cell mixes input and state linearly and squeezes the result into (-1, 1):
#
# $$ h_t = \tanh(W x_t + b + U h_{t-1} + d) $$
#
# $x_t$ holds the features of one step and $h_t$ the state, $H$ numbers. One vector for $b + d$
# would do; PyTorch keeps two. `nn.RNN` draws its weights at random, and we borrow them:

# %%
torch.manual_seed(0)
rnn = nn.RNN(input_size=1, hidden_size=3)
W, U, b, d = rnn.parameters()  # W (3, 1), U (3, 3), b (3,), d (3,)

def cell(x, h):  # x (rows, 1), h (rows, 3)
    return torch.tanh(x @ W.T + b + h @ U.T + d)  # (rows, 3)

# %% [markdown]
# Now five steps, of two sequences side by side, the rows of a batch. Row 0 reads a single 1
# and then zeros; row 1 reads nothing but zeros.

# %%
inputs = torch.zeros(5, 2, 1)  # 5 steps, 2 rows, 1 feature
inputs[0, 0] = 1.0
h = torch.zeros(2, 3)  # nothing has been read yet
states = []
for x in inputs:
    h = cell(x, h)  # the whole recurrent network
    states.append(h)
states = torch.stack(states).detach()  # (5, 2, 3)

# %% tags=["hide-input"]
gap = (states[:, 0] - states[:, 1]).norm(dim=-1)  # (5,)
print("  row 0                row 1                distance")
for t in range(5):
    row_0, row_1 = states[t].numpy().round(2)
    print(f"{t + 1} {row_0!s:20} {row_1!s:20} {gap[t]:.3f}")

# %% [markdown]
# From step 2 on both rows read the same, and their states differ: the state remembers the 1.
# With weights drawn at random the memory fades; training decides what is kept. `nn.RNN` is
# this loop. It returns the state after every step and, once more, the last one:

# %%
outputs, last = rnn(inputs)  # (5, 2, 3) and (1, 2, 3)
torch.testing.assert_close(outputs, states)
torch.testing.assert_close(last[0], states[-1])
assert (gap > 0.003).all(), "the state still tells which row had the 1"

# %% [markdown]
# ## What the state is for
#
# Give a network random numbers, one a step, and ask at each step for the number read *k*
# steps ago, for k = 0 to 11 at once. From k = 1 on, the answer is nowhere in the input.

# %%
DELAYS = range(12)

def earlier(x, k):  # at each step the number read k steps ago, 0 before the first
    return torch.cat([torch.zeros_like(x[:k]), x[: len(x) - k]])

def recall_batch(rows=32):
    x = torch.randn(24, rows, 1, device=device)  # 24 steps, new numbers every time
    return x, torch.cat([earlier(x, k) for k in DELAYS], dim=-1)  # (24, rows, 12)

# %% [markdown]
# Two networks compete: one with `nn.RNN` and a state of 8 numbers, one with a layer of the
# same width that sees each number by itself. Both answer with a linear layer, the read-out.
# The share recalled is 1 where answers are right, 0 where they are no better than the mean.

# %%
class Network(nn.Module):
    def __init__(self, reader, width, answers):
        super().__init__()
        self.reader = reader
        self.head = nn.Linear(width, answers)

    def forward(self, inputs, state=None):  # state=None: start from zeros
        hidden, state = self.reader(inputs, state)  # (T, B, width)
        return self.head(hidden), state  # (T, B, answers)

# %% tags=["fold"] summary="The layer without a state, the training of both, and their answers"
class WithoutState(nn.Linear):
    def forward(self, inputs, state=None):  # called like nn.RNN, but without a state
        return super().forward(inputs).tanh(), None

# %% tags=["fold"]
def train(model, batch, updates, rate):
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(updates):
        inputs, targets = batch()
        optimizer.zero_grad()
        outputs, _ = model(inputs)
        loss = (outputs - targets).square().mean()
        loss.backward()
        optimizer.step()
    return model

# %% tags=["fold"]
def recalled(reader, seed, width=8):  # the share of the variance, for each delay
    torch.manual_seed(seed)
    model = Network(reader(1, width), width, len(DELAYS)).to(device)
    train(model, recall_batch, updates=400, rate=0.01)
    inputs, targets = recall_batch(1000)
    with torch.no_grad():
        errors = model(inputs)[0] - targets
    left = errors[11:].square().mean(dim=(0, 1))  # from the 12th step on all k exist
    return (1 - left / targets[11:].square().mean(dim=(0, 1))).cpu()

# %% tags=["fold"]
with_state = torch.stack([recalled(nn.RNN, seed) for seed in SEEDS])  # (3, 12)
without = torch.stack([recalled(WithoutState, seed) for seed in SEEDS])
for k in (0, 1, 7, 8):
    shares = with_state[:, k].mean(), without[:, k].mean()
    print("k = {}: with a state {:z.2f}, without {:z.2f}".format(k, *shares))

# %% alt="Line chart of the share recalled over the delay k from 0 to 11. With a state of 8 numbers it is close to 1 up to k = 7 and drops to 0 at k = 8. Without a state it is 1 at k = 0 and 0 from k = 1 on." tags=["hero", "hide-input"] caption="Two networks are asked for the number they read k steps ago. Means of three seeds."
fig, ax = plt.subplots(figsize=(4.7, 2.7))
ax.plot(DELAYS, with_state.mean(0), "o-", color="C0")
ax.plot(DELAYS, without.mean(0), "s--", color="C4")
ax.text(3.5, 0.82, "with a state of 8", color="C0", ha="center")
ax.text(1.2, 0.1, "without a state", color="C4")
ax.set(xlabel="k: steps since it was read", ylabel="share recalled")
ax.set(xticks=DELAYS, ylim=(-0.06, 1.1))
ax.set_title("A state of 8 recalls the last 8 numbers")
plt.show()

# %% [markdown]
# Without a state the network answers k = 0 and nothing else. With one it recalls eight
# numbers in a state of eight, the last that it read. That is the use of a state, and its
# limit: a summary of fixed size. ([Why eight](#how-much-a-state-holds).)

# %% tags=["check"]
assert without[:, 0].min() > 0.9, "the number just read needs no memory"
assert without[:, 1:].max() < 0.1, "without a state there is no number before it"
assert with_state[:, :8].min() > 0.7, "a state of 8 recalls eight numbers"
assert with_state[:, 8:].max() < 0.3, "and no ninth"

# %% [markdown]
# ## LSTM and GRU: the equations
#
# `nn.RNN` overwrites its whole state at every step. **Gates**, numbers between 0 and 1, let
# a network choose what to keep. The LSTM has two parts in its state, $h$ and $c$, and four
# sums, one for each $k$ of $i, f, g, o$:
#
# $$
# \begin{aligned}
# a^k_t &= W_k x_t + b_k + U_k h_{t-1} + d_k \\
# c_t &= \sigma(a^f_t) \odot c_{t-1} + \sigma(a^i_t) \odot \tanh(a^g_t) \\
# h_t &= \sigma(a^o_t) \odot \tanh(c_t)
# \end{aligned}
# $$
#
# $\sigma(a) = 1 / (1 + e^{-a})$ makes a gate of a sum, and $\odot$ multiplies number by number.
# The forget gate $f$ says how much of $c$ is kept, the input gate $i$ how much of the new value
# $g$ is added, the output gate $o$ how much is shown. PyTorch stacks them as **i, f, g, o**:
# `W` is `(4 * H, F)`.

# %%
def lstm_cell(x, h, c, W, U, b, d):
    i, f, g, o = (x @ W.T + b + h @ U.T + d).chunk(4, dim=-1)  # (rows, H) each
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return h, c

# %% tags=["check"]
lstm = nn.LSTM(1, 3)
h = c = torch.zeros(2, 3)
for x in inputs:
    h, c = lstm_cell(x, h, c, *lstm.parameters())
_, (last_h, last_c) = lstm(inputs)  # the state is a pair
torch.testing.assert_close(h, last_h[0])
torch.testing.assert_close(c, last_c[0])

# %% [markdown]
# The GRU has one state and three sums, stacked in the order **r, z, n**:
#
# $$
# \begin{aligned}
# r_t &= \sigma(W_r x_t + b_r + U_r h_{t-1} + d_r) \\
# z_t &= \sigma(W_z x_t + b_z + U_z h_{t-1} + d_z) \\
# n_t &= \tanh(W_n x_t + b_n + r_t \odot (U_n h_{t-1} + d_n)) \\
# h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}
# \end{aligned}
# $$
#
# The update gate $z$ blends the old state with a new value $n$; the reset gate $r$ says how
# much the new value hears of the old state.

# %% tags=["fold"] summary="The GRU's cell as code"
def gru_cell(x, h, W, U, b, d):
    r_x, z_x, n_x = (x @ W.T + b).chunk(3, dim=-1)  # (rows, H) each
    r_h, z_h, n_h = (h @ U.T + d).chunk(3, dim=-1)
    r = (r_x + r_h).sigmoid()
    z = (z_x + z_h).sigmoid()
    n = (n_x + r * n_h).tanh()  # PyTorch resets after the product with U
    return (1 - z) * n + z * h

gru = nn.GRU(1, 3)
h = torch.zeros(2, 3)
for x in inputs:
    h = gru_cell(x, h, *gru.parameters())
torch.testing.assert_close(h, gru(inputs)[1][0])

# %% [markdown]
# The GRU's [first paper](https://arxiv.org/abs/1406.1078) applies the reset gate *before* the
# product, $U_n (r_t \odot h_{t-1})$: another network. When you carry weights from one library
# to another, check this and the order of the gates, as [the evidence](#evidence) does.
#
# ## Sequences, batches, axes
#
# A sequence in PyTorch has **time first, the batch second, features last**: `(T, B, F)`. A row
# of the batch is one sequence, and rows never mix. A state has no time axis: `(layers, B, H)`.

# %%
T, B, F, H = 7, 4, 2, 5
sequence = torch.randn(T, B, F)
outputs, (h, c) = nn.LSTM(F, H, num_layers=2)(sequence)
for name, tensor in {"sequence": sequence, "outputs": outputs, "h, c": h}.items():
    print(f"{name:9}{tuple(tensor.shape)}")

# %% [markdown]
# With `batch_first=True` inputs and outputs are `(B, T, F)`; the state stays as it was. This
# site keeps time first; [Shapes and layouts](../docs/shapes.md) converts other layouts to it.
#
# ### Sequences of different lengths
#
# A tensor has no ragged edge. So short rows are **padded** with zeros at the end, and their
# **lengths** kept beside them, as integers on the CPU. The network reads zeros like any
# number, so its last state has read padding. **Packing** leaves them out.

# %%
rows = [torch.randn(5, 1), torch.randn(3, 1), torch.randn(1, 1)]
lengths = torch.tensor([len(row) for row in rows])  # 5, 3, 1
padded = nn.utils.rnn.pad_sequence(rows)  # (5, 3, 1)
packed = nn.utils.rnn.pack_padded_sequence(padded, lengths, enforce_sorted=False)
_, last = rnn(packed)
_, read_on = rnn(padded)
alone = torch.stack([rnn(row)[1][0] for row in rows])  # each row by itself: (3, 3)
print(f"padded: off by {(read_on[0] - alone).abs().max():.2f}")
print(f"packed: off by {(last[0] - alone).abs().max():.0e}")

# %% tags=["check"]
turned = nn.LSTM(F, H, num_layers=2, batch_first=True)
outputs_turned, (h_turned, _) = turned(sequence.transpose(0, 1))
assert sequence.shape == (T, B, F) and outputs.shape == (T, B, H)
assert outputs_turned.shape == (B, T, H), "batch_first turns the outputs"
assert h.shape == h_turned.shape == (2, B, H), "and not the state: (layers, B, H)"
assert (read_on[0] - alone).abs().max() > 0.01, "the last state has read padding"
torch.testing.assert_close(last[0], alone)
own_last = rnn(padded)[0][lengths - 1, torch.arange(3)]  # the way without packing
torch.testing.assert_close(own_last, alone)

# %% [markdown]
# ## The data: CO2, month by month
#
# Weekly measurements at Mauna Loa, Hawaii, 1958 to 2001, by Keeling and Whorf, come with
# `statsmodels` and are in the public domain. The level rises out of any range a network has
# seen, so ours reads the **change** from month to month. What is before 1990 is the training
# part, and gives the mean and the scale.

# %% tags=["fold"] summary="Reading the months, their change, and scaling it"
from statsmodels.datasets import co2

print(co2.COPYRIGHT)
ppm = co2.load_pandas().data["co2"].resample("MS").mean()  # a mean for each month
print(f"{len(ppm)} months, {ppm.isna().sum()} missing and filled in on a line")
change = ppm.interpolate().diff().iloc[1:]  # 525 changes from month to month
past = int((change.index < "1990").sum())  # the split: learn from these
month = torch.tensor(change.index.month)  # 1 to 12
change = torch.tensor(change.to_numpy()).float()
mean, scale = change[:past].mean(), change[:past].std()  # of the past alone
series = ((change - mean) / scale).to(device)

# %% [markdown]
# ### Overlapping windows, and the split by time
#
# One long series becomes a batch by cutting it into windows. Ours hold `T + 1` = 25 months
# and start every month, so neighbors share 24 of them. The target of each month is the next.
# The split is by **time**: no window for training holds a month after 1989, and every forecast
# that is tested is for a later one.

# %%
T = 24

def windows_of(series):  # (N,) -> (T + 1, N - T, 1): time, batch, feature
    return series.unfold(0, T + 1, 1).T.unsqueeze(-1)

training = windows_of(series[:past])
later = windows_of(series[past - T :])  # their last month is after 1989
print("training", tuple(training.shape), " later", tuple(later.shape))

# %% tags=["fold"] summary="Training on windows, and the error on their last month"
def train_on(windows, seed, updates=120):
    torch.manual_seed(seed)
    model = Network(nn.LSTM(1, 32), 32, 1).to(device)
    return train(model, lambda: (windows[:-1], windows[1:]), updates, rate=0.02)

@torch.no_grad()
def error(model, windows):  # of the last month, which no input of its window shows
    outputs, _ = model(windows[:-1])
    return (outputs[-1] - windows[-1]).square().mean().sqrt().item()

# %% [markdown]
# ## With rnnkit
#
# An LSTM learns the next change. [RecurrentSequential][rnnkit.RecurrentSequential] is
# `Network` from above, [seq2seq_loss][rnnkit.seq2seq_loss] compares outputs with targets at
# every step, and [Learner][rnnkit.Learner] is the loop; given one tensor, it takes each step's
# target from the next step. [batchseq][rnnkit.batchseq] pads rows and keeps their lengths.

# %%
from rnnkit import Learner, RecurrentSequential, batchseq, seq2seq_loss

torch.manual_seed(SEEDS[0])
model = RecurrentSequential(nn.LSTM(1, 32), nn.Linear(32, 1)).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
Learner(model, seq2seq_loss(nn.MSELoss()), optimizer).fit(20, train=[training])
plain = train_on(training, SEEDS[0], updates=20)
print(f"with rnnkit {error(model, later):.4f}, by hand {error(plain, later):.4f}")
assert abs(error(model, later) - error(plain, later)) < 1e-3, "both train the same"
assert torch.equal(batchseq(rows).sequences, padded), "and pad the same"

# %% [markdown]
# ## What goes wrong
#
# ### Time and batch exchanged
#
# The data has time first, the layer has `batch_first=True`, and training runs. To see what is
# wrong, change one number of one row and look which rows notice:

# %%
stations = torch.randn(6, 4, 1)  # 6 months of 4 stations, time first
changed = stations.clone()
changed[0, 0] += 1  # another first month for station 0
moved = {}
for batch_first in (False, True):
    layer = nn.GRU(1, 3, batch_first=batch_first)
    difference = (layer(changed)[0] - layer(stations)[0]).abs()  # (6, 4, 3)
    moved[batch_first] = difference.amax(dim=(0, 2)) > 1e-6  # for each station
    print(f"batch_first={batch_first}: new answers for", moved[batch_first].tolist())

# %% [markdown]
# The network reads from station to station, and no month remembers the month before. Keep one
# layout everywhere, and `x.transpose(0, 1)` where data comes in with the batch first;
# [`reshape` gives the right shape and the wrong numbers](#to-reshape-is-not-to-transpose).
#
# ### Overlapping windows, split at random
#
# Shuffle the months, and nothing is left to predict: no honest error is far below 1, the
# standard deviation. Then hold out a fifth of the training windows at random:

# %% tags=["hide-input"]
def split_at_random(windows):  # a fifth is held out
    order = torch.randperm(windows.shape[1])
    return windows[:, order[70:]], windows[:, order[:70]]

claimed, honest = [], []
for seed in SEEDS:
    torch.manual_seed(seed)
    shuffled = series[torch.randperm(len(series))]
    others, held_out = split_at_random(windows_of(shuffled[:past]))
    model = train_on(others, seed)
    claimed.append(error(model, held_out))
    honest.append(error(model, windows_of(shuffled[past - T :])))
    print(f"held out at random {claimed[-1]:.2f}, later months {honest[-1]:.2f}")

# %% tags=["check"]
assert torch.equal(later[-1, :, 0], series[past:]), "one forecast for each later month"
assert torch.equal(training[-1, -1, 0], series[past - 1]), "and none is trained on"
assert moved[False].tolist() == [True, False, False, False], "a row is by itself"
assert moved[True].all(), "the wrong axis mixes the rows"
assert max(claimed) < 0.7, "noise seems to be predictable"
assert min(honest) > 1.1, "it is not"

# %% [markdown]
# The months of a held-out window are targets in its neighbors too, and the network knows them
# by heart. Split by time. On the months in their order [the leak is smaller and still
# there](#what-a-forecast-of-co2-is-worth).
#
# ## In short
#
# - A recurrent network is one cell in a loop; the state is all it knows of the past.
# - `nn.RNN`, `nn.LSTM` and `nn.GRU` are a few lines each; by hand they give the same numbers.
# - Time first, batch second, features last; a state is `(layers, B, H)`. The wrong order runs
#   without an error.
# - Pad and keep lengths. Cut windows, and split them by time.
#
# ## Try it
#
# **1. A memory set by hand.** Give `nn.LSTM(2, 1)` weights of your own, without training: the
# first feature is a number, the second is 1 where it is to be remembered. After 100 steps
# of other numbers, $c$ shall still be $\tanh$ of the number marked.

# %% tags=["solution"]
latch = nn.LSTM(2, 1)
with torch.no_grad():
    for weight in latch.parameters():
        weight.zero_()
    W, _, b, _ = latch.parameters()  # W (4, 2), b (4,): the gates i, f, g, o
    W[:, 1] = torch.tensor([40.0, -40.0, 0.0, 0.0])  # marked: write, and forget
    b[:] = torch.tensor([-20.0, 20.0, 0.0, 20.0])  # else: write nothing, keep
    W[2, 0] = 1.0  # what is written: the number
numbers = torch.randn(101, 1, 2)
numbers[:, 0, 1] = 0.0
numbers[0, 0] = torch.tensor([0.5, 1.0])  # remember 0.5
_, (_, c) = latch(numbers)
print(f"c = {c.item():.4f}, tanh(0.5) = {torch.tanh(torch.tensor(0.5)):.4f}")
assert abs(c.item() - 0.46212) < 1e-3

# %% [markdown] tags=["solution"]
# The forget gate differs from 1 by 2e-9, so nothing fades in 100 steps.

# %% [markdown]
# **2. Two layers.** What does `nn.RNN(1, 3, num_layers=2)` compute? Write it as loops, with
# the weights in `deep.all_weights`.

# %% tags=["solution"]
deep = nn.RNN(1, 3, num_layers=2)
hidden = inputs = torch.randn(5, 2, 1)
for W, U, b, d in deep.all_weights:  # layer by layer
    h, above = torch.zeros(2, 3), []
    for x in hidden:
        h = torch.tanh(x @ W.T + b + h @ U.T + d)
        above.append(h)
    hidden = torch.stack(above)  # what the next layer reads
torch.testing.assert_close(hidden, deep(inputs)[0])

# %% [markdown] tags=["solution"]
# The states of one layer are the inputs of the next; each layer has a state of its own.

# %% [markdown]
# **3. One month past the end.** Train an LSTM with `train_on(training, seed=0)`, let it read
# the whole `series` as one row, and forecast January 2002 in ppm.

# %% tags=["solution"]
model = train_on(training, seed=0)
with torch.no_grad():
    outputs, state = model(series.reshape(-1, 1, 1))  # (525, 1, 1)
january = (outputs[-1].cpu() * scale + mean).item()  # the change, in ppm
print(f"December: {ppm.iloc[-1]:.1f} ppm, January: {ppm.iloc[-1] + january:.1f} ppm")
usual_january = change[:past][month[:past] == 1].mean()
print(f"change: {january:.2f} ppm, in a usual January {usual_january:.2f} ppm")
assert abs(january - usual_january) < 0.5, "nothing unusual is forecast"

# %% [markdown] tags=["solution"]
# For the month after, keep `state` and read the next change alone, or feed the network its
# own forecast, as [04 Generate from a primer](04_generate.py) does.

# %% [markdown]
# ## Where next
#
# - A target at every step: [02 Sequence to sequence](02_seq2seq.py). One for a whole
#   sequence: [03 Sequence to one](03_seq2one.py).
# - Why an LSTM learns over longer spans: [06 Where the gradient comes from](06_gradients.py).
# - When to keep a state and when to cut it: [State](../docs/state.md). A cell of your own as
#   a model: [Unroll][rnnkit.Unroll].

# %% [markdown] tags=["evidence"]
# ## Evidence

# %% [markdown] tags=["evidence"]
# ### The papers
#
# [Elman 1990](https://doi.org/10.1207/s15516709cog1402_1), [Hochreiter and Schmidhuber
# 1997](https://doi.org/10.1162/neco.1997.9.8.1735), the forget gate: [Gers and others
# 2000](https://doi.org/10.1162/089976600300015015), and the GRU: [Cho and others
# 2014](https://arxiv.org/abs/1406.1078).

# %% [markdown] tags=["evidence"]
# ### One order of the gates of 24 is PyTorch's
#
# All orders of the four gates are tried on the weights of `nn.LSTM`. Another format may keep
# another order: [ONNX](https://onnx.ai/onnx/operators/onnx__LSTM.html) has i, o, f, c.

# %% tags=["evidence"]
from itertools import permutations

inputs = torch.randn(5, 2, 1)
agree = []
for order in permutations(range(4)):
    blocks = torch.cat([torch.arange(3) + 3 * gate for gate in order])
    weights = [weight[blocks] for weight in lstm.parameters()]
    h = c = torch.zeros(2, 3)
    for x in inputs:
        h, c = lstm_cell(x, h, c, *weights)
    if (h - lstm(inputs)[0][-1]).abs().max() < 1e-5:
        agree.append(order)
print("orders that agree:", agree)
assert agree == [(0, 1, 2, 3)], "i, f, g, o and no other"

# %% [markdown] tags=["evidence"]
# ### One reading of the GRU of eight is PyTorch's
#
# Three things differ from text to text: whether the reset gate acts before or after the
# product with $U_n$, which of the first two blocks is which gate, and whether $z$ or $1 - z$
# keeps the old state.

# %% tags=["evidence"]
from itertools import product

def gru_reading(x, h, after, reset_first, z_keeps):
    W, U, b, d = gru.parameters()
    both = (x @ W[:6].T + b[:6] + h @ U[:6].T + d[:6]).sigmoid()
    if not reset_first:
        both = both.roll(3, dims=-1)
    r, z = both.chunk(2, dim=-1)
    if after:
        old = r * (h @ U[6:].T + d[6:])
    else:
        old = (r * h) @ U[6:].T + d[6:]
    n = (x @ W[6:].T + b[6:] + old).tanh()
    keep = z if z_keeps else 1 - z
    return (1 - keep) * n + keep * h

# %% tags=["evidence"]
agree = []
for after, reset_first, z_keeps in product([True, False], repeat=3):
    h = torch.zeros(2, 3)
    for x in inputs:
        h = gru_reading(x, h, after, reset_first, z_keeps)
    off = (h - gru(inputs)[0][-1]).abs().max().item()
    print(f"after {after!s:5} r first {reset_first!s:5} z keeps {z_keeps!s:5} {off:.1}")
    if off < 1e-5:
        agree.append((after, reset_first, z_keeps))
assert agree == [(True, True, True)], "the one on this page and no other"

# %% [markdown] tags=["evidence"]
# ### To reshape is not to transpose
#
# `reshape` gives the right shape too. It keeps the numbers in the order of memory and so cuts
# the rows into pieces:

# %% tags=["evidence"]
rows_first = torch.tensor([[11, 12, 13, 14], [21, 22, 23, 24], [31, 32, 33, 34]])
right = rows_first.transpose(0, 1)  # (3, 4) -> (4, 3)
wrong = rows_first.reshape(4, 3)
print("row 0, transposed:", right[:, 0].tolist())
print("row 0, reshaped:  ", wrong[:, 0].tolist())
assert right[:, 0].tolist() == rows_first[0].tolist() != wrong[:, 0].tolist()

# %% [markdown] tags=["evidence"]
# ### How much a state holds
#
# The shares recalled, added up over all delays. The numbers asked for are independent of each
# other. So the shares of the variance that a linear read-out of $H$ numbers can explain add
# up to $H$ at most, whatever the cell and the training; Jaeger ("Short term memory in echo
# state networks", GMD report 152, 2002) calls this sum the memory capacity.

# %% tags=["evidence"]
four = torch.stack([recalled(nn.RNN, seed, width=4) for seed in SEEDS])
for width, shares in (4, four), (8, with_state):
    total = shares.sum(1)
    print(f"H = {width}: in sum", *[f"{share:.2f}" for share in total])
    assert total.max() < width + 1, "no more than H, but for noise in the test"
    assert total.min() > 0.85 * width, "and nearly all of it"

# %% [markdown] tags=["evidence"]
# ### What a forecast of CO2 is worth
#
# The LSTM learns from all windows before 1990. Two forecasts that cost nothing stand beside
# it: the change of the same month a year ago, and the calendar month's mean change before 1990.

# %% tags=["evidence"]
means = [change[:past][month[:past] == m].mean() for m in range(1, 13)]
usual = torch.stack(means)[month - 1]  # (525,)
before = (usual - change)[:past].square().mean().sqrt().item()
season = (usual - change)[past:].square().mean().sqrt().item()
year_ago = (change[past - 12 : -12] - change[past:]).square().mean().sqrt().item()
models = [train_on(training, seed) for seed in SEEDS]
networks = [error(model, later) * scale.item() for model in models]
print("root mean squared error after 1989, in ppm")
print("LSTM, three seeds", *[f"{rmse:.3f}" for rmse in networks])
print(f"month's mean      {season:.3f}")
print(f"a year ago        {year_ago:.3f}")
assert max(networks) < year_ago, "better than the change of a year ago"
assert abs(sum(networks) / 3 / season - 1) < 0.15, "and level with the month's mean"

# %% [markdown] tags=["evidence"]
# The network is level with a table of twelve numbers: for this series take the table. (The 32
# units, the rate and the number of updates were picked from a handful with these errors in
# view, so the network's numbers are a little too good.)
#
# Held out at random, the same windows promise more than the later months keep. The month's
# mean is the referee: twelve numbers learn little by heart, and its error hardly changes.

# %% tags=["evidence"]
promised, kept = [], []
for seed in SEEDS:
    torch.manual_seed(seed)
    others, held_out = split_at_random(training)
    model = train_on(others, seed)
    promised.append(error(model, held_out) * scale.item())
    kept.append(error(model, later) * scale.item())
    print(f"held out at random {promised[-1]:.3f} ppm, after 1989 {kept[-1]:.3f} ppm")
print(f"month's mean: before 1990 {before:.3f} ppm, after 1989 {season:.3f} ppm")
assert sum(promised) < 0.95 * sum(kept), "a random split promises too much"
assert abs(before / season - 1) < 0.1, "the later months are hardly harder"
