"""rnnkit: training recurrent networks in PyTorch, correctly."""

from .attention import Attention, EncoderDecoder
from .callbacks import Checkpoint, ClipGradients, EarlyStopping, History, ProgressBar, Scheduler, StopOnNaN
from .feedback import Feedback
from .generation import Sample, beam_search, sample_model
from .gradients import gradient_by_step, gradient_flow
from .host import CancelEpoch, CancelFit, CancelStep, StepState
from .learner import Learner
from .losses import seq2one_loss, seq2seq_loss
from .modules import PerStep, RecurrentSequential, Unroll
from .phases import BPTTTrainingPhase
from .plots import plot_gradient_flow, plot_history, plot_horizon
from .rollout import rollout
from .samplers import DistributionSampler, SoftmaxSampler, identity, sample_best, sample_softmax
from .sequences import (
    BucketSampler,
    SequenceBatch,
    StreamLoader,
    batchseq,
    get_inout_seq,
    pad_collate,
    steps,
    unbatchseq,
)
from .state import detach, reset_rows, select_rows
from .validation import BPTTValidationPhase

__version__ = "0.1.0"

# fmt: off
__all__ = [
    "Attention", "BPTTTrainingPhase", "BPTTValidationPhase", "BucketSampler", "CancelEpoch", "CancelFit",
    "CancelStep", "Checkpoint", "ClipGradients", "DistributionSampler", "EarlyStopping", "EncoderDecoder",
    "Feedback", "History", "Learner", "PerStep", "ProgressBar", "RecurrentSequential", "Sample", "Scheduler",
    "SequenceBatch", "SoftmaxSampler", "StepState", "StopOnNaN", "StreamLoader", "Unroll", "batchseq",
    "beam_search", "detach", "get_inout_seq", "gradient_by_step", "gradient_flow", "identity", "pad_collate",
    "plot_gradient_flow", "plot_history", "plot_horizon", "reset_rows", "rollout", "sample_best",
    "sample_model", "sample_softmax", "select_rows", "seq2one_loss", "seq2seq_loss", "steps", "unbatchseq",
]
