"""Register operators opaque to torch.compile; ask who traces.

The compiler traces through Python, but not into compiled extensions, and it unrolls
loops, anew for each size. An operator defined here is opaque to it: it only learns the
shape of the output.
"""

from typing import Callable

import torch

#: torch < 2.4 cannot define operators in Python. Everything works without them, but
#: for torch.compile.
AVAILABLE = hasattr(torch.library, 'custom_op')


def define_op(name: str, function: Callable, fake: Callable) -> Callable:
    """Register a function as an operator, ``torch.ops.mmlit.<name>``.

    Args:
        name: Its name.
        function: Takes tensors, optional tensors and numbers, returns tensors that
            share no memory with its arguments. Its annotations become the schema.
        fake: Takes the same arguments, returns tensors of the right shape, dtype and
            strides without computing what is in them.
    """
    if not AVAILABLE:
        return function
    op = torch.library.custom_op(f'mmlit::{name}', function, mutates_args=())
    op.register_fake(fake)
    return op


def differentiable(op: Callable, backward: Callable, save: Callable) -> Callable:
    """Give an operator its backward pass.

    Args:
        op: What :func:`define_op` returned.
        backward: ``backward(ctx, grad)`` -> a gradient or ``None`` per argument.
        save: ``save(ctx, inputs, output)`` keeps what ``backward`` needs.
    """
    if AVAILABLE:
        op.register_autograd(backward, setup_context=save)
        return op
    parts = dict(forward=op, setup_context=save, backward=backward)
    methods = {name: staticmethod(part) for name, part in parts.items()}
    return type(op.__name__, (torch.autograd.Function,), methods).apply


def is_compiling() -> bool:
    """Tell whether torch.compile is tracing the caller, and not for an export."""
    return _compiler_says('is_compiling') and not is_exporting()


def is_exporting() -> bool:
    """Tell whether torch.export, or an ONNX export of either kind, is tracing."""
    return _compiler_says('is_exporting') or torch.onnx.is_in_onnx_export()


def _compiler_says(question: str) -> bool:
    ask = getattr(getattr(torch, 'compiler', None), question, None)
    return ask is not None and ask()
