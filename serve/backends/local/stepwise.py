"""Greedy decoding and sampling, mixed as they come: every row has its own settings, and lines leave as they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from serve.backends.local.choosing import Choice, Wish, choose, random_source
from serve.backends.local.flight import Answering, Flight, Growth
from serve.backends.local.speech import Speech, Telling, Vocabulary, merge, settled, stop_at
from serve.backends.local.state import Line
from serve.rows import Candidate, Decoding, Finished, Partial, Row, TokenLogprob


class Voice:
    """One sample of a row, or its one greedy answer."""

    def __init__(self, row: Row, decoding: Decoding, copy: int, vocabulary: Vocabulary) -> None:
        self.copy = copy
        self.speech = Speech(row.style)
        sampled = decoding.mode == "sample"
        self.wish = Wish(decoding, random_source(decoding.seed, copy) if sampled else None)
        self._vocabulary = vocabulary
        self._telling = Telling(vocabulary)
        # Of each token what was chosen and where the text ended with it, where log-probabilities are asked for.
        self._chosen: list[tuple[Choice, int]] = []

    def say(self, choice: Choice) -> bool:
        """Says the token that was chosen; whether the answer is over with it."""
        speech, telling, decoding = self.speech, self._telling, self.wish.decoding
        before = len(telling.text)
        speech.tokens.append(choice.token)
        speech.logprob += choice.logprob
        is_end = choice.token in self._vocabulary.ends
        if not is_end:
            telling.add(choice.token)
        if decoding.top_logprobs is not None:
            self._chosen.append((choice, len(telling.text)))
        if is_end or self._is_over(choice.token, before):
            speech.finish = "stop"
        elif len(speech.tokens) >= decoding.max_new_tokens:
            speech.finish = "length"
        return speech.finish != "cancelled"

    def _is_over(self, token: int, before: int) -> bool:
        stops = self.wish.decoding.stop
        if stops and stop_at(self._telling.text, stops, before) is not None:
            return True
        return self.speech.style is not None and self._vocabulary.ends_answer(
            token, self._telling.text, self.speech.style
        )

    def partial(self, key: int) -> Partial:
        """What may be shown of it while it grows."""
        text = settled(self._telling.text, self.wish.decoding.stop, self.speech.style)
        return Partial(key, text, len(self.speech.tokens), self.copy)

    def candidate(self) -> Candidate:
        """What it has said, with the log-probabilities that were asked for."""
        candidate = self.speech.candidate(self._vocabulary, self.wish.decoding.stop)
        if not self._chosen:
            return candidate
        return replace(candidate, token_logprobs=tuple(self._logprobs(candidate.text)))

    def _logprobs(self, text: str) -> list[TokenLogprob]:
        """Those of the tokens whose texts, one after the other, are `text`; the last may reach beyond it."""
        is_cut = len(text) < len(self._telling.text)
        found: list[TokenLogprob] = []
        begin = 0
        for choice, end in self._chosen:
            if choice.token in self._vocabulary.ends or (is_cut and begin >= len(text)):
                break
            said = text[begin:end]
            names = ((said if token == choice.token else self._vocabulary.piece(token)) for token, _ in choice.top)
            top = tuple(zip(names, (logprob for _, logprob in choice.top), strict=True))
            found.append(TokenLogprob(said, choice.logprob, top))
            begin = end
        return found


@dataclass(eq=False, kw_only=True)
class Voices(Answering):
    """The samples of one row, those still speaking in the order of the state's lines."""

    voices: Sequence[Voice]
    speaking: list[Voice] = field(init=False)

    def __post_init__(self) -> None:
        self.speaking = list(self.voices)

    @property
    def width(self) -> int:
        return len(self.speaking)

    def finished(self, vocabulary: Vocabulary) -> Finished:  # noqa: ARG002 - voices know theirs
        samples = tuple(voice.candidate() for voice in self.voices)
        candidates = merge(samples, raw=self.row.style is None)
        return Finished(self.key, candidates, self.seconds(), self.gone, samples)


class StepBatch(Flight[Voices]):
    """Rows that say one token a step, each line for itself.

    A row with several candidates is read once; its line is then repeated. Where nobody can join anyway, lines share
    what has been read instead.
    """

    def _begin(self, key: int, row: Row, decoding: Decoding, prompt: Line) -> Voices:
        if decoding.mode == "beam":
            raise ValueError("Beam search needs a batch of its own.")
        voices = [Voice(row, decoding, copy, self._vocabulary) for copy in range(decoding.candidates)]
        return Voices(key=key, row=row, decoding=decoding, prompt=prompt, voices=voices)

    def _read_all(self, arrived: Sequence[Voices]) -> None:
        if not self._state.joins and any(answer.width > 1 for answer in arrived):
            self._state.branch()

    def _grow(self, logits: torch.Tensor) -> Growth:
        # A row that has just been read has one line for all its voices, else each voice has its own.
        speakers: list[tuple[Voices, Voice, int]] = []
        line = 0
        for answer in self._flying:
            if not answer.gone:
                speakers += [
                    (answer, voice, line + min(place, answer.lines - 1)) for place, voice in enumerate(answer.speaking)
                ]
            line += answer.lines
            answer.lines = 0
        sources = [source for _, _, source in speakers]
        if sources != list(range(len(logits))):
            logits = logits[torch.tensor(sources, dtype=torch.long, device=logits.device)]
        choices = choose(logits, [voice.wish for _, voice, _ in speakers])
        growth = Growth()
        for (answer, voice, source), choice in zip(speakers, choices, strict=True):
            if not voice.say(choice):
                growth.events.append(voice.partial(answer.key))
                growth.sources.append(source)
                growth.tokens.append(choice.token)
                answer.lines += 1
                continue
            answer.speaking.remove(voice)
            if not answer.speaking:
                growth.events.append(answer.finished(self._vocabulary))
            else:  # its end is told now, and not when the others have ended
                candidate = voice.candidate()
                growth.events.append(Partial(answer.key, candidate.text, candidate.tokens, voice.copy))
        return growth
