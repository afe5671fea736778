# %% [markdown]
# # Generate from a primer
#
# After this page you can let a trained network go on with a text, choose how it draws each character, and measure what
# the result is worth.

# %% tags=["skip-execution"]
# %pip install "rnnkit[plot]"

# %% [markdown]
# ## What comes out
#
# Source files of Python go in, character by character. The network learns to foretell the next one. Then it is given
# the start of a file and left alone. This is all of it; the rest of the page explains each line, and doubts the result.

# %%
import math
import re
import sys
import sysconfig
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

from rnnkit import BPTTTrainingPhase, ClipGradients, Learner, RecurrentSequential
from rnnkit import Scheduler, SoftmaxSampler, StreamLoader
from rnnkit import sample_best, sample_model, seq2seq_loss

# %%
torch.set_num_threads(1)  # small arrays: more threads would wait for each other
plt.style.use("rnnkit.style")

# %%
FILES = {
    "training": "difflib doctest http/cookiejar imaplib optparse tarfile"
    " unittest/case xml/dom/minidom",
    "validation": "calendar pprint",
    "test": "gettext pstats shelve textwrap trace weakref",
}
LIBRARY = Path(sysconfig.get_paths()["stdlib"])  # of the Python that runs this page
DEPTHS = 10  # a line break and its indent of 0 to 9 times four spaces: one character
ALPHABET = "".join(map(chr, [*range(DEPTHS), *range(32, 127)]))
V = len(ALPHABET)  # 105 characters


# %%
def read(names):
    """Files of the standard library as one text, in characters of ALPHABET."""
    files = [LIBRARY / f"{name}.py" for name in names.split()]
    text = "".join(file.read_text(encoding="utf-8") for file in files).expandtabs()
    return "".join(c if c in ALPHABET else "?" for c in fold(text))


# %%
def fold(text):
    """Each line break with the spaces after it becomes one character, its depth."""
    return re.sub("\n( {4}){0,9}", lambda found: chr(len(found[0]) // 4), text)


def unfold(text):
    return re.sub("[\0-\x09]", lambda found: "\n" + "    " * ord(found[0]), text)


def encode(text):
    return torch.tensor([ALPHABET.index(c) for c in fold(text)])


def decode(tokens):
    return unfold("".join(ALPHABET[i] for i in tokens))


# %%
texts = {part: read(names) for part, names in FILES.items()}
train, valid, test = (encode(text) for text in texts.values())  # each (N,)
loss = seq2seq_loss(nn.CrossEntropyLoss())


@torch.no_grad()
def bits(model, stream):
    """Bits per character: what the true next one costs.

    Read as 32 rows side by side.
    """
    ((inputs, targets),) = StreamLoader(stream, batch_size=32, window=len(stream))
    return loss.on(model, inputs, targets).item() / math.log(2)


# %%
class Watch:
    """A callback: after every 100 steps, the bits of training since then,
    and of validation.
    """

    def __init__(self):
        self.rows, self.recent = [], []

    def on_step_end(self, learner):
        self.recent.append(learner.state.loss)
        if len(self.recent) == 100:
            seen = torch.stack(self.recent).mean().item() / math.log(2)
            self.rows.append((seen, bits(learner.model, valid)))
            self.recent = []


# %%
BATCH, WINDOW, H = 16, 64, 128


def make_network(seed, H):
    torch.manual_seed(seed)
    return RecurrentSequential(nn.Embedding(V, 32), nn.LSTM(32, H), nn.Linear(H, V))


# %%
def fit(model, stream, epochs, watch):
    loader = StreamLoader(stream, BATCH, WINDOW)  # 16 rows, 64 characters at a time
    optimizer = torch.optim.Adam(model.parameters(), lr=0.012)
    steps = epochs * len(loader)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    callbacks = [ClipGradients(1.0), Scheduler(falling, per="step"), watch]
    # stateful: a window goes on where the last one ended
    phase = BPTTTrainingPhase(stateful=True)
    Learner(model, loss, optimizer, callbacks).fit(epochs, loader, training=phase)
    return model.eval()


# %%
watch = Watch()
model = fit(make_network(0, H), train, 3, watch)

# %%
START = "class Reader:\n    def "
primer = encode(START).unsqueeze(1)  # (T0, B): one row
sampler = SoftmaxSampler(temperature=0.8, generator=torch.Generator().manual_seed(0))
sample = sample_model(model, len(primer) + 500, primer, sampler)


def show(sample, lines=12, row=0):
    text = decode(sample.tokens[:, row])
    print("\n".join(line[:72] for line in text.split("\n")[:lines]))


show(sample)

# %% [markdown]
# The first line and the next word, `def`, are given (lines are cut at 72 characters). The rest is the network's. The form is that of Python; it means
# nothing. On text of the test files it needs this many bits per character:

# %%
of_model = bits(model, test)
alike = math.log2(V)
print(f"{of_model:.2f} bits per character, {alike:.2f} if all were equally likely")
assert of_model < 0.45 * alike, "the network has learned"

# %% [markdown]
# Whether that is good is answered [below](#against-the-baselines), by a file compressor among others.
#
# ## You will learn
#
# - how a model goes on after a [primer](../docs/glossary.md#primer), first in plain PyTorch, then with rnnkit, with the
#   same characters;
# - what temperature, top-k, top-p and min-p do to a choice and to a text, and why the likeliest character at each step
#   gives a bad text;
# - how to measure a generator: bits per character, repetition, and what each of them hides.
#
# ## You need
#
# The install line above and one CPU core: the page runs in about a minute, and the footer has the measured seconds. No
# download: the text is that of the Python that runs the page. You should know what one
# [step ahead](02_seq2seq.py) is.
#
# ## The pattern
#
# ![Unrolled graph: the first three inputs are given, the primer. From then on a sampler S takes the output of a step and draws the next input from it, dashed; the state goes on to the right.](../docs/assets/patterns/04.svg)
#
# While the model reads the primer, its outputs only build up the [state](../docs/glossary.md#state). From the last
# output of the primer on, a [sampler](../docs/glossary.md#sampler) turns each output into the next input. Training has
# no such loop: there every input is [the true one](../docs/glossary.md#teacher-forcing).

# %% [markdown]
# ## The shapes
#
# A text is a tensor of integers: `(N,)` as a [stream](../docs/glossary.md#stream), `(T, B)` as a batch. There is no
# feature axis; the embedding makes it.

# %%
inputs, targets = next(iter(StreamLoader(train, BATCH, WINDOW)))
outputs, ((h, c),) = model(inputs)
T0, B, length = 30, 4, 50
sample = sample_model(model, length, inputs[:T0, :B], sample_best)
for name, tensor, shape, axes in [
    ("inputs", inputs, (WINDOW, BATCH), "(T, B)"),
    ("targets", targets, (WINDOW, BATCH), "(T, B)"),
    ("outputs", outputs, (WINDOW, BATCH, V), "(T, B, V)"),
    ("h", h, (1, BATCH, H), "(layers, B, H)"),
    ("tokens", sample.tokens, (length, B), "(length, B)"),
    ("log_probs", sample.log_probs, (length, B), "(length, B)"),
    ("next", sample.next, (1, B), "(1, B)"),
]:
    assert tensor.shape == shape, name
    print(f"{name:10}{tuple(tensor.shape)!s:14}{axes}")

# %% [markdown]
# > [!NOTE]
# > `length` counts all that the model reads, the primer too: `tokens[:T0]` is the primer. `next` is the character drawn
# > last, which the model has not read yet.

# %%
assert torch.equal(inputs[1:], targets[:-1]), "a target is the next input"
assert torch.equal(sample.tokens[:T0], inputs[:T0, :B]), "first the primer"
best = sample.outputs.argmax(2)
before = best[T0 - 1 : -1]
assert torch.equal(sample.tokens[T0:], before), "then each from the output before it"
assert torch.equal(sample.next[0], best[-1]), "and next from the last output"

# %% [markdown]
# ## The data
#
# The standard library of Python is licensed under the
# [PSF License Version 2](https://docs.python.org/3/license.html). The files are read from the running Python, so
# another version of it has slightly other text. These sixteen change little from one version to the next.

# %%
print(f"Python {sys.version_info.major}.{sys.version_info.minor}")
for part, names in FILES.items():
    files = len(names.split())
    size = len(texts[part]) / 1000
    lines = unfold(texts[part]).count("\n")
    print(f"{part:11}{files} files, {size:4.0f} thousand characters, {lines} lines")

a_look = unfold(texts["test"][texts["test"].index("def dedent") :])
print("\n" + "\n".join(a_look.split("\n")[:7]))

# %% [markdown]
# The split is by file. Nothing of a test file is trained on, unless the same line stands in two files. Count that:


# %%
def long_lines(text):
    lines = [line.strip() for line in unfold(text).split("\n")]
    return [line for line in lines if len(line) >= 30]


known = set(long_lines(texts["training"]))
lines = long_lines(texts["test"])
seen = [line for line in lines if line in known]
print(f"{len(seen)} of {len(lines)} long test lines stand in the training part")
assert len(seen) < 0.02 * len(lines), "the test text is new"

# %% [markdown]
# A skeptic asks for two baselines. The first counts: how often did each character follow the last *n* in the training
# text? With *n* = 1 that is the **bigram model**. Counts of longer contexts are mixed with those of shorter ones, by the
# rule of [Witten and Bell (1991)](https://doi.org/10.1109/18.87000): the more different characters have followed a
# context, the less its own counts weigh.


# %%
def numbers(text, k):
    """Each context of k characters and the next: one number in base V."""
    place = V ** torch.arange(k, -1, -1)
    return (text.unfold(0, k + 1, 1) * place).sum(1)


# %%
def counting_bits(n, train, test):
    """Bits per character of a model that counts what follows the last n characters."""
    p = torch.full((len(test) - n,), 1 / V)
    for k in range(n + 1):
        pairs, count = numbers(train, k).unique(return_counts=True)
        contexts, of_pair, kinds = (pairs // V).unique(
            return_inverse=True, return_counts=True
        )
        total = torch.zeros(len(contexts)).index_add(0, of_pair, count.float())
        asked = numbers(test[n - k :], k)
        i = torch.searchsorted(pairs, asked).clamp(max=len(pairs) - 1)
        j = torch.searchsorted(contexts, asked // V).clamp(max=len(contexts) - 1)
        mixed = (count[i] * (pairs[i] == asked) + kinds[j] * p) / (total[j] + kinds[j])
        p = torch.where(contexts[j] == asked // V, mixed, p)
    return -p.log2().mean().item()


# %%
of_counts = {n: counting_bits(n, train, test) for n in (0, 1, 2, 3, 4, 6)}
for n, value in of_counts.items():
    print(f"the last {n} characters: {value:.2f} bits per character")
bigram, best_count = of_counts[1], min(of_counts.values())
assert bigram > 1.2 * best_count, "more context helps"
assert of_counts[6] > best_count, "but six characters are too many for this much text"

# %% [markdown]
# The second is a **compressor**. It has no training; it repeats what it has seen. `lzma` first reads the test text
# alone. Then it reads the training text before it, and only the bytes that the test text adds are counted.

# %%
import lzma


def packed(text):
    return 8 * len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


alone = packed(texts["test"]) / len(test)
added = packed(texts["training"] + texts["test"]) - packed(texts["training"])
prefixed = added / len(test)
print(
    f"lzma: test text alone {alone:.2f}, "
    f"after the training text {prefixed:.2f} bits per character"
)
assert prefixed < alone, "the training text helps the compressor too"

# %% [markdown]
# ## Plain PyTorch
#
# First without rnnkit. The text is cut into 16 rows that are read side by side, and the state goes from window to
# window. It is [detached](../docs/glossary.md#detach) there: the number goes on, the gradient does not.


# %%
class CharacterModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, 32)
        self.rnn, self.head = nn.LSTM(32, H), nn.Linear(H, V)

    def forward(self, inputs, state=None):  # state=None: start from zeros
        hidden, state = self.rnn(self.embedding(inputs), state)
        return self.head(hidden), state


# %%
def plain_training(model, stream, windows):
    n = (len(stream) - 1) // BATCH  # characters a row
    text = torch.stack([stream[i * n : (i + 1) * n + 1] for i in range(BATCH)], dim=1)
    optimizer, state, losses = torch.optim.Adam(model.parameters(), lr=0.01), None, []
    for start in range(0, windows * WINDOW, WINDOW):
        inputs, targets = (text[start + i :][:WINDOW] for i in (0, 1))
        outputs, state = model(inputs, state)
        logits = outputs.flatten(0, 1)
        batch_loss = nn.functional.cross_entropy(logits, targets.flatten())
        optimizer.zero_grad()
        batch_loss.backward()
        optimizer.step()
        state = tuple(part.detach() for part in state)
        losses.append(batch_loss.item())
    return losses


# %% [markdown]
# And the loop that generates. It draws from `softmax(logits / temperature)`:


# %%
@torch.no_grad()
def plain_generation(model, length, primer, temperature, generator):
    outputs, state = model(primer)  # all of the primer at once
    tokens = [primer]
    for _ in range(length - len(primer)):
        probabilities = (outputs[-1] / temperature).softmax(1)  # (B, V)
        drawn = torch.multinomial(probabilities, 1, generator=generator).T  # (1, B)
        tokens.append(drawn)
        outputs, state = model(drawn, state)  # one step, from the last state
    return torch.cat(tokens)


# %% [markdown]
# ## With rnnkit
#
# [StreamLoader][rnnkit.StreamLoader] cuts the rows and the windows, and a
# [BPTTTrainingPhase][rnnkit.BPTTTrainingPhase] with `stateful=True` carries and detaches the state:

# %%
from itertools import islice

torch.manual_seed(0)
by_hand = plain_training(CharacterModel(), train, windows=20)
small = make_network(0, H)
optimizer = torch.optim.Adam(small.parameters(), lr=0.01)
phase = BPTTTrainingPhase(stateful=True)
batches = islice(StreamLoader(train, BATCH, WINDOW), 20)
losses = [phase(small, loss, batch, optimizer).loss.item() for batch in batches]
difference = (torch.tensor(losses) - torch.tensor(by_hand)).abs().max()
print(
    f"20 windows: loss {losses[0]:.3f} -> {losses[-1]:.3f}, "
    f"largest difference {difference:g}"
)
assert difference < 1e-4, "both give the same losses, window by window"

# %% [markdown]
# [sample_model][rnnkit.sample_model] is the second loop. Given the same weights and the same generator, it draws the
# same characters:

# %%
plain = CharacterModel()
weights = zip(plain.state_dict(), model.state_dict().values(), strict=True)
plain.load_state_dict(dict(weights))
for seed, temperature in (0, 0.5), (1, 1.0), (2, 1.5):
    first, second = (torch.Generator().manual_seed(seed) for _ in range(2))
    tokens = plain_generation(plain, 200, primer, temperature, first)
    sampler = SoftmaxSampler(temperature, generator=second)
    sample = sample_model(model, 200, primer, sampler)
    equal = (tokens == sample.tokens).sum()
    print(f"temperature {temperature}: {equal} of 200 characters are equal")
    assert torch.equal(tokens, sample.tokens), "the same text"

# %% [markdown]
# ### Go on where you stopped
#
# A sample holds `next` and the state after its last token. With both, 50 characters and then 50 more are the 100 that
# one call gives. The generator goes on where it stopped, too.


# %%
def drawing(seed, **options):
    return SoftmaxSampler(generator=torch.Generator().manual_seed(seed), **options)


for seed in range(3):
    at_once = sample_model(model, 100, primer, drawing(seed))
    sampler = drawing(seed)
    first = sample_model(model, 50, primer, sampler)
    second = sample_model(model, 50, first.next, sampler, first.state)
    both = torch.cat([first.tokens, second.tokens])
    assert torch.equal(both, at_once.tokens), "50 + 50 = 100"
    assert torch.equal(second.next, at_once.next), "and the character after them"
print(repr(decode(both[40:60, 0])), "across the border")

# %% [markdown]
# ### Primers of different length
#
# Rows of a batch need not start with equally long primers. [batchseq][rnnkit.batchseq] pads them and gives their
# lengths too, and `sample_model` takes both. Each row starts to generate where its own primer ends, and gets the
# characters it would get alone:

# %%
from rnnkit import batchseq

starts = ["import ", "    return ", "class Reader:\n    def ", "# This is "]
pair = batchseq([encode(start) for start in starts])  # (21, 4) and the lengths
together = sample_model(model, 60, pair, sample_best)
for i, start in enumerate(starts):
    by_itself = sample_model(model, 60, encode(start).unsqueeze(1), sample_best)
    assert torch.equal(together.tokens[:, i], by_itself.tokens[:, 0]), "a row alone"
    print(f"{len(start):2} given: {decode(together.tokens[:, i])[:55]!r}")

# %% [markdown]
# ## Train, look, doubt
#
# ### The learning curve

# %% alt="Learning curve over 1400 windows, in bits per character. Validation starts below the bigram model's line and falls, steeply at first. Training falls faster and is lower from the second point on." tags=["hide-input"]
curve = torch.tensor(watch.rows)
windows = range(100, 100 * len(curve) + 1, 100)
bigram_valid = counting_bits(1, train, valid)
fig, ax = plt.subplots()
ax.plot(windows, curve[:, 0], color="C4", marker="o")
ax.plot(windows, curve[:, 1], color="C0", marker="o")
ax.axhline(bigram_valid, color="C1", linewidth=1.2)
label = ax.text(windows[-1], bigram_valid + 0.04, "bigram model, validation")
label.set(color="C1", ha="right", va="bottom")
ax.text(900, 3.2, "validation", color="C0", ha="center")
ax.text(900, 2.5, "training", color="C4", ha="center")
ax.set(xlabel="windows of 16 x 64 characters", ylabel="bits per character")
ax.set_ylim(1.8, 4.6)
ax.set_title("The bigram model is soon passed")
plt.show()

# %%
one_pass = len(StreamLoader(train, BATCH, WINDOW)) // 100  # points of the first pass
print("first pass, training   ", *(f"{value:.2f}" for value in curve[:one_pass, 0]))
print("first pass, validation ", *(f"{value:.2f}" for value in curve[:one_pass, 1]))
assert (curve[1:one_pass, 0] < curve[1:one_pass, 1]).all(), "training is below at once"
assert curve[-1, 1] < curve[one_pass, 1] < bigram_valid, "validation falls to the end"

# %% [markdown]
# A point for training is the mean of 100 windows, each scored before its update. It lies below validation in the first
# pass already, where every window is new to the network. That is no memory of a pass before: the weights have just been
# fitted to the lines above, in the same files. Files have names and habits of their own.
#
# ### Against the baselines

# %%
table = {"all characters alike": alike, "bigram": bigram, "best count": best_count}
table |= {"LSTM": of_model, "lzma, test text": alone}
table |= {"lzma, after training text": prefixed}
for name, value in table.items():
    print(f"{name:30}{value:.2f}")
assert of_model < 0.75 * bigram, "the network beats the bigram model by far"
assert of_model < best_count, "and the best count"
assert of_model > 1.05 * alone, "the compressor is far ahead of it"

# %% [markdown]
# So: **the network beats everything that counts, and loses to a file compressor.** The comparison is not a fair one, in
# both directions. The network's weights are frozen on the test text, while `lzma` learns from it as it reads: a name
# that came once costs it little the second time. And nobody counts the bytes of the weights or of the training text.
# But if you want small files, take the compressor.
#
# This is one training run. Is it luck? Three small networks, each trained for a few seconds on half of the text:

# %%
SEEDS = (1, 2, 3)
half = train[: len(train) // 2]
small_ones = [fit(make_network(seed, 64), half, 1, Watch()) for seed in SEEDS]
of_bigram = counting_bits(1, half, test)
for seed, network in zip(SEEDS, small_ones, strict=True):
    value = bits(network, test)
    print(f"seed {seed}: {value:.2f}, bigram model on the same half {of_bigram:.2f}")
    assert value < 0.95 * of_bigram, "each of them beats the bigram model"

# %% [markdown]
# ### What the state is worth
#
# Start the state from zeros at 1000 places of the test text, and look at the bits of each step:

# %%
from rnnkit import BPTTValidationPhase

places = torch.linspace(0, len(test) - 102, 1000).long()
pieces = torch.stack([test[i : i + 101] for i in places], dim=1)  # (101, 1000)
phase = BPTTValidationPhase(by_step=True)
by_step = phase(model, loss, pieces).loss_by_step / math.log(2)
for t in 0, 1, 2, 4, 9, 29, 99:
    print(f"read {t + 1:3}: {by_step[t]:.2f} bits")
assert by_step[0] > bigram, "one character read: worse than the bigram model"
assert by_step[9:].mean() < 0.8 * bigram, "ten and more: far better"

# %% [markdown]
# From a cold start, the network is worse than the bigram model. After some ten characters it is where it will stay. A
# primer of one character is therefore no test of a generator.
#
# ### One choice
#
# What can follow `class Reader:` and `def `? Here are the probabilities behind the first character that the network
# chose on this page. A [SoftmaxSampler][rnnkit.SoftmaxSampler] changes them in two ways. **Temperature** divides the
# outputs before the softmax: below 1 the likely becomes likelier, above 1 less so. The **cuts** set the less likely to
# zero: `top_k` keeps *k* characters; `top_p` keeps the likeliest until their sum reaches *p*
# ([Holtzman et al. 2020](https://arxiv.org/abs/1904.09751)); `min_p` keeps what has at least that share of the highest
# probability ([Nguyen et al. 2024](https://arxiv.org/abs/2407.01082)).

# %%
with torch.no_grad():
    after_def = model(primer)[0][-1]  # (B, V): the last output
    after_self = model(encode(START + "read(self, size):\n        return self"))[0][-1:]
SAMPLERS = {
    "temperature 0.5": {"temperature": 0.5},
    "temperature 1": {},
    "temperature 1.5": {"temperature": 1.5},
    "top_k 5": {"top_k": 5},
    "top_p 0.9": {"top_p": 0.9},
    "min_p 0.1": {"min_p": 0.1},
}

# %% alt="Bar chart of the probabilities of the characters that can follow def and a space, sorted. Above it three lines show which characters each cut keeps: top_k 5 the first five, min_p 0.1 a few more, top_p 0.9 the most." tags=["hide-input"]
p, order = after_def.softmax(1)[0].sort(descending=True)
fig, ax = plt.subplots()
ax.bar(range(24), p[:24], color="C0", width=0.7)
for row, name in enumerate(("top_p 0.9", "min_p 0.1", "top_k 5")):
    kept = (SoftmaxSampler(**SAMPLERS[name]).probabilities(after_def) > 0).sum().item()
    end = min(kept, 17) - 0.5
    y = p[0] * (1.1 + 0.15 * row)
    ax.plot([-0.5, end], [y, y], color="C1", linewidth=3)
    ax.text(end + 0.2, y, f"{name} keeps {kept}", color="C1", va="center")
ax.set_xticks(range(24), [ALPHABET[i] if i >= DEPTHS else "\\n" for i in order[:24]])
ax.set(xlabel="next character, the likeliest first", ylabel="probability")
ax.set_xlim(-0.8, 23.8)
ax.set_title("After def, much is possible")
ax.grid(visible=False, axis="x")
plt.show()

# %%
print("characters kept after       def   self")
for name, options in SAMPLERS.items():
    sampler = SoftmaxSampler(**options)
    p_def = sampler.probabilities(after_def)
    p_self = sampler.probabilities(after_self)
    print(f"{name:24}{(p_def > 0).sum():7}{(p_self > 0).sum():7}")
sampler = SoftmaxSampler(top_p=0.9)
kept = [(sampler.probabilities(y) > 0).sum() for y in (after_def, after_self)]
assert kept[0] > 2 * kept[1], "top_p keeps more where more is possible"

# %% [markdown]
# `top_k` keeps five characters even where one is all but certain. The other two keep few there. Check each sampler
# against its definition, written out:

# %%
p = after_def.softmax(1)
half_temperature = SoftmaxSampler(temperature=0.5).probabilities(after_def)
torch.testing.assert_close(half_temperature, p**2 / (p**2).sum())  # softmax(2 y)
ranked = p[0].sort(descending=True).values
for top_p in 0.01, 0.5, 0.9:
    kept = (SoftmaxSampler(top_p=top_p).probabilities(after_def) > 0).sum().item()
    enough = ranked[:kept].sum()
    one_fewer = ranked[: kept - 1].sum()
    assert enough >= top_p > one_fewer, "the fewest that reach p"
assert (SoftmaxSampler(top_k=5).probabilities(after_def) > 0).sum() == 5
cut = SoftmaxSampler(min_p=0.1).probabilities(after_def)
assert torch.equal(cut > 0, p >= 0.1 * p.max()), "a tenth of the highest and more"

# %% [markdown]
# ### One primer, seven samplers
#
# The same start, and the next lines by each sampler:


# %%
def next_lines(sampler, count=2):
    text = decode(sample_model(model, len(primer) + 200, primer, sampler).tokens[:, 0])
    return "\n".join(line[:70] for line in text.split("\n")[1 : 1 + count])


for name, options in SAMPLERS.items():
    print(f"{name}:\n{next_lines(drawing(0, **options))}")

# %%
print(next_lines(sample_best, 8))

# %% [markdown]
# [sample_best][rnnkit.sample_best] takes the likeliest character every time, without chance. It ends in a repetition.
# One text proves nothing, so take 40 primers of 100 characters from the test files, and let each
# sampler write 700 characters after each.

# %%
T0, STEPS = 100, 700
places = torch.linspace(0, len(test) - T0 - STEPS, 40).long()
truth = torch.stack([test[i : i + T0 + STEPS] for i in places], dim=1)  # (800, 40)
primers = truth[:T0]


def write(sampler):
    return sample_model(model, T0 + STEPS, primers, sampler).tokens


written = {"the real text": truth, "the best": write(sample_best)}
written |= {name: write(drawing(1, **options)) for name, options in SAMPLERS.items()}

# %% [markdown]
# Four measures. **Bits**: how much the text surprises the network that wrote it. **New**: the share of pieces of eight
# characters that have not come before in that text. **Words**: the share of words that stand in the training text.
# **Loops**: texts whose last 200 characters repeat one piece of at most 100 over and over.


# %%
@torch.no_grad()
def surprise(tokens):
    """Bits per character of what follows the primer, as the network sees it."""
    return loss(model(tokens[:-1])[0][T0 - 1 :], tokens[T0:]).item() / math.log(2)


def is_new(row):
    """For each piece of eight characters: has it not come before?"""
    pieces = [tuple(piece) for piece in row.unfold(0, 8, 1).tolist()]
    first = {piece: i for i, piece in reversed(list(enumerate(pieces)))}
    return [first[piece] == i for i, piece in enumerate(pieces)]


# %%
def period(row, most=100):
    """The length of the piece that the last 200 characters repeat, or 0."""
    tail = row[-200:]
    return next((n for n in range(1, most + 1) if torch.equal(tail[n:], tail[:-n])), 0)


# %%
vocabulary = set(re.findall("[A-Za-z_]{4,}", texts["training"]))
report = {}
print("                  bits   new words loops")
for name, tokens in written.items():
    rows = tokens[T0:].unbind(1)
    new = sum(sum(is_new(row)) for row in rows) / (len(rows) * (STEPS - 7))
    words = re.findall("[A-Za-z_]{4,}", "\n".join(decode(row) for row in rows))
    known_words = sum(word in vocabulary for word in words) / len(words)
    looping = sum(period(row) > 0 for row in rows)
    report[name] = (surprise(tokens), new, known_words, looping)
    print("{:16}{:6.2f}{:6.0%}{:6.0%}{:6}".format(name, *report[name]))

# %%
columns = zip(*report.values(), strict=True)
measures = [dict(zip(report, column, strict=True)) for column in columns]
surprises, news, real, loops = measures
assert loops["the best"] > 20, "most greedy texts end in a loop"
assert loops["temperature 1"] == loops["the real text"] == 0, "with chance, none"
assert real["temperature 1"] < real["the real text"] < real["temperature 0.5"], "words"
assert news["the best"] < 0.5 < news["temperature 1"], "greedy text repeats itself"
ordered = [surprises[f"temperature {t}"] for t in (0.5, 1, 1.5)]
assert 1.4 * ordered[0] < ordered[1] < ordered[2] / 1.4, "temperature sets the surprise"
of_real = surprises["the real text"]
off = {name: abs(surprises[name] - of_real) for name in list(written)[1:]}
assert min(off, key=off.get) == "temperature 1", "the closest to real text"

# %% [markdown]
# - At temperature 1 the text comes closest to the real one in surprise: these are the probabilities that were learned.
#   But half of its words stand in no training file, far more than in real text.
# - Sharper sampling gives words that exist and a text that surprises too little. Some of it loops even so. The best
#   character at each step is the end of that road.
# - The cuts, at temperature 1, work in the same direction. None of these numbers says which text is best: that depends on what you want.
#
# ### Why greedy text loops
#
# The next character is a function of the state and the last character. Nothing is left to chance. So once the state
# comes back to where it was, the same text follows, for ever. And the loops are few: different primers fall into the
# same one.

# %%
from collections import Counter


def loop_of(row):
    """The repeated piece, turned so that it starts at the same place
    whatever the phase.
    """
    piece = decode(row[len(row) - period(row) :])
    return min(piece[i:] + piece[:i] for i in range(len(piece)))


# %%
found = Counter(loop_of(row) for row in written["the best"].unbind(1) if period(row))
print(f"{found.total()} of 40 texts loop, in {len(found)} different loops")
for piece, count in found.most_common(3):
    print(f"{count:2} texts, period {len(encode(piece))}: {piece[:60]!r}")
assert len(found) < found.total() / 2, "different primers, the same loop"


# %%
def share_new(tokens):
    """The share of new pieces, mean of the texts, smoothed over 50 places."""
    rows = tokens[T0:].unbind(1)
    new = torch.tensor([is_new(row) for row in rows]).float().mean(0)
    return new.unfold(0, 50, 1).mean(1)


# %% alt="Line chart: the share of new pieces of eight characters against the number of characters written, mean of 40 texts. Real text and temperature 1 stay high, temperature 0.5 falls, the best character falls to near zero." tags=["hide-input"]
fig, ax = plt.subplots()
colors = {"temperature 1": "C0", "the real text": "C4"}
colors |= {"temperature 0.5": "C3", "the best": "C1"}
end = {}
for name, color in colors.items():
    smooth = share_new(written[name])
    end[name] = smooth[-100:].mean().item()
    ax.plot(range(50, 50 + len(smooth)), smooth, color=color)
    ax.text(705, smooth[-1], name, color=color, va="center")
ax.set(xlabel="characters written", ylabel="share of new pieces")
ax.set(xlim=(0, 930), ylim=(-0.05, 1.05))
ax.set_xticks(range(0, 701, 100))
ax.set_title("Greedy text runs out of anything new")
plt.show()
assert end["the best"] < 0.25 < 0.6 < end["temperature 1"], "the message of the figure"

# %% [markdown]
# Is that one unlucky network? The three small ones, the same 40 primers:

# %%
for seed, network in zip(SEEDS, small_ones, strict=True):
    looping = []
    for sampler in sample_best, drawing(seed):
        tokens = sample_model(network, T0 + STEPS, primers, sampler).tokens
        looping.append(sum(period(row) > 0 for row in tokens.unbind(1)))
    print(f"seed {seed}: greedy {looping[0]} of 40 loop, temperature 1 {looping[1]}")
    assert looping[0] > 20 and looping[1] == 0, "the same in every network"

# %% [markdown]
# ### An aside: beam search
#
# Is greedy text bad because it is short-sighted? [beam_search][rnnkit.beam_search] keeps several unfinished texts and
# returns the likeliest. Let both write 60 characters after 20 of the primers:

# %%
from rnnkit import beam_search

some = primers[:, ::2]
greedy = sample_model(model, T0 + 60, some, sample_best)
beam = beam_search(model, T0 + 60, some, width=8)


# %%
def bits_drawn(sample):
    return -sample.log_probs[T0 - 1 : -1].mean().item() / math.log(2)


of_greedy = bits_drawn(greedy)
of_beam = bits_drawn(beam)
print(f"greedy {of_greedy:.2f}, beam {of_beam:.2f} bits per character")
print(repr(decode(beam.tokens[T0:, 3])))
assert of_beam < 0.9 * of_greedy, "a likelier text"
assert of_beam < 0.5 * of_real, "real text is not that likely"

# %% [markdown]
# It finds likelier text, and real text is far from likely. The likeliest text is the wrong goal here. Where there is one
# right answer, as in translation, it is a good one.

# %% [markdown]
# ## What goes wrong
#
# ### The state is lost between two calls
#
# A model is called once for each character, and each call starts from zeros. Users
# [have asked about it](https://github.com/keras-team/keras/issues/1128) for years. No error, only gibberish:


# %%
def forgetful(inputs, state=None):
    return model(inputs)  # a new state each time


tokens = sample_model(forgetful, T0 + STEPS, primers, drawing(1)).tokens
print(decode(tokens[T0 : T0 + 150, 5]))
lost = surprise(tokens)
carried = surprises["temperature 1"]
print(f"\nbits: {lost:.2f}, with the state {carried:.2f}")
assert lost > 1.2 * surprises["temperature 1.5"], "gibberish"

# %% [markdown]
# The temperature is right, the weights are right, and the text is worse than at temperature 1.5.
#
# > [!TIP]
# > Keep the test that finds it beside every model: one call on `T` steps must equal `T` calls of one step with the state
# > carried on.


# %%
@torch.no_grad()
def step_by_step(model, inputs):
    state, outputs = None, []
    for t in range(len(inputs)):
        output, state = model(inputs[t : t + 1], state)
        outputs.append(output)
    return torch.cat(outputs)


with torch.no_grad():
    at_once = model(primers)[0]
right = (step_by_step(model, primers) - at_once).abs().max()
wrong = (step_by_step(forgetful, primers) - at_once).abs().max()
print(f"largest difference: model {right:.0e}, forgetful {wrong:.0e}")
assert right < 1e-3 and wrong > 1, "the test finds it"

# %% [markdown]
# ### Drawing again from the outputs
#
# A loop that returns only the outputs has thrown the text away. Draw from them a second time, and you get characters
# that were never fed back: each fits the text that was, not the one beside it.

# %%
sample = sample_model(model, T0 + STEPS, primers, drawing(1))
again = drawing(2)
redrawn = torch.stack([again(outputs) for outputs in sample.outputs[T0 - 1 : -1]])
equal = (redrawn == sample.tokens[T0:]).float().mean()
of_text = surprise(sample.tokens)
another = surprise(torch.cat([primers, redrawn]))
print(f"{equal:.0%} of the characters are those of the text")
print(f"bits: the text {of_text:.2f}, drawn again {another:.2f}")
assert equal < 0.8 and another > 1.5 * of_text, "not a text of this model"

# %% [markdown]
# The text is `sample.tokens`, and `log_probs` is what the network gave each of its characters:

# %%
of_sample = -sample.log_probs[T0 - 1 : -1].mean() / math.log(2)
print(f"bits, from log_probs: {of_sample:.2f}")
assert abs(of_sample - of_text) < 1e-3, "log_probs[t] belongs to tokens[t + 1]"

# %% [markdown]
# ### Temperature on probabilities
#
# `softmax(y / temperature)` divides the outputs. Divide probabilities instead, and the softmax of numbers between 0 and
# 2 is almost flat:


# %%
cold = drawing(1, temperature=0.5)


def of_probabilities(outputs):
    return cold(outputs.softmax(1))  # softmax, divide, softmax


wrong = surprise(write(of_probabilities))
right = surprises["temperature 0.5"]
print(f"bits: on outputs {right:.2f}, on probabilities {wrong:.2f}")
hot = surprises["temperature 1.5"]
assert wrong > hot, "colder was wanted, and it is hotter than 1.5"

# %% [markdown]
# A sampler takes what the model gives: end the model with `nn.Linear`, with no softmax after it.
#
# ### A generator in the wrong place
#
# Without a generator, the text depends on whatever drew random numbers before it. With a generator that is made anew for
# each character, every character is drawn with the same luck:


# %%
def always_new(outputs):
    return drawing(0)(outputs)


def twice(make_sampler):
    return [sample_model(model, 200, primer, make_sampler()).tokens for _ in range(2)]


without, seeded = twice(SoftmaxSampler), twice(lambda: drawing(0))
assert not torch.equal(*without), "without a generator: another text each time"
assert torch.equal(*seeded), "with the same seed: the same text"
same_luck = write(always_new)
looping = sum(period(row) > 0 for row in same_luck.unbind(1))
print(f"a new generator for each character: {looping} of 40 texts loop")
assert looping > 10, "no chance is left from step to step"

# %% [markdown]
# Make one generator, pass it to the sampler, and keep the sampler. To go on with a text, keep it too.
#
# ## Try it
#
# **1. A sampler of your own.** A sampler is any function of outputs `(B, V)` to tokens `(B,)`. Write one that takes the
# best character, but draws at temperature 1 with a chance of one in ten. How many of the 40 texts still loop? Compare
# one in a hundred.


# %% tags=["solution"]
def mostly_best(chance, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = SoftmaxSampler(generator=generator)

    def sampler(outputs):
        by_chance = torch.rand(len(outputs), generator=generator) < chance
        return torch.where(by_chance, draw(outputs), sample_best(outputs))

    return sampler


# %% tags=["solution"]
for chance in 0, 0.01, 0.1:
    tokens = write(mostly_best(chance))
    looping = sum(period(row) > 0 for row in tokens.unbind(1))
    print(f"chance {chance:4}: {looping:2} of 40 loop, {surprise(tokens):.2f} bits")
assert looping < 0.5 * loops["the best"], "a little chance breaks most loops"

# %% [markdown] tags=["solution"]
# A loop needs every step to go the same way. One chance in ten leads out of most of them, and often into the next.

# %% [markdown]
# **2. Stop at the end of a line.** `stop` takes a function of the tokens `(B,)` that were drawn. Let texts end at their
# first line break, which is a character below `DEPTHS`. How long is the rest of the line, and how long is it really?


# %% tags=["solution"]
def ends_line(tokens):
    return tokens < DEPTHS


places = torch.linspace(0, len(test) - T0 - STEPS, 500).long()
many = torch.stack([test[i : i + T0 + STEPS] for i in places], dim=1)  # (800, 500)
sample = sample_model(model, T0 + STEPS, many[:T0], drawing(0), stop=ends_line)

# %% tags=["solution"]
rest = sample.lengths - T0  # with the line break
real_rest = ends_line(many[T0:]).int().argmax(0) + 1
print(f"{len(sample.tokens) - T0} steps were needed for the longest line")
middle = rest.median()
real_middle = real_rest.median()
print(f"rest of the line, median: {middle} characters, real {real_middle}")
last = sample.tokens[sample.lengths - 1, range(500)]
assert ends_line(last).all(), "each ends a line"
assert 0.6 < middle / real_middle < 1.6, "about as long as real ones"

# %% [markdown]
# ## Where next
#
# - The same loop with numbers instead of characters, and its error at every horizon:
#   [08 Closed-loop validation](08_closed_loop.py).
# - One step ahead, on sunspots: [02 Sequence to sequence](02_seq2seq.py). What a detached state does to a gradient:
#   [06 Where a recurrent gradient comes from](06_gradients.py).
# - The API: [sample_model][rnnkit.sample_model], [Sample][rnnkit.Sample], [sample_best][rnnkit.sample_best],
#   [sample_softmax][rnnkit.sample_softmax], [SoftmaxSampler][rnnkit.SoftmaxSampler],
#   [beam_search][rnnkit.beam_search], [StreamLoader][rnnkit.StreamLoader],
#   [BPTTTrainingPhase][rnnkit.BPTTTrainingPhase].
# - The papers: characters out of a recurrent network, [Graves 2013](https://arxiv.org/abs/1308.0850); why the likeliest
#   text is not the best, [Holtzman et al. 2020](https://arxiv.org/abs/1904.09751).
