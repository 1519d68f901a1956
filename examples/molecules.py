"""Molecules: does gradient ascent on a predicted property in a latent space find better ones than random search?

    pip install 'pyro-vae[molecules]'        # selfies and rdkit
    python examples/molecules.py
    python examples/molecules.py --property logp

A sequence VAE (`TextVAE`) of SELFIES strings, for which every row of tokens is a molecule, on 5000 molecules that rdkit
ships (NCI). A small network learns to predict a property from the code of a molecule: QED, a score of drug-likeness in
[0, 1], or log P. Then, as Gomez-Bombarelli et al. 2018 (arXiv 1610.02415) do, codes of held-out molecules follow
the gradient of the prediction. Ten codes on each path are decoded, and the best of the ten molecules by the property
itself counts. Random search decodes ten codes for the same molecules, at the same distances in random directions;
"prior" draws ten codes from the prior. So all decode the same number of molecules and evaluate the property as often.

Measured for QED (2-core CPU busy with much other work, one thread; 729 seconds of training; 3395 molecules to train on,
377 held out; seed 0): test ELBO -25.33. Of 1000 samples all are valid, 993 differ, and 981 are not in the training
data. The predictor explains 57 % of the variance of held-out molecules. Best of ten from 100 starts, and gain over the
start: gradient 0.734, +0.170 ± 0.019; random directions 0.696, +0.132 ± 0.015; prior 0.760, +0.196 ± 0.016. So the
gradient beats random directions, paired, by 0.038 ± 0.015, but not ten draws from the prior. After so short a
training the codes have little information: 0.8 % of the held-out molecules are reconstructed exactly.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rdkit.Chem as chem
import selfies
import torch
from matplotlib.figure import Figure
from rdkit import RDConfig, RDLogger
from rdkit.Chem import QED, Crippen, Draw
from torch import Tensor, nn

import pyro_vae as pv

from common import make_parser, mean_and_error

PROPERTIES: dict[str, Callable[[Any], float]] = {"qed": QED.qed, "logp": Crippen.MolLogP}


def main() -> None:
    parser = make_parser(__doc__, latent_dim=24, hidden=128, epochs=25)
    parser.add_argument("--property", default="qed", choices=PROPERTIES)
    parser.add_argument("--num_molecules", type=int, default=5000, help="lines of the file, at most")
    parser.add_argument("--length", type=int, default=32, help="tokens of a molecule with its end, at most")
    parser.add_argument("--num_starts", type=int, default=100, help="held-out molecules to start from, at most")
    parser.add_argument("--steps", type=int, default=50, help="gradient steps, of which ten are decoded")
    options = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    score = PROPERTIES[options.property]

    strings = molecules(options.num_molecules, options.length)
    cut = len(strings) - len(strings) // 10
    vocabulary = pv.data.Vocabulary.from_sentences(
        strings[:cut], split=lambda s: list(selfies.split_selfies(s)), separator=""
    )
    rows = vocabulary.encode(strings, options.length)
    values = torch.tensor([score(molecule(s)) for s in strings])
    print(f"{cut} molecules to train on, {len(vocabulary)} tokens; mean {options.property} {values.mean():.3f}")

    torch.manual_seed(options.seed)
    sizes = {"latent_dim": options.latent_dim, "embedding_dim": 48, "hidden": options.hidden, "word_dropout": 0.2}
    vae = pv.models.TextVAE(len(vocabulary), options.length, **sizes)
    history = pv.fit(
        vae.model,
        vae.guide,
        rows[:cut],
        elbo=pv.elbo.FreeBits(bits=0.5),
        epochs=options.epochs,
        batch_size=64,
        lr=3e-3,
        lr_schedule="cosine",
        clip_norm=5.0,
        seed=options.seed,
        compile=False,  # of a recurrent network it takes minutes
    )
    vae.eval()
    test = rows[cut:]
    codes = pv.encode(vae.guide, rows, seed=0)
    print(f"{history[-1].seconds:.0f} seconds; test {pv.bound(vae.model, vae.guide, test, seed=0)}")
    exact = (vae.decode(codes[cut:]).mode == test).all(1).double().mean()
    print(f"{exact:.1%} of the test molecules are reconstructed exactly")
    torch.manual_seed(options.seed)
    written = vocabulary.decode(pv.sample(vae.model, 1000))
    made = [chem.MolToSmiles(molecule(s)) for s in written if molecule(s) is not None and molecule(s).GetNumAtoms()]
    known = {chem.MolToSmiles(molecule(s)) for s in strings[:cut]}
    new = sum(s not in known for s in made)
    print(
        f"of 1000 samples {len(made)} are valid, {len(set(made))} of these differ, {new} are not in the training data"
    )

    predict = predictor(codes[:cut], values[:cut], options.seed)
    with torch.no_grad():
        error = (predict(codes[cut:]) - values[cut:]).square().mean() / values[cut:].var()
    print(f"the predictor explains {1 - error:.1%} of the variance of held-out molecules")

    starts, start_values = codes[cut:][: options.num_starts], values[cut:][: options.num_starts]
    ascent = ascend(predict, starts, options.steps)  # (10, N, E)
    noise = torch.randn(ascent.shape)
    random_walk = starts + noise / noise.norm(dim=-1, keepdim=True) * (ascent - starts).norm(dim=-1, keepdim=True)
    found = {"gradient": ascent, "random directions": random_walk, "prior": torch.randn(ascent.shape)}
    best: dict[str, Tensor] = {}
    for name, search in found.items():
        decoded = [vocabulary.decode(vae.decode(step).mode) for step in search]
        table = torch.tensor([[value(s, score) for s in step] for step in decoded])
        best[name], which = table.clamp_min(float(values.min())).max(0)  # an invalid molecule counts as the worst one
        gain = best[name] - start_values
        gain_and_error = mean_and_error(gain, "+.3f")
        print(f"{name:18} best of ten: {best[name].mean():.3f}, gain over the start {gain_and_error}")
        if name == "gradient":
            winners = [
                (i, decoded[which[i]][i]) for i in best[name].sub(start_values).argsort(descending=True)[:4].tolist()
            ]
    difference = best["gradient"] - best["random directions"]
    print(f"gradient over random directions, paired: {mean_and_error(difference, '+.3f')}")

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    grid = figure.add_gridspec(2, 6)
    ax = figure.add_subplot(grid[:, :2])
    histograms = {"start": start_values, **best}
    everything = torch.cat(list(histograms.values()))
    edges = torch.linspace(float(everything.min()), float(everything.max()), 21)
    for name, numbers in histograms.items():
        ax.hist(numbers.numpy(), bins=edges.tolist(), histtype="step", lw=1.5, label=name)
    ax.set(xlabel=f"{options.property}, best of ten", ylabel="molecules")
    ax.legend(fontsize=7)
    for column, (i, winner) in enumerate(winners, start=2):
        for row, string in enumerate((strings[cut + i], winner)):
            panel = figure.add_subplot(grid[row, column])
            panel.imshow(Draw.MolToImage(molecule(string), size=(300, 300)))
            panel.set_title(f"{('start', 'found')[row]}: {score(molecule(string)):.2f}", fontsize=8)
            panel.axis("off")
    print(pv.plots.save(figure, options.pictures / f"molecules_{options.property}.png"))


def molecules(max_lines: int, length: int) -> list[str]:
    """SELFIES strings of rdkit's molecules with fewer than `length` tokens, each once, in a random order."""
    lines = Path(RDConfig.RDDataDir, "NCI", "first_5K.smi").read_text().splitlines()[:max_lines]
    parsed = (chem.MolFromSmiles(line.split()[0]) for line in lines)
    strings: dict[str, None] = {}
    for parsed_one in parsed:
        try:
            string = selfies.encoder(chem.MolToSmiles(parsed_one)) if parsed_one is not None else None
        except selfies.EncoderError:  # a valence that SELFIES does not have
            continue
        if string and selfies.len_selfies(string) < length and "." not in string and molecule(string) is not None:
            strings[string] = None
    ordered = list(strings)
    return [ordered[i] for i in torch.randperm(len(ordered), generator=torch.Generator().manual_seed(0)).tolist()]


def molecule(string: str) -> Any:
    """rdkit's molecule of a SELFIES string without "unknown" tokens; None if the string is not valid."""
    return chem.MolFromSmiles(selfies.decoder(string.replace("<unk>", "")))


def value(string: str, score: Callable[[Any], float]) -> float:
    """The property of a string's molecule, minus infinity if the string is not valid."""
    found = molecule(string)
    return score(found) if found is not None and found.GetNumAtoms() else -math.inf


def predictor(codes: Tensor, values: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """A network from codes to the property, trained on noisy codes, so that it is smooth."""
    torch.manual_seed(seed)
    net = pv.nets.MLP(codes.shape[1], (64,), 1, "tanh")
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    mean, scale = values.mean(), values.std()
    for _ in range(60):
        for index in torch.randperm(len(codes)).split(128):
            noisy = codes[index] + 0.3 * torch.randn(len(index), codes.shape[1])
            loss = nn.functional.mse_loss(net(noisy).squeeze(-1), (values[index] - mean) / scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return lambda z: net(z).squeeze(-1) * scale + mean


def ascend(predict: Callable[[Tensor], Tensor], starts: Tensor, steps: int, lr: float = 0.1) -> Tensor:
    """Ten codes of a gradient ascent from each start, `(10, N, E)`, with the prior's log-density as a penalty."""
    z = starts.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=lr)
    path: list[Tensor] = []
    for step in range(1, max(steps, 10) + 1):
        spread = predict(starts).detach().std() + 1e-6
        loss = -(predict(z) / spread).sum() + 0.01 * z.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step * 10 // max(steps, 10) > len(path):
            path.append(z.detach().clone())
    return torch.stack(path[:10])


if __name__ == "__main__":
    main()
