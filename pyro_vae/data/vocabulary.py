"""Conversion between sentences and rows of token numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyro_vae.support.arguments import checked
from pyro_vae.support.files import write_file

__all__ = ["END", "PAD", "UNKNOWN", "Vocabulary", "words"]

PAD, END, UNKNOWN = 0, 1, 2  # the first entries of every vocabulary
SPECIAL = ("<pad>", "<end>", "<unk>")


def words(sentence: str) -> list[str]:
    """The lower-case words and punctuation marks of a sentence.

    >>> words("The cat's here, again.")
    ['the', "cat's", 'here', ',', 'again', '.']
    """
    return re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", sentence.lower())


class Vocabulary:
    """Tokens and their numbers: 0 is padding after the end of a row, 1 ends a sentence, and 2 is any unknown token.

    Args:
        tokens: All tokens except these three, each once.
        split: A function from a sentence to its tokens.
        separator: String between the tokens of a decoded sentence.

    Raises:
        ValueError: For repeated tokens, or tokens equal to a special one.

    Example:
        >>> vocabulary = Vocabulary.from_sentences(["the cat sat .", "the dog sat ."])
        >>> rows = vocabulary.encode(["the dog ran ."], length=6)
        >>> rows.tolist(), vocabulary.decode(rows)
        ([[3, 7, 2, 5, 1, 0]], ['the dog <unk> .'])
    """

    @checked
    def __init__(self, tokens: Sequence[str], split: Callable[[str], list[str]] = words, separator: str = " ") -> None:
        if len(set(tokens)) < len(tokens) or set(tokens) & set(SPECIAL):
            raise ValueError(f"tokens must differ from each other and from {', '.join(SPECIAL)}")
        self.tokens = (*SPECIAL, *tokens)
        self.index = {token: i for i, token in enumerate(self.tokens)}
        self.split, self.separator = split, separator

    @classmethod
    def from_sentences(
        cls,
        sentences: Iterable[str],
        *,
        max_size: int | None = None,
        split: Callable[[str], list[str]] = words,
        separator: str = " ",
    ) -> Vocabulary:
        """The vocabulary of some sentences, most frequent tokens first; `max_size` includes the special tokens."""
        counts = Counter(token for sentence in sentences for token in split(sentence))
        most = None if max_size is None else max(0, max_size - len(SPECIAL))
        return cls([token for token, _ in counts.most_common(most)], split, separator)

    @classmethod
    @checked
    def load(cls, path: str | Path, *, split: Callable[[str], list[str]] = words, separator: str = " ") -> Vocabulary:
        """The vocabulary that `save` wrote: a text file with one token a line, without the special ones.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not text, or has an empty line or a token twice.
        """
        try:
            tokens = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a text file with one token a line: {error}") from error
        if "" in tokens:
            raise ValueError(f"line {tokens.index('') + 1} of {path} is empty: expected one token a line")
        return cls(tokens, split, separator)

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the tokens to a text file, one a line, without the special ones; returns the path.

        Raises:
            ValueError: If a token is empty or holds the end of a line.
        """
        tokens = self.tokens[len(SPECIAL) :]
        if bad := [token for token in tokens if not token or "\n" in token or "\r" in token]:
            raise ValueError(f"the token {bad[0]!r} cannot stand in a line of its own: leave it out of the vocabulary")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, "\n".join(tokens) + "\n")
        return path

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, sentences: Sequence[str], length: int) -> Tensor:
        """Rows `(N, length)`, int64: the tokens of each sentence, its end, and padding.

        Raises:
            ValueError: If a sentence has `length` tokens or more, with no room for its end.
        """
        rows = torch.full((len(sentences), length), PAD)
        for i, sentence in enumerate(sentences):
            tokens = [self.index.get(token, UNKNOWN) for token in self.split(sentence)] + [END]
            if len(tokens) > length:
                raise ValueError(
                    f"sentence {i} has {len(tokens) - 1} tokens, expected at most length - 1 = {length - 1}: "
                    f"{sentence[:60]!r}"
                )
            rows[i, : len(tokens)] = torch.tensor(tokens)
        return rows

    def decode(self, rows: Tensor) -> list[str]:
        """The sentences of rows `(N, length)`, each up to its end.

        Raises:
            ValueError: If a row holds a token that the vocabulary does not have.
        """
        sentences = []
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise ValueError(
                f"rows hold tokens from {int(rows.min())} to {int(rows.max())}, and the vocabulary has those from 0 to "
                f"{len(self) - 1}: give the vocabulary that encoded them"
            )
        for row in rows.tolist():
            tokens = row[: row.index(END)] if END in row else row
            sentences.append(self.separator.join(self.tokens[i] for i in tokens if i != PAD))
        return sentences

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} tokens)"
