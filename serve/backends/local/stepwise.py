"""Greedy decoding and sampling, mixed as they come: every row has its own settings, and lines leave as they end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from serve.backends.local.choosing import Choice, Wish, choose, random_source
from serve.backends.local.flight import Answering, Flight, Growth
from serve.backends.local.speech import Speech, Telling, Vocabulary, merge, settled, stop_at
from serve.backends.local.state import CancelledError, Line, OnRows, State
from serve.rows import Candidate, Decoding, Finished, Partial, Row, TokenLogprob
from tasks.prompt import PromptStyle


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


def decode_stepwise(
    state: State,
    prompts: Sequence[Sequence[int]],
    styles: Sequence[PromptStyle],
    decoding: Decoding,
    vocabulary: Vocabulary,
    on_rows: OnRows,
    cancelled: Callable[[], bool],
) -> Iterator[Partial | Finished]:
    """Yields a Partial per row and step and one Finished per row.

    Under sampling each row is read once and spoken `decoding.candidates` times. `on_rows` is told, whenever lines
    leave or multiply, which prompt each remaining line belongs to.
    """
    begin = time.perf_counter()
    copies = decoding.candidates
    lines = [row for row in range(len(prompts)) for _ in range(copies)]
    speeches = [Speech(styles[row]) for row in lines]
    choose = _sampler(decoding, len(lines)) if decoding.mode == "sample" else None
    alive = list(range(len(lines)))
    waiting = dict.fromkeys(range(len(prompts)), copies)

    def finish(row: int, stopped: bool = False) -> Finished:
        said = [speech for speech, owner in zip(speeches, lines, strict=True) if owner == row]
        candidates = merge([speech.candidate(vocabulary) for speech in said])
        return Finished(row, candidates, time.perf_counter() - begin, stopped)

    try:
        logits = state.start(prompts, on_rows, cancelled)
        if copies > 1:
            state.branch()
            state.select(torch.tensor(lines))
            logits = logits[torch.tensor(lines, device=logits.device)]
            on_rows(lines)
        while alive:
            if cancelled():
                raise CancelledError
            tokens = _next_tokens(logits, [speeches[line] for line in alive], alive, choose)
            kept = []
            for place, line in enumerate(alive):
                speech = speeches[line]
                over = vocabulary.is_over(speech.tokens, speech.style)
                if not over and len(speech.tokens) < decoding.max_new_tokens:
                    kept.append(place)
                    if line == 0 or lines[line - 1] != lines[line]:
                        yield Partial(lines[line], vocabulary.text(speech.tokens), len(speech.tokens))
                    continue
                waiting[lines[line]] -= 1
                if waiting[lines[line]] == 0:
                    yield finish(lines[line])
            if len(kept) < len(alive):
                alive = [alive[place] for place in kept]
                if not alive:
                    return
                state.select(torch.tensor(kept))
                tokens = tokens[torch.tensor(kept)]
                on_rows([lines[line] for line in alive])
            logits = state.step(tokens)
    except CancelledError:
        for row, left in waiting.items():
            if left:
                yield finish(row, stopped=True)


def _next_tokens(
    logits: torch.Tensor, speeches: Sequence[Speech], lines: Sequence[int], choose: Callable[..., int] | None
) -> torch.Tensor:
    """Chooses one token a line, writes it and its log-probability down, and returns them, shape (lines,)."""
    logits = logits.float()
    logprobs = logits.log_softmax(-1)
    if choose is None:
        tokens = logits.argmax(-1).cpu()
    else:
        scores = logits.cpu()
        tokens = torch.tensor([choose(scores[place : place + 1], line) for place, line in enumerate(lines)])
    said = logprobs.gather(-1, tokens.to(logits.device)[:, None])[:, 0].tolist()
    for speech, token, logprob in zip(speeches, tokens.tolist(), said, strict=True):
        speech.tokens.append(token)
        speech.logprob += logprob
    return tokens


def _sampler(decoding: Decoding, lines: int) -> Callable[[torch.Tensor, int], int]:
    """Temperature and top-p sampling. Every copy of a row has its own seeded generator, so that what a row says
    does not depend on its neighbours in the batch.
    """
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    temperature, top_p = TemperatureLogitsWarper(decoding.temperature), TopPLogitsWarper(decoding.top_p)
    generators = [torch.Generator().manual_seed(decoding.seed + line % decoding.candidates) for line in range(lines)]

    def choose(scores: torch.Tensor, line: int) -> int:
        warped = top_p(None, temperature(None, scores))
        return int(torch.multinomial(warped.softmax(-1), 1, generator=generators[line]).item())

    return choose
