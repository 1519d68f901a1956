"""The sequence VAE: a normalized distribution over rows of tokens, its posterior of missing words, its training."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.data import Vocabulary
from pyro_vae.data import vocabulary as numbers
from pyro_vae.models import TextVAE, sequences
from pyro_vae.models.sequences import END, PAD
from pyro_vae.pair.particles import particles_agree

SENTENCES = [
    f"the {adjective} {animal} {verb} {place} ."
    for adjective, animal, verb, place in itertools.product(
        ("small", "old"), ("cat", "dog", "bird"), ("sleeps", "eats"), ("here", "in the house", "by the old tree")
    )
]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.from_sentences(SENTENCES)


def tiny(length: int = 3, **options: Any) -> TextVAE:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"latent_dim": 1, "embedding_dim": 4, "hidden": 5, **options}
    return TextVAE(5, length, **sizes)


def all_rows(length: int = 3, vocab_size: int = 5) -> Tensor:
    """Every row there is: tokens up to an end, or as many as there is room for."""
    tokens = range(2, vocab_size)
    ended = [[*row, END] for n in range(length) for row in itertools.product(tokens, repeat=n)]
    full = [list(row) for row in itertools.product(tokens, repeat=length)]
    return torch.tensor([row + [PAD] * (length - len(row)) for row in ended + full])


def test_probabilities_of_all_rows_sum_to_one() -> None:
    vae, rows = tiny().double().eval(), all_rows()
    p = vae.decode(torch.randn(2, 1, 1).double().expand(2, len(rows), 1))
    assert p.batch_shape == (2, len(rows))
    torch.testing.assert_close(p.log_prob(rows).exp().sum(1), torch.ones(2).double())


def test_samples_have_these_probabilities_and_the_mode_is_greedy() -> None:
    vae, rows = tiny().eval(), all_rows()
    p = vae.decode(torch.tensor([0.7]))
    drawn = p.sample((20_000,))
    share = (drawn.unsqueeze(1) == rows).all(-1).double().mean(0)
    assert float(share.sum()) == pytest.approx(1.0)  # nothing but rows
    exact = p.log_prob(rows).exp().detach().double()
    assert ((share - exact).abs() < 5 * (exact / 20_000).sqrt() + 1e-3).all()
    first = exact @ torch.nn.functional.one_hot(rows[:, 0], 5).double()
    assert int(p.mode[0]) == int(first.argmax())


def test_missing_words_follow_the_exact_posterior() -> None:
    """By enumeration of the words and quadrature over z."""
    vae = tiny(length=4).eval()
    with torch.no_grad():
        vae.tokens.start.weight.mul_(4)  # so that z, and with it the word after, matters
        vae.tokens.rnn.get_parameter("weight_hh_l0").mul_(3)
        vae.tokens.final.weight.mul_(4)
    x, missing = torch.tensor([[3, 4, 3, END]]), torch.tensor([[True, False, True, False]])
    candidates = torch.tensor([[a, 4, b, END] for a in (3, 4) for b in (3, 4)])
    z = torch.linspace(-6, 6, 601).reshape(-1, 1, 1)
    with torch.no_grad():
        joint = vae.decode(z.expand(-1, 4, 1)).log_prob(candidates) + vae.prior().log_prob(z)
    exact = joint.logsumexp(0).softmax(0)
    drawn = vae.fill(x, missing, num_samples=3000, num_imputations=3000).squeeze(1)
    share = (drawn.unsqueeze(1) == candidates).all(-1).float().mean(0)
    assert float(share.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(share, exact, atol=0.05, rtol=0)
    assert float((exact - 0.25).abs().max()) > 0.1


def test_log_prob_is_the_log_marginal_of_a_sentence() -> None:
    vae, rows = tiny().double().eval(), all_rows()[::5]
    z = torch.linspace(-8, 8, 801).double().reshape(-1, 1, 1)
    with torch.no_grad():
        joint = vae.decode(z.expand(-1, len(rows), 1)).log_prob(rows) + vae.prior().log_prob(z)
    exact = joint.logsumexp(0) + torch.tensor(16 / 800).double().log()
    found = pv.log_marginal(vae.model, vae.guide, rows, num_samples=1000, seed=0)
    assert ((found.log_prob - exact).abs() < 4 * found.std_error + 1e-3).all()
    each = vae.token_log_probs(rows, torch.zeros(len(rows), 1).double())
    assert not each[rows == PAD].any()
    torch.testing.assert_close(each.sum(1), vae.decode(torch.zeros(len(rows), 1).double()).log_prob(rows))


def test_what_stands_after_the_end_does_not_matter() -> None:
    short, long = tiny(length=3).eval(), tiny(length=6).eval()
    long.load_state_dict(short.state_dict())
    rows = all_rows(3)[:4]
    padded = torch.nn.functional.pad(rows, (0, 3))
    torch.testing.assert_close(short.encode(rows).mean, long.encode(padded).mean)
    z = torch.randn(4, 1)
    torch.testing.assert_close(short.decode(z).log_prob(rows), long.decode(z).log_prob(padded))


def test_particles_vectorize_and_dropout_is_for_training() -> None:
    vae, rows = tiny(word_dropout=0.9), all_rows()[:6]
    assert not particles_agree(vae.model, vae.guide, (rows,))
    vae.eval()
    assert particles_agree(vae.model, vae.guide, (rows,))
    z = torch.zeros(6, 1)
    assert torch.equal(vae.decode(z).log_prob(rows), vae.decode(z).log_prob(rows))
    vae.train()
    assert not torch.equal(vae.decode(z).log_prob(rows), vae.decode(z).log_prob(rows))


@pytest.mark.parametrize("elbo", ["mean_field", "free_bits", "iwae"])
def test_every_parameter_gets_a_gradient(elbo: str, vocabulary: Vocabulary) -> None:
    vae = TextVAE(len(vocabulary), 10, latent_dim=3, embedding_dim=4, hidden=5, word_dropout=0.0)
    rows = vocabulary.encode(SENTENCES, 10)
    pv.elbo.make(elbo, num_particles=2, **({"bits": 0.0} if elbo == "free_bits" else {})).loss_and_grads(
        vae.model, vae.guide, rows
    )
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert copy.deepcopy(vae).name != vae.name


def trained(vocabulary: Vocabulary, rows: Tensor, elbo: Any, word_dropout: float) -> tuple[TextVAE, float]:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"latent_dim": 4, "embedding_dim": 16, "hidden": 24, "word_dropout": word_dropout}
    vae = TextVAE(len(vocabulary), 10, **sizes)
    history = pv.fit(vae.model, vae.guide, rows, elbo=elbo, epochs=70, batch_size=36, lr=0.02, seed=0, progress=False)
    vae.eval()
    return vae, history[-1].train_elbo


def test_free_bits_and_dropout_keep_it_from_collapse(vocabulary: Vocabulary) -> None:
    """36 sentences, equally often: no bound exceeds -log 36, and a decoder that ignores z reaches it."""
    rows = vocabulary.encode(SENTENCES, 10)
    vae, elbo = trained(vocabulary, rows, "mean_field", 0.0)
    assert -math.log(36) - 0.1 < elbo < -math.log(36) + 0.01
    assert pv.latent_report(vae.model, vae.guide, rows, seed=0).mutual_information < 0.1

    vae, elbo = trained(vocabulary, rows, pv.elbo.FreeBits(bits=0.7), 0.7)
    assert elbo > -7
    assert pv.latent_report(vae.model, vae.guide, rows, seed=0).mutual_information > 1.0
    written = vocabulary.decode(pv.sample(vae.model, len(rows)))
    assert sum(sentence in SENTENCES for sentence in written) > 24
    codes = pv.encode(vae.guide, rows, seed=0)
    way = pv.evaluate.interpolate(codes[0], codes[-1], 5)
    assert len(vocabulary.decode(vae.decode(way).mode)) == 5
    holed = torch.zeros_like(rows, dtype=torch.bool)
    holed[:, 2] = True  # the animal
    filled = vocabulary.decode(vae.fill(rows, holed, num_samples=20)[0])
    assert sum(sentence in SENTENCES for sentence in filled) > 30


def test_vocabulary(vocabulary: Vocabulary) -> None:
    rows = vocabulary.encode(SENTENCES, 10)
    assert rows.dtype == torch.int64
    assert vocabulary.decode(rows) == SENTENCES
    assert [getattr(sequences, name) for name in ("PAD", "END", "UNKNOWN")] == [0, 1, 2]  # models know no data
    assert [getattr(numbers, name) for name in ("PAD", "END", "UNKNOWN")] == [0, 1, 2]
    small = Vocabulary.from_sentences(SENTENCES, max_size=6)
    assert (len(small), small.tokens[:3]) == (6, ("<pad>", "<end>", "<unk>"))
    assert "<unk>" in small.decode(small.encode(SENTENCES, 10))[0]
    with pytest.raises(ValueError, match="sentence 0 has 6 tokens, expected at most length - 1 = 4"):
        vocabulary.encode(["the cat sleeps in the house"], 5)
    with pytest.raises(ValueError, match="must differ"):
        Vocabulary(["a", "a"])
    letters = Vocabulary.from_sentences(["abc"], split=list, separator="")
    assert letters.decode(letters.encode(["cab"], 4)) == ["cab"]
    with pytest.raises(ValueError, match="rows hold tokens from 1 to 6, and the vocabulary has those from 0 to 5"):
        letters.decode(torch.tensor([[6, 1]]))


def test_a_vocabulary_in_a_file(vocabulary: Vocabulary, tmp_path: Path) -> None:
    assert Vocabulary.load(vocabulary.save(tmp_path / "new" / "words.txt")).tokens == vocabulary.tokens
    (tmp_path / "bad").write_text("a\n\nb\n")
    with pytest.raises(ValueError, match=r"line 2 of .*bad is empty: expected one token a line"):
        Vocabulary.load(tmp_path / "bad")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not a text file"):
        Vocabulary.load(tmp_path / "bytes")
    with pytest.raises(ValueError, match=r"the token 'a\\nb' cannot stand in a line of its own"):
        Vocabulary(["a\nb"]).save(tmp_path / "words.txt")


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="vocab_size must be at least 4"):
        TextVAE(3, 5)
    with pytest.raises(ValueError, match="word_dropout must be a probability"):
        TextVAE(5, 5, word_dropout=1.5)
    vae = tiny()
    with pytest.raises(ValueError, match="missing must be booleans"):
        vae.fill(all_rows(), torch.zeros(2, 3).bool())
    with pytest.raises(ValueError, match="missing after the end"):
        vae.fill(torch.tensor([[3, END, PAD]]), torch.tensor([[False, False, True]]))
    with pytest.raises(ValueError, match=r"expected data of shape .* got \(2, 4\)"):
        vae.guide(torch.ones(2, 4).long())
