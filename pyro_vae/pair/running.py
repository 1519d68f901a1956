"""How a program of a pair is run: with exact distributions, and with parameters left as they were given."""

from __future__ import annotations

import weakref
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.pair.exact import exact_distribution
from pyro_vae.pair.indices import SameIndicesAs
from pyro_vae.pair.protocol import Program

__all__ = ["Running", "traced"]


class Running(Messenger):
    """What holds for a pair's programs wherever they run, under an estimator of Pyro, too.

    - Distributions are exact where Pyro's numbers fail: see `exact_distribution`.
    - An `nn.Parameter` with `requires_grad=False` that is given to `pyro.param`, or held by a `PyroModule`, is used and
      not trained. Pyro's store would set `requires_grad` on it.
    - At the end, parameters lose what Pyro ties to them, which cannot be pickled, unless there is a handler outside.

    Within another one it does nothing more.
    """

    def __enter__(self) -> Running:
        store: Any = pyro.get_param_store()
        self._outermost = "setdefault" not in vars(store)
        if self._outermost:
            # not by a handler: autoguides hide their first run of the model from those outside
            register = store.setdefault

            def setdefault(name: str, value: Any, constraint: constraints.Constraint = constraints.real) -> Tensor:
                if isinstance(value, nn.Parameter) and not value.requires_grad:
                    used: Any = value.detach()
                    used.unconstrained = weakref.ref(value)
                    return used
                return register(name, value, constraint)

            store.setdefault = setdefault
            super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._outermost:
            super().__exit__(*error)
            store: Any = pyro.get_param_store()
            del store.setdefault
            if not am_i_wrapped():
                for _, param in store.named_parameters():
                    vars(param).pop("unconstrained", None)

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = exact_distribution(msg["fn"])


def traced(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], on: Any = None) -> Any:
    """The trace of one run of a program: on the values of another trace, if one is given."""
    if on is not None:
        program = poutine.replay(SameIndicesAs(on)(program), trace=on)
    with Running():
        return poutine.trace(program).get_trace(*args, **kwargs)
