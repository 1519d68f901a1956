"""`explore`: move in the latent space of a run, in a browser."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pyro_vae.reports.markup import Markup, asset, page, tag
from pyro_vae.reports.serving import Server
from pyro_vae.reports.space import LatentSpace
from pyro_vae.runs import LoadedRun, load_run
from pyro_vae.support import arguments
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.random import seed_or_draw

__all__ = ["explore"]


@checked_from(num_data=1, port=0)
def explore(
    run: str | Path | LoadedRun,
    *,
    split: Literal["train", "valid", "test"] = "test",
    num_data: int = 1000,
    text: Callable[[Tensor], list[str]] | None = None,
    port: int = 0,
    browser: bool = True,
    wait: bool = True,
    root: str | None = None,
    device: str = "cpu",
    trust: bool = False,
    seed: int | None = None,
) -> Server:
    """Open a page to move in the latent space of a run: any pair with a continuous latent for each datum.

    The page has a pad and sliders for the latent dimensions, and the decoded datum at once; a map of the codes of the
    data, to click on; the posterior of the datum that was clicked on, as reconstructions at several draws with their
    spread; interpolation between two codes; directions towards the data of a class, where there are labels; and
    samples.

    A server on this machine answers, at the loopback address and behind a secret in the address, so that neither other
    machines nor other pages can ask it.

    Args:
        run: A run directory, or what `pv.train` or `pv.load_run` returned.
        split: The data on the map; another split where the run has none of this name.
        num_data: How many of them, the first ones.
        text: A function from observations `(N, ...)` to N texts, such as `vocabulary.decode`, for pairs of sentences.
        port: The port; 0 takes a free one.
        browser: Open the page in a browser.
        wait: Wait until Ctrl-C. False returns at once; `.url` is the address, `.close()` ends it. Until then the pair
            and torch's generators are in use: train nothing meanwhile.
        root: The folder of the data, if they have moved.
        device: The device of the networks.
        trust: Allow the run to name classes of your own, as in `pv.load_run`.
        seed: Seed of all noise. None draws one from torch's generator.

    Raises:
        FileNotFoundError, ValueError: If the run cannot be read, or its pair has no continuous latent for each datum.
        OSError: If the port is taken.
    """
    arguments.choice("split", split, ("train", "valid", "test"))
    if port > 65535:
        raise ValueError(f"port must be at most 65535, got {port}")
    loaded = run if isinstance(run, LoadedRun) else load_run(run, trust=trust, device=device)
    space = LatentSpace(loaded, split=split, num_data=num_data, text=text, root=root, seed=seed_or_draw(seed))
    server = Server(explorer_page(space.describe()), questions_of(space), port)
    if browser:
        webbrowser.open(server.url)
    if wait:
        try:
            print(f"{server.url} (Ctrl-C ends it)", flush=True)
            server.wait()
        except KeyboardInterrupt:
            server.close()
    return server


def questions_of(space: LatentSpace) -> dict[str, Callable[[Any], Any]]:
    """What the page asks: each a function of the values that it sends."""
    return {
        "decode": lambda asked: {"shown": space.decode(asked["codes"], asked.get("index", 0))},
        "datum": lambda asked: space.datum(asked["index"]),
        "sample": lambda asked: space.sample(int(asked["seed"])),
        "between": lambda asked: space.between(asked["a"], asked["b"], asked.get("path", "linear")),
    }


def explorer_page(data: dict[str, Any]) -> str:
    """The page, with its data."""
    note = f"{data['num_data']} data of the {data['split']} split; {len(data['names'])} latent dimensions."
    body = tag(
        "main",
        tag(
            "header",
            tag("p", "pyro_vae explore", class_="kind"),
            tag("h1", data["name"]),
            tag("p", note, class_="note"),
            tag("p", id="problem", role="alert", hidden=True),
        ),
        tag("div", _now(), _pad(data["names"]), _map(data["map_note"]), _sliders(), class_="grid"),
        tag("div", _datum(), _path(), _attributes(data), _samples(), class_="grid rows"),
        data_kind=data["kind"],
    )
    styles = asset("page.css") + asset("explore.css")
    return page(
        f"{data['name']} · pyro_vae explore",
        body,
        styles=styles,
        script=asset("explore.js"),
        data=data,
        connect="'self'",
    )


def _section(title: str, *content: Any, **attributes: Any) -> Markup:
    return tag("section", tag("h2", title), *content, **attributes)


def _button(label: str, name: str) -> Markup:
    return tag("button", label, type="button", id=name)


def _now() -> Markup:
    buttons = tag(
        "p", _button("Mean code", "center"), _button("Set A", "set-a"), _button("Set B", "set-b"), class_="buttons"
    )
    time = tag("p", "decoded in ", tag("output", "–", id="time"), class_="note")
    return _section("Decoded", tag("div", id="now", class_="shown"), buttons, time, class_="now")


def _pad(names: list[str]) -> Markup:
    choices = [tag("option", name, value=i) for i, name in enumerate(names)]
    selects = [
        tag("label", text, tag("select", *choices, id=name)) for text, name in (("across ", "dim-x"), ("up ", "dim-y"))
    ]
    canvas = tag(
        "canvas",
        id="pad",
        width=300,
        height=300,
        tabindex=0,
        role="application",
        aria_label="Pad: drag, or use the arrow keys, to move along two latent dimensions",
    )
    return _section("Pad", canvas, tag("p", *selects, class_="buttons"))


def _map(note: str) -> Markup:
    canvas = tag("canvas", id="map", width=300, height=300, role="img", aria_label="Map of the codes of the data")
    return _section("Map of codes", canvas, tag("p", note, class_="note"))


def _sliders() -> Markup:
    return _section("Sliders", tag("div", id="sliders"), class_="sliders")


def _datum() -> Markup:
    labels = ("datum", "mean of reconstructions", "their standard deviation")
    names = ("datum-x", "datum-mean", "datum-spread")
    figures = [
        tag("figure", tag("div", id=name, class_="shown small"), tag("figcaption", label))
        for name, label in zip(names, labels, strict=True)
    ]
    return _section(
        "Posterior of a datum",
        tag("p", "Click on the map to choose a datum.", id="datum-name", class_="note"),
        tag("div", *figures, class_="strip"),
        tag("p", "Reconstructions at draws from q(z|x):", class_="note"),
        tag("div", id="draws", class_="strip"),
    )


def _path() -> Markup:
    choices = [tag("option", name, value=name) for name in ("linear", "spherical")]
    select = tag("label", "path ", tag("select", *choices, id="path"))
    return _section(
        "From A to B",
        tag("div", id="between", class_="strip"),
        tag("p", _button("Interpolate", "interpolate"), select, class_="buttons"),
        tag("p", "Set A and B from the decoded code above. Click on a picture to go there.", class_="note"),
    )


def _attributes(data: dict[str, Any]) -> Markup | None:
    if not data["attributes"]:
        return None
    choices = [tag("option", name, value=name) for name in data["attributes"]]
    slider = tag("input", type="range", min=-2, max=2, step=0.02, value=0, id="attribute-amount")
    return _section(
        "Towards a class",
        tag("p", tag("label", "class ", tag("select", *choices, id="attribute")), class_="buttons"),
        tag("label", "amount ", slider, class_="slider"),
        tag("p", "Adds a multiple of the class's mean code minus the mean code of the rest.", class_="note"),
    )


def _samples() -> Markup:
    return _section(
        "Samples from the prior",
        tag("div", id="samples", class_="strip"),
        tag("p", _button("Draw", "sample"), class_="buttons"),
    )
