"""Which latent depends on what under the posterior: the inversion of a model's graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

__all__ = ["STRUCTURES", "Inversion", "invert"]

Graph = Mapping[str, Collection[str]]
Plates = Mapping[str, Collection[str]]
Neighbors = dict[str, set[str]]

STRUCTURES = ("faithful", "forward", "reverse", "mean_field")


@dataclass
class Inversion:
    """What each latent depends on in a guide.

    Attributes:
        given: The sites on which each latent depends, in the order in which the guide samples the latents.
        coupled: The plates across which elements of a latent depend on each other, given those sites. A guide that
            samples in these plates takes the elements as independent.
    """

    given: dict[str, tuple[str, ...]]
    coupled: dict[str, set[str]] = field(default_factory=dict)

    def cost(self) -> tuple[int, int]:
        """Latents with coupled elements, then dependencies: the fewer the better."""
        return sum(map(bool, self.coupled.values())), sum(map(len, self.given.values()))


def invert(
    parents: Graph,
    latents: Collection[str],
    structure: str = "faithful",
    first: Collection[str] = (),
    plates: Plates | None = None,
) -> Inversion:
    """The dependencies of a guide for a model.

    Every structure but "mean_field" is faithful: it claims no independence that the model's posterior lacks. The
    parents of a latent are the sites that share a factor with it once the latents that the guide samples later are
    eliminated.

    Args:
        parents: The parents of each site in the model.
        latents: The latent sites; all others are observed.
        structure: "forward": the model's order, ancestors first. "reverse": descendants first. "faithful": the one of
            these two that leaves fewer latents with coupled elements, then the one with fewer dependencies.
            "mean_field": every latent depends on observed sites only.
        first: Latents that the guide samples before all others.
        plates: The plates of each site, without that over the data.

    Raises:
        ValueError: For an unknown structure.

    Reference: Webb et al. 2018, arXiv 1712.00287, algorithm 1.

    Example:
        >>> collider = {"a": [], "b": [], "x": ["a", "b"]}
        >>> invert(collider, ["a", "b"], "forward").given
        {'a': ('x',), 'b': ('a', 'x')}
    """
    if structure not in STRUCTURES:
        raise ValueError(f"unknown structure {structure!r}: use one of {', '.join(STRUCTURES)}")
    if structure == "faithful":
        both = [invert(parents, latents, each, first, plates) for each in ("forward", "reverse")]
        return min(both, key=Inversion.cost)
    inside = {name: set((plates or {}).get(name, ())) for name in parents}
    between = _moral(parents)
    coupled = {name: set[str]() for name in latents}
    for name, above in parents.items():  # elements of a parent meet in a child outside their plate
        for parent in set(above) & set(latents):
            coupled[parent] |= inside[parent] - inside[name]
    order = list(_elimination(parents, latents, between, structure != "reverse", set(first)))
    if structure == "mean_field":
        given = {name: _ordered(_observed_near(name, between, latents), parents) for name in reversed(order)}
        return Inversion(given, coupled)
    found = {}
    for name in order:
        found[name] = _ordered(between[name], parents)
        for other in between[name] & set(latents):  # and in a latent outside their plate that is eliminated
            coupled[other] |= inside[other] - inside[name]
        _eliminate(name, between)
    return Inversion({name: found[name] for name in reversed(order)}, coupled)


def _moral(parents: Graph) -> Neighbors:
    """The undirected graph in which the members of each factor `p(site | parents)` are all neighbors."""
    between: Neighbors = {name: set() for name in parents}
    for name, above in parents.items():
        for a, b in combinations((name, *above), 2):
            between[a].add(b)
            between[b].add(a)
    return between


def _eliminate(name: str, between: Neighbors) -> None:
    """Take a site out of the graph and make its neighbors neighbors of each other."""
    around = between.pop(name)
    for other in around:
        between[other] |= around - {other}
        between[other].discard(name)


def _elimination(
    parents: Graph, latents: Collection[str], between: Neighbors, upwards: bool, last: set[str]
) -> Iterator[str]:
    """The order in which latents are eliminated: among those whose turn may be next, the one with the least fill-in.

    Upwards a latent's turn comes after its children, downwards after its parents, so that the result is as natural as
    the model: of all minimal inverses these two kinds need no search.
    """
    between = {name: set(around) for name, around in between.items()}
    before: dict[str, set[str]] = {name: set() for name in latents}
    for name in latents:
        for parent in set(parents[name]) & set(latents):
            before[parent if upwards else name].add(name if upwards else parent)
    left = list(latents)[::-1] if upwards else list(latents)  # ties go by the model's order
    while left:
        locals_left = [name for name in left if name not in last]
        pool = locals_left or left
        ready = [name for name in pool if not before[name] & set(pool)]
        name = min(ready, key=lambda each: _fill_in(each, between))
        _eliminate(name, between)
        left.remove(name)
        yield name


def _fill_in(name: str, between: Neighbors) -> int:
    return sum(b not in between[a] for a, b in combinations(between[name], 2))


def _observed_near(name: str, between: Neighbors, latents: Collection[str]) -> set[str]:
    """The observed sites that a latent's posterior depends on: those reached through latents."""
    seen, todo = {name}, [name]
    while todo:
        for other in between[todo.pop()] - seen:
            seen.add(other)
            if other in latents:
                todo.append(other)
    return seen - set(latents)


def _ordered(names: Collection[str], parents: Graph) -> tuple[str, ...]:
    return tuple(name for name in parents if name in names)
