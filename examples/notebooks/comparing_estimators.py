# %% [markdown]
"""
# Which estimator for this pair: bias, variance and cost of the gradients, and where the training ends
"""

# %%
import pyro
import torch

import pyro_vae as pv

EPOCHS = 15
REPEATS = 100
SEEDS = [0, 1, 2]

# %%
torch.manual_seed(0)
pyro.clear_param_store()
data = pv.data.load("digits", binarize="dynamic", flatten=True)


def fresh(seed: int) -> pv.VAE:
    """A pair with weights of its own."""
    torch.manual_seed(seed)
    return pv.VAE(64, latent_dim=8, hidden=(100,)).start_at_mean(data.mean)


vae = fresh(0)
pv.fit(vae.model, vae.guide, data, epochs=EPOCHS, lr=3e-3, seed=0)

# %% [markdown]
"""
## At one point

The gradients of each estimator at the weights that were reached, many times. `bound` is what an estimator maximizes,
`var x s` its variance times its time: the smaller, the better. SNR is the ratio of the mean gradient to its scatter,
for the model and for the guide.
"""

# %%
found = pv.compare_elbos(
    vae.model,
    vae.guide,
    data.test.head(64),
    estimators=["trace", "mean_field", "stl", "iwae", "dreg"],
    num_particles=[1, 10],
    repeats=REPEATS,
    seed=0,
)
print(found)
found.plot()

# %% [markdown]
"""
IWAE's guide gets a worse signal with more particles, DReG's does not: Rainforth et al. 2018, Tucker et al. 2019.

## Over a training

What counts is where the training ends. The runs are paired by seed: the same weights to start from, the same batches.
"""

# %%
trained = pv.compare_training(
    fresh, data, ["mean_field", "iwae", "dreg"], seeds=SEEDS, epochs=EPOCHS, num_particles=5, lr=3e-3, num_samples=200
)
print(trained)
trained.plot()
