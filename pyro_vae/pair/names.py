"""Names under which networks are registered with Pyro."""

from __future__ import annotations

import itertools
import re
from weakref import WeakKeyDictionary

__all__ = ["Named", "unique_name", "without_count"]

_names: WeakKeyDictionary[object, str] = WeakKeyDictionary()
_given: dict[str, str] = {}  # every name ever given, and the class it stands for
_count = itertools.count()


def unique_name(owner: object) -> str:
    """A name for Pyro's parameter store that no other object has had in this process, and no copy of this one has.

    Pyro keeps the parameters of objects that are gone: a second network under their name would be run, but the old
    parameters would be trained. So neither a fixed name will do, nor one made of `id(owner)`, which Python uses again.

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
    """What has a `unique_name`."""

    @property
    def name(self) -> str:
        """The name under which its networks are registered with Pyro, which no other instance or copy has."""
        return unique_name(self)


def without_count(name: str) -> str:
    """The name of a parameter as another process would have it: of `VAE_3.encoder$$$weight`, `VAE.encoder$$$weight`.

    Only what `unique_name` gave is shortened; a network that its user calls `layer_3` keeps its name.
    """
    head = re.split(r"\.|\$\$\$", name, maxsplit=1)[0]
    return _given.get(head, head) + name[len(head) :]
