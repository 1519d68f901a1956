"""The sequence VAE: one latent for a whole sentence, and a recurrent decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vae.conditionals import Conditional
from pyro_vae.models.parts import as_posterior
from pyro_vae.models.sequences import END, PAD, UNKNOWN, TokenDecoder, TokenEncoder, TokenSequence
from pyro_vae.models.vae import VAE
from pyro_vae.priors import Prior
from pyro_vae.support.arguments import checked_from

__all__ = ["TextVAE"]


class TextVAE(VAE):
    r"""A VAE of sentences, or of any rows of tokens: a `VAE` with recurrent networks and an autoregressive likelihood.

    .. math:: z \sim p(z), \quad p(x \mid z) = \prod_{t \le \mathrm{end}} p(x_t \mid x_{<t}, z); \qquad
        q(z \mid x) = \mathrm{posterior}(\mathrm{GRU}(x))

    The likelihood is a distribution over whole rows: `pv.log_marginal` gives log p of each sentence, and
    `pv.sample(vae.model, 10)` draws new ones. A decoder that sees the previous words can do without z, and then z is
    ignored (posterior collapse). `word_dropout` hides some of these words while training, and free bits
    (`elbo=pv.elbo.FreeBits(bits=...)`) or a warm-up keep the KL from vanishing; `pv.latent_report` shows whether it
    has. With dropout, the training loss is that of a model that sees fewer words; evaluation mode has no dropout.

    Data are rows `(N, length)` of int64, as `pv.data.Vocabulary` makes them: tokens, one 1 at the end, then zeros.
    Pass them to `fit` as a tensor.

    Args:
        vocab_size: V, the number of tokens, `len(vocabulary)`.
        length: T, the tokens in a row, its end included.
        latent_dim: Size of z.
        embedding_dim, hidden: Sizes of an embedded token and of a recurrent state.
        word_dropout: Probability with which the decoder does not see a previous word while training.
        posterior, prior: As for `VAE`.

    Raises:
        ValueError: As `VAE` does, and for fewer than 4 tokens or a word dropout outside [0, 1].

    Reference: Bowman et al. 2016, arXiv 1511.06349, section 3.

    Example:
        >>> vae = TextVAE(vocab_size=10, length=6, latent_dim=4)
        >>> rows = torch.tensor([[3, 4, 5, 1, 0, 0]])
        >>> vae.decode(vae.encode(rows).mean).mode.shape
        torch.Size([1, 6])
    """

    @checked_from(embedding_dim=1, hidden=1)
    def __init__(
        self,
        vocab_size: int,
        length: int,
        latent_dim: int = 16,
        embedding_dim: int = 64,
        hidden: int = 128,
        word_dropout: float = 0.3,
        posterior: str | Conditional = "diagonal_normal",
        prior: str | Prior = "standard_normal",
    ) -> None:
        posterior = as_posterior(posterior, latent_dim)
        likelihood = TokenDecoder(vocab_size, length, latent_dim, embedding_dim, hidden, word_dropout)
        encoder = TokenEncoder(vocab_size, length, posterior.param_shape, embedding_dim, hidden)
        # the likelihood is the decoder: each token depends on the previous ones
        super().__init__(
            length,
            latent_dim,
            likelihood=likelihood,  # type: ignore[arg-type]
            posterior=posterior,
            prior=prior,
            encoder=encoder,
            decoder=nn.Identity(),
        )

    @torch.no_grad()
    def fill(self, x: Tensor, missing: Tensor, *, num_samples: int = 200, num_imputations: int = 1) -> Tensor:
        """Rows with their missing words drawn given all known words, before and after, `(M, N, length)`.

        Importance sampling along each row: z from the guide, which sees "unknown" where a word is missing; missing
        words from the decoder; weights from the known words; then draws from the weighted rows. Exact as `num_samples`
        grows. The number and the positions of missing words are known. Call `eval()` first, to stop word dropout.

        Args:
            x: Rows `(N, length)`; the values at missing words do not matter.
            missing: `(N, length)` of booleans.
            num_samples: K, weighted rows for each datum.
            num_imputations: M, rows drawn from them.

        Raises:
            ValueError: If the shapes differ, or a word is missing after the end of a row.
        """
        if missing.shape != x.shape or missing.dtype != torch.bool:
            raise ValueError(f"missing must be booleans of shape {tuple(x.shape)}, got {tuple(missing.shape)}")
        self._check(x, batch=True)
        known = x.masked_fill(missing, UNKNOWN)
        if bool((missing & ((known == END).cumsum(1) > 0)).any()):
            raise ValueError("a word is missing after the end of its row: only words before the end can be missing")
        q = self.encode(known)
        z = q.sample((num_samples,))
        log_w = self.prior().log_prob(z) - q.log_prob(z)  # (K, N)
        rows = known.expand(num_samples, *x.shape).clone()
        words = torch.arange(self.tokens.vocab_size, device=x.device) > UNKNOWN
        token, state = torch.full_like(rows[..., :1].flatten(0, 1), END), None
        for t in range(x.shape[1]):
            logits, state = self.tokens.logits(z.flatten(0, 1), token, state)
            logits = logits.squeeze(1).unflatten(0, log_w.shape)  # (K, N, V)
            word_logits = logits.masked_fill(~words, -torch.inf)
            any_word = word_logits.logsumexp(-1)
            drawn = torch.distributions.Categorical(logits=word_logits, validate_args=False).sample()
            rows[..., t] = torch.where(missing[:, t], drawn, rows[..., t])
            known_word = logits.gather(-1, rows[..., t : t + 1]).squeeze(-1).masked_fill(rows[..., t] == PAD, 0.0)
            log_w = log_w + torch.where(missing[:, t], any_word, known_word)
            token = rows[..., t].reshape(-1, 1)
        index = torch.multinomial(log_w.T.softmax(1), num_imputations, replacement=True).T  # (M, N)
        return rows[index, torch.arange(len(x), device=x.device)]

    @property
    def tokens(self) -> TokenDecoder:
        """The decoder, p(x|z) as a module."""
        assert isinstance(self.likelihood, TokenDecoder)
        return self.likelihood

    def token_log_probs(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x_t | x_<t, z) of each token, in nats, `(*, length)`, 0 after the end."""
        p = self.decode(z)
        assert isinstance(p, TokenSequence)
        return p.token_log_probs(x)
