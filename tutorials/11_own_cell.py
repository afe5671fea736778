# ---
# rnnkit:
#   description: >-
#     Write a recurrent cell of your own in PyTorch, test it, and turn it into a ConvLSTM that
#     predicts the next frames of a video, against the last frame and constant velocity.
#   needs: one CPU core for about forty seconds; matplotlib beside torch
#   data: a square that bounces through a small frame, computed here
#   minutes: 10
#   prerequisites: PyTorch tensors and a training loop; what an LSTM and a GRU are
#   learn: [to write a recurrent cell, three tests that find a wrong one, what a ConvLSTM is,
#     to predict video frames and judge them, when a kernel is too small]
# ---

# %% [markdown]
# # Your own recurrent cell, and a ConvLSTM
#
# After this page you can write a recurrent cell that PyTorch does not have, test it, and use
# convolutions in it to predict the next frames of a video.

# %% tags=["skip-execution"]
# %pip install "rnnkit[plot]"

# %% tags=["fold"] summary="Set-up: imports, the movies, the counting of wrong pixels"
import matplotlib.pyplot as plt
import torch
from torch import nn

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_default_device(device)  # each new tensor is made there
torch.set_num_threads(1)  # small arrays: more threads would wait for each other
plt.style.use("rnnkit.style")

SEEDS = (0, 1, 2)  # each claim about training is made over all three

# %% tags=["fold"]
def bounce(place, room):
    """A place on an endless line, folded into 0 to `room`."""
    place = place.remainder(2 * room)
    return torch.where(place > room, 2 * room - place, place)

def positions(steps, rows, size=12):
    """The top left corner of a 3 x 3 square, in pixels (steps, rows, 2)."""
    velocity = torch.randint(-1, 2, (rows, 2))
    velocity[(velocity == 0).all(1), 0] = 1  # no square stands still
    start = torch.randint(2 * (size - 3), (rows, 2))
    time = torch.arange(steps).view(-1, 1, 1)
    return bounce(start + velocity * time, size - 3)

# %% tags=["fold"]
def draw(corners, size=12):
    """Frames (..., 1, size, size) of corners (..., 2): 1 in the square, 0 around it."""
    pixel = torch.arange(size)
    inside = (pixel >= corners[..., None]) & (pixel < corners[..., None] + 3)
    rows, columns = inside[..., 0, :, None], inside[..., 1, None, :]
    return (rows & columns).unsqueeze(-3).float()

def wrong_pixels(guess, truth):
    """Pixels on the wrong side of a half, per frame: (steps, rows)."""
    return ((guess > 0.5) != (truth > 0.5)).sum((-3, -2, -1)).float()

# %% [markdown]
# ## The pattern
#
# A **cell** is one step of a recurrent network: it takes an input and the state before it, and
# gives a new state. All that is special about an LSTM or a GRU is in its cell. The rest is a
# loop over time, which is the same for all.
#
# ![Above, one step: a cell takes the state before and an input, and gives the new state. Below, the cell in a loop over five steps, each with an input, a state and an output.](../docs/assets/patterns/11.svg)
#
# So a network of your own needs a cell of your own, called like
# [torch.nn.LSTMCell][]: `state = cell(x, state)`.
#
# ## The data
#
# A white square of 3 x 3 pixels moves through a frame of 12 x 12 by one pixel a step, straight
# or diagonally, and bounces off the walls. You see it twice on this page: as the position of a
# corner, two numbers, and as frames, 144 pixels.
#
# ## The shapes

# %%
torch.manual_seed(100)
corners = positions(15, 300)  # the test: 300 movies of 15 frames
test = draw(corners)
shown, to_come = test[:10], test[10:]
print("positions", tuple(corners.shape), "(T, B, features)")
print("frames", tuple(test.shape), "(T, B, C, H, W)")

# %% [markdown]
# Only what a step holds is new: a picture of C channels, H high and W wide, instead of a list
# of features.
#
# ## Plain PyTorch
#
# The **minimal gated unit** ([Zhou et al. 2016](https://arxiv.org/abs/1603.09420)) is not in
# PyTorch. It is a GRU with one gate $f$ in place of two:
#
# $$
# \begin{aligned}
# f_t &= \sigma(W_f\,[x_t, h_{t-1}]) \\
# h_t &= (1 - f_t) \odot h_{t-1} + f_t \odot \tanh(W_n\,[x_t, f_t \odot h_{t-1}])
# \end{aligned}
# $$
#
# $[x, h]$ is one vector after the other, and the biases are left out of the formula. The gate
# says how much of the state is replaced, and how much of it the new value hears.

# %%
class MinimalGatedCell(nn.Module):
    def __init__(self, features, hidden):
        super().__init__()
        self.gate = nn.Linear(features + hidden, hidden)
        self.new = nn.Linear(features + hidden, hidden)

    def forward(self, x, h=None):  # (B, F), (B, H)
        if h is None:  # the start: zeros
            h = x.new_zeros(len(x), self.gate.out_features)
        f = self.gate(torch.cat([x, h], dim=1)).sigmoid()
        new = self.new(torch.cat([x, f * h], dim=1)).tanh()
        return (1 - f) * h + f * new  # (B, H)

# %% [markdown]
# `x.new_zeros` makes the first state on the device and in the precision of the input. The loop
# over time is three lines:

# %%
def over_time(cell, inputs, h=None):
    """The output of each step (T, B, H), and the last state (B, H)."""
    outputs = []
    for x in inputs:
        h = cell(x, h)
        outputs.append(h)
    return torch.stack(outputs), h

# %% [markdown]
# ## With rnnkit
#
# [Unroll][rnnkit.Unroll] is that loop as a module, called like `nn.GRU`: outputs and a state
# come back, and the state gets an axis of layers. So it goes wherever `nn.GRU` goes.

# %%
from rnnkit import Unroll

torch.manual_seed(0)
cell = MinimalGatedCell(2, 5)
inputs = torch.randn(7, 3, 2)  # (T, B, F)
outputs, state = Unroll(cell)(inputs)  # (T, B, H), (layers, B, H)

# %% tags=["check"]
by_hand, last = over_time(cell, inputs)
torch.testing.assert_close(outputs, by_hand)
torch.testing.assert_close(state[0], last)

# %% [markdown]
# ### Three tests of any cell
#
# A wrong cell usually runs. Three equalities, checked before any training, find many mistakes:
#
# 1. **T calls equal one.** Reading step by step, with the state in between, gives what one
#    call gives. Otherwise something is remembered outside of the state, or forgotten.
# 2. **A row alone** gives what it gives in a batch. Otherwise rows mix.
# 3. **`gradcheck`** compares the gradient with differences of the output. Otherwise the
#    gradient is cut. It needs `double` numbers and small sizes.

# %%
def calls_agree(model, inputs):
    whole, _ = model(inputs)
    state, parts = None, []
    for x in inputs.split(1):  # one step at a time, (1, B, ...)
        output, state = model(x, state)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts), whole)

def rows_agree(model, inputs):
    torch.testing.assert_close(model(inputs[:, :1])[0], model(inputs)[0][:, :1])

def gradient_agrees(model, inputs):
    torch.autograd.gradcheck(lambda x: model(x)[0], inputs.requires_grad_())

# %%
def test_model(model, inputs):
    for test_of in calls_agree, rows_agree, gradient_agrees:
        test_of(model.double(), inputs.detach().double())

test_model(Unroll(MinimalGatedCell(2, 5)), inputs)

# %% [markdown]
# ### Is it any good?
#
# Let it predict the next position of the square, against `nn.GRU` of the same size, in 200
# updates of 16 new tracks, by a [Learner][rnnkit.Learner]. The error is the root mean square,
# in pixels, from the third step on; before, the velocity cannot be known. For three seeds:

# %% tags=["fold"] summary="train(model, loss_fn, batches, rate): a Learner with Adam, clipping and one cycle"
from rnnkit import ClipGradients, Learner, RecurrentSequential, Scheduler, seq2seq_loss

def train(model, loss_fn, batches, rate):
    optimizer = torch.optim.Adam(model.parameters())
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, len(batches))
    callbacks = [ClipGradients(1.0), Scheduler(one_cycle, per="step")]
    Learner(model, seq2seq_loss(loss_fn), optimizer, callbacks).fit(1, batches)

# %% tags=["fold"]
def scaled(corners):  # pixels 0 to 9 become -1 to 1
    return corners / 4.5 - 1

# %% tags=["fold"]
def position_error(layer, seed):
    torch.manual_seed(seed)
    model = RecurrentSequential(layer(), nn.Linear(16, 2))
    batches = [scaled(positions(14, 16)) for _ in range(200)]
    train(model, nn.MSELoss(), batches, rate=0.02)
    with torch.no_grad():
        guess, _ = model(scaled(corners[:-1]))
    wrong = 4.5 * (guess - scaled(corners[1:]))[2:]
    return wrong.square().mean().sqrt().item()

layers = {
    "GRU": lambda: nn.GRU(2, 16),
    "minimal gated": lambda: Unroll(MinimalGatedCell(2, 16)),
}

# %% tags=["hide-input"]
position_errors = {}
for name, layer in layers.items():
    position_errors[name] = [position_error(layer, seed) for seed in SEEDS]
    weights = sum(p.numel() for p in layer().parameters())
    row = " ".join(f"{error:.2f}" for error in position_errors[name])
    print(f"{name:17} {row}, {weights} weights")

steady = 2 * corners[2:-1] - corners[1:-2]
steady_error = (steady - corners[3:]).float().square().mean().sqrt().item()
print(f"constant velocity {steady_error:.2f}")

# %% [markdown]
# The two are level here, and the cell of your own has two thirds of the weights. Both are ahead
# of constant velocity, which does not know of walls. The price is a loop in Python, where
# `nn.GRU` has a compiled one.
#
# ## A convolutional cell
#
# For frames, a linear layer is the wrong tool: it has a weight for each pair of pixels, and
# what it learns of one corner it does not know of another. A convolution does the same
# everywhere. **A ConvLSTM ([Shi et al. 2015](https://arxiv.org/abs/1506.04214)) is an LSTM
# cell with a convolution in place of the linear layer**, so its state is a stack of pictures.
# (In theirs the gates also see *c*; ours leaves that out.)

# %%
class ConvLSTMCell(nn.Module):
    def __init__(self, channels, hidden, kernel):
        super().__init__()
        self.gates = nn.Conv2d(channels + hidden, 4 * hidden, kernel, padding="same")
        nn.init.orthogonal_(self.gates.weight)
        self.hidden = hidden

    def forward(self, x, state=None):  # (B, C, height, width)
        if state is None:  # as large as the frame, whatever that is
            zeros = x.new_zeros(len(x), self.hidden, *x.shape[2:])
            state = zeros, zeros
        h, c = state
        i, f, g, o = self.gates(torch.cat([x, h], dim=1)).chunk(4, dim=1)
        c = (f + 1).sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

# %% [markdown]
# Two things are new against `nn.LSTMCell`: the parts are stacked along the channels, axis 1, and
# the first state takes its size from the input. The `+ 1` lets the cell keep its memory at first.
# Of a state that is a tuple, `Unroll` takes the first part as the output: so `h` stands first.

# %%
test_model(Unroll(ConvLSTMCell(1, 2, kernel=3)), torch.randn(3, 2, 1, 4, 4))

# %% [markdown]
# To predict the next frame, a convolution of one pixel turns the 8 channels into the **logit**
# of the probability that a pixel is white: its sigmoid is the probability.
# [PerStep][rnnkit.PerStep] applies it to each step. Its bias starts at the logit of the share of
# white pixels, 9 in 144, so that training need not first learn that frames are mostly black.

# %%
from rnnkit import PerStep

def conv_lstm(kernel):
    head = nn.Conv2d(8, 1, kernel_size=1)
    nn.init.constant_(head.bias, -2.7)
    return RecurrentSequential(Unroll(ConvLSTMCell(1, 8, kernel)), PerStep(head))

def train_frames(make, seed, rate=0.05):
    torch.manual_seed(seed)
    model = make()
    batches = [draw(positions(10, 8)) for _ in range(270)]
    train(model, nn.BCEWithLogitsLoss(), batches, rate)
    return model

# %%
models = [train_frames(lambda: conv_lstm(kernel=5), seed) for seed in SEEDS]

# %% [markdown]
# [forecast][rnnkit.forecast] reads the 10 frames shown and feeds each predicted frame back as
# the next input. The network has read pixels from 0 to 1 and answers with logits, so
# `torch.sigmoid` goes between. The rivals: the **last frame**, again and again; **constant
# velocity**, which moves the square on by its last step, and out of the frame if need be; and
# `nn.LSTM` with 64 units on the 144 pixels, trained on as many movies. A pixel is wrong on the
# other side of a half.

# %%
from rnnkit import forecast

def frames_ahead(model, frames, steps=5, between=torch.sigmoid):
    paths = forecast(model, steps, frames, between)  # (steps, B, paths, 1, 12, 12)
    return paths[:, :, 0]  # there is one path

guesses = {"ConvLSTM": [frames_ahead(model, shown) for model in models]}

# %% tags=["fold"] summary="The rivals"
def pixel_lstm():
    """An LSTM that reads a frame as 144 features."""
    head = nn.Linear(64, 144)
    nn.init.constant_(head.bias, -2.7)
    unflatten = PerStep(nn.Unflatten(1, (1, 12, 12)))
    return RecurrentSequential(PerStep(nn.Flatten()), nn.LSTM(144, 64), head, unflatten)

velocity = corners[9] - corners[8]
ahead = torch.arange(1, 6).view(-1, 1, 1)
flat = [train_frames(pixel_lstm, seed, rate=0.01) for seed in SEEDS]
guesses["nn.LSTM, pixels"] = [frames_ahead(model, shown) for model in flat]
guesses["constant velocity"] = [draw(corners[9] + velocity * ahead)]
guesses["last frame"] = [shown[-1:].expand(5, -1, -1, -1, -1)]

# %% tags=["hide-input"]
bounces = wrong_pixels(guesses["constant velocity"][0], to_come).amax(0) > 0  # (B,)
print(f"{int(bounces.sum())} of {len(bounces)} squares bounce in the 5 frames")
print("wrong in frame       1    3    5 bounce  none")
mean_errors = {}
for name, frames in guesses.items():
    wrong = torch.stack([wrong_pixels(guess, to_come) for guess in frames])
    mean_errors[name] = wrong.mean(2)  # (seeds, 5)
    by_frame = "".join(f"{wrong[:, k].mean():5.1f}" for k in (0, 2, 4))
    parts = f"{wrong[:, :, bounces].mean():7.1f}{wrong[:, :, ~bounces].mean():6.1f}"
    print(f"{name:17}{by_frame}{parts}")

# %% [markdown]
# The last two columns are means of all five frames, with a bounce and without; the figure at the
# top shows one movie. **Constant velocity is exact until a wall comes, and no network can beat
# that. With the bounces the ConvLSTM is far ahead**, since it has seen where the walls are and
# what happens there. `nn.LSTM` on the pixels predicts one frame well and then loses the square:
# what it learns at one place it has to learn again at the next.

# %% [markdown]
# ## Use it: another frame, more squares
#
# The weights of a convolution do not depend on the size of the frame. So the same network,
# trained on one square in 12 x 12 pixels, forecasts frames of 24 x 24 with two squares in them.
# Wrong pixels in frames 1, 3 and 5:

# %% tags=["hide-input"]
torch.manual_seed(101)
first, second = positions(15, 500, size=24), positions(15, 500, size=24)
large = torch.maximum(draw(first, size=24), draw(second, size=24))

distance = (first - second).abs().amax(2).amin(0)  # the least, of each row
parts = {"far apart": distance > 8, "near": distance <= 8}
in_large = {}
for name, rows in parts.items():
    guess = torch.stack([frames_ahead(model, large[:10, rows]) for model in models])
    in_large[name] = wrong_pixels(guess, large[10:, rows]).mean(2)  # (seeds, 5)
    by_frame = "".join(f"{in_large[name][:, k].mean():6.2f}" for k in (0, 2, 4))
    print(f"{name:9} {int(rows.sum()):3} movies: {by_frame}")

# %% [markdown]
# Two squares far apart are about as easy as one. Where they come near, the network meets
# shapes it has never seen, and errs. `nn.LSTM` on the pixels cannot even read such a frame.
#
# ## What goes wrong
#
# ### A cell that runs and is wrong
#
# Each of these cells is called without an error, and each breaks one of the three equalities:

# %%
class KeepsItself(MinimalGatedCell):
    kept = None

    def forward(self, x, h=None):  # the state is on the object, not handed on
        self.kept = super().forward(x, self.kept)
        return self.kept

class MixesRows(MinimalGatedCell):
    def forward(self, x, h=None):  # scales by the batch
        return super().forward(x - x.mean(0), h)

class CutsGradient(MinimalGatedCell):
    def forward(self, x, h=None):  # nothing is learned of the step before
        return super().forward(x, h if h is None else h.detach())

# %% tags=["hide-input"]
def found_by(cell):
    for test_of in calls_agree, rows_agree, gradient_agrees:
        try:
            test_of(Unroll(cell).double(), inputs.detach().double())
        except (AssertionError, RuntimeError):
            return test_of.__name__
    return "none"

findings = {}
for wrong_cell in MinimalGatedCell, KeepsItself, MixesRows, CutsGradient:
    findings[wrong_cell.__name__] = found_by(wrong_cell(2, 5))
    print(f"{wrong_cell.__name__:17} found by: {findings[wrong_cell.__name__]}")

# %% [markdown]
# The cure: keep the three tests beside every cell you write.
#
# ### A kernel that is too small
#
# A kernel of 5 lets news travel two pixels a step, one of 3 a single pixel. Our square moves
# by one, so 3 should do. Of three seeds:

# %% tags=["hide-input"]
narrow = [train_frames(lambda: conv_lstm(kernel=3), seed) for seed in SEEDS]
wrong_narrow = [wrong_pixels(frames_ahead(net, shown), to_come) for net in narrow]
narrow_errors = torch.stack(wrong_narrow).mean((1, 2))  # (seeds,)
wide_errors = mean_errors["ConvLSTM"].mean(1)
for seed in SEEDS:
    both = f"kernel 3 {narrow_errors[seed]:.2f}, kernel 5 {wide_errors[seed]:.2f}"
    print(f"wrong pixels: {both}")

# %% [markdown]
# It does not, with as many updates. At a wall the far edge of the square has to turn when the
# near one touches, three pixels away. With a kernel of 3 that must go through the state, pixel by
# pixel, and the network has to learn to hand it on. **A kernel that covers the speed may still be
# too small.** Try a larger one [before anything else](#evidence-what-the-table-does-not-say).
#
# ### Feeding what the network has not read
#
# The network was trained on frames of 0 and 1 and gives logits. What goes between, the
# **sampler** of `forecast`, is yours to choose: nothing, a sigmoid, or frames of 0 and 1 again:

# %%
def whole(logits):
    return (logits > 0).float()

# %% tags=["hide-input"]
betweens = {
    "logits as they are": nn.Identity(),
    "probabilities": torch.sigmoid,
    "whole frames": whole,
}
fed_errors = {}
for name, between in betweens.items():
    guess = [frames_ahead(model, shown, between=between) for model in models]
    if name == "logits as they are":
        guess = [frame.sigmoid() for frame in guess]  # to be counted like the others
    wrong = torch.stack([wrong_pixels(frames, to_come) for frames in guess])
    fed_errors[name] = wrong[:, 4].mean(1)  # (seeds,)
    print(f"{name:18} {wrong[:, 4].mean():.2f} wrong in frame 5")

# %% [markdown]
# Logits ruin the forecast, and no error is raised. Probabilities will do, but the network has
# never read a gray pixel, and doubt grows from frame to frame. Whole frames are best here, where
# pixels are black or white.

# %% tags=["check"]
for one, other in zip(*position_errors.values()):
    assert 0.8 < other / one < 1.25, "GRU and minimal gated unit are level"
assert max(map(max, position_errors.values())) < 0.95 * steady_error, "ahead of steady"
sizes = [sum(p.numel() for p in layer().parameters()) for layer in layers.values()]
assert 3 * sizes[1] < 2.2 * sizes[0], "two thirds of the weights"

# %% tags=["check"]
conv = mean_errors["ConvLSTM"]
steady_frames = mean_errors["constant velocity"][0]
assert (conv.mean(1) < 0.5 * steady_frames.mean()).all(), "ahead of constant velocity"
assert (conv.mean(1) < 0.5 * mean_errors["nn.LSTM, pixels"].mean(1)).all()
steady_wrong = wrong_pixels(guesses["constant velocity"][0], to_come)
assert steady_wrong[:, ~bounces].max() == 0, "exact until a wall comes"
assert (mean_errors["nn.LSTM, pixels"][:, 0] < 2).all(), "one frame it predicts well"
assert (mean_errors["nn.LSTM, pixels"][:, 4] > 4).all(), "then it loses the square"

# %% tags=["check"]
apart = in_large["far apart"].mean(1)
assert (apart < 2 * conv.mean(1)).all(), "as easy as one, within a factor of two"
assert (in_large["near"].mean(1) > 1.5 * apart).all(), "where it errs"
found = ["none", "calls_agree", "rows_agree", "gradient_agrees"]
assert list(findings.values()) == found
assert (narrow_errors > 2.5 * wide_errors).all(), "3 is too small"
assert (fed_errors["logits as they are"] > 3 * fed_errors["probabilities"]).all()
assert (fed_errors["whole frames"] < 0.9 * fed_errors["probabilities"]).all()

# %% [markdown]
# ## In short
#
# - A recurrent network of your own needs one step of your own; `Unroll(cell)` is the loop.
# - Test a cell before you train it: T calls equal one, a row alone, `gradcheck`.
# - A ConvLSTM is an LSTM cell with a convolution in it. Its state is pictures, of any size.
# - Put constant velocity in the table, and feed back what the network has learned to read.
#
# ## Try it
#
# **1. Half a gate.** In the minimal gated unit, the gate also says how much of the state the
# new value hears: `f * h`. Put `h` in its place. Guess by how much the error grows.

# %% tags=["solution"]
class HalfGated(MinimalGatedCell):
    def forward(self, x, h=None):
        if h is None:
            h = x.new_zeros(len(x), self.gate.out_features)
        both = torch.cat([x, h], dim=1)
        f = self.gate(both).sigmoid()
        return (1 - f) * h + f * self.new(both).tanh()

half = [position_error(lambda: Unroll(HalfGated(2, 16)), seed) for seed in SEEDS]
print("errors of three seeds:", "  ".join(f"{error:.2f}" for error in half))
for error, before in zip(half, position_errors["minimal gated"]):
    assert 0.8 < error / before < 1.25, "no difference to speak of"

# %% [markdown] tags=["solution"]
# Hardly at all, on this task. The gate and the new value then read the same vector, so one
# product can make both, and the cell gets cheaper.

# %% [markdown]
# **2. A world without walls.** Zeros around the frame are how a convolution sees its border.
# With `padding_mode="circular"` the left edge continues at the right one. Can such a ConvLSTM
# learn to bounce? Guess, and find a proof that needs no training.

# %% tags=["solution"]
def shifts_agree(model):
    """Whether a movie rolled to the side has its forecast rolled to the side."""
    moved = model(shown.roll(4, dims=-1))[0]
    return torch.allclose(moved, model(shown)[0].roll(4, dims=-1), atol=1e-4)

around = conv_lstm(kernel=5)
circular = nn.Conv2d(9, 32, kernel_size=5, padding="same", padding_mode="circular")
around[0].cells[0].gates = circular
print("circular:", shifts_agree(around), " zeros:", shifts_agree(models[0]))
assert shifts_agree(around) and not shifts_agree(models[0])

# %% [markdown] tags=["solution"]
# It cannot, whatever its weights: move the movie to the side, and its forecast moves along,
# through any wall. Zero padding tells the network where the walls are. On data without walls,
# say a crop of a larger picture, the same zeros make it see borders that are not there.

# %% [markdown]
# **3. One frame only.** Show the trained network one frame, so that nothing tells where the
# square is going. Guess what the next frame looks like, and how many white pixels it has.

# %% tags=["solution"]
lone = frames_ahead(models[0], shown[9:], steps=1)[0]  # (B, 1, 12, 12)
sums = lone.sum((1, 2, 3))
over_half = (lone > 0.5).sum((1, 2, 3)).float()
print(f"sum {sums.mean():.1f}, pixels above a half {over_half.mean():.1f}")
assert 8 < sums.mean() < 11 and over_half.mean() < 7

# %% [markdown] tags=["solution"]
# A blur: the mean of the squares that may come. It has about the right sum and too few pixels
# above a half. The cross-entropy asks for the probability of each pixel by itself, and the mean
# squared error for its mean, which is the same. Neither can say "here or there, not both".

# %% [markdown]
# ## Where next
#
# - The equations of the LSTM and the GRU: [Recurrent networks](01_recurrent.py).
# - How far ahead a network fed by itself can be trusted: [Closed loop](08_closed_loop.py).
# - Cells with an output of their own, learned first states, packed input:
#   [Models of your own](../docs/models.md).

# %% [markdown] tags=["evidence"]
# ## Evidence: the figure at the top

# %% alt="Four rows of six small frames: the last frame shown and the five to come. What comes: a white square runs into a wall and comes back. ConvLSTM: nearly the same, a little ragged. Constant velocity: the square leaves the frame. An LSTM on pixels: the square blurs or fades." caption="A square meets a wall. Brightness is the predicted probability; each forecast reads its own frames." tags=["hero", "hide-input", "evidence"]
row = int((wrong_pixels(guesses["constant velocity"][0], to_come)[2] > 5).nonzero()[0])
lines = {"what comes": to_come, "ConvLSTM": guesses["ConvLSTM"][0]}
lines["constant\nvelocity"] = guesses["constant velocity"][0]
lines["nn.LSTM,\npixels"] = guesses["nn.LSTM, pixels"][0]
fig, axes = plt.subplots(4, 6, figsize=(5.2, 3.1))
for (name, frames), line in zip(lines.items(), axes):
    for k, ax in enumerate(line):
        picture = shown[9, row] if k == 0 else frames[k - 1, row]
        ax.imshow(picture[0].cpu(), cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[], xlabel="")
    line[0].set_ylabel(name, rotation=0, ha="right", va="center")
for k, ax in enumerate(axes[-1]):
    ax.set_xlabel("shown" if k == 0 else f"+{k}")
fig.suptitle("The ConvLSTM knows of the wall", x=0.02, ha="left", weight="bold")
plt.show()

# %% [markdown] tags=["evidence"]
# ## Evidence: seeds
#
# Wrong pixels in each frame to come, for each seed:

# %% tags=["evidence"]
for name in "ConvLSTM", "nn.LSTM, pixels":
    for seed in SEEDS:
        row_of = "".join(f"{error:5.1f}" for error in mean_errors[name][seed].tolist())
        print(f"{name:15} {seed}: {row_of}")

# %% [markdown] tags=["evidence"]
# ## Evidence: beyond the training length
#
# Training read at most nine steps. Fed by its own probabilities, the network goes on for 40:

# %% tags=["evidence"]
torch.manual_seed(102)
longer = draw(positions(50, 100))
long_guess = torch.stack([frames_ahead(net, longer[:10], steps=40) for net in models])
long_errors = wrong_pixels(long_guess, longer[10:]).mean(2)  # (seeds, 40)
for k in 1, 5, 10, 20, 40:
    print(f"frame {k:2}: {long_errors[:, k - 1].mean():5.2f} wrong pixels")
assert (long_errors[:, 39] > 1.5 * long_errors[:, 4]).all()

# %% [markdown] tags=["evidence"]
# Errors grow, and some squares fade away for good: a blank frame has 9 wrong pixels.

# %% [markdown] tags=["evidence"]
# ## Evidence: what the table does not say
#
# - The world is so small that the test holds positions that training has seen. What is new to
#   the network is in the larger frame.
# - A rule with walls written in would be exact. The network had to find them in the pixels.
# - [Shi et al. (2015)](https://arxiv.org/abs/1506.04214) compare with a fully connected LSTM
#   and with optical flow on two moving digits and on radar, with several layers and an encoder
#   and a forecaster apart; theirs is ahead of both. Our sizes are not comparable.
# - The smaller kernel has fewer weights and a shorter reach, and the page does not part the two.
#   Tried once beside it, with three seeds each: 14 channels, so that the weights are as many; a
#   second layer, so that the reach is; a dilation of 2. None of them came near the kernel of 5.
# - Rates, sizes and the number of updates were chosen by hand with the test movies in sight.
#   The claims are factors of two and more.
