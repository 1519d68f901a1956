"""Networks and a distribution for rows of tokens: an encoder, and an autoregressive decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_vae.conditionals import Conditional
from pyro_vae.nets import as_sizes, leading_shape

__all__ = ["END", "PAD", "UNKNOWN", "TokenDecoder", "TokenEncoder", "TokenSequence"]

PAD, END, UNKNOWN = 0, 1, 2  # as in pyro_vae.data.Vocabulary


class TokenEncoder(nn.Module):
    """A recurrent network over tokens, `(*, T) -> (*, *out_shape)`: a GRU in each direction, then mean and maximum.

    Padding after the end of a row is left out.

    Args:
        vocab_size: V, the number of tokens, the three special ones included.
        length: T, the longest row.
        out_shape: Shape of one output.
        embedding_dim, hidden: Sizes of the embedding of a token and of the state of each GRU.
    """

    def __init__(
        self, vocab_size: int, length: int, out_shape: Sequence[int], embedding_dim: int = 64, hidden: int = 128
    ) -> None:
        super().__init__()
        self.length, self.out_shape = torch.Size([length]), as_sizes(out_shape, "out_shape")
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.forwards = nn.GRU(embedding_dim, hidden, batch_first=True)
        self.backwards = nn.GRU(embedding_dim, hidden, batch_first=True)
        self.final = nn.Linear(4 * hidden, self.out_shape.numel())

    def forward(self, x: Tensor) -> Tensor:
        lead = leading_shape(x, self.length, "TokenEncoder")
        x = x.reshape(-1, self.length[0])
        inside = (x != PAD).unsqueeze(-1)
        # each row reversed within its own length, so that padding comes last again
        position = inside.sum(1) - 1 - torch.arange(x.shape[1], device=x.device)
        reverse = x.gather(1, position.clamp_min(0)).masked_fill(position < 0, PAD)
        h = torch.cat([self.forwards(self.embedding(x))[0], self.backwards(self.embedding(reverse))[0]], -1)
        mean = (h * inside).sum(1) / inside.sum(1).clamp_min(1)
        highest = h.masked_fill(~inside, -1.0).amax(1)  # a GRU's states are above -1
        return self.final(torch.cat([mean, highest], -1)).reshape(lead + self.out_shape)


class TokenDecoder(Conditional):
    """p(x|z) over rows of tokens, each given z and those before it: `(*, L) -> TokenSequence`.

    A GRU whose first state and every input depend on z. In training mode each input token is replaced by "unknown" with
    probability `word_dropout`, so that the GRU has to use z (Bowman et al. 2016, arXiv 1511.06349).

    Args:
        vocab_size: V, the number of tokens, the three special ones included.
        length: T, the longest row.
        latent_dim: L.
        embedding_dim, hidden: Sizes of the embedding of a token and of the state.
        word_dropout: Probability in [0, 1].
    """

    def __init__(
        self,
        vocab_size: int,
        length: int,
        latent_dim: int,
        embedding_dim: int = 64,
        hidden: int = 128,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__(length, latent_dim)
        if vocab_size < 4:
            raise ValueError(f"vocab_size must be at least 4, three special tokens and one more, got {vocab_size}")
        if not 0 <= word_dropout <= 1:
            raise ValueError(f"word_dropout must be a probability, got {word_dropout}")
        self.vocab_size, self.word_dropout = vocab_size, word_dropout
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.start = nn.Linear(latent_dim, hidden)
        self.rnn = nn.GRU(embedding_dim + latent_dim, hidden, batch_first=True)
        self.final = nn.Linear(hidden, vocab_size)

    def distribution(self, h: Tensor) -> TokenSequence:
        return TokenSequence(self, h)

    def logits(self, z: Tensor, before: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities `(M, T', V)` of the tokens that follow each of `before`, `(M, T')`, and the last state."""
        if self.training and self.word_dropout > 0:
            drop = torch.rand(before.shape, device=before.device) < self.word_dropout
            before = before.masked_fill(drop & (before > END), UNKNOWN)
        inputs = torch.cat([self.embedding(before), z.unsqueeze(1).expand(-1, before.shape[1], -1)], -1)
        first = self.start(z).tanh().unsqueeze(0) if state is None else state
        h, state = self.rnn(inputs, first)
        logits = self.final(h)
        # padding is not drawn: it only fills a row after its end
        pad = torch.arange(self.vocab_size, device=z.device) == PAD
        return logits.masked_fill(pad, -torch.inf).log_softmax(-1), state


class TokenSequence(dist.TorchDistribution):
    """Rows of tokens `(*, T)` given latents `(*, L)`: a sequence of categoricals up to the end of the row.

    A row that has not ended after T tokens is cut there; the probabilities of all rows sum to one. There is no mean;
    `mode` takes the likeliest token at each step, which does not always give the likeliest row.
    """

    arg_constraints = {"z": constraints.independent(constraints.real, 1)}  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, decoder: TokenDecoder, z: Tensor, validate_args: bool | None = None) -> None:
        self.decoder, self.z = decoder, z
        super().__init__(z.shape[:-1], decoder.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> TokenSequence:
        return TokenSequence(self.decoder, self.z.expand(*batch_shape, -1), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        each = self.token_log_probs(value)
        return each.sum(-1)

    def token_log_probs(self, value: Tensor) -> Tensor:
        """log p of each token given z and those before it, in nats, `(*, T)`; 0 after the end."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        rows = value.expand(*shape, -1).reshape(-1, value.shape[-1])
        z = self.z.expand(*shape, -1).reshape(-1, self.z.shape[-1])
        before = torch.cat([torch.full_like(rows[:, :1], END), rows[:, :-1]], 1)
        logits, _ = self.decoder.logits(z, before)
        each = logits.gather(-1, rows.unsqueeze(-1)).squeeze(-1)
        return each.masked_fill(rows == PAD, 0.0).reshape(*shape, -1)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            z = self.z.expand(*sample_shape, *self.z.shape)
            return self._generate(z.reshape(-1, z.shape[-1]), greedy=False).reshape(*z.shape[:-1], -1)

    @property
    def mode(self) -> Tensor:
        """The likeliest token at each step, given those before it: `(*, T)`."""
        with torch.no_grad():
            return self._generate(self.z.reshape(-1, self.z.shape[-1]), greedy=True).reshape(*self.batch_shape, -1)

    def _generate(self, z: Tensor, *, greedy: bool) -> Tensor:
        length, state = self.event_shape[0], None
        token = torch.full((len(z), 1), END, device=z.device)
        ended = torch.zeros(len(z), 1, dtype=torch.bool, device=z.device)
        tokens = []
        for _ in range(length):
            logits, state = self.decoder.logits(z, token, state)
            drawn = logits.argmax(-1) if greedy else dist.Categorical(logits=logits, validate_args=False).sample()
            token = drawn.masked_fill(ended, PAD)
            ended = ended | (token == END)
            tokens.append(token)
        return torch.cat(tokens, 1)
