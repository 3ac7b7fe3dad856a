"""Greedy decoding and sampling, mixed as they come: every row has its own settings, and lines leave as they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from serve.backends.local.choosing import SampledToken, SequenceSampling, make_generator, sample
from serve.backends.local.flight import ContinuousBatch, SequenceGroup, StepOutput
from serve.backends.local.speech import (
    Detokenizer,
    GeneratedText,
    IncrementalDetokenizer,
    dedupe_candidates,
    find_stop,
    stable_prefix,
)
from serve.backends.local.state import PromptInput
from serve.rows import Candidate, PartialOutput, Row, RowOutput, SamplingParams, TokenLogprob


class SampledSequence:
    """One sample of a row, or its one greedy answer."""

    def __init__(self, row: Row, decoding: SamplingParams, sample_index: int, detokenizer: Detokenizer) -> None:
        self.sample_index = sample_index
        self.generated = GeneratedText(row.style)
        sampled = decoding.mode == "sample"
        self.sampling = SequenceSampling(decoding, make_generator(decoding.seed, sample_index) if sampled else None)
        self._detokenizer = detokenizer
        self._incremental = IncrementalDetokenizer(detokenizer)
        # Of each token what was chosen and where the text ended with it, where log-probabilities are asked for.
        self._sampled_tokens: list[tuple[SampledToken, int]] = []

    def append_token(self, sampled: SampledToken) -> bool:
        """Says the token that was chosen; whether the answer is over with it."""
        speech, telling, decoding = self.generated, self._incremental, self.sampling.decoding
        before = len(telling.text)
        speech.tokens.append(sampled.token)
        speech.logprob += sampled.logprob
        is_end = sampled.token in self._detokenizer.eos_token_ids
        if not is_end:
            telling.add(sampled.token)
        if decoding.top_logprobs is not None:
            self._sampled_tokens.append((sampled, len(telling.text)))
        if is_end or self._is_finished(sampled.token, before):
            speech.finish_reason = "stop"
        elif len(speech.tokens) >= decoding.max_new_tokens:
            speech.finish_reason = "length"
        return speech.finish_reason != "cancelled"

    def _is_finished(self, token: int, previous_length: int) -> bool:
        stops = self.sampling.decoding.stop
        if stops and find_stop(self._incremental.text, stops, previous_length) is not None:
            return True
        return self.generated.style is not None and self._detokenizer.ends_answer(
            token, self._incremental.text, self.generated.style
        )

    def partial_output(self, key: int) -> PartialOutput:
        """What may be shown of it while it grows."""
        text = stable_prefix(self._incremental.text, self.sampling.decoding.stop, self.generated.style)
        return PartialOutput(key, text, len(self.generated.tokens), self.sample_index)

    def candidate(self) -> Candidate:
        """What it has said, with the log-probabilities that were asked for."""
        candidate = self.generated.candidate(self._detokenizer, self.sampling.decoding.stop)
        if not self._sampled_tokens:
            return candidate
        return replace(candidate, token_logprobs=tuple(self._logprobs(candidate.text)))

    def _logprobs(self, text: str) -> list[TokenLogprob]:
        """Those of the tokens whose texts, one after the other, are `text`; the last may reach beyond it."""
        is_cut = len(text) < len(self._incremental.text)
        found: list[TokenLogprob] = []
        begin = 0
        for choice, end in self._sampled_tokens:
            if choice.token in self._detokenizer.eos_token_ids or (is_cut and begin >= len(text)):
                break
            said = text[begin:end]
            names = (
                (said if token == choice.token else self._detokenizer.token_text(token)) for token, _ in choice.top
            )
            top = tuple(zip(names, (logprob for _, logprob in choice.top), strict=True))
            found.append(TokenLogprob(said, choice.logprob, top))
            begin = end
        return found


@dataclass(eq=False, kw_only=True)
class SamplingGroup(SequenceGroup):
    """The samples of one row, those still speaking in the order of the state's lines."""

    sequences: Sequence[SampledSequence]
    unfinished: list[SampledSequence] = field(init=False)

    def __post_init__(self) -> None:
        self.unfinished = list(self.sequences)

    @property
    def width(self) -> int:
        return len(self.unfinished)

    def row_output(self, detokenizer: Detokenizer) -> RowOutput:  # noqa: ARG002 - voices know theirs
        samples = tuple(voice.candidate() for voice in self.sequences)
        candidates = dedupe_candidates(samples, raw=self.row.style is None)
        return RowOutput(self.key, candidates, self.seconds(), self.cancelled, samples)


class SamplingBatch(ContinuousBatch[SamplingGroup]):
    """Rows that say one token a step, each line for itself.

    A row with several candidates is read once; its line is then repeated. Where nobody can join anyway, lines share
    what has been read instead.
    """

    def _make_group(self, key: int, row: Row, decoding: SamplingParams, prompt: PromptInput) -> SamplingGroup:
        if decoding.mode == "beam":
            raise ValueError("Beam search needs a batch of its own.")
        voices = [SampledSequence(row, decoding, copy, self._detokenizer) for copy in range(decoding.candidates)]
        return SamplingGroup(key=key, row=row, decoding=decoding, prompt=prompt, sequences=voices)

    def _on_prefilled(self, groups: Sequence[SamplingGroup]) -> None:
        if not self._runner.supports_continuous_batching and any(answer.width > 1 for answer in groups):
            self._runner.fork()

    def _sample_step(self, logits: torch.Tensor) -> StepOutput:
        # A row that has just been read has one line for all its voices, else each voice has its own.
        speakers: list[tuple[SamplingGroup, SampledSequence, int]] = []
        line = 0
        for answer in self._running:
            if not answer.cancelled:
                speakers += [
                    (answer, voice, line + min(place, answer.num_seqs - 1))
                    for place, voice in enumerate(answer.unfinished)
                ]
            line += answer.num_seqs
            answer.num_seqs = 0
        sources = [source for _, _, source in speakers]
        if sources != list(range(len(logits))):
            logits = logits[torch.tensor(sources, dtype=torch.long, device=logits.device)]
        choices = sample(logits, [voice.sampling for _, voice, _ in speakers])
        growth = StepOutput()
        for (answer, voice, source), choice in zip(speakers, choices, strict=True):
            if not voice.append_token(choice):
                growth.events.append(voice.partial_output(answer.key))
                growth.parent_indices.append(source)
                growth.next_tokens.append(choice.token)
                answer.num_seqs += 1
                continue
            answer.unfinished.remove(voice)
            if not answer.unfinished:
                growth.events.append(answer.row_output(self._detokenizer))
            else:  # its end is told now, and not when the others have ended
                candidate = voice.candidate()
                growth.events.append(PartialOutput(answer.key, candidate.text, candidate.tokens, voice.sample_index))
        return growth
