"""rnnkit: training recurrent networks in PyTorch, correctly."""

from typing import TYPE_CHECKING, Any

from .analysis.gradients import gradient_by_step, gradient_flow
from .analysis.plots import plot_gradient_flow, plot_history, plot_horizon
from .core.state import detach, reset_rows, select_rows
from .data.batches import Padded, SequenceBatch, batchseq, get_inout_seq, steps, unbatchseq
from .data.loaders import BucketSampler, StreamLoader, pad_collate
from .generation.beam import beam_search
from .generation.feedback import Feedback
from .generation.rollouts import rollout
from .generation.samplers import (
    DistributionSampler,
    SoftmaxSampler,
    identity,
    sample_best,
    sample_softmax,
    with_covariates,
)
from .generation.sampling import Sample, forecast, sample_model
from .losses.sequences import seq2one_loss
from .losses.steps import seq2seq_loss
from .models.encoder_decoder import Attention, EncoderDecoder
from .models.export import export_onnx, export_program
from .models.gru import GRU
from .models.stack import PerStep, RecurrentSequential
from .models.unroll import Unroll
from .training.bptt import BPTTTrainingPhase
from .training.callbacks import (
    ClipGradients,
    EarlyStopping,
    History,
    KeepBest,
    ProgressBar,
    Scheduler,
    StopOnNaN,
)
from .training.checkpoint import Checkpoint
from .training.closed_loop import BPTTValidationPhase, energy_score
from .training.events import CancelEpoch, CancelFit, CancelStep
from .training.learner import Learner, evaluate
from .training.phase import StepState

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .training.lightning import PhaseModule as PhaseModule

__all__ = [
    "GRU",
    "Attention",
    "BPTTTrainingPhase",
    "BPTTValidationPhase",
    "BucketSampler",
    "CancelEpoch",
    "CancelFit",
    "CancelStep",
    "Checkpoint",
    "ClipGradients",
    "DistributionSampler",
    "EarlyStopping",
    "EncoderDecoder",
    "Feedback",
    "History",
    "KeepBest",
    "Learner",
    "Padded",
    "PerStep",
    "ProgressBar",
    "RecurrentSequential",
    "Sample",
    "Scheduler",
    "SequenceBatch",
    "SoftmaxSampler",
    "StepState",
    "StopOnNaN",
    "StreamLoader",
    "Unroll",
    "batchseq",
    "beam_search",
    "detach",
    "energy_score",
    "evaluate",
    "export_onnx",
    "export_program",
    "forecast",
    "get_inout_seq",
    "gradient_by_step",
    "gradient_flow",
    "identity",
    "pad_collate",
    "plot_gradient_flow",
    "plot_history",
    "plot_horizon",
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
    "with_covariates",
]


def __getattr__(name: str) -> Any:
    """`PhaseModule` needs Lightning, an extra, which is imported when the name is asked for."""
    if name != "PhaseModule":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .training.lightning import PhaseModule
    except ModuleNotFoundError as error:
        came = "rnnkit.PhaseModule: got no package lightning; wanted one to run under. "
        raise ImportError(f"{came}Likely fix: pip install 'rnnkit[lightning]'.") from error
    return PhaseModule
