"""rnnkit: training recurrent networks in PyTorch, correctly."""

from .attention import Attention, EncoderDecoder
from .beam import beam_search
from .feedback import Feedback
from .generation import Sample, sample_model
from .losses import seq2one_loss, seq2seq_loss
from .modules import PerStep, RecurrentSequential, Unroll
from .rollout import rollout
from .samplers import DistributionSampler, SoftmaxSampler, identity, sample_best, sample_softmax
from .sequences import SequenceBatch, batchseq, get_inout_seq, pad_collate, steps, unbatchseq
from .state import detach, reset_rows, select_rows
from .streams import BucketSampler, StreamLoader

__version__ = "0.1.0"

__all__ = [
    "Attention",
    "BucketSampler",
    "DistributionSampler",
    "EncoderDecoder",
    "Feedback",
    "PerStep",
    "RecurrentSequential",
    "Sample",
    "SequenceBatch",
    "SoftmaxSampler",
    "StreamLoader",
    "Unroll",
    "batchseq",
    "beam_search",
    "detach",
    "get_inout_seq",
    "identity",
    "pad_collate",
    "reset_rows",
    "rollout",
    "sample_best",
    "sample_model",
    "sample_softmax",
    "select_rows",
    "seq2one_loss",
    "seq2seq_loss",
    "steps",
    "unbatchseq",
]
