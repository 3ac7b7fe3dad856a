"""What a row has said: its tokens, their log-probability, and whether the answer is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from serve.rows import Candidate
from tasks.extract import answer_end, extract_code
from tasks.prompt import PromptStyle

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# An answer can only be over right after one of these (see tasks/extract.py), so other tokens need no look.
_ENDERS = frozenset("`:>\n")


class Vocabulary:
    """Token ids to text, the end tokens, and which tokens are worth a look for the answer's end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        self._tokenizer = tokenizer
        ends = model.generation_config.eos_token_id if model.generation_config else None
        listed = ends if isinstance(ends, list) else [ends]
        self.ends = frozenset(end for end in (*listed, tokenizer.eos_token_id) if end is not None)
        self._may_end: dict[int, bool] = {}

    def text(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` without special tokens; an unfinished character at the end is left out."""
        said = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(said).rstrip("\ufffd")

    def may_end(self, token: int) -> bool:
        """Whether an answer can be over with this token."""
        if token not in self._may_end:
            said = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
            self._may_end[token] = not _ENDERS.isdisjoint(said)
        return self._may_end[token]

    def is_over(self, tokens: Sequence[int], style: PromptStyle) -> bool:
        """Whether the answer is over after `tokens`: the end token, or where its text clearly ends."""
        last = tokens[-1]
        return last in self.ends or (self.may_end(last) and answer_end(self.text(tokens), style) is not None)


@dataclass
class Speech:
    """One growing answer of one row."""

    style: PromptStyle
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0

    def candidate(self, vocabulary: Vocabulary) -> Candidate:
        """The finished answer, cut where it is over, with its code."""
        text = vocabulary.text(self.tokens)
        end = answer_end(text, self.style)
        return Candidate(
            text=text if end is None else text[:end],
            code=extract_code(text, self.style),
            logprob=self.logprob,
            tokens=len(self.tokens),
        )


def merge(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Candidates with equal code merged into the first of them: ten beams of one answer are one answer."""
    unique: dict[str, Candidate] = {}
    for candidate in candidates:
        known = unique.get(candidate.code.strip())
        unique[candidate.code.strip()] = replace(known, times=known.times + 1) if known else candidate
    return tuple(unique.values())
