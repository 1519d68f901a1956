"""Names under which networks are registered with Pyro."""

from __future__ import annotations

import itertools
import re
from weakref import WeakKeyDictionary

__all__ = ["Named", "unique_name", "without_count"]

_names: WeakKeyDictionary[object, str] = WeakKeyDictionary()
_given: dict[str, str] = {}  # every name given so far, and its class
_count = itertools.count()


def unique_name(owner: object) -> str:
    """A name for Pyro's parameter store that no other object of this process has had; a copy gets another name.

    Pyro keeps the parameters of deleted objects. A second network under the same name would run, but Pyro would train
    the old parameters. Neither a fixed name avoids that nor `id(owner)`, which Python reuses.

    >>> class Thing: ...
    >>> first, second = Thing(), Thing()
    >>> unique_name(first) == unique_name(first) != unique_name(second)
    True
    """
    name = _names.get(owner)
    if name is None:
        kind = type(owner).__name__
        name = _names[owner] = f"{kind}_{next(_count)}"
        _given[name] = kind
    return name


class Named:
    """A mixin for objects with a `unique_name`."""

    @property
    def name(self) -> str:
        """The name under which its networks are registered with Pyro; no other instance or copy has it."""
        return unique_name(self)


def without_count(name: str) -> str:
    """Remove the process-dependent counter from a parameter's name: `VAE_3.encoder$$$weight` -> `VAE.encoder$$$weight`.

    Only names from `unique_name` change; a network that the user calls `layer_3` keeps its name.
    """
    head = re.split(r"\.|\$\$\$", name, maxsplit=1)[0]
    return _given.get(head, head) + name[len(head) :]
