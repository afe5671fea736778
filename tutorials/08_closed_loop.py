# ---
# rnnkit:
#   description: >-
#     Why a recurrent network with a low validation loss gives bad forecasts, and how to
#     validate it in PyTorch on its own outputs: the closed loop, the error by horizon.
#   needs: one CPU core for about forty seconds; matplotlib and statsmodels beside torch
#   data: the Mackey-Glass series, computed here; sunspots from statsmodels (public domain)
#   minutes: 10
#   prerequisites: PyTorch tensors and a training loop; what a recurrent network is
#   learn: [to validate a model on its own outputs, why a low loss can mislead, how far
#     ahead to trust a forecast, why not to stop by the closed loss]
# ---

# %% [markdown]
# # Closed-loop validation
#
# A low validation loss and bad forecasts: after this page you can validate a recurrent network
# as it will be used, fed by its own outputs, and say how far ahead to trust it.

# %% tags=["skip-execution"]
# %pip install "rnnkit[plot]" statsmodels

# %% tags=["fold"] summary="Set-up: the series, windows of it, a learning rate, a callback for the evidence"
import math

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_default_device(device)  # each new tensor is made there
torch.set_num_threads(1)  # small arrays: more threads would wait for each other
plt.style.use("rnnkit.style")

SEEDS = (0, 1, 2)  # each claim about training is made over all three

# %% tags=["fold"]
def mackey_glass(steps, tau=17, delta=0.1, washout=1000):
    """One value per unit of time, by Euler steps of `delta`, after `washout` units."""
    delay = round(tau / delta)
    every = round(1 / delta)
    x = [1.2] * (delay + 1)  # the past before the start
    for _ in range((washout + steps) * every):
        before = x[-1 - delay]
        x.append(x[-1] + delta * (0.2 * before / (1 + before**10) - 0.1 * x[-1]))
    return torch.tensor(x[delay + 1 :: every][washout:])

# %% tags=["fold"]
def windows(start, stop, length, every):
    starts = range(start, stop - length + 1, every)
    return torch.stack([values[i : i + length] for i in starts], dim=1)

def falling(epoch):  # what the rate is multiplied by
    return min(1, (24 - epoch) / 10)

# %% tags=["fold"]
class Watch:  # the closed loss of the weights and of their running average, by epoch
    def on_fit_begin(self, learner):
        average = get_ema_multi_avg_fn(0.98)  # over about the last 50 updates
        self.averaged = AveragedModel(learner.model, multi_avg_fn=average)
        self.weights, self.average = [], []

    def on_step_end(self, learner):
        if learner.phase_name == "training":
            self.averaged.update_parameters(learner.model)

    def on_epoch_end(self, learner):
        if learner.phase_name == "validation":
            self.weights.append(float(learner.averages["closed_loss"]))
            step = phase(self.averaged.module, loss, valid)
            self.average.append(float(step.closed_loss))

# %% [markdown]
# ## The pattern
#
# A network that predicts the next value is usually validated on measured inputs. To forecast
# further, it must read its own outputs, errors and all. So validate it that way:
#
# ![Unrolled graph: the first T minus n steps are fed by the data and have the open loss; the last n steps are fed by the output of the step before and have the closed loss.](../docs/assets/patterns/08.svg)
#
# **Driven** steps read the data, and the mean of their losses is the **open loss**. The last
# `n` steps are **self-fed**: each reads the output before it. Their mean is the **closed
# loss**. How many steps an output is ahead of the last measured value is its **horizon**:
# `k` self-fed steps lead to the horizon `k + 1`.
#
# ## The data
#
# [Mackey and Glass (1977)](https://doi.org/10.1126/science.267326) described how many cells
# are in the blood. The rate of change depends on the number now and 17 units of time ago:
#
# $$
# \frac{dx}{dt} = \frac{0.2\, x(t - 17)}{1 + x(t - 17)^{10}} - 0.1\, x(t)
# $$
#
# The series is **chaotic**: its waves never repeat, and a small error grows exponentially, by
# a factor *e* in one **Lyapunov time**, about
# [160 steps](#evidence-how-fast-an-error-grows). There is no noise.
#
# ## The shapes
#
# The first 3000 values train, the next 3000 validate, the others test, in 50 runs. All are
# standardized by the training part, so that the variance is 1: that is the mean squared error
# of a forecast that always says the mean.

# %%
series = mackey_glass(60_200)
mean, std = series[:3000].mean(), series[:3000].std()
values = ((series - mean) / std).unsqueeze(1)  # (steps, 1)

N = 83  # self-fed steps, after 300 driven ones: horizons up to 84
train = values[:3000]
valid = windows(3000, 6000, 301 + N, every=50)
test = windows(6000, 60_200, 301 + N, every=1084)
print("train", tuple(train.shape), "(steps, features)")
print("valid", tuple(valid.shape), "test", tuple(test.shape), "(T + 1, B, features)")

# %% [markdown]
# ## The baselines
#
# - **AR(9)** is a weighted sum of the last nine values and a constant, by least squares.
# - **Nearest** finds the four stretches of training most like the last 19 values, and answers
#   with the mean of what followed.
# - **Cubic** is a weighted sum of 84 products of up to three of the values 0, 1, 2, 16, 17 and
#   18 steps ago. Such a regression is also called NVAR ([Gauthier et al.
#   2021](https://doi.org/10.1038/s41467-021-25801-2)).
#
# To go through the same loop, each is called like a network: outputs and a state come back.

# %% tags=["fold"] summary="The baselines, called like a network"
class OfLags:
    """Predicts by a function of the last `reach` values (T, B, reach), oldest first."""

    def __init__(self, function, reach):
        self.function = function
        self.reach = reach

    def __call__(self, inputs, state=None):
        if state is None:
            state = inputs.new_zeros(self.reach - 1, *inputs.shape[1:])
        seen = torch.cat([state, inputs])  # (reach - 1 + T, B, 1)
        lags = seen.unfold(0, self.reach, 1)[:, :, 0]  # (T, B, reach)
        outputs = self.function(lags).unsqueeze(2)  # (T, B, 1)
        return outputs, seen[len(inputs) :]

# %% tags=["fold"]
def regression(part, features, reach, penalty=1e-9):
    """The weighted sum of features of the lags that fits a series (steps, 1) best."""
    past = part[:, 0].double()
    x = features(past[:-1].unfold(0, reach, 1))  # (examples, features)
    y = past[reach:]
    small = penalty * torch.eye(x.shape[1], dtype=x.dtype)  # keeps the weights small
    weights = torch.linalg.solve(x.T @ x + small, x.T @ y)
    return OfLags(lambda lags: (features(lags.double()) @ weights).to(lags), reach)

def linear(lags):
    return torch.cat([lags, torch.ones_like(lags[..., :1])], dim=-1)  # and a constant

# %% tags=["fold"]
def nearest(lags):
    library = train[:, 0].unfold(0, 20, 1)  # (examples, 20): 19 values and the next
    distance = torch.cdist(lags.flatten(0, 1), library[:, :-1])
    found = distance.topk(4, largest=False).indices  # (T * B, 4)
    return library[found, -1].mean(1).view(lags.shape[:2])

def cubic(lags):
    chosen = linear(lags[..., [-1, -2, -3, -17, -18, -19]])  # six values and 1
    i, j, k = torch.combinations(torch.arange(7), 3, with_replacement=True).T
    return chosen[..., i] * chosen[..., j] * chosen[..., k]  # (..., 84)

# %% tags=["fold"]
models = {
    "AR(9)": regression(train, linear, reach=9),
    "nearest": OfLags(nearest, reach=19),
    "cubic": regression(train, cubic, reach=19, penalty=1e-6),
}

# %% tags=["fold"]
horizons = range(1, 502)
looks = {  # color, dash and place of the label in the figure
    "AR(9)": ("C1", "-", (3.6, 0.1)),
    "nearest": ("C3", "-.", (1.1, 3e-3)),
    "LSTM": ("C0", "-", (45, 8e-4)),
    "cubic": ("C2", ":", (40, 1e-6)),
}
exponents = {"1e-8": 1e-8, "1e-6": 1e-6, "1e-4": 1e-4, "0.01": 0.01, "1": 1}
axis_names = {"xlabel": "steps ahead", "ylabel": "mean squared error"}
axis_names["title"] = "AR(9) beats the LSTM for a few steps only"
steps_shown = {str(h): h for h in (1, 3, 10, 30, 84, 500)}

# %% [markdown]
# ## Plain PyTorch
#
# One call for the driven steps. Then a call for each self-fed step, which gets the output
# before it and the state that the model was left in.

# %%
@torch.no_grad()
def validate_plain(model, window, n):
    """The loss of each step (T,): T - n driven, then n self-fed."""
    inputs, targets = window[:-1], window[1:]  # (T, B, 1)
    outputs, state = model(inputs[: len(inputs) - n])  # the driven steps
    parts = [outputs]
    for _ in range(n):
        outputs, state = model(outputs[-1:], state)  # its own output, its own state
        parts.append(outputs)
    return (torch.cat(parts) - targets).square().mean(dim=(1, 2))

by_step = validate_plain(models["AR(9)"], test, N)
open_loss, closed_loss = by_step[100:-N].mean(), by_step[-N:].mean()
print(f"AR(9): open loss {open_loss:.1e}, closed loss {closed_loss:.2f}")

# %% [markdown]
# The first 100 steps are left out of the open loss, since the state is still being found
# there. One step ahead, AR(9) is all but perfect. Fed by its own outputs, about half of the
# variance is error.
#
# ## With rnnkit
#
# [BPTTValidationPhase][rnnkit.BPTTValidationPhase]`(N)` is that loop, for one batch. Its result
# has `loss_by_step` and, as means over either part, `open_loss` and `closed_loss`:

# %%
from rnnkit import BPTTValidationPhase, seq2seq_loss

loss = seq2seq_loss(nn.MSELoss())  # the loss at each step
phase = BPTTValidationPhase(N)
step = phase(models["AR(9)"], loss, test)
torch.testing.assert_close(step.loss_by_step, by_step, rtol=1e-2, atol=1e-7)

# %% [markdown]
# The network is an LSTM and a linear layer. Training reads 8 rows side by side, in windows of
# 50 steps; `stateful=True` carries the state from window to window. After each epoch the phase
# validates. The learning rate is constant for 14 epochs and then falls to 0.
# **[KeepBest][rnnkit.KeepBest] brings back the epoch with the lowest closed loss.**

# %%
from rnnkit import BPTTTrainingPhase, ClipGradients, KeepBest, Learner
from rnnkit import RecurrentSequential, Scheduler, StreamLoader

ten_passes = list(StreamLoader(train, batch_size=8, window=50)) * 10  # an epoch
training = BPTTTrainingPhase(stateful=True)

def train_network(seed, *more):
    torch.manual_seed(seed)
    model = RecurrentSequential(nn.LSTM(1, 32), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, falling)
    callbacks = [ClipGradients(1.0), Scheduler(rate), KeepBest("closed_loss"), *more]
    learner = Learner(model, loss, optimizer, callbacks)
    learner.fit(24, ten_passes, [valid], training, phase)
    return model

# %%
watches = [Watch() for seed in SEEDS]
for seed, watch in zip(SEEDS, watches):
    models[f"LSTM, seed {seed}"] = train_network(seed, watch)
print("              open loss   closed loss")
opened, closed = {}, {}
for name, model in models.items():
    step = phase(model, loss, test)
    opened[name] = step.loss_by_step[100:-N].mean().item()
    closed[name] = step.closed_loss.item()
    print(f"{name:13} {opened[name]:10.1e} {closed[name]:12.5f}")

# %% [markdown]
# **The open loss puts AR(9) ahead of every LSTM, by far. The closed loss puts it behind every
# LSTM, by far.** And the nearest neighbors, with the worst open loss of all, are in the loop
# far ahead of AR(9) too.
#
# Over one step of a smooth curve a linear rule is nearly exact. The loop asks for the rule
# behind the curve, which is not linear, and
# [more lags](#evidence-more-lags-do-not-save-the-linear-model) do not make up for that. The
# cubic can nearly express the rule and wins both columns: whoever knows that much needs no
# LSTM.
#
# ## The error by horizon
#
# The closed loss is a mean over horizons. Look at each by itself, and further ahead:

# %%
far = BPTTValidationPhase(500)
far_test = windows(6000, 60_200, 801, every=1084)

def by_horizon(model, part=far_test):
    """The mean squared error at the horizons 1 to 501."""
    return far(model, loss, part).loss_by_step[-501:].cpu()

curves = {name: by_horizon(model) for name, model in models.items()}
lstm = torch.stack([curves[f"LSTM, seed {seed}"] for seed in SEEDS])  # (3, 501)
lost = int((lstm.mean(0) > 1).nonzero()[0]) + 1  # the horizon of the dot, below

# %% alt="Line chart of the error over the horizon, both logarithmic. AR(9) starts lowest but one and rises to the top within 84 steps. The LSTM starts above it, crosses it within a few steps and reaches the line of the mean after more than 200. The nearest neighbors start highest and hardly rise. The cubic is lowest everywhere." caption="Error by how far ahead, on 50 test runs. LSTM: mean and range of three seeds." tags=["hero", "hide-input"]
fig, ax = plt.subplots(figsize=(5.2, 2.5))
ax.axhline(1, color="#666666", linestyle="--", linewidth=1.2)
ax.fill_between(horizons, lstm.amin(0), lstm.amax(0), color="C0", alpha=0.2, lw=0)
ax.plot(horizons, lstm.mean(0), color="C0")
for name, (color, dash, place) in looks.items():
    ax.text(*place, name, color=color)
    if name in curves:
        ax.plot(horizons, curves[name], dash, color=color)
ax.text(1.1, 2.2, "saying the mean", color="#666666")
ax.plot(lost, 1, "o", color="C0")
ax.set(xscale="log", yscale="log", ylim=(1e-9, 20), xlim=(1, 501), **axis_names)
ax.set_xticks(list(steps_shown.values()), list(steps_shown))
ax.set_yticks(list(exponents.values()), list(exponents))
ax.minorticks_off()
plt.show()

# %% [markdown]
# At the dot the LSTM is as wrong as a flat line at the mean. It has not lost every trace there:
# a wave of the right height has the error $2(1 - \rho)$, with $\rho$ its correlation with the
# truth. **At 1 the correlation is still a half; all is lost at 2**, twice the variance.
#
# ## Use it: forecast, and say where to stop
#
# Choose the network with the best closed loss of validation. Find, still on validation, the
# horizon at which its error reaches a bound of your choice: here a quarter of the variance, so
# that half a standard deviation is a typical error.

# %%
from rnnkit import forecast

ours = [f"LSTM, seed {seed}" for seed in SEEDS]
scores = {name: phase(models[name], loss, valid).closed_loss.item() for name in ours}
chosen = models[min(scores, key=scores.get)]
far_valid = windows(3000, 6000, 801, every=50)  # 300 driven steps, then 500
trusted = int((by_horizon(chosen, far_valid) > 0.25).nonzero()[0])

ahead = forecast(chosen, 300, values[-500:].unsqueeze(1))  # (300, 1, 1, 1)
ahead = ahead.flatten() * std + mean  # as the series was
print(f"trust {trusted} of them; the last of these is {ahead[trusted - 1]:.2f}")

# %% tags=["fold"] summary="The band: where 8 of 10 errors of validation lay"
found = far(chosen, loss, far_valid)
errors = (found.targets - found.outputs)[-501:, :, 0] * std  # (501, B)
low, high = errors.quantile(torch.tensor([0.1, 0.9]), dim=1)
came = mackey_glass(len(series) + 300)[-300:]  # the truth, for the figure alone
guess = ahead.cpu()

# %% alt="Line chart: the last 100 values of the series, then the forecast. Up to a vertical mark it has a band and lies on what came; after the mark it is dashed and without a band." caption="300 steps that are not in the series. The band held 8 of 10 errors in validation; one forecast proves little." tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.2, 2.3))
ax.plot(range(-99, 1), series[-100:].cpu(), color="C4")
ax.plot(range(1, 301), came.cpu(), color="C4", linestyle=":", linewidth=1.5)
ax.plot(range(1, trusted + 1), guess[:trusted], color="C0")
ax.plot(range(trusted, 301), guess[trusted - 1 :], "--", color="C0", linewidth=1)
band = [(guess[:trusted] + edge.cpu()[:trusted]) for edge in (low, high)]
ax.fill_between(range(1, trusted + 1), *band, color="C0", alpha=0.2, linewidth=0)
ax.axvline(trusted, color="#666666", linewidth=0.8)
ax.text(-98, 1.5, "series", color="C4")
ax.text(3, 1.5, "forecast", color="C0")
ax.text(trusted + 4, 1.5, "do not use", color="#666666")
ax.text(trusted + 4, 0.2, "dotted: what came", color="C4")
ax.set(xlabel="steps after the last value", ylabel="x", ylim=(0.1, 1.65))
ax.set_title("A forecast, and where to stop trusting it")
plt.show()

# %% [markdown]
# ## What goes wrong
#
# ### Stopping by the closed loss
#
# If the closed loss is what counts, why not stop the training when it has not improved for
# five epochs? Because it [jumps](#evidence-the-closed-loss-of-each-epoch) while the learning
# rate is high:

# %%
from rnnkit import EarlyStopping, History

costs = []
print("seed   epochs   closed loss   after all 24")
for seed in SEEDS:
    history = History()
    stopped = train_network(seed, history, EarlyStopping(5, monitor="closed_loss"))
    early = phase(stopped, loss, test).closed_loss
    epochs = history.rows[-1]["epoch"]
    print(f"{seed:4} {epochs:8} {early:13.3f} {closed[ours[seed]]:15.3f}")
    costs.append(early / closed[ours[seed]])

# %% [markdown]
# The runs that were stopped even had their best epoch brought back. (`EarlyStopping` alone
# does not do that; `KeepBest` does.) The cures:
#
# - **Finish the schedule.** Let the learning rate fall to 0, and do not stop before.
# - **Choose a checkpoint by the closed loss**, with `KeepBest`, but do not stop by it.
# - **Average the weights** if you cannot wait: PyTorch's
#   [AveragedModel](https://docs.pytorch.org/docs/stable/optim.html#weight-averaging-swa-and-ema)
#   is calm from the start. At the end of the schedule it adds nothing.
#
# ### A loop that is off by one
#
# A wrong loop raises no error. It gives a bad closed loss, and you blame the network. So test
# the loop on a model that knows the rule. A sine obeys
# $x_{t+1} = 2 \cos(\omega)\, x_t - x_{t-1}$, so this model must make no error at any horizon:

# %%
def oscillator(inputs, state=None):
    before = torch.zeros_like(inputs[:1]) if state is None else state
    past = torch.cat([before, inputs[:-1]])
    return 2 * math.cos(0.1) * inputs - past, inputs[-1:]

sine = torch.sin(0.1 * torch.arange(300, dtype=torch.float64)).view(-1, 1, 1)

# %% tags=["fold"] summary="The plain loop again, with three mistakes to choose from"
@torch.no_grad()
def wrong_loop(model, window, n, again=False, forget=False, scale=1.0):
    outputs, state = model(window[: len(window) - 1 - n])
    fed = window[len(window) - 2 - n].unsqueeze(0) if again else outputs[-1:]
    parts = [outputs]
    for _ in range(n):
        outputs, state = model(fed * scale, None if forget else state)
        fed = outputs[-1:]
        parts.append(outputs)
    return (torch.cat(parts) - window[1:]).square().mean(dim=(1, 2))

# %% tags=["fold"]
mistakes = {
    "no mistake": {},
    "the last true value is fed twice": {"again": True},
    "the state is not passed on": {"forget": True},
    "the output is fed in other units": {"scale": std.item()},
}

# %%
print("largest error on the sine, closed loss of the LSTM")
for mistake, options in mistakes.items():
    worst = wrong_loop(oscillator, sine, 200, **options)[1:].max()
    wrong = wrong_loop(chosen, test, N, **options)[-N:].mean()
    print(f"{worst:8.0e} {wrong:10.4f}   {mistake}")

# %% [markdown]
# The first step of the sine is left out: the oscillator has not seen a value before. Keep
# this test beside every loop you write.

# %% tags=["check"]
assert min(opened[name] for name in ours) > 5 * opened["AR(9)"], "AR(9) opens ahead"
assert max(closed[name] for name in ours) < 0.2 * closed["AR(9)"], "and ends behind"
assert opened["nearest"] > 10 * max(opened[name] for name in ours), "it opens worst"
assert closed["nearest"] < 0.1 * closed["AR(9)"], "and far ahead of AR(9) in the loop"
assert opened["cubic"] < 0.2 * opened["AR(9)"], "the cubic wins the first column"
assert closed["cubic"] < 0.1 * min(closed[name] for name in ours), "and the second"

# %% tags=["check"]
for name in "AR(9)", *ours:
    checked = phase(models[name], loss, test).loss_by_step
    by_hand = validate_plain(models[name], test, N)
    torch.testing.assert_close(checked, by_hand, rtol=2e-2, atol=1e-7)
assert 0.3 < closed["AR(9)"] < 1, "about half of the variance is error"
assert lost > 100, "the mean of the LSTMs is lost after more than a wave or two"
behind = int((curves["AR(9)"] > lstm.mean(0)).nonzero()[0]) + 1
assert 1 < behind < 10, "AR(9) is ahead for a few steps"

# %% tags=["check"]
for name in ours:
    step = far(models[name], loss, far_test)
    truth, guessed = step.targets[-201:, :, 0], step.outputs[-201:, :, 0]
    centered = [rows - rows.mean() for rows in (truth, guessed)]
    product = (centered[0] * centered[1]).mean()
    rho = product / (truth.std() * guessed.std())
    error = (truth - guessed).square().mean()
    assert abs(error - 2 * (1 - rho)) < 0.2, "the error is 2 (1 - correlation)"

# %% tags=["check"]
assert 50 < trusted < 400
assert by_horizon(chosen)[trusted - 1] < 0.5, "on the test it holds, by a factor 2"
for name, watch in zip(ours, watches):
    assert scores[name] < 1.2 * min(watch.weights), "the best epoch was brought back"

# %% tags=["check"]
kept = {"weights": chosen.state_dict(), "mean": mean, "std": std}
kept["runs"] = far_test[:, ::7, 0].clone()  # (801, 8), for the playground of the site
torch.save(kept, "forecaster.pt")
again = RecurrentSequential(nn.LSTM(1, 32), nn.Linear(32, 1))
again.load_state_dict(torch.load("forecaster.pt", map_location=device)["weights"])
off = abs(phase(again, loss, valid).closed_loss.item() - min(scores.values()))
assert off < 1e-6, "the same network"

# %% tags=["check"]
exact = phase(oscillator, loss, sine)
assert exact.loss_by_step[1:].max() < 1e-20, "rnnkit's loop passes the sine"
assert validate_plain(oscillator, sine, N)[1:].max() < 1e-20, "the plain one too"
for mistake, options in mistakes.items():
    worst = wrong_loop(oscillator, sine, 200, **options)[1:].max()
    if options:
        assert worst > 1e-4, f"the sine finds it: {mistake}"
    else:
        assert worst < 1e-20, "and nothing where nothing is wrong"

# %% tags=["check"]
for mistake, options in mistakes.items():
    if options:
        wrong = wrong_loop(chosen, test, N, **options)[-N:].mean()
        assert wrong > 5 * phase(chosen, loss, test).closed_loss, mistake

# %% tags=["check"]
assert min(costs) > 2, "stopping costs each seed more than a factor 2"
# %% [markdown]
# ## In short
#
# - Validate the model as it will be used: `BPTTValidationPhase(nfeedback)`, `closed_loss`.
# - The open loss can rank models the wrong way round. So can a loss over both parts.
# - Look at the error by horizon, beside rivals in the same loop; say where trust ends.
# - Choose a checkpoint by the closed loss; finish the schedule, do not stop by it.
#
# ## Try it
#
# **1. One knob.** Raise the penalty of the cubic from `1e-6` to `1e-3`, or lower it to
# `1e-10`. The open loss stays below that of AR(9) throughout. Guess what the loop does, then
# count the runs (of 50) whose forecast leaves the range of the series, say 5 deviations.

# %% tags=["solution"]
knob = {}
for penalty in 1e-10, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3:
    step = phase(regression(train, cubic, 19, penalty), loss, test)
    inside = (step.outputs[-N:].abs() < 5).all(0).sum().item()
    open_loss = step.loss_by_step[100:-N].mean().item()
    knob[penalty] = open_loss, step.closed_loss.item(), 50 - inside
    row = "open {:.1e}, closed {:.1e}, {} escape".format(*knob[penalty])
    print(f"{penalty:.0e}: {row}")

# %% tags=["solution"]
opens = [row[0] for row in knob.values()]
assert opens == sorted(opens), "the open loss only rises"
assert opens[-1] < 0.8 * opened["AR(9)"], "and stays below that of AR(9)"
assert knob[1e-10][1] > 5 * knob[1e-5][1], "while it rises, the loop gets better"
assert min(knob[1e-4][2], knob[1e-3][2]) > 3, "until forecasts run away"

# %% [markdown] tags=["solution"]
# The larger the penalty, the larger the open loss. In the loop it is the other way round, up
# to a point where forecasts run away to infinity. Nothing in the open loss announces it.
#
# A cubic knows no bounds: once outside of the range it was fitted on, it leaves for good.

# %% [markdown]
# **2. Direct instead of a loop.** A **direct** forecast answers with the value 84 steps ahead at
# once, and is never fed its own. Fit AR(9) and the cubic that way. Guess for each whether it
# beats its own loop at the horizon 84.

# %% tags=["solution"]
def direct(features, reach, penalty, ahead=84):
    """The squared error of a regression straight to `ahead` steps ahead."""
    past = train[:, 0].double()
    x = features(past[:-ahead].unfold(0, reach, 1))
    small = penalty * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(x.T @ x + small, x.T @ past[reach + ahead - 1 :])
    seen = test[: len(test) - ahead, :, 0].T[:, -reach:].double()  # (B, reach)
    return (features(seen) @ weights - test[-1, :, 0]).square().mean().item()

# %% tags=["solution"]
straight = {"AR(9)": direct(linear, 9, 1e-9), "cubic": direct(cubic, 19, 1e-6)}
for name, error in straight.items():
    print(f"{name}: direct {error:.4f}, in the loop {curves[name][83]:.4f}")
assert straight["AR(9)"] < 0.8 * curves["AR(9)"][83], "direct saves the linear model"
assert straight["cubic"] > 10 * curves["cubic"][83], "and ruins the cubic"

# %% [markdown] tags=["solution"]
# A model whose errors grow in the loop is better off without it. A model that has the rule is
# better off in the loop: applied 84 times the rule is exact, while the step from here to 84
# steps ahead is far too crooked for a cubic.

# %% [markdown]
# **3. Lost, or wrong?** Beyond some hundreds of steps the LSTM is no better than the mean.
# Has it learned nothing there? Let it run alone for 2000 steps and compare the mean, the
# deviation and the main period with those of the series.

# %% tags=["solution"]
from rnnkit import sample_model

def period(rows):
    """The strongest period of (T, B): a parabola through the peak of the spectrum."""
    power = torch.fft.rfft(rows - rows.mean(0), dim=0).abs().square().mean(1)
    peak = int(power.argmax())
    left, top, right = power[peak - 1 : peak + 2].log().tolist()
    return len(rows) / (peak + 0.5 * (left - right) / (left - 2 * top + right))

def show(name, rows):
    middle = f"mean {rows.mean():5.2f}, deviation {rows.std():.2f}"
    print(f"{name}  {middle}, period {period(rows):.1f}")

# %% tags=["solution"]
truth = values[6000:60_000].view(-1, 2000).T  # (2000, 27)
show("series", truth)
slow = []
for seed, name in zip(SEEDS, ours):
    sampled = sample_model(models[name], 2301, far_test[:301])
    alone = sampled.tokens[301:, :, 0]  # after the primer
    show(f"seed {seed}", alone)
    slow.append(period(alone) / period(truth) - 1)
    assert abs(alone.mean()) < 0.2 and 0.8 < alone.std() < 1.25, "it keeps its range"
assert max(slow) < 0.12 and sum(slow) / len(slow) > 0.005, "and runs a little slow"

# %% [markdown] tags=["solution"]
# It is lost, not wrong: waves of the right height and nearly the right length, in the wrong
# place. They are a few percent too long, which after ten waves is a good part of a wave. A
# mean squared error cannot tell that from noise. Decide what you want from a long run, a
# place or a climate, and measure that.

# %% [markdown]
# ## Where next
#
# - A forecast with several inputs and in units: [Forecast a time series](00_forecast.py).
# - The same loop as a generator: [Generate from a primer](04_generate.py). Close it in your
#   browser, where you like: [Playground](../docs/playground.md).
# - Train on the model's own outputs: [Feedback][rnnkit.Feedback].
# - Others who met it: issues [1086](https://github.com/sktime/pytorch-forecasting/issues/1086)
#   of pytorch-forecasting and [8](https://github.com/keon/seq2seq/issues/8) of seq2seq.

# %% [markdown] tags=["evidence"]
# ## Evidence: how fast an error grows
#
# 64 pairs of series follow the same rule. The two of a pair begin a billionth apart. The slope
# of the logarithm of their distance is the largest Lyapunov exponent, and one over it the
# Lyapunov time:

# %% tags=["evidence"]
start = torch.linspace(0.4, 1.2, 64, dtype=torch.float64)
x = [start] * 171
for tenth in range(33_000):
    if tenth == 10_000:  # on the attractor: now make the pairs
        x = [torch.cat([old, old + 1e-9]) for old in x[-171:]]
    before = x[-171]
    x.append(x[-1] + 0.1 * (0.2 * before / (1 + before**10) - 0.1 * x[-1]))
distance = torch.stack([pair[64:] - pair[:64] for pair in x[171::10]]).abs()
distance = distance.clamp(min=1e-15).log().mean(1)  # one a unit of time
lyapunov = 1800 / (distance[2200] - distance[400]).item()
print(f"a factor e in {lyapunov:.0f} steps; 84 steps are {84 / lyapunov:.1f} of them")
assert 130 < lyapunov < 200, "about 160 steps"

# %% [markdown] tags=["evidence"]
# [NeuroBench](https://huggingface.co/datasets/NeuroBench/mackey_glass) states 197 for its own
# series with the delay 17, integrated by another method. So the forecasts of this page are
# short, in the units of the system: 84 steps are half a Lyapunov time, and what the LSTM loses
# there is mostly its own error and not chaos, as the cubic shows.

# %% [markdown] tags=["evidence"]
# ## Evidence: more lags do not save the linear model

# %% tags=["evidence"]
for reach in 5, 9, 20, 100:
    step = phase(regression(train, linear, reach), loss, test)
    open_loss = step.loss_by_step[100:-N].mean()
    print(f"AR({reach}): open loss {open_loss:.1e}, closed loss {step.closed_loss:.2f}")
    assert step.closed_loss > 2 * max(closed[name] for name in ours)

# %% [markdown] tags=["evidence"]
# ## Evidence: the closed loss of each epoch

# %% alt="The closed loss of validation over 24 epochs for three seeds, logarithmic. That of the weights themselves jumps up and down near 1 until the learning rate falls after epoch 14, and then drops by a factor of ten or more. That of the averaged weights is ten times lower from the start and falls steadily." caption="Closed loss of validation, three seeds. Averaged: the running average of the weights, over about the last 50 updates." tags=["evidence"]
fig, ax = plt.subplots(figsize=(5.2, 2.6))
for watch in watches:
    ax.plot(range(1, 25), watch.weights, color="C1", linewidth=1.3)
    ax.plot(range(1, 25), watch.average, "--", color="C0", linewidth=1.8)
ax.axvline(14, color="#666666", linewidth=1)
ax.text(14.4, 3.6, "the rate falls", color="#666666", va="top")
ax.text(8, 3.6, "the weights", color="C1", ha="center", va="top")
ax.text(8, 0.02, "averaged", color="C0", ha="center", va="top")
ax.set(xlabel="epoch", ylabel="closed loss", yscale="log", ylim=(0.008, 4))
ax.set_xticks([1, 7, 14, 24])
ax.set_yticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
ax.set_title("Averaged weights are calmer")
plt.show()

# %% tags=["evidence"]
for watch in watches:
    jumping = torch.tensor(watch.weights[7:14]).log().mean()
    calm = torch.tensor(watch.average[7:14]).log().mean()
    assert jumping - calm > math.log(1.5), "averaged weights are better on the way"
    assert 0.5 < watch.average[-1] / watch.weights[-1] < 2, "and no better at the end"
    assert watch.weights[-1] < 0.8 * min(watch.weights[:8]), "the schedule pays"

# %% [markdown] tags=["evidence"]
# On the way, averaged weights are better in each seed. At the end they are no better. `KeepBest`
# chose epochs of the falling rate, which differ little from the last:

# %% tags=["evidence"]
for seed, watch in zip(SEEDS, watches):
    best = min(watch.weights)
    epoch = watch.weights.index(best) + 1
    print(f"seed {seed}: epoch {epoch}, {best:.3f}; the last {watch.weights[-1]:.3f}")
    assert epoch > 14, "an epoch of the falling rate"

# %% [markdown] tags=["evidence"]
# ## Evidence: one loss over both parts hides the loop
#
# The longer the driven part, the better the same loop looks:

# %% tags=["evidence"]
for driven in 100, 300, 717:
    step = phase(chosen, loss, far_test[: driven + N + 1])
    print(f"{driven} driven: loss {step.loss:.3f}, closed loss {step.closed_loss:.3f}")
assert step.loss < 0.3 * step.closed_loss

# %% [markdown] tags=["evidence"]
# ## Evidence: published figures
#
# The common measure on this series is the NRMSE at 84 steps (Jaeger 2001, equation 25): read
# 1000 values, run alone to the 84th after them, on 50 runs; divide the root mean squared error
# of that value by the standard deviation of the series.

# %% tags=["evidence"]
runs = windows(6000, 60_200, 1084, every=1084)  # 1000 driven, 83 self-fed

def nrmse(model):
    error = phase(model, loss, runs).loss_by_step[-1]
    return (error.sqrt() / runs.std()).item()

published_way = {name: nrmse(models[name]) for name in ("AR(9)", "cubic", *ours)}
for name, value in published_way.items():
    print(f"{name:13} {value:.4f}")
assert max(published_way[name] for name in ours) < 0.6 < published_way["AR(9)"]
assert published_way["cubic"] < 0.05

# %% [markdown] tags=["evidence"]
# | Model | Training values | NRMSE at 84 steps | Source |
# |---|---|---|---|
# | Local models on a self-organizing map | 10,000 or 50,000 | 0.0088 | Vesanto 1997, as reported in Jaeger 2001 |
# | Echo state network, 400 units | 3000 | 0.00028 | [Jaeger 2001](https://www.ai.rug.nl/minds/uploads/EchoStatesTechRep.pdf), section 6.4 |
# | Echo state network, 400 units | 21,000 | 0.00012 | Jaeger 2001, section 6.4 |
#
# The LSTMs are not close, and the cubic does not reach the echo state networks either. The
# setting differs: Jaeger fits the output weights alone, by linear regression, to the series
# squashed by `tanh(y - 1)`, and averages 20 runs for this delay. [Jaeger and Haas
# (2004)](https://doi.org/10.1126/science.1091277) put their gain over earlier methods at a
# factor of 2400. [Gers, Eck and Schmidhuber (2001)](https://doi.org/10.1007/3-540-44668-0_93)
# found that LSTM has no advantage on this series over methods that read a fixed window. The
# table above says the same.
#
# The 84th step needs `nfeedback=83`, since the first forecast still reads a measured value.

# %% [markdown] tags=["evidence"]
# ## Evidence: the sunspots, where the answer is another
#
# The yearly sunspot number is measured and noisy. Three LSTMs train on 1700 to 1920. The loop
# is closed for 22 years from every year after that. The rivals are AR(9), the mean, and the
# number of eleven years ago, a period chosen with hindsight.

# %% tags=["evidence"]
from statsmodels.datasets import sunspots

number = torch.tensor(sunspots.load_pandas().data["SUNACTIVITY"].to_numpy()).float()
old = number[:221]  # 1700 to 1920
spots = ((number - old.mean()) / old.std()).view(-1, 1)
examples = torch.stack([spots[i : i + 61] for i in range(0, 161, 5)], dim=1)
starts = range(101, len(spots) - 141)  # 120 driven years; the first forecast is 1921
years = torch.stack([spots[i : i + 142] for i in starts], dim=1)

def by_year(model):
    """The squared error of horizons 1 to 22, from each start (22, starts)."""
    step = BPTTValidationPhase(21)(model, loss, years)
    return (step.outputs - step.targets)[-22:, :, 0].square()

# %% tags=["evidence"]
def train_sun(seed):
    torch.manual_seed(seed)
    model = RecurrentSequential(nn.LSTM(1, 32), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    Learner(model, loss, optimizer).fit(100, [examples])
    return by_year(model)

sun = torch.stack([train_sun(seed) for seed in SEEDS])  # (3, 22, starts)
rivals = {
    "AR(9)": by_year(regression(spots[:221], linear, 9)),
    "11 years ago": by_year(OfLags(lambda lags: lags[..., 0], 11)),
    "mean": by_year(OfLags(lambda lags: 0 * lags[..., 0], 1)),
}

# %% tags=["evidence"]
print("years ahead      1    2    5   11   22")
for name, errors in {"LSTM": sun.mean(0), **rivals}.items():
    row = errors.mean(1)[[0, 1, 4, 10, 21]].tolist()
    print(f"{name:13}" + "".join(f"{error:5.2f}" for error in row))

# %% tags=["evidence"]
def lead(name, first, last):
    """By how much a rival's error is larger, and the standard error of that."""
    by_start = (rivals[name] - sun.mean(0))[first - 1 : last].mean(0)  # (starts,)
    blocks = by_start[:66].view(6, 11).mean(1)  # a block is a cycle of the sun
    return blocks.mean().item(), blocks.std().item() / math.sqrt(6)

leads = {}
for name in "AR(9)", "11 years ago":
    for first, last in (1, 2), (3, 11), (12, 22):
        leads[name, first] = lead(name, first, last)
        difference, error = leads[name, first]
        ahead_by = f"{difference:5.2f} ± {error:.2f}"
        print(f"LSTM ahead of {name:12}, {first:2} to {last:2} years: {ahead_by}")

# %% tags=["evidence"]
cycle = rivals["11 years ago"]
assert sun[:, :2].mean((1, 2)).max() < 0.75 * cycle[:2].mean(), "1 to 2 years"
for name in "AR(9)", "11 years ago":
    difference, error = leads[name, 3]
    assert abs(difference) < 2 * error, "3 to 11 years: cannot be told apart"
    assert leads[name, 12][0] > 0.2, "12 to 22 years: the LSTM is ahead"
assert abs(leads["AR(9)", 1][0]) < 0.2, "1 to 2 years: level with AR(9)"

# %% [markdown] tags=["evidence"]
# One and two years ahead the LSTM is level with AR(9), and both beat the number of eleven years
# ago. At 3 to 11 years the three cannot be told apart. At 12 to 22 years the LSTM is ahead of
# both, on this test. All starts together hold only about eight cycles of the sun: what is
# smaller than twice the error printed above could not be seen.

# %% [markdown] tags=["evidence"]
# ## Evidence: how the settings were chosen
#
# By hand, and partly by earlier runs whose test losses were printed: size, rate and clipping of
# the LSTM, the 19 and 4 of the neighbors, the lags and the penalty of the cubic (as
# [exercise 1](#try-it) shows, the penalty matters most). So the test is not untouched. The
# differences that the page speaks of are factors of five and more between kinds of models; it
# claims no ranking among the three LSTMs and the nearest neighbors.
