"""Uses of a latent space, and the effects of its size and of the KL: six pictures of VAEs on MNIST.

    python examples/representation.py
    python examples/representation.py --data digits --epochs 60       # no download

1. Interpolation between two images: through the pixels, along a line and along a sphere in the latent space.
2. An attribute vector: the mean code of bold digits minus that of thin ones, added and subtracted. "Bold" is defined
   by the number of white pixels; any labeled attribute works.
3. The plane of a two-dimensional latent space, decoded at quantiles of the prior.
4. t-SNE of the codes of a VAE and of an autoencoder with the same networks (`--embed tsne umap` for both), and
   the fraction of the ten nearest neighbors of a code with its label.
5. Codes in a plane from a VAE trained on the reconstruction alone (KL weight 0), almost only on the KL (weight
   1000), and on both.
6. Samples from the prior for latent spaces of several sizes, with the test ELBO of each.

Measured (2-core CPU busy with other work, one thread; 10 000 training images, 12 epochs; 380 seconds in all, 98 of CPU;
seed 0): test ELBO with 2, 5, 10 and 20 dimensions -166.89, -134.53, -119.20 and -112.81, of which KL 4.73, 10.50,
16.87 and 22.56. Of the ten nearest codes 79.5 % have the same label for the VAE, 80.9 % for the autoencoder. Without
the KL, codes in the plane have a standard deviation of 17; with almost only the KL all are draws from the prior,
whatever their class; with both they fill the prior and separate classes where possible. Two steps toward "bold" raise
the white pixels of a 2, a 4 and a 7 from 23, 31 and 37 (two steps away from it) to 218, 184 and 173.
"""

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import pyro_vae as pv

from common import make_parser


def main() -> None:
    parser = make_parser(__doc__, epochs=12)
    parser.add_argument("--data", default="mnist", help="a labeled data set's name")
    parser.add_argument("--num_train", type=int, default=10_000, help="training images, at most")
    parser.add_argument("--num_codes", type=int, default=2000, help="test images in pictures of codes, at most")
    parser.add_argument("--embed", nargs="+", choices=["tsne", "umap"], default=["tsne"], help="umap needs umap-learn")
    parser.add_argument("--latent_dims", type=int, nargs="+", default=[2, 5, 10, 20])
    options = parser.parse_args()

    data = pv.data.load(options.data, binarize="static", flatten=True, valid=0)
    train, test, labels = data.train.x[: options.num_train], data.test.x, data.test.y
    assert labels is not None
    shown = slice(0, min(options.num_codes, len(test)))

    def train_pair(pair: pv.VAE, kl_weight: float = 1.0) -> pv.VAE:
        pv.fit(
            pair.model,
            pair.guide,
            train,
            kl_weight=kl_weight,
            epochs=options.epochs,
            lr=2e-3,
            lr_schedule="cosine",
            seed=options.seed,
        )
        return pair.eval()

    def save(figure: object, name: str) -> None:
        print(pv.plots.save(figure, options.pictures / f"representation_{name}_{options.data}.png"))

    vaes, samples = {}, {}
    for size in options.latent_dims:
        torch.manual_seed(options.seed)
        vaes[size] = train_pair(pv.VAE(data.shape, size, hidden=(256, 256)))
        elbo = pv.bound(vaes[size].model, vaes[size].guide, test, seed=0)
        print(f"{size:3} dimensions: test {elbo}, of which {elbo.kl.mean():.2f} KL")
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            samples[f"z of {size}"] = vaes[size].sample(12, mean=True)
    save(pv.plots.image_rows(samples), "sizes")

    vae = vaes[max(vaes)]
    codes = pv.encode(vae.guide, test, seed=0)
    first, last = (int((labels == digit).nonzero()[0]) for digit in (3, 8))
    steps = {path: pv.evaluate.interpolate(codes[first], codes[last], 10, path) for path in ("linear", "spherical")}
    rows = {"pixels": pv.evaluate.interpolate(test[first], test[last], 10)}
    rows |= {path: pv.decode(vae.model, z, test) for path, z in steps.items()}
    save(pv.plots.image_rows(rows), "interpolation")

    ink = test.sum(1)
    bold = pv.evaluate.attribute_vector(codes, ink > ink.median())
    strength = torch.linspace(-2, 2, 9).unsqueeze(1)
    chosen = [int((labels == digit).nonzero()[1]) for digit in (2, 4, 7)]
    rows = {f"{labels[i]}, bold -2 to 2": pv.decode(vae.model, codes[i] + strength * bold, test) for i in chosen}
    save(pv.plots.image_rows(rows), "attribute")
    print(
        "ink of the decoded images:",
        *(f"{float(row.sum(1)[0]):.0f} to {float(row.sum(1)[-1]):.0f}" for row in rows.values()),
    )

    torch.manual_seed(options.seed)
    autoencoder = train_pair(pv.Autoencoder(data.shape, max(vaes), hidden=(256, 256)))
    sets = {"VAE": codes[shown], "autoencoder": pv.encode(autoencoder.guide, test, seed=0)[shown]}
    agreement = {name: neighbor_agreement(z, labels[shown]) for name, z in sets.items()}
    for method in options.embed:
        points = {
            f"{name}, {method}: {agreement[name]:.1%} of neighbors alike": pv.evaluate.embed(z, method=method, seed=0)
            for name, z in sets.items()
        }
        save(pv.plots.embeddings(points, labels[shown]), method)
        print(*points, sep="\n")

    planes = {}
    for name, weight in {"only the reconstruction": 0.0, "almost only the KL": 1000.0, "both": 1.0}.items():
        torch.manual_seed(options.seed)
        plane = vaes.get(2) if weight == 1.0 else None
        plane = plane or train_pair(pv.VAE(data.shape, 2, hidden=(256, 256)), weight)
        planes[name] = pv.encode(plane.guide, test[shown], mean=False, seed=0)
    save(pv.plots.embeddings(planes, labels[shown], title="draws from q(z|x)"), "terms")
    print(
        *(f"{name}: codes within {value.abs().max():.1f}, s.d. {value.std():.2f}" for name, value in planes.items()),
        sep="\n",
    )
    save(pv.plots.image_grid(pv.decode(plane.model, pv.evaluate.manifold(20), test), columns=20), "manifold")


def neighbor_agreement(codes: Tensor, labels: Tensor, k: int = 10) -> float:
    """The fraction of the k nearest other codes that have the same label."""
    k = min(k, len(codes) - 1)
    near = KNeighborsClassifier(k).fit(codes.cpu(), labels.cpu()).kneighbors(return_distance=False)
    return float((labels.cpu()[torch.from_numpy(near)] == labels.cpu().unsqueeze(1)).double().mean())


if __name__ == "__main__":
    main()
