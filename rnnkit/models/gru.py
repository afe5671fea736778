"""`nn.GRU` with a quicker gradient on CPUs: delete this file, and every result stays.

On a CPU PyTorch differentiates a GRU with 46 operations for each step. Here a step takes 9, and all
else is done once for all steps.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..core.model import FUSED

_DTYPES = (torch.float32, torch.float64)
_through_tanh = torch.ops.aten.tanh_backward
_through_sigmoid = torch.ops.aten.sigmoid_backward
# Below, what is done once costs more than it saves, see tests/benchmarks/bench_gru.py.
_FEWEST_STEPS = 8


class GRU(nn.GRU):
    r"""`nn.GRU`, trained in less time on a CPU.

    Arguments, parameters, `state_dict`, outputs and gradients are those of [torch.nn.GRU][]; the
    page Speed has measured the time.

    $$
    \begin{aligned}
    r &= \sigma(W_r x + b_r + U_r h + c_r) \\
    z &= \sigma(W_z x + b_z + U_z h + c_z) \\
    n &= \tanh(W_n x + b_n + r\,(U_n h + c_n)) \\
    h' &= n + z\,(h - n)
    \end{aligned}
    $$

    Whatever need not wait for another step is done once for all steps. That is so for float32 and
    float64 on a CPU, where a gradient is asked for, from 8 steps on. Else `nn.GRU` itself runs: for
    a `PackedSequence` or a sequence without a batch, under autocast, `torch.compile` or a transform
    of `torch.func`, and for gradients of gradients.

    >>> import torch
    >>> from rnnkit import GRU
    >>> quicker, plain = GRU(3, 8), torch.nn.GRU(3, 8)
    >>> quicker.load_state_dict(plain.state_dict())
    <All keys matched successfully>
    >>> inputs = torch.randn(20, 2, 3)
    >>> torch.allclose(quicker(inputs)[0], plain(inputs)[0], atol=1e-6)
    True
    """

    def forward(self, input: Any, hx: Any = None) -> Any:
        weights = [list(each) for each in self.all_weights]  # copied: torch 2.15 compiles no other
        if not self._is_quicker_with(input, hx, weights):
            return super().forward(input, hx)

        outputs = input.transpose(0, 1) if self.batch_first else input  # (T, B, F)
        if hx is None:
            hx = input.new_zeros(len(weights), outputs.shape[1], self.hidden_size)
        last: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                outputs = F.dropout(outputs, self.dropout)
            inputs = outputs
            outputs, h = _Layer.apply(inputs, hx[len(last)], *weights[len(last)])
            last.append(h)
            if self.bidirectional:
                backward, h = _Layer.apply(inputs.flip(0), hx[len(last)], *weights[len(last)])
                last.append(h)
                outputs = torch.cat((outputs, backward.flip(0)), 2)  # (T, B, 2 H)
        if self.batch_first:
            outputs = outputs.transpose(0, 1)
        return outputs, torch.stack(last)

    def _is_quicker_with(self, input: Any, hx: Any, weights: list[Any]) -> bool:
        """Whether the call is one of plain tensors, in which a gradient is asked for."""
        if not torch.is_grad_enabled() or _is_watched():
            return False
        given: list[Any] = [input]
        if hx is not None:
            given.append(hx)
        for each in weights:
            given.extend(each)
        if not all(map(_is_plain, given)) or len({tensor.dtype for tensor in given}) > 1:
            return False
        return any(tensor.requires_grad for tensor in given) and self._fits(input, hx)

    def _fits(self, input: Tensor, hx: Tensor | None) -> bool:
        """Whether the shapes are right, which `nn.GRU` says in its words, and worth it."""
        if input.dim() != 3 or not input.numel() or input.shape[2] != self.input_size:
            return False
        time, batch = input.shape[:2]
        if self.batch_first:
            batch, time = input.shape[:2]
        states = self.num_layers * (1 + self.bidirectional)
        if hx is not None and hx.shape != (states, batch, self.hidden_size):
            return False
        return time >= _FEWEST_STEPS


FUSED.append(GRU.forward)  # it gives what PyTorch's own gives


def _is_plain(tensor: Any) -> bool:
    if type(tensor) not in (Tensor, nn.Parameter):  # a PackedSequence, a subclass
        return False
    return tensor.device.type == "cpu" and tensor.dtype in _DTYPES


def _is_watched() -> bool:
    """Whether something else than autograd looks at the operations."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or torch.is_autocast_enabled("cpu")
        or forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]
        or torch._C._are_functorch_transforms_active()  # pyright: ignore
    )


class _Layer(torch.autograd.Function):
    """One layer in one direction: `(T, B, F)` and `(B, H)` to `(T, B, H)` and `(B, H)`."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, h: Tensor, w: Tensor, u: Tensor, *biases: Tensor
    ) -> tuple[Tensor, Tensor]:
        time, batch, features = x.shape
        hidden = u.shape[1]
        b, c = biases or (u.new_zeros(3 * hidden), u.new_zeros(3 * hidden))

        # Of each step r, z and U_n h + c_n side by side, as the product with U makes them; and n.
        gates = x.new_empty(time, batch, 3 * hidden)
        new = x.new_empty(time, batch, hidden)

        # What the inputs and the biases add, for all steps.
        two = 2 * hidden
        rows = x.reshape(-1, features)  # (T B, F)
        flat = gates.view(-1, 3 * hidden)
        torch.addmm(b[:two] + c[:two], rows, w[:two].t(), out=flat[:, :two])
        torch.addmm(b[two:], rows, w[two:].t(), out=new.view(-1, hidden))
        flat[:, two:] = c[two:]

        # What each step's h adds.
        outputs = x.new_empty(time, batch, hidden)
        state = h
        u_t = u.t().contiguous()  # (H, 3 H)
        columns = [gates, gates[:, :, :two], *gates.split(hidden, 2), new, outputs]
        for sums, both, r, z, u_n, n, output in zip(*map(torch.unbind, columns), strict=True):
            sums.addmm_(state, u_t)
            both.sigmoid_()
            n.addcmul_(r, u_n).tanh_()
            state = torch.lerp(n, state, z, out=output)

        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h, w, u, *biases, gates, new, outputs)
        return outputs, state.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, gates, new, outputs = ctx.saved_tensors
        if torch.is_grad_enabled() or any(map(_is_batched, grads)):
            return _by_pytorch(inputs, ctx.needs_input_grad, grads)
        x, h, w, u = inputs[:4]
        batch, hidden = outputs.shape[1:]
        sums = _derivatives(h, gates, new, outputs)  # (T, B, 4 H)
        grad = _walk_back(sums, gates[:, :, hidden : 2 * hidden], u, *grads)

        # What is left is done for all steps at once.
        flat = sums.view(-1, 4 * hidden)
        by_w = flat[:, : 3 * hidden]  # in the order n, r, z
        by_u = flat[:, hidden:]  # in the order r, z, n
        found: list[Tensor | None] = [None, grad, None, None]
        if ctx.needs_input_grad[0]:
            found[0] = torch.mm(by_w, w.roll(hidden, 0)).view(x.shape)
        if ctx.needs_input_grad[2]:
            found[2] = torch.mm(by_w.t(), x.reshape(-1, x.shape[2])).roll(-hidden, 0)
        if ctx.needs_input_grad[3]:
            first = torch.mm(by_u[:batch].t(), h)
            found[3] = first.addmm_(by_u[batch:].t(), outputs[:-1].view(-1, hidden))
        if len(inputs) > 4:
            biases = flat.sum(0)
            found += [biases[: 3 * hidden].roll(-hidden, 0), biases[hidden:]]
        return tuple(found)


def _derivatives(h: Tensor, gates: Tensor, new: Tensor, outputs: Tensor) -> Tensor:
    """Of each step's `h'` by its sums, side by side: `W_n x + b_n`, those in r and z, and `u_n`."""
    time, batch, hidden = outputs.shape
    derivatives = outputs.new_empty(time, batch, 4 * hidden)
    of_n, of_r, of_z, of_u_n = derivatives.split(hidden, 2)
    r, z, u_n = gates.split(hidden, 2)
    torch.sub(1, z, out=of_n)
    _through_tanh(of_n, new, grad_input=of_n)
    torch.mul(of_n, r, out=of_u_n)
    torch.mul(of_n, u_n, out=of_r)
    _through_sigmoid(of_r, r, grad_input=of_r)
    torch.sub(h, new[0], out=of_z[0])
    torch.sub(outputs[:-1], new[1:], out=of_z[1:])
    _through_sigmoid(of_z, z, grad_input=of_z)
    return derivatives


def _walk_back(
    sums: Tensor, z: Tensor, u: Tensor, grad_outputs: Tensor | None, grad_last: Tensor | None
) -> Tensor:
    """Turns derivatives by the sums into gradients, from the last step; gives that of `h`."""
    if grad_outputs is None:
        grad_outputs = z.new_zeros(()).expand_as(z)
    *earlier, grad = grad_outputs.unbind(0)
    if grad_last is not None:
        grad = grad + grad_last
    by_sum = sums.unflatten(2, (4, -1))  # (T, B, 4, H)
    columns = [by_sum.unbind(0), sums[:, :, z.shape[2] :].unbind(0), z.unbind(0)]
    from_loss = (z.new_zeros(()), *earlier)  # of the step before
    for all_four, by_u, keep, own in reversed(list(zip(*columns, from_loss, strict=True))):
        # Each h has its gradient from the loss, from z h in the next step and from the next sums.
        all_four.mul_(grad.unsqueeze(1))
        grad = torch.addcmul(own, grad, keep).addmm_(by_u, u)
    return grad


def _is_batched(grad: Tensor | None) -> bool:
    """Whether it stands for several gradients at once, by `vmap`."""
    if grad is None:
        return False
    kinds = torch._C._functorch  # pyright: ignore
    return kinds.is_batchedtensor(grad) or kinds.is_legacy_batchedtensor(grad)  # pyright: ignore


def _by_pytorch(
    inputs: list[Tensor], needed: tuple[bool, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The same gradients, by operations that can be differentiated again, and batched."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that a gradient ends here where one input was made of another.
        x, h, *weights = [tensor.view_as(tensor) for tensor in inputs]
        has_biases = len(weights) > 2
        outputs, last = torch.gru(x, h[None], weights, has_biases, 1, 0.0, False, False, False)
        results = (outputs, last[0])
    made = [result for result, grad in zip(results, grads, strict=True) if grad is not None]
    by = [grad for grad in grads if grad is not None]
    wanted = [tensor for tensor, need in zip((x, h, *weights), needed, strict=True) if need]
    found = iter(torch.autograd.grad(made, wanted, by, create_graph=again))
    return tuple([next(found) if need else None for need in needed])
