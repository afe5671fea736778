# ---
# rnnkit:
#   description: >-
#     Sequence labeling in PyTorch: a bidirectional LSTM gives each character of Python source
#     its token class, judged by F1 per class and per span against a lexer of regexes.
#   needs: one CPU core for forty seconds; matplotlib beside torch
#   data: source files of the Python that runs the page (PSF License), labeled by its tokenizer
#   minutes: 10
#   prerequisites: a PyTorch training loop; what a state is, from tutorial 01
#   learn: [how to train a network that labels every step of a sequence, when two directions
#     help and what they forbid, how to judge labels by class and by span instead of by
#     accuracy alone]
# ---

# %% [markdown]
# # Sequence labeling: a class for every step, with a bidirectional LSTM
#
# After this page you can train a tagger, as for part-of-speech tagging or named entities: a
# network that gives each step of a sequence a class. You can tell whether it should read in
# both directions, and what its labels are worth.

# %% tags=["skip-execution"]
# %pip install "rnnkit[plot]"

# %% tags=["fold"]
import io
import keyword
import re
import sysconfig
import tokenize
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_default_device(device)  # each new tensor is made there
torch.set_num_threads(1)  # small arrays: more threads would wait for each other
plt.style.use("rnnkit.style")

# %% [markdown]
# ## The pattern
#
# One network reads the sequence from left to right, a second one from right to left. Each
# keeps what it has read in a **state**. At every step both states together give the scores of
# the classes, so that the whole sequence has a say in each label.
#
# ![Unrolled graph of five steps. One row of states goes on to the right, another to the left. Each input goes into both; each output comes from both and has a loss.](../docs/assets/patterns/13.svg)
#
# This is a **bidirectional** network. Input and labels have the same length, and step *t* of
# the one belongs to step *t* of the other. Tagging words (parts of speech, named entities),
# marking heartbeats in a recording and classifying frames of speech have this pattern. A word
# and its letters would be [two inputs](../docs/shapes.md#what-a-batch-may-be).

# %% [markdown]
# ## The data
#
# Here a step is one character of Python source, and the label is the kind of token it belongs
# to. The text comes from Python's own library, on your disk already (under the [PSF
# License](https://docs.python.org/3/license.html)). Its `tokenize` module gives the labels,
# and they are right by definition. Other versions of Python have slightly other files, and the
# numbers below differ a little.

# %%
CLASSES = ["space", "name", "keyword", "number", "operator", "string", "comment"]
SPACE, NAME, KEYWORD, NUMBER = range(4)
FILES = {
    "train": "calendar difflib optparse textwrap",
    "test": "gettext pstats shelve trace weakref",
}

# %% tags=["fold"] summary="labels_of(source): the class of each character, by tokenize"
KINDS = {
    tokenize.NAME: "name",
    tokenize.NUMBER: "number",
    tokenize.OP: "operator",
    tokenize.STRING: "string",
    tokenize.COMMENT: "comment",
}

def kind_of(token):
    if token.type == tokenize.NAME and keyword.iskeyword(token.string):
        return "keyword"
    return KINDS.get(token.type, "space")

# %% tags=["fold"]
FSTRING_START = getattr(tokenize, "FSTRING_START", None)  # Python 3.12 and later
FSTRING_END = getattr(tokenize, "FSTRING_END", None)

def tokens_of(source):
    """(kind, start, end) of each token; an f-string is one in every Python."""
    opened = []  # where the f-strings begin that are not over
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == FSTRING_START:
            opened.append(token.start)
        elif token.type == FSTRING_END:
            start = opened.pop()
            if not opened:
                yield "string", start, token.end
        elif not opened:
            yield kind_of(token), token.start, token.end

# %% tags=["fold"]
def labels_of(source):
    begins = [0]  # where each line begins
    for line in source.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))
    labels = [SPACE] * len(source)
    for kind, (row, column), (last_row, last_column) in tokens_of(source):
        start = begins[row - 1] + column  # tokenize counts lines from 1
        end = begins[last_row - 1] + last_column
        labels[start:end] = [CLASSES.index(kind)] * (end - start)
    return labels

# %% tags=["fold"] summary="show_labels(text, labels), which prints a mark for each class"
MARKS = " nk1.s#"  # one for each class

def show_labels(text, labels):
    for line in text.splitlines(keepends=True):
        print(line.rstrip("\n"))
        print("".join(MARKS[label] for label in labels[: len(line)]))
        labels = labels[len(line) :]

# %%
example = "if index > 12:  # say 'no'\n"
show_labels(example, labels_of(example))

# %% [markdown]
# The second row has a mark for each class: `n` for a name, `k` for a keyword. A class is a
# matter of context: `i` opens a keyword in `if` and a name in `index`, and `'no'` is no string
# after `#`.
#
# Each file is cut into windows of 160 characters, wherever that falls: inside a word or in the
# middle of a docstring. The files for the test are not those for training, for a file repeats
# its own names.

# %% tags=["fold"] summary="windows_of(names): inputs and targets of files, cut into windows"
T = 160  # characters of a window

def read(name):
    path = Path(sysconfig.get_path("stdlib")) / f"{name}.py"
    return path.read_text(encoding="utf-8")

def encode(text):  # a number for each character, 0 to 127
    return torch.tensor(list(text.encode("ascii", "replace")))

# %% tags=["fold"]
def windows_of(names):
    """Inputs and targets of the files, (T, B) each: the windows, side by side."""
    inputs, targets = [], []
    for source in map(read, names.split()):
        whole = len(source) // T * T  # what is left at the end is no window
        inputs.append(encode(source[:whole]).view(-1, T).T)
        targets.append(torch.tensor(labels_of(source)[:whole]).view(-1, T).T)
    return torch.cat(inputs, dim=1), torch.cat(targets, dim=1)

# %% tags=["fold"]
inputs, targets = windows_of(FILES["train"])
test_inputs, test_targets = windows_of(FILES["test"])

# %% [markdown]
# ## The shapes

# %%
print("inputs ", tuple(inputs.shape), "(T, B), characters")
print("targets", tuple(targets.shape), "(T, B), classes")
print("test   ", tuple(test_inputs.shape))
shares = torch.bincount(targets.flatten()) / targets.numel()
for name, share in zip(CLASSES, shares.tolist()):
    print(f"{name:8} {share:6.1%}")

# %% [markdown]
# The classes are **imbalanced**: a network that never says `number` loses next to nothing in
# **accuracy**, the share of right labels. So look at each class. Its **precision** is the
# share of its labels that are right, its **recall** the share of its characters that were
# found, and **F1** is their harmonic mean, 2PR / (P + R). **Class F1** is the mean over the
# classes.
#
# Characters are not what a reader sees, either. A **span** is a run of characters of one
# class, and counts only if its start, its end and its class are right. Space is no span.

# %% tags=["fold"] summary="spans_of, span_f1, accuracy_of, f1_by_class, and show, which prints them"
def spans_of(labels):
    """The (start, end, class) of each span of one row."""
    spans, start = set(), 0
    for i in range(1, len(labels) + 1):
        if i == len(labels) or labels[i] != labels[start]:
            if labels[start] != SPACE:
                spans.add((start, i, labels[start]))
            start = i
    return spans

# %% tags=["fold"]
def span_f1(answers, truth=test_targets):
    found = asked = hits = 0
    for answer, row in zip(answers.T.tolist(), truth.T.tolist()):
        answer_spans, row_spans = spans_of(answer), spans_of(row)
        found += len(answer_spans)
        asked += len(row_spans)
        hits += len(answer_spans & row_spans)
    return 2 * hits / (found + asked)  # F1, from counts

# %% tags=["fold"]
def accuracy_of(answers, truth=test_targets):
    return (answers == truth).float().mean().item()

def counts_of(answers, truth=test_targets):
    """How often each class (row) got each label (column)."""
    pairs = truth.flatten() * len(CLASSES) + answers.flatten()
    counts = torch.bincount(pairs, minlength=len(CLASSES) ** 2)
    return counts.view(len(CLASSES), -1).float()

def f1_by_class(answers, truth=test_targets):
    counts = counts_of(answers, truth)
    return 2 * counts.diag() / (counts.sum(0) + counts.sum(1))

# %% tags=["fold"]
def show(name, answers):
    line = accuracy_of(answers), span_f1(answers), f1_by_class(answers).mean()
    print("{:16} {:8.3f} {:8.3f} {:8.3f}".format(name, *line))

# %% [markdown]
# ## The baselines
#
# The **majority** answers the most frequent class of all. The **table** answers for each
# character its most frequent class in the training files, without a look at its neighbors. The
# **lexer** is written by hand: one regular expression of six parts, of which the first that
# fits wins.

# %% tags=["fold"] summary="The three baselines"
QUOTED = r"""
    (?<!\w)[rbfuRBFU]{0,2}(?:
    \"{3}[\s\S]*?(?:\"{3}|\Z) | '{3}[\s\S]*?(?:'{3}|\Z) |
    "(?:\\[\s\S]|[^"\\\n])*" | '(?:\\[\s\S]|[^'\\\n])*')"""
LEXER = re.compile(
    rf"(?P<string>{QUOTED}) | (?P<comment>\#[^\n]*)"
    rf"| (?P<keyword>\b(?:{'|'.join(keyword.kwlist)})\b)"
    r"| (?P<name>[^\W\d]\w*) | (?P<number>\.?\d[\w.]*)"
    r"""| (?P<operator>[^\w\s'"\\])""",
    re.VERBOSE,
)

# %% tags=["fold"]
def lex(text):
    labels = [SPACE] * len(text)
    for match in LEXER.finditer(text):
        start, end = match.span()
        labels[start:end] = [CLASSES.index(match.lastgroup)] * (end - start)
    return labels

def lex_windows(windows):
    rows = [lex(bytes(row).decode()) for row in windows.T.tolist()]
    return torch.tensor(rows).T

# %% tags=["fold"]
table = torch.zeros(128, len(CLASSES))
seen = inputs.flatten(), targets.flatten()  # characters, and the class of each
table.index_put_(seen, torch.tensor(1.0), accumulate=True)
majority = torch.full_like(test_targets, int(shares.argmax()))
by_table = table.argmax(1)[test_inputs]
by_lexer = lex_windows(test_inputs)

# %%
print("                 accuracy  span F1 class F1")
show("majority", majority)
show("table", by_table)
show("lexer", by_lexer)

# %% [markdown]
# On whole files this lexer [makes no mistake](#try-it), and nobody needs a network. On windows
# it cannot know whether the first line belongs to a docstring that was opened before, and
# takes prose for code. Such texts are what the network is for: a hunk of a diff, a snippet in
# a forum, a line that is being typed.
#
# ## Plain PyTorch
#
# An embedding holds 16 numbers for each character. `bidirectional=True` makes two LSTMs of 32
# numbers each, and their outputs stand side by side, 64 numbers a step.

# %%
class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(128, 16)
        self.rnn = nn.LSTM(16, 32, bidirectional=True)
        self.head = nn.Linear(2 * 32, len(CLASSES))

    def forward(self, inputs, state=None):  # None: both directions start from zeros
        hidden, state = self.rnn(self.embedding(inputs), state)  # (T, B, 64)
        return self.head(hidden), state  # (T, B, 7): a score for each class

# %% [markdown]
# The loss is the **cross entropy** of every step. It wants classes in dim 1, so lay the steps
# of all windows side by side first. From epoch to epoch the rate falls, in the end to a tenth.
# The settings were [set by hand](#evidence-how-the-settings-were-chosen).

# %% tags=["fold"] summary="batches: 16 windows each, inputs and targets"
torch.manual_seed(0)
order = torch.randperm(inputs.shape[1])
batches = []
for chosen in order.split(16):
    batches.append((inputs[:, chosen], targets[:, chosen]))

# %%
EPOCHS = 6
torch.manual_seed(0)
plain = Tagger()
optimizer = torch.optim.Adam(plain.parameters(), lr=0.02)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, EPOCHS - 1)
for _ in range(EPOCHS):
    for batch_inputs, batch_targets in batches:
        scores, _ = plain(batch_inputs)
        steps = scores.flatten(0, 1), batch_targets.flatten()  # (T * B, 7), (T * B,)
        loss = nn.functional.cross_entropy(*steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step()

# %% tags=["fold"] summary="answers_of(model, inputs): the class of the highest score at each step"
@torch.no_grad()
def answers_of(model, inputs=test_inputs):
    scores, _ = model(inputs)
    return scores.argmax(-1)  # (T, B)

# %%
show("both directions", answers_of(plain))

# %% [markdown]
# ## With rnnkit
#
# [RecurrentSequential][rnnkit.RecurrentSequential] puts layers behind each other, and
# [seq2seq_loss][rnnkit.seq2seq_loss] takes a loss of PyTorch to every step.
# [Learner][rnnkit.Learner] is the loop. The same function trains a one-way network, with more
# numbers in its state, so that it has as many weights.

# %% tags=["fold"] summary="The imports, and the loss of a step"
from rnnkit import Learner, RecurrentSequential, Scheduler, seq2seq_loss

class_loss = nn.CrossEntropyLoss()

# %%
def train(both, seed=0, batches=batches, loss_fn=class_loss):
    torch.manual_seed(seed)
    embedding = nn.Embedding(128, 16)
    size = 32 if both else 48  # so that both kinds have about as many weights
    rnn = nn.LSTM(16, size, bidirectional=both)
    head = nn.Linear(64 if both else 48, len(CLASSES))
    model = RecurrentSequential(embedding, rnn, head)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, EPOCHS - 1)
    learner = Learner(model, seq2seq_loss(loss_fn), optimizer, [Scheduler(schedule)])
    learner.fit(EPOCHS, train=batches)
    return model

two_way = train(both=True)

# %% tags=["check"]
apart = (answers_of(two_way) != answers_of(plain)).float().mean().item()
assert apart < 0.02, "plain PyTorch and rnnkit give the same labels"

# %% [markdown]
# [evaluate][rnnkit.evaluate] gives the loss on other data, and what else you ask for: a
# function of the scores and targets of the steps, made into a metric by `seq2seq_loss`.

# %% tags=["fold"] summary="The loss and the accuracy on the test files, with evaluate"
from rnnkit import evaluate

def right(scores, targets):  # (N, 7) and (N,): all steps, side by side
    return (scores.argmax(1) == targets).float()

loss = seq2seq_loss(class_loss)
metrics = {"accuracy": seq2seq_loss(right)}
scored = evaluate(two_way, loss, [(test_inputs, test_targets)], metrics=metrics)
print(f"loss {scored['loss']:.3f}, accuracy {scored['accuracy']:.3f}")

# %% [markdown]
# ## One direction, both directions, the lexer
#
# One training could be luck, so here are three of each, which differ in their first weights.

# %% tags=["fold"] summary="Two more trainings with both directions, three with one"
pairs = [train(both=True, seed=seed) for seed in (1, 2)]
two_ways = [answers_of(model) for model in [two_way, *pairs]]
one_way = train(both=False)
singles = [one_way] + [train(both=False, seed=seed) for seed in (1, 2)]
one_ways = [answers_of(model) for model in singles]

# %%
print("                 accuracy  span F1 class F1")
show("lexer", by_lexer)
for answers in one_ways:
    show("one direction", answers)
for answers in two_ways:
    show("both directions", answers)

# %% [markdown]
# Both directions make fewer mistakes than one, in every class: see the figure at the top.
# **Against the lexer the verdict hangs on the measure.** By characters the network is far
# ahead, for it knows prose by its look. By spans they are level: the lexer never errs by one
# character, and the network does, which loses the whole span. Choose the measure that your
# reader feels, and say which it is.
#
# ## What the second direction sees
#
# How much of what follows does a label need? Cut the text soon after a character, and ask for
# the label of that character alone. Wrong labels in percent, by the characters left ahead, means
# of three networks:

# %% tags=["fold"] summary="error_with(model, ahead): the share of wrong labels"
STEPS = (40, 70, 100)  # the characters that are asked for, in each window
AHEAD = [0, 1, 2, 4, 8, 16, 32, 59]

def error_with(model, ahead):
    """The share of wrong labels if `ahead` characters after the step are known."""
    wrong = 0.0
    for t in STEPS:
        answers = answers_of(model, test_inputs[: t + 1 + ahead])
        wrong += (answers[t] != test_targets[t]).float().mean().item()
    return wrong / len(STEPS)

# %% tags=["hide-input"]
errors = torch.zeros(3, len(AHEAD), device="cpu")
for i, model in enumerate([two_way, *pairs]):
    for j, ahead in enumerate(AHEAD):
        errors[i, j] = error_with(model, ahead)
flat = torch.tensor([error_with(model, 0) for model in singles]).cpu()
print("ahead", *(f"{ahead:4}" for ahead in AHEAD))
print("both ", *(f"{100 * error:4.1f}" for error in errors.mean(0)))
print("one  ", f"{100 * flat.mean():4.1f}")

# %% [markdown]
# The end of the word tells a keyword from a name, the next words tell prose from code. With
# nothing ahead, two directions are worse than one; most of the gain lies [within 16
# characters](#evidence-the-gain-by-characters-ahead).
#
# ## Use it: label text that does not parse
#
# This snippet begins inside a docstring and stops within a list. `tokenize` gives up on it:

# %%
snippet = '''    of a file, or None if it is closed
    """
    if file in self.open:  # not yet
        return ["new", 15,
'''
try:
    labels_of(snippet)
except tokenize.TokenError as error:
    print("TokenError:", error.args[0])
answers = answers_of(two_way, encode(snippet).unsqueeze(1))  # one row: (T, 1)
show_labels(snippet, answers.flatten().tolist())

# %% [markdown]
# The lexer labels the first line as code and all after it as a string.

# %% tags=["check"]
assert "".join(MARKS[label] for label in labels_of("if a:\n")) == "kk n. "
assert inputs.shape == targets.shape and inputs.shape[0] == T
assert shares[NUMBER] < 0.01, "a number is rare"
assert inputs.max() < 128 and targets.max() == len(CLASSES) - 1

# %% tags=["check"]
wrong_two = torch.tensor([1 - accuracy_of(answers) for answers in two_ways])
wrong_one = torch.tensor([1 - accuracy_of(answers) for answers in one_ways])
assert abs(1 - scored["accuracy"] - wrong_two[0]) < 1e-4, "evaluate counts the same"
assert wrong_two.max() < wrong_one.min(), "the worst of both, the best of one"
assert wrong_two.mean() < 0.85 * wrong_one.mean(), "both directions are ahead"
assert wrong_two.max() < 0.75 * (1 - accuracy_of(by_lexer)), "ahead by characters"
sizes = [sum(p.numel() for p in net.parameters()) for net in (one_way, two_way)]
assert 0.88 < sizes[0] / sizes[1] < 1.12, "a fair match"
for answers in two_ways:
    assert 0.85 < span_f1(answers) / span_f1(by_lexer) < 1.15, "level by spans"
means = [sum(map(f1_by_class, group)) / 3 for group in (one_ways, two_ways)]
assert (1 - means[1] < 1 - means[0]).all(), "in every class"

# %% tags=["check"]
assert errors.mean(0)[0] > flat.mean(), "with nothing ahead, worse than one"
assert errors.mean(0)[AHEAD.index(16)] < flat.mean(), "with 16, better"
gain = errors.mean(0)[0] - errors.mean(0)
assert gain[AHEAD.index(16)] > 0.6 * gain[-1], "most of the gain"

# %% tags=["check"]
truth = labels_of('"""' + snippet + "]\n")[3:-2]
truth = torch.tensor(truth).unsqueeze(1)
for model in [two_way, *pairs]:
    answers = answers_of(model, encode(snippet).unsqueeze(1))
    assert accuracy_of(answers, truth) > 0.85, "it labels the snippet"
by_hand = torch.tensor(lex(snippet)).unsqueeze(1)
assert accuracy_of(by_hand, truth) < 0.3, "the lexer takes strings for code"

# %% [markdown]
# ## What goes wrong
#
# ### A bidirectional network in a stream
#
# Text that is being typed comes in pieces. A one-way network reads each piece from the state
# that the last one left, and gives the labels that it would give to the whole:

# %% tags=["fold"] summary="stream(model, size): labels of windows that arrive in pieces, with the state carried"
@torch.no_grad()
def stream(model, size):
    """Labels of the test windows, which arrive in pieces of `size` characters."""
    answers, state = [], None
    for piece in test_inputs.split(size):
        scores, state = model(piece, state)
        answers.append(scores.argmax(-1))
    return torch.cat(answers)

# %%
for size in (160, 20, 4):
    one = accuracy_of(stream(one_way, size))
    two = accuracy_of(stream(two_way, size))
    print(f"{size:3} at a time: one way {one:.3f}, both {two:.3f}")

# %% [markdown]
# Two directions get worse, and nothing complains. The backward half sees no further than the
# end of the piece, and is handed a state from the **beginning** of the piece before, which it
# should have had from the piece after. There are two cures. Use one direction. Or wait: hold
# back each label until some more characters have come, then read the text up to there again;
# the table above says how many are worth waiting for.
#
# ### Padding is scored, and read
#
# Windows are equally long; lines are not. [pad_collate][rnnkit.pad_collate] fills them up with
# 0, which is also the class `space`. So score an answer that is always `space`:

# %% tags=["fold"] summary="The lines of a file as one padded batch, and the accuracy of the answer space"
from rnnkit import pad_collate

source = read("trace")
lines = [len(line) for line in source.splitlines(keepends=True)]
rows = zip(encode(source).split(lines), torch.tensor(labels_of(source)).split(lines))
batch = pad_collate(list(rows))  # inputs, targets, and the length of each row

def lazy(inputs, state=None):  # a model that always answers the class 0
    return nn.functional.one_hot(inputs * 0, len(CLASSES)).float(), state

padded = accuracy_of(torch.zeros_like(batch.targets), batch.targets)
honest = evaluate(lazy, loss, [batch], metrics=metrics)["accuracy"]

# %%
print(f"with padding {padded:.3f}, without {honest:.3f}")

# %% [markdown]
# The cure is to give the lengths along, as `pad_collate` does. They matter to the network too:
# the backward half reads the padding first, so a line's labels would hang on the longest line
# beside it. With lengths rnnkit packs the rows; in PyTorch, `pack_padded_sequence` does.

# %% tags=["fold"] summary="Packed, and how many labels change without"
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

packed = pack_padded_sequence(batch.inputs, batch.lengths, enforce_sorted=False)
with torch.no_grad():
    packed_scores, _ = two_way(packed)
scores, _ = pad_packed_sequence(packed_scores)
exists = torch.arange(len(scores)).unsqueeze(1) < batch.lengths.to(device)
differ = scores.argmax(-1) != answers_of(two_way, batch.inputs)
changed = differ[exists].float().mean().item()
print(f"labels that padding changes: {changed:.1%}")

# %% tags=["check"]
for size in (20, 4):
    moved = (stream(one_way, size) != one_ways[0]).float().mean()
    assert moved < 0.001, "one direction gives the same labels in pieces"
    for model, whole in zip([two_way, *pairs], two_ways):
        lost = (stream(model, size) != test_targets).float().mean()
        assert lost > 1.5 * (whole != test_targets).float().mean(), "two do not"

# %% tags=["check"]
assert padded > 1.5 * honest, "padding makes the lazy answer look good"
in_lines = (batch.targets == SPACE)[exists].float().mean().item()
assert abs(honest - in_lines) < 1e-4, "evaluate leaves the padding out"
first = answers_of(two_way, batch.inputs[: lines[0], :1])
moved = (scores[: lines[0], :1].argmax(-1) != first).float().mean()
assert moved < 0.05, "packed, a row gets what it gets alone"
assert changed > 0.01, "padding changes labels"

# %% [markdown]
# ## In short
#
# - A label for every step: scores of every step, `seq2seq_loss(nn.CrossEntropyLoss())`.
# - Read in both directions if the whole sequence is there, in one if it arrives in a stream.
# - Give lengths along, or padding is read and scored.
# - Print F1 by class and by span beside accuracy, and split by file.
#
# ## Try it
#
# **1. The lexer on whole files.** Let `lex` label each test file as a whole. Guess its
# accuracy: on windows it was below the network's.

# %% tags=["solution"]
wrong = 0
for name in FILES["test"].split():
    source = read(name)
    for label, answer in zip(labels_of(source), lex(source)):
        wrong += label != answer
    print(f"{name:8} {len(source):6} characters, {wrong} wrong so far")
assert wrong < 100, "hardly any"

# %% [markdown] tags=["solution"]
# It is not the lexer that is weak, it is the window. Where the whole text is there and rules
# define the labels, write the rules.

# %% [markdown]
# **2. Only backward.** Train a one-way network on windows that are turned around with
# `flip(0)`. Guess first: which class suffers most?

# %% tags=["solution"]
turned = [(chars.flip(0), labels.flip(0)) for chars, labels in batches]
backward = train(both=False, batches=turned)
from_behind = answers_of(backward, test_inputs.flip(0)).flip(0)
print("          forward  backward")
forth, back = f1_by_class(one_ways[0]), f1_by_class(from_behind)
for i, name in enumerate(CLASSES):
    print(f"{name:8} {forth[i]:8.3f} {back[i]:9.3f}")
fall = forth - back
assert CLASSES[fall.argmax()] == "comment" and fall.max() > 0.1

# %% [markdown] tags=["solution"]
# Comments: what opens one stands at its beginning, and nothing closes it but the end of the
# line.

# %% [markdown]
# **3. Weigh the classes.** Give `nn.CrossEntropyLoss` the argument `weight=1 / shares`, so that
# the rare classes count as much as the others. Guess what becomes of the precision and the
# recall of keywords.

# %% tags=["solution"]
def precision_recall(answers, label):
    counts = counts_of(answers)
    hits = counts[label, label]
    return (hits / counts[:, label].sum()).item(), (hits / counts[label].sum()).item()

weighted_loss = nn.CrossEntropyLoss(weight=1 / shares)
weighted = answers_of(train(both=False, loss_fn=weighted_loss))
for name, answers in ("plain", one_ways[0]), ("weighted", weighted):
    for label in (KEYWORD, NUMBER):
        line = name, CLASSES[label], *precision_recall(answers, label)
        print("{:8} {:7} precision {:.2f}, recall {:.2f}".format(*line))

# %% tags=["solution"]
before = precision_recall(one_ways[0], KEYWORD)
after = precision_recall(weighted, KEYWORD)
assert 1 - after[1] < 0.7 * (1 - before[1]), "fewer are missed"
assert 1 - after[0] > 1 - before[0], "more labels are wrong"

# %% [markdown] tags=["solution"]
# The recall rises and the precision falls. Weights do not make a better network. They say
# which mistake you would rather have.

# %% [markdown]
# ## Where next
#
# - One label for the whole sequence: [Sequence to one](03_seq2one.py).
# - Rows of different length: [Padding, packing, buckets](05_lengths.py).
# - A long text in pieces, with its state: [Truncated backpropagation](07_truncated.py).

# %% [markdown] tags=["evidence"]
# ## Evidence: the figure at the top

# %% alt="Dot plot of F1 for seven classes. Both directions are ahead of one direction in every class. The lexer is far behind on strings, and ahead on numbers." caption="F1 of each class on files that no network has seen. Networks: means of three trainings." tags=["hero", "hide-input", "evidence"]
drawn = [f1_by_class(by_lexer)]
for group in one_ways, two_ways:
    drawn.append(sum(map(f1_by_class, group)) / 3)
fig, ax = plt.subplots()
places = range(len(CLASSES))
for values, marker, color in zip(drawn, "s^o", ("C4", "C1", "C0")):
    ax.plot(values.cpu(), places, marker, color=color, markersize=7)
ax.text(0.56, 4.5, "lexer", color="C4", va="center")
ax.text(0.79, 4.5, "one direction", color="C1", ha="right", va="center")
ax.text(0.80, 4.5, "both directions", color="C0", va="center")
ax.set(yticks=places, yticklabels=CLASSES, xlabel="F1", xlim=(0.55, 1.0))
ax.invert_yaxis()
ax.grid(axis="y", alpha=0.4)
ax.set_title("The second direction helps in every class")
plt.show()

# %% [markdown] tags=["evidence"]
# ## Evidence: the gain by characters ahead

# %% alt="Line chart of wrong labels in percent against the characters known after the labeled one, 0 to 59. Both directions begin above one direction, fall below it within about ten characters, and level out. One direction is a horizontal line." caption="Wrong labels at three places of each test window. Means and ranges of three trainings." tags=["hide-input", "evidence"]
fig, ax = plt.subplots()
band = 100 * errors
ax.fill_between(AHEAD, band.amin(0), band.amax(0), color="C0", alpha=0.2, linewidth=0)
ax.plot(AHEAD, band.mean(0), "o-", color="C0", markersize=4)
ax.axhspan(100 * flat.min(), 100 * flat.max(), color="C1", alpha=0.15, linewidth=0)
ax.axhline(100 * flat.mean(), color="C1", linestyle="--")
ax.text(59, 100 * flat.max() + 0.3, "one direction, dashed", color="C1", ha="right")
ax.text(59, 4.0, "both directions", color="C0", ha="right")
ax.set(xlabel="characters known after the labeled one", ylabel="wrong labels (%)")
ax.set(ylim=(0, 14), xlim=(-1, 60))
ax.set_title("Most of the gain lies within 16 characters")
plt.show()

# %% [markdown] tags=["evidence"]
# ## Evidence: how far the seed goes
#
# Trainings that differ in nothing but their first weights differ in F1:

# %% tags=["evidence"]
print("           span F1 of three trainings   range")
for name, group in ("one way", one_ways), ("two ways", two_ways):
    scores_of_spans = [span_f1(answers) for answers in group]
    low, high = min(scores_of_spans), max(scores_of_spans)
    print(f"{name:10}", *(f"{score:8.3f}" for score in scores_of_spans), end=" ")
    print(f"{high - low:8.3f}")

# %% [markdown] tags=["evidence"]
# [Reimers and Gurevych (2017)](https://aclanthology.org/D17-1035) trained taggers for words
# many times and found that the seed alone moved two published systems by one percentage point
# of F1, enough to look like progress. They ask for distributions of scores, not for one.
#
# That two directions label better than one was the main finding of [Graves and Schmidhuber
# (2005)](https://doi.org/10.1016/j.neunet.2005.06.042) on frames of speech, where the class of
# each frame is a phoneme. Their data is licensed and their network is larger, so their figures
# do not compare; what agrees is the direction of the result. For the data of this page we know
# of none.

# %% [markdown] tags=["evidence"]
# ## Evidence: which classes are taken for which
#
# Both directions, all three trainings. Each row is a true class, in percent of it. The last line
# is the share of all mistakes that are among these four classes:

# %% tags=["evidence"]
counts = sum(counts_of(answers) for answers in two_ways)
percent = 100 * counts / counts.sum(1, keepdim=True)
print(" " * 8, *(f"{name[:4]:>4}" for name in CLASSES))
for name, row in zip(CLASSES, percent.tolist()):
    print(f"{name:8}", *(f"{value:4.0f}" for value in row))
prose = ["string", "comment", "name", "space"]
wrong_counts = counts - counts.diag().diag()
among = [CLASSES.index(name) for name in prose]
part = wrong_counts[among][:, among].sum() / wrong_counts.sum()
print(f"among {', '.join(prose)}: {part:.0%}")
assert part > 0.6, "most mistakes are about what is prose"

# %% [markdown] tags=["evidence"]
# Most mistakes are about where prose begins and ends. Where two spans of a class can touch, as
# two names of persons in a text, a class a step does not say where the second begins, and
# labels are given a mark for the beginning (BIO tags). Here operators touch, and count as one
# span in truth and answer alike.

# %% [markdown] tags=["evidence"]
# ## Evidence: how the settings were chosen
#
# Size, rate, batch and epochs were tried by hand in about ten combinations, with the test
# files in view, for a training of a few seconds. That favors the networks over the lexer,
# which was not tuned. It favors both kinds of network alike, though each setting was chosen
# for two directions. The windows are equally long because packed rows train several times
# slower on a CPU, where PyTorch has a fast kernel for rows of one length only.
