# %% [markdown]
# # Sequence to sequence, one step ahead
#
# After this page you can train a recurrent network to predict the next value at every step of a sequence, for a batch
# of sequences, and tell whether the result is worth having.

# %% tags=["skip-execution"]
# %pip install "rnnkit[plot]" statsmodels

# %% [markdown]
# ## What comes out
#
# Three centuries of sunspots go in. The network reads them year by year and answers each year with a forecast of the
# next. This is all of it; the rest of the page explains each line, and doubts the result.

# %%
import matplotlib.pyplot as plt
import torch
from rnnkit import RecurrentSequential, get_inout_seq, seq2seq_loss
from statsmodels.datasets import sunspots
from torch import nn

SEEDS = (0, 1, 2, 3, 4)  # every claim about training is made over all five
torch.set_num_threads(1)  # small arrays: more threads would wait for each other
plt.style.use("rnnkit.style")

# %%
data = sunspots.load_pandas().data  # one row a year, 1700 to 2008
years = torch.tensor(data["YEAR"].to_numpy()).int()
number = torch.tensor(data["SUNACTIVITY"].to_numpy()).float()
known = number[years <= 1920]  # the training years
series = (number - known.mean()) / known.std()
series = series.view(-1, 1, 1)  # (T, B, F): 309 years, one row, one feature
torch.manual_seed(SEEDS[0])
model = RecurrentSequential(nn.LSTM(1, 16), nn.Linear(16, 1))
loss = seq2seq_loss(nn.MSELoss())
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
inputs, targets = get_inout_seq(series[: len(known)])  # target: the next year
for _ in range(100):
    optimizer.zero_grad()
    loss.on(model, inputs, targets).backward()
    optimizer.step()

# %%
with torch.no_grad():
    outputs, state = model(series[:-1])  # an output for each year but the last
forecast = outputs.flatten() * known.std() + known.mean()
target_years = years[1:]  # forecast[t] is for target_years[t]
actual, repeat = number[1:], number[:-1]  # the truth; last year's number again
test = target_years > 1955

# %% alt="Line chart, 1956 to 2008. The forecast made one year before follows the observed sunspot number through five cycles; it stays far below the observed peak of 1957." tags=["hide-input"]
fig, ax = plt.subplots()
ax.plot(target_years[test], actual[test], "o-", color="C4", markersize=3.5, linewidth=1)
ax.plot(target_years[test], forecast[test], color="C0")
ax.text(1961, 182, "observed", color="C4", va="center")
ax.text(1982, 182, "forecast, made the year before", color="C0", va="center")
ax.set(xlabel="year", ylabel="sunspot number", ylim=(-8, 200), yticks=range(0, 201, 50))
ax.set_title("The forecast follows cycles it has never seen")
plt.show()


# %%
def rmse(forecast, part):
    """Root mean squared error in sunspots, over the years where `part` is true."""
    return (forecast - actual)[part].square().mean().sqrt().item()


print("root mean squared error, 1956 to 2008, in sunspots:")
print(f"the network {rmse(forecast, test):.1f}")
print(f"last year's number again {rmse(repeat, test):.1f}")
assert rmse(forecast, test) < 0.75 * rmse(repeat, test), "the network has learned"

# %% [markdown]
# The network beats the forecast that costs nothing: *next year is like this year*. Whether it beats a linear model is
# answered [below](#train-look-doubt), and the answer is no victory.

# %% [markdown]
# ## You will learn
#
# - how to cut a long sequence into a batch of inputs and targets, shifted by one step;
# - how to train on the loss of every step, first in plain PyTorch, then with rnnkit, with the same numbers;
# - how to notice the mistakes that give a low loss and a worthless forecast.
#
# ## You need
#
# The install line above and, in round numbers, half a minute of one CPU core; the footer has the seconds of the last run.
# You should know what a [state](../docs/glossary.md#state) is; [Shapes and layouts](../docs/shapes.md) is about the axes.
#
# ## The pattern
#
# ![Unrolled graph: each step has an input below, a state that goes on to the right, an output above and a loss above each output.](../docs/assets/patterns/02.svg)
#
# The loss is at every step, so one pass over 60 years gives 60 errors to learn from. At each step the network is fed
# the true value, whatever it predicted before: that is [teacher forcing](../docs/glossary.md#teacher-forcing), also
# called open loop.

# %% [markdown]
# ## The shapes
#
# The first run above was a batch of one row. For more rows, cut the training years into windows of `T` steps and one
# more, since the last target lies one step past the last input. A window starts every 5 years, so the windows overlap.
# [batchseq][rnnkit.batchseq] puts them side by side, [get_inout_seq][rnnkit.get_inout_seq] shifts them.

# %%
from rnnkit import batchseq

T, STRIDE, H = 60, 5, 16


def windows_of(years):
    """Windows (T + 1, F) of a series (N, 1, F), one every STRIDE years."""
    return [years[i : i + T + 1, 0] for i in range(0, len(years) - T, STRIDE)]


padded, lengths = batchseq(windows_of(series[: len(known)]))
inputs, targets = get_inout_seq(padded)
B = inputs.shape[1]
assert torch.equal(inputs[1:], targets[:-1]), "a target is the next input"

# %%
model = RecurrentSequential(nn.LSTM(1, H), nn.Linear(H, 1))
outputs, ((h, c),) = model(inputs)
for name, tensor, shape, axes in [
    ("series", series, (309, 1, 1), "(N, 1, F)"),
    ("padded", padded, (T + 1, B, 1), "(T + 1, B, F)"),
    ("inputs", inputs, (T, B, 1), "(T, B, F)"),
    ("targets", targets, (T, B, 1), "(T, B, F)"),
    ("outputs", outputs, (T, B, 1), "(T, B, F)"),
    ("h", h, (1, B, H), "(layers, B, H)"),
    ("c", c, (1, B, H), "(layers, B, H)"),
]:
    assert tensor.shape == shape, name
    print(f"{name:8}{tuple(tensor.shape)!s:13}{axes}")

# %% [markdown]
# **Time is dim 0, the batch is dim 1**, as `nn.LSTM` has it unless told otherwise: [the rule](../docs/shapes.md) on
# every page here. `h` and `c` are the two parts of the LSTM's state.
#
# > [!NOTE]
# > `batchseq` gives a [Padded][rnnkit.Padded], the sequences and their lengths. Where these differ, do not unpack it:
# > `inputs, targets, lengths = get_inout_seq(batchseq(rows))` shifts each row by itself.

# %% [markdown]
# ## The data
#
# The yearly sunspot number, 1700 to 2008, ships with `statsmodels`, which names the National Geophysical Data Center as
# its source and states that the data is in the public domain:

# %%
print(sunspots.COPYRIGHT)
train = target_years <= 1920
valid = (target_years > 1920) & (target_years <= 1955)
for name, part in ("training", train), ("validation", valid), ("test", test):
    first, last = target_years[part][[0, -1]]
    print(f"{name:11}{first}-{last}  highest {actual[part].max():.0f}")
assert actual[test].max() > actual[train].max(), "the test years go beyond training"

# %% alt="Line chart of the yearly sunspot number from 1700 to 2008 in three parts: training until 1920, validation until 1955, test until 2008. Cycles of about eleven years; the highest peak, 1957, is in the test part." tags=["hide-input"]
fig, ax = plt.subplots()
parts = ("training", train, "C4"), ("validation", valid, "C1"), ("test", test, "C0")
for name, part, color in parts:
    ax.plot(target_years[part], actual[part], color=color, linewidth=1.4)
    middle = target_years[part].float().mean()
    ax.text(middle, 216, name, color=color, ha="center", va="center")
for border in (1920.5, 1955.5):
    ax.axvline(border, ymax=0.88, color="#666666", linewidth=0.8)
ax.set(xlabel="year", ylabel="sunspot number", ylim=(0, 228), yticks=range(0, 201, 50))
ax.set_title("The highest cycle of all comes after the training years")
plt.show()

# %% [markdown]
# The split is in time: the network learns from the past and is judged by the future. Training until 1920 and a first
# test on 1921 to 1955 is the split of [Weigend, Rumelhart and Huberman
# (1990)](https://papers.neurips.cc/paper_files/paper/1990/hash/bc6dc48b743dc5d013b1abaebd2faed2-Abstract.html). Here the
# years to 1955 choose the epoch to stop at, and nothing about the network is chosen by the years after 1955. The mean
# and the standard deviation come from the training years alone.
#
# A skeptic asks for two baselines. **Persistence** repeats last year's number. **AR(k)** is a linear function of the
# last k years, fitted by least squares. [Yule](https://doi.org/10.1098/rsta.1927.0007) introduced it in 1927, for
# sunspot numbers, with k = 2.


# %%
def autoregression(series, k):
    """AR(k): a forecast for each target year, nan for the first k - 1."""
    flat = series.flatten()
    past = flat[:-1].unfold(0, k, 1)  # (N - k, k): for each year, the k before it
    past = nn.functional.pad(past, (0, 1), value=1.0)  # and a constant
    fit = years[k:] <= 1920
    weights = torch.linalg.lstsq(past[fit], flat[k:][fit].unsqueeze(1)).solution
    return torch.cat([torch.full((k - 1,), torch.nan), (past @ weights).flatten()])


def in_sunspots(standardized):
    return standardized.flatten() * known.std() + known.mean()


# %%
orders = range(1, 25)
errors = [rmse(in_sunspots(autoregression(series, k)), test) for k in orders]
for k in 1, 2, 9, 15, 24:
    print(f"AR({k}): {errors[k - 1]:.1f}")
assert errors.index(min(errors)) + 1 == 9, "on the test years AR(9) is the best"

# %% [markdown]
# Of the orders 1 to 24, AR(9) has the lowest error on the test years, and it is the baseline. It is chosen with
# hindsight, which favors it on purpose.

# %% [markdown]
# ## Plain PyTorch
#
# First without rnnkit. The model returns its outputs and its state, as `nn.LSTM` does:

# %%
EPOCHS = 150


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(1, H)
        self.head = nn.Linear(H, 1)

    def forward(self, inputs, state=None):  # state=None: start from zeros
        hidden, state = self.rnn(inputs, state)  # (T, B, 1) -> (T, B, H)
        return self.head(hidden), state  # (T, B, H) -> (T, B, 1)


# %%
def train_plain(make_model, seed):
    torch.manual_seed(seed)
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    windows = torch.stack(windows_of(series[: len(known)]), dim=1)
    history = []
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        outputs, _ = model(windows[:-1])
        training = ((outputs - windows[1:]) ** 2).mean()  # over T, B and F
        training.backward()
        optimizer.step()
        history.append((training.item(), validate_plain(model)))
    return model, history


# %%
@torch.no_grad()
def validate_plain(model):
    outputs, _ = model(series[:-1])  # one row, all years: the state runs through
    return ((outputs - series[1:])[valid] ** 2).mean().item()


_, plain_history = train_plain(Forecaster, SEEDS[0])
for epoch in 0, EPOCHS - 1:
    training, validation = plain_history[epoch]
    print(f"epoch {epoch}: training {training:.3f}, validation {validation:.3f}")

# %% [markdown]
# Validation reads the years before 1921 too, but scores only 1921 to 1955. The early years bring the state to where it
# would be on the day of the forecast. Nothing leaks: a forecast for 1921 uses numbers until 1920.

# %% [markdown]
# ## With rnnkit
#
# [RecurrentSequential][rnnkit.RecurrentSequential] replaces the class, [seq2seq_loss][rnnkit.seq2seq_loss] the formula.
# The weights of the epoch with the lowest validation loss are kept.

# %%
from copy import deepcopy


@torch.no_grad()
def validate(model, series):
    outputs, _ = model(series[:-1])
    return loss(outputs[valid], series[1:][valid]).item()


# %%
def train_network(seed, series, inputs, targets):
    torch.manual_seed(seed)
    model = RecurrentSequential(nn.LSTM(1, H), nn.Linear(H, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    history = []
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        training = loss.on(model, inputs, targets)
        training.backward()
        optimizer.step()
        history.append((training.item(), validate(model, series)))
        if history[-1][1] == min(validation for _, validation in history):
            best = deepcopy(model)
    return best, history


# %%
runs = [train_network(seed, series, inputs, targets) for seed in SEEDS]
models, histories = zip(*runs, strict=True)
difference = torch.tensor(histories[0]) - torch.tensor(plain_history)
print(f"largest difference to plain PyTorch: {difference.abs().max():g}")
assert difference.abs().max() < 1e-6, "both give the same losses, epoch by epoch"

# %% [markdown]
# Where the loop is always the same, a [Learner][rnnkit.Learner] runs it. It makes the shift itself, and its
# [validation phase][rnnkit.BPTTValidationPhase] gives the loss of each step:

# %%
from rnnkit import BPTTValidationPhase, Learner

torch.manual_seed(SEEDS[0])
model = RecurrentSequential(nn.LSTM(1, H), nn.Linear(H, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
learner = Learner(model, loss, optimizer).fit(EPOCHS, train=[padded])
check = learner.step(BPTTValidationPhase(by_step=True), series)
validation = check.loss_by_step[valid].mean().item()
print(f"epoch {EPOCHS - 1}: validation {validation:.3f}")
assert abs(validation - plain_history[-1][1]) < 1e-6, "the Learner too"

# %% [markdown]
# The rows of a batch need not be equally long. Given `lengths`, the loss is the mean over the steps that exist, and the
# padding never counts:

# %%
rows = [series[:20, 0], series[:60, 0]]  # 20 years and 60 years
both, lengths = batchseq(rows)  # (60, 2, 1) and [20, 60]
as_batch = loss.on(models[0], both[:-1], both[1:], lengths - 1)
alone = [loss.on(models[0], *get_inout_seq(row.unsqueeze(1))) for row in rows]
by_hand = (19 * alone[0] + 59 * alone[1]) / (19 + 59)
print(f"as a batch {as_batch:.4f}, one by one {by_hand:.4f}")
torch.testing.assert_close(as_batch, by_hand)

# %% [markdown]
# ## Train, look, doubt
#
# ### The learning curve

# %%
curves = torch.tensor(histories)  # (seeds, epochs, 2): training and validation
kept = curves[..., 1].argmin(1)
print("epoch kept, by seed:", *kept.tolist())
then, last = curves[range(len(SEEDS)), kept].mean(0), curves[:, -1].mean(0)
print(f"training   {then[0]:.3f}, at the end {last[0]:.3f}")
print(f"validation {then[1]:.3f}, at the end {last[1]:.3f}")
assert last[0] < then[0], "training goes on falling"
assert last[1] > then[1], "validation does not"

# %% alt="Learning curves of five seeds. Training loss falls all the way. Validation loss falls until an epoch between 50 and 150, marked by a dot for each seed, and then stays or rises slightly." tags=["hide-input"]
fig, ax = plt.subplots()
ax.plot(curves[..., 0].T, color="C4", linewidth=1)
ax.plot(curves[..., 1].T, color="C1", linewidth=1)
ax.plot(kept, curves[range(len(SEEDS)), kept, 1], "o", color="C1")
place = dict(ha="right", va="center")
ax.text(EPOCHS, 0.072, "training", color="C4", **place)
ax.text(EPOCHS, 0.15, "validation (dot: epoch kept)", color="C1", **place)
ax.set(xlabel="epoch", ylabel="mean squared error")
ax.set(xlim=(0, EPOCHS + 3), ylim=(0.065, 0.25))
ax.set_title("Training goes on falling, validation does not")
plt.show()

# %% [markdown]
# The error is that of standardized numbers: 1 would be the error of always forecasting the mean of the training years.
# The first epochs lie above the frame. Each seed keeps the weights of its dot.
#
# ### Against the baselines
#
# Now the test years, with everybody in one table:


# %%
@torch.no_grad()
def forecast_of(model):
    return in_sunspots(model(series[:-1])[0])


forecasts = [forecast_of(model) for model in models]
ar2, ar9 = (in_sunspots(autoregression(series, k)) for k in (2, 9))
table = {"persistence": repeat, "AR(2), Yule": ar2, "AR(9)": ar9}
table |= {f"LSTM, seed {s}": f for s, f in zip(SEEDS, forecasts, strict=True)}
print("RMSE          1921-1955  1956-2008")
for name, f in table.items():
    print(f"{name:14}{rmse(f, valid):9.1f}{rmse(f, test):11.1f}")

# %%
on_valid = torch.tensor([rmse(f, valid) for f in forecasts])
on_test = torch.tensor([rmse(f, test) for f in forecasts])
print(f"LSTM, test years: {on_test.min():.1f} to {on_test.max():.1f}")
# Worst of five seeds here: 0.83 of AR(9) on validation, 1.03 on test.
# The bounds leave room for another machine and another torch.
assert (on_valid < 0.92 * rmse(ar9, valid)).all(), "until 1955 it beats AR(9)"
assert (on_test < 0.75 * rmse(repeat, test)).all(), "it beats persistence"
assert ((on_test / rmse(ar9, test) - 1).abs() < 0.15).all(), "level with AR(9)"

# %% [markdown]
# On the years that chose the epoch, the LSTM is ahead of AR(9). On the years that chose nothing, some seeds are a
# little better, some a little worse. Is there a difference at all? Compare the squared errors year by year:

# %%
of_lstm = torch.stack([(f - actual).square() for f in forecasts]).mean(0)[test]
of_ar9 = (ar9 - actual).square()[test]
gain = of_ar9 - of_lstm
standard_error = gain.std() / len(gain) ** 0.5  # takes the years as independent
print(f"mean squared error: AR(9) {of_ar9.mean():.0f}, LSTM {of_lstm.mean():.0f}")
print(f"difference {gain.mean():.0f}, standard error {standard_error:.0f}")
assert gain.mean().abs() < 2 * standard_error, "53 years cannot tell them apart"

# %% [markdown]
# So: **for yearly sunspots, one year ahead, ten numbers fitted by least squares do as well as the LSTM.** Use the
# linear model here. The pattern earns its place where the next step is not a linear function of the last few. Fit the
# line first, always: without it, the first figure of this page looks like a success.
#
# ### Does it only repeat last year?
#
# A forecast that lags one step behind looks good in a chart. Compare changes instead of levels: does the network know
# whether the number will go up or down?

# %%
change = actual - repeat
for name, f in table.items():
    if name != "persistence":  # which forecasts no change at all
        pair = torch.stack([f - repeat, change])[:, test]
        print(f"{name:14}correlation {torch.corrcoef(pair)[0, 1]:.2f}")
        assert torch.corrcoef(pair)[0, 1] > 0.7, "it forecasts the change"

# %% [markdown]
# ### Where it fails
#
# First, at what it has never seen. The worst years, by the mean of the five seeds:

# %%
misses = torch.stack(forecasts).mean(0) - actual
worst = misses.abs().where(test, 0).topk(4).indices
for i in worst:
    print(f"{target_years[i]}: observed {actual[i]:.0f}, miss {misses[i]:+.0f}")
assert (misses[worst] < 0).all(), "the worst forecasts are all too low"

# %% [markdown]
# Second, before it has seen enough. Start the state from zeros and show the network only the last *k* years before each
# test year. Each *k* is one batch of 53 rows.

# %%
warm_ups = [*range(1, 13), 16, 20, 24]
first = years.tolist().index(1956)
errors = torch.zeros(len(warm_ups), len(models))
for i, k in enumerate(warm_ups):
    rows = [series[t - k : t, 0] for t in range(first, len(years))]
    batch, _ = batchseq(rows)  # (k, 53, 1)
    for j, model in enumerate(models):
        with torch.no_grad():
            last = in_sunspots(model(batch)[0][-1])  # the output of the last step
        errors[i, j] = (last - number[first:]).square().mean().sqrt()
for k in 1, 2, 4, 8, 12, 24:
    print(f"years read {k:2}: RMSE {errors[warm_ups.index(k)].mean():.1f}")
assert errors[0].min() > 0.9 * rmse(repeat, test), "one year is persistence"
assert errors[11].mean() < 1.05 * errors[-1].mean(), "twelve years are enough"

# %% alt="Line chart: test error against the number of years read before the forecast. It starts above persistence at one year, falls steeply, and is level with AR(9) from about nine years on." tags=["hide-input"]
fig, ax = plt.subplots()
low, high = errors.min(1).values, errors.max(1).values
ax.fill_between(warm_ups, low, high, color="C0", alpha=0.2, linewidth=0)
ax.plot(warm_ups, errors.mean(1), color="C0", marker="o")
for name, error in ("AR(9)", rmse(ar9, test)), ("persistence", rmse(repeat, test)):
    ax.axhline(error, color="C1", linewidth=1.2)
    ax.text(24, error + 0.3, name, color="C1", ha="right", va="bottom")
ax.text(5, 23.5, "LSTM: mean and range of five seeds", color="C0")
ax.set(xlabel="years read before the forecast", ylabel="RMSE (sunspots)", ylim=(16, 37))
ax.set(xticks=range(0, 25, 4), yticks=range(20, 36, 5))
ax.set_title("From a cold start, the network needs most of a cycle")
plt.show()

# %% [markdown]
# A score taken from a cold state is the score of another, worse forecaster. Let the state run through the years before
# ([warm-up](../docs/glossary.md#warm-up)), as `validate` does.

# %% [markdown]
# ## What goes wrong
#
# ### The loss is almost zero
#
# `zip` stops at the shorter of its arguments, unless it is told `strict=True`. Forget the shift, and nothing complains:
# each output is compared with its own input.


# %%
def train_copycat(seed):
    torch.manual_seed(seed)
    model = Forecaster()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        outputs, _ = model(padded[:-1])
        pairs = zip(outputs, padded, strict=False)  # 60 steps and 61: no shift
        training = torch.stack([(o - y).square().mean() for o, y in pairs]).mean()
        training.backward()
        optimizer.step()
    return training.item(), rmse(forecast_of(model), valid)


# %%
right = histories[0][-1][0]
print(f"shifted: training loss {right:.4f}, RMSE 1921-1955 {on_valid[0]:.1f}")
for seed in SEEDS[:3]:
    training, error = train_copycat(seed)
    print(f"not shifted: training loss {training:.4f}, RMSE {error:.1f}")
    assert training < 0.1 * right, "a tiny loss ..."
    assert error > 0.9 * rmse(repeat, valid), "... and no better than persistence"

# %% [markdown]
# The network has learned to repeat its input, which is persistence. **A loss far below that of a fitted line is a bug
# until proven otherwise.** The cure is a loss that refuses unequal lengths, and `get_inout_seq`, which makes the shift:

# %%
try:
    loss(outputs, padded)
except ValueError as refusal:
    print(refusal)
else:
    raise AssertionError("it should have been refused")

# %% [markdown]
# ### The targets have one axis less
#
# One row, 220 years: outputs `(220, 1, 1)`, targets `(220, 1)`. The difference broadcasts to every output minus every
# target.

# %%
with torch.no_grad():
    outputs, _ = models[0](series[:220])
flat_targets = series[1:221, :, 0]  # (220, 1)
squares = (outputs - flat_targets).square()
right, wrong = loss(outputs, series[1:221]), squares.mean()
print(f"squares {tuple(squares.shape)}: loss {wrong:.2f}, right is {right:.2f}")
assert wrong > 5 * right, "another number altogether"

# %%
import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert nn.MSELoss()(outputs, flat_targets) == wrong
mean_forecast = flat_targets.mean()
loss_of_mean = (mean_forecast - flat_targets).square().mean()
print(f"nn.MSELoss warns: {len(caught) > 0}")
print(f"loss of the mean, every year: {loss_of_mean:.2f}")
assert loss_of_mean < wrong, "a constant wins"

# %% [markdown]
# Squares written by hand say nothing, `nn.MSELoss` warns and goes on. Trained on such a loss, a network learns to
# forecast the mean for every year. rnnkit refuses:

# %%
try:
    loss(outputs, flat_targets)
except ValueError as refusal:
    print(refusal)
else:
    raise AssertionError("it should have been refused")

# %% [markdown]
# ### Batch and time are swapped
#
# `batch_first=True`, and the data is `(T, B, F)`. The shapes fit, the loss falls, and the network runs along the wrong
# axis.


# %%
class Swapped(Forecaster):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(1, H, batch_first=True)


ar1 = rmse(in_sunspots(autoregression(series, 1)), valid)
print(f"RMSE 1921-1955: right {on_valid[0]:.1f}, AR(1) {ar1:.1f}")
for seed in SEEDS[:3]:
    swapped, ((start, _), *_, (end, _)) = train_plain(Swapped, seed)
    error = rmse(forecast_of(swapped), valid)
    print(f"swapped: {error:.1f}, training loss {start:.2f} -> {end:.2f}")
    assert error > 0.85 * ar1, "with the axes swapped there is no memory"

# %% [markdown]
# It is no better than a line through last year's number, because that is all it sees: for it, each year of the series
# is a row of its own. No error message can catch every such case; a test can. Change one input and see which outputs
# hear of it:


# %%
@torch.no_grad()
def who_hears(model, t=3, row=1):
    """A line for each row, a mark for each step: # where the input is heard."""
    quiet = torch.zeros(10, 4, 1)
    loud = quiet.clone()
    loud[t, row] = 1.0
    heard = (model(loud)[0] - model(quiet)[0]).abs().sum(-1) > 1e-6  # (T, B)
    return ["".join("#" if mark else "." for mark in marks) for marks in heard.T]


# %%
right, wrong = who_hears(models[0]), who_hears(swapped)
print("       right       swapped")
for row in range(4):
    print(f"row {row}  {right[row]}  {wrong[row]}")
silent = "." * 10
assert right == [silent, "...#######", silent, silent], "later steps of that row"
assert wrong != right, "the axes are swapped"

# %% [markdown]
# The right model hears it from that step on, in that row alone. Put this test beside every recurrent model you write.
# A module with `batch_first=True` is refused by rnnkit when the model is built:

# %%
try:
    RecurrentSequential(nn.LSTM(1, H, batch_first=True), nn.Linear(H, 1))
except ValueError as refusal:
    print(refusal)
else:
    raise AssertionError("it should have been refused")

# %% [markdown]
# ## Try it
#
# **1. Square roots.** The network fails at the peaks. The square root of the sunspot number has lower ones. Train the
# LSTM on it and fit AR(9) to it; square the forecasts and compare on the test years. Who gains more?

# %% tags=["solution"]
root = number.sqrt()
center, scale = root[years <= 1920].mean(), root[years <= 1920].std()
root_series = ((root - center) / scale).view(-1, 1, 1)
root_padded, _ = batchseq(windows_of(root_series[: len(known)]))
root_pair = get_inout_seq(root_padded)


def squared(standardized):
    return (standardized.flatten() * scale + center).clamp(min=0).square()


# %% tags=["solution"]
root_ar9 = rmse(squared(autoregression(root_series, 9)), test)
root_lstm = []
for seed in SEEDS:
    model, _ = train_network(seed, root_series, *root_pair)
    with torch.no_grad():
        root_lstm.append(rmse(squared(model(root_series[:-1])[0]), test))
mean = sum(root_lstm) / len(SEEDS)
print(f"AR(9): {rmse(ar9, test):.1f} -> {root_ar9:.1f}")
print(f"LSTM, mean of five seeds: {on_test.mean():.1f} -> {mean:.1f}")
assert root_ar9 < 0.92 * rmse(ar9, test), "the square root helps the linear model"
assert root_ar9 < mean, "and the linear model is ahead"

# %% [markdown] tags=["solution"]
# One line of statistics moves the result further than the choice of the model.

# %% [markdown]
# **2. Both directions.** Make the LSTM bidirectional: `nn.LSTM(1, H, bidirectional=True)`, with a head for `2 * H`. Its
# training loss falls much lower. Find out why with `who_hears`, and measure an honest forecast: feed it the years up
# to each test year, and take the last output.


# %% tags=["solution"]
class BothWays(Forecaster):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(1, H, bidirectional=True)
        self.head = nn.Linear(2 * H, 1)


def honest_error(model):
    with torch.no_grad():  # for the year t: the years before t, and the last output
        last = [model(series[:t])[0][-1] for t in range(first, len(years))]
    return (in_sunspots(torch.stack(last)) - number[first:]).square().mean().sqrt()


# %% tags=["solution"]
for seed in SEEDS[:3]:
    both_ways, history = train_plain(BothWays, seed)
    claimed, honest = rmse(forecast_of(both_ways), test), honest_error(both_ways)
    print(f"training loss {history[-1][0]:.3f}, one way {histories[seed][-1][0]:.3f}")
    print(f"RMSE 1956-2008: claimed {claimed:.0f}, honest {honest:.0f}")
    assert honest > 2 * claimed, "the claim is made with the answer at hand"
print("an input at step 3 is heard at", who_hears(both_ways)[1])
assert who_hears(both_ways)[1] == "#" * 10, "the steps before it hear it too"

# %% [markdown] tags=["solution"]
# The backward direction reads the next year, which is the target. On the day of the forecast it is not there to read.

# %% [markdown]
# ## Where next
#
# - One target for the whole sequence: [03 Sequence to one](03_seq2one.py).
# - More than one step ahead, by feeding the network its own outputs: [04 Generate from a primer](04_generate.py); what
#   that does to the error: [08 Closed-loop validation](08_closed_loop.py).
# - A sequence too long for one pass: [BPTTTrainingPhase][rnnkit.BPTTTrainingPhase] with a `window`.
# - The API: [get_inout_seq][rnnkit.get_inout_seq], [batchseq][rnnkit.batchseq], [seq2seq_loss][rnnkit.seq2seq_loss],
#   [RecurrentSequential][rnnkit.RecurrentSequential].
# - The papers: predicting the next step as a way to find structure,
#   [Elman 1990](https://doi.org/10.1207/s15516709cog1402_1); teacher forcing,
#   [Williams and Zipser 1989](https://doi.org/10.1162/neco.1989.1.2.270).
