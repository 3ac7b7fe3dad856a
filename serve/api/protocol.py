"""Pydantic request/response models (OpenAI).

What a body asks for: the fields of OpenAI's chat completions and completions, checked one by one.

A chat's messages as an intent: what the last user message asks, and what was said before.

Answers in OpenAI's words: choices, log-probabilities, usage, whole responses and what streams of them share.

Reading a JSON body field by field: what is wrong with one is said in a sentence that names it.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from errors import PromptOrTuneError
from serve.api.errors import ApiError, invalid_request, unsupported_parameter
from serve.types import (
    MAX_CANDIDATES,
    MAX_STOPS,
    MAX_TOP_LOGPROBS,
    Candidate,
    RequestOutput,
    SamplingParams,
    TokenLogprob,
)

MAX_NAME_LENGTH = 200


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` holds; ApiError 400 where it holds none."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _invalid_json("it is not UTF-8") from error
    except RecursionError as error:
        raise _invalid_json("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise _invalid_json(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except ValueError as error:  # a number of thousands of digits
        raise _invalid_json("a number in it has too many digits or is no number") from error
    if not isinstance(value, dict):
        raise _invalid_json("it must be an object with named fields")
    return value


def _invalid_json(reason: str) -> ApiError:
    return invalid_request(f"The body is not valid JSON for this request: {reason}.", code="invalid_json")


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


class Fields:
    """The fields of one body. Each is taken once, null counts as left out, and `finish` refuses what nobody took."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._remaining = {name: value for name, value in body.items() if value is not None}

    def pop(self, name: str) -> Any:
        """The field as it came, or None."""
        return self._remaining.pop(name, None)

    def has(self, name: str) -> bool:
        """Whether the field is there and not taken yet."""
        return name in self._remaining

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`, or None."""
        value = self.pop(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise invalid_request(
                f"'{name}' is {describe_value(value)}: give a whole number from {low} to {high}.", name
            )
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number from `low` to `high`, or None."""
        value = self.pop(name)
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and low <= value <= high):
            raise invalid_request(f"'{name}' is {describe_value(value)}: give a number from {low:g} to {high:g}.", name)
        return float(value)

    def boolean(self, name: str) -> bool:
        """True or false; false where it is left out."""
        value = self.pop(name)
        if value is not None and not isinstance(value, bool):
            raise invalid_request(f"'{name}' is {describe_value(value)}: give true or false.", name)
        return bool(value)

    def text(self, name: str, max_length: int | None = None) -> str | None:
        """A text, at most `most` characters long, or None."""
        value = self.pop(name)
        return None if value is None else check_text(value, name, max_length)

    def required(self, name: str, max_length: int | None = None) -> str:
        """A text that must be there and not be empty."""
        value = self.text(name, max_length)
        if not value:
            raise missing_field(name)
        return value

    def texts(self, name: str, max_items: int) -> tuple[str, ...]:
        """One text or a list of at most `most`, none of them empty; () where it is left out."""
        value = self.pop(name)
        if value is None:
            return ()
        listed = value if isinstance(value, list) else [value]
        if len(listed) > max_items:
            raise invalid_request(f"'{name}' has {len(listed)} entries: give at most {max_items}.", name)
        found = tuple(check_text(each, name) for each in listed)
        if not all(found):
            raise invalid_request(f"'{name}' has an empty entry: leave it out.", name)
        return found

    def reject_unsupported(
        self, messages: Mapping[str, str], neutral: Sequence[Any] = (False, 0, "none", "auto", [], {})
    ) -> None:
        """Refuses fields that would change the answer, with their sentence, unless their value changes nothing."""
        for name, sentence in messages.items():
            value = self.pop(name)
            if value is not None and value not in neutral:
                raise unsupported_parameter(name, sentence)

    def reject_unknown(self, ignored: frozenset[str]) -> None:
        """Refuses what is left, but for fields that do not touch the answer."""
        for name in self._remaining:
            if name not in ignored:
                raise ApiError(
                    400,
                    f"Unknown parameter '{name[:MAX_NAME_LENGTH]}': leave it out, or see docs/serving.md for what is served.",
                    param=name[:MAX_NAME_LENGTH],
                    code="unknown_parameter",
                )


def missing_field(name: str) -> ApiError:
    """400: a field that must be there is not."""
    return invalid_request(f"'{name}' is missing or empty: the request needs it.", name, "missing_required_parameter")


def check_text(value: Any, name: str, max_length: int | None = None) -> str:
    """The text, if it is one that a model can read; ApiError 400 otherwise."""
    if not isinstance(value, str):
        raise invalid_request(f"'{name}' is {describe_value(value)}: give a text.", name)
    if max_length is not None and len(value) > max_length:
        raise invalid_request(f"'{name}' has {len(value)} characters: give at most {max_length}.", name)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise invalid_request(
            f"'{name}' holds half a character (a lone surrogate): send valid Unicode.", name
        ) from error
    return value


def describe_value(value: Any) -> str:
    """What kind of value came, for a sentence; only numbers and truth values are repeated."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:g}" if abs(value) < 1e15 else "a huge number"
    return {str: "a text", list: "a list", dict: "an object", type(None): "null"}[type(value)]


MAX_MESSAGES = 200
_SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True)
class Conversation:
    """The intent of the last user message, below what a system message says, and earlier (question, answer) turns."""

    intent: str
    turns: tuple[tuple[str, str], ...] = ()


def parse_messages(value: Any) -> Conversation:
    """The field `messages`; ApiError 400 that names the message."""
    if value is None or value == []:
        raise missing_field("messages")
    if not isinstance(value, list) or len(value) > MAX_MESSAGES:
        raise invalid_request(f"'messages' must be a list of at most {MAX_MESSAGES} messages.", "messages")
    said = [_parse_message(message, f"messages[{place}]") for place, message in enumerate(value)]
    system = [text for role, text in said if role in _SYSTEM_ROLES and text.strip()]
    spoken = [(role, text) for role, text in said if role not in _SYSTEM_ROLES]
    if not spoken or spoken[-1][0] != "user":
        raise invalid_request(
            "The last of 'messages' must be the user's: it says what the Python should do.", "messages"
        )
    if not spoken[-1][1].strip():
        raise missing_field(f"messages[{len(value) - 1}].content")
    return Conversation("\n\n".join([*system, spoken[-1][1]]), _pair_turns(spoken[:-1]))


def _pair_turns(messages: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Pairs of what a user asked and an assistant answered."""
    if len(messages) % 2 or any(
        role != ("assistant" if place % 2 else "user") for place, (role, _) in enumerate(messages)
    ):
        raise invalid_request("In 'messages' user and assistant must take turns, the user first and last.", "messages")
    return tuple((messages[place][1], messages[place + 1][1]) for place in range(0, len(messages), 2))


def _parse_message(message: Any, location: str) -> tuple[str, str]:
    """Role and text of one message."""
    if not isinstance(message, dict):
        raise invalid_request(f"'{location}' must be an object with 'role' and 'content'.", location)
    role = message.get("role")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise unsupported_parameter(location, f"Tools are not served: leave '{location}' out.")
    if role not in (*_SYSTEM_ROLES, "user", "assistant"):
        raise invalid_request(f"'{location}.role' must be system, developer, user or assistant.", f"{location}.role")
    return role, _parse_content(message.get("content"), f"{location}.content")


def _parse_content(content: Any, location: str) -> str:
    """A message's content, given as a text or as a list of parts."""
    if content is None:
        raise missing_field(location)
    if not isinstance(content, list):
        return check_text(content, location)
    texts = []
    for place, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise unsupported_parameter(
                f"{location}[{place}]", f"'{location}[{place}]' is no text: images, audio and files are not served."
            )
        texts.append(check_text(part.get("text"), f"{location}[{place}].text"))
    return "".join(texts)


MAX_PROMPTS = 10
MAX_TOKENS = 1 << 20
DEFAULT_CHAT_TOKENS = 256
DEFAULT_COMPLETION_TOKENS = 16
DEFAULT_SAMPLING_TEMPERATURE = 0.6

# Fields that do not touch the answer, or say what is so anyway.
_IGNORED_FIELDS = frozenset(
    {
        "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "parallel_tool_calls", "prediction", "request_id", "priority",
    }
)  # fmt: skip
_UNSUPPORTED = {
    "presence_penalty": "Penalties are not served: leave 'presence_penalty' out, or set it to 0.",
    "frequency_penalty": "Penalties are not served: leave 'frequency_penalty' out, or set it to 0.",
    "logit_bias": "A bias on tokens is not served: leave 'logit_bias' out.",
}
_UNSUPPORTED_CHAT = {
    "tools": "Tools are not served: leave 'tools' out, the answer is Python code.",
    "tool_choice": "Tools are not served: leave 'tool_choice' out.",
    "functions": "Functions are not served: leave 'functions' out, the answer is Python code.",
    "function_call": "Functions are not served: leave 'function_call' out.",
    "audio": "Audio is not served: leave 'audio' out.",
    "web_search_options": "Searching the web is not served: leave 'web_search_options' out.",
    "reasoning_effort": "No model here reasons in steps that can be set: leave 'reasoning_effort' out.",
    "verbosity": "How wordy an answer is cannot be set: leave 'verbosity' out.",
}
_UNSUPPORTED_COMPLETION = {
    "echo": "The prompt is not repeated in the answer: leave 'echo' out, or set it to false.",
    "suffix": "Filling in between a prompt and a suffix is not served: leave 'suffix' out.",
}


@dataclass(frozen=True)
class CompletionRequest:
    """One request to the API, whichever of the two endpoints it came to.

    `prompts` are read as they are; a chat has a `conversation` instead. Every prompt gets `n` answers.
    `include_usage` says the usage in a last chunk of a stream, `count_on` in each chunk as far as it is known then.
    """

    kind: Literal["chat", "text"]
    model: str
    sampling_params: SamplingParams
    n: int
    prompts: tuple[str, ...] = ()
    conversation: Conversation | None = None
    stream: bool = False
    include_usage: bool = False
    continuous_usage_stats: bool = False

    @property
    def num_seqs(self) -> int:
        """How many lines of the batch it takes; copies of one greedy answer take one."""
        return max(1, len(self.prompts)) * self.sampling_params.candidates


def parse_chat_request(body: Mapping[str, Any]) -> CompletionRequest:
    """The body of POST /v1/chat/completions; ApiError 400 that names the parameter."""
    fields = Fields(body)
    model = fields.required("model", MAX_NAME_LENGTH)
    conversation = parse_messages(fields.pop("messages"))
    limit = fields.integer("max_completion_tokens", 1, MAX_TOKENS)
    older = fields.integer("max_tokens", 1, MAX_TOKENS)
    asked = fields.boolean("logprobs")
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top is not None and not asked:
        raise invalid_request(
            "'top_logprobs' needs 'logprobs': set 'logprobs' to true, or leave both out.", "top_logprobs"
        )
    _check_response_format(fields)
    fields.reject_unsupported(_UNSUPPORTED_CHAT)
    n = fields.integer("n", 1, MAX_CANDIDATES) or 1
    decoding = _parse_sampling_params(fields, n, limit or older or DEFAULT_CHAT_TOKENS, (top or 0) if asked else None)
    stream, include_usage, count_on = _parse_stream_options(fields)
    fields.reject_unknown(_IGNORED_FIELDS)
    return CompletionRequest("chat", model, decoding, n, (), conversation, stream, include_usage, count_on)


def parse_completion_request(body: Mapping[str, Any]) -> CompletionRequest:
    """The body of POST /v1/completions; ApiError 400 that names the parameter."""
    fields = Fields(body)
    model = fields.required("model", MAX_NAME_LENGTH)
    prompts = parse_prompts(fields)
    limit = fields.integer("max_tokens", 1, MAX_TOKENS)
    top = fields.integer("logprobs", 0, MAX_TOP_LOGPROBS)
    n = fields.integer("n", 1, MAX_CANDIDATES) or 1
    best_of = fields.integer("best_of", 1, MAX_CANDIDATES)
    if best_of not in (None, n):
        raise unsupported_parameter("best_of", "Choosing the best of more answers is not served: leave 'best_of' out.")
    fields.reject_unsupported(_UNSUPPORTED_COMPLETION)
    decoding = _parse_sampling_params(fields, n, limit or DEFAULT_COMPLETION_TOKENS, top)
    stream, include_usage, count_on = _parse_stream_options(fields)
    fields.reject_unknown(_IGNORED_FIELDS)
    return CompletionRequest("text", model, decoding, n, prompts, None, stream, include_usage, count_on)


def parse_prompts(fields: Fields) -> tuple[str, ...]:
    """The field `prompt`: a text, or a list of at most 10."""
    if not fields.has("prompt"):
        raise missing_field("prompt")
    value = fields.pop("prompt")
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        raise unsupported_parameter("prompt", "Prompts of token numbers are not served: send 'prompt' as a text.")
    prompts = Fields({"prompt": value}).texts("prompt", MAX_PROMPTS)
    if not all(prompt.strip() for prompt in prompts) or not prompts:
        raise missing_field("prompt")
    return prompts


def _parse_sampling_params(fields: Fields, n: int, max_tokens: int, top_logprobs: int | None) -> SamplingParams:
    """Greedy at temperature 0. Left out, that is the temperature, unless `n` or `top_p` asks for samples."""
    fields.reject_unsupported(_UNSUPPORTED)
    temperature = fields.number("temperature", 0, 2)
    top_p = fields.number("top_p", 0, 1)
    seed = fields.integer("seed", -(2**63), 2**64 - 1)
    stop = fields.texts("stop", MAX_STOPS)
    if temperature is None:
        temperature = DEFAULT_SAMPLING_TEMPERATURE if n > 1 or top_p not in (None, 1) else 0
    try:
        if not temperature or top_p == 0:
            return SamplingParams("greedy", max_tokens, stop=stop, top_logprobs=top_logprobs)
        return SamplingParams(
            "sample",
            max_tokens,
            candidates=n,
            temperature=temperature,
            top_p=1.0 if top_p is None else top_p,
            seed=secrets.randbits(31) if seed is None else seed % 2**31,
            stop=stop,
            top_logprobs=top_logprobs,
        )
    except PromptOrTuneError as error:  # what the checks above let through and the engine does not
        raise invalid_request(str(error)) from error


def _parse_stream_options(fields: Fields) -> tuple[bool, bool, bool]:
    """Whether to stream, whether a last chunk says the usage, and whether every chunk does (vLLM's extension)."""
    stream = fields.boolean("stream")
    options = fields.pop("stream_options")
    if options is None:
        return stream, False, False
    if not stream:
        raise invalid_request(
            "'stream_options' needs 'stream': set 'stream' to true, or leave both out.", "stream_options"
        )
    if not isinstance(options, dict):
        raise invalid_request(
            "'stream_options' must be an object: give {\"include_usage\": true}, or leave it out.", "stream_options"
        )
    inner = Fields(options)
    usage, count_on = inner.boolean("include_usage"), inner.boolean("continuous_usage_stats")
    inner.reject_unknown(frozenset({"include_obfuscation"}))
    return stream, usage, usage and count_on


def _check_response_format(fields: Fields) -> None:
    """Text is the one format of an answer, and the one modality."""
    form = fields.pop("response_format")
    if form not in (None, {"type": "text"}):
        raise unsupported_parameter(
            "response_format", "Answers in JSON or by a schema are not served: leave 'response_format' out."
        )
    if fields.pop("modalities") not in (None, ["text"]):
        raise unsupported_parameter("modalities", "Answers are text alone: leave 'modalities' out.")


_ID_PREFIXES = {"chat": "chatcmpl", "text": "cmpl"}
_OBJECT_TYPES = {"chat": "chat.completion", "text": "text_completion"}


@dataclass(frozen=True)
class ResponseBuilder:
    """What all parts of one response repeat: its id, when it was asked, the model as it was asked for."""

    request: CompletionRequest
    fingerprint: str
    id: str = field(default="")
    created: int = 0

    @classmethod
    def create(cls, request: CompletionRequest, fingerprint: str) -> ResponseBuilder:
        """A new reply, with an id of its own and the time now."""
        return cls(request, fingerprint, f"{_ID_PREFIXES[request.kind]}-{secrets.token_hex(12)}", int(time.time()))

    def common_fields(self, chunk: bool = False) -> dict[str, Any]:
        """The fields around the choices."""
        kind = _OBJECT_TYPES[self.request.kind]
        return {
            "id": self.id,
            "object": f"{kind}.chunk" if chunk and self.request.kind == "chat" else kind,
            "created": self.created,
            "model": self.request.model,
            "system_fingerprint": self.fingerprint,
        }

    def full_response(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """The response with all choices; `answers` are in the order of the prompts."""
        choices = [
            self._choice(place, candidate, answer)
            for answer in outputs
            for place, candidate in enumerate(expand_samples(answer, self.request), answer.index * self.request.n)
        ]
        return {**self.common_fields(), "choices": choices, "usage": usage_info(outputs, self.request)}

    def _choice(self, index: int, candidate: Candidate, output: RequestOutput) -> dict[str, Any]:
        said = {"finish_reason": finish_reason(candidate), "logprobs": logprobs_content(candidate, self.request)}
        if self.request.kind == "text":
            return {"index": index, "text": candidate.text, **said}
        message = {"role": "assistant", "content": candidate.text, "refusal": None, **extra_fields(candidate, output)}
        return {"index": index, "message": message, **said}


def expand_samples(output: RequestOutput, request: CompletionRequest) -> list[Candidate]:
    """The n choices of one answer: its samples as they were said, or the one greedy answer as often as asked for."""
    found = list(output.samples)
    if not found:  # an engine that does not keep them apart says how often each was said
        found = [candidate for candidate in output.candidates for _ in range(candidate.count)]
    return found * request.n if request.sampling_params.mode == "greedy" else found


def extra_fields(candidate: Candidate, output: RequestOutput) -> dict[str, Any]:
    """What our messages hold beside OpenAI's fields: the code in the answer, and notes where there are any."""
    notes = {"notes": list(output.notes)} if output.notes else {}
    return {"code": candidate.code, **notes}


def finish_reason(candidate: Candidate) -> str:
    """Why the answer ended, in OpenAI's words."""
    return "length" if candidate.finish == "length" else "stop"


def usage_info(outputs: Iterable[RequestOutput], request: CompletionRequest) -> dict[str, int]:
    """Tokens read and said; a prompt counts once, whatever the number of its answers."""
    outputs = list(outputs)
    read = sum(answer.prompt_tokens for answer in outputs)
    said = sum(candidate.tokens for answer in outputs for candidate in expand_samples(answer, request))
    return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


def logprobs_content(candidate: Candidate, request: CompletionRequest) -> dict[str, Any] | None:
    """Each token's log-probability and its likeliest rivals, as the endpoint words them; None where not asked for."""
    if request.sampling_params.top_logprobs is None:
        return None
    said = candidate.token_logprobs
    return _chat_logprobs(said) if request.kind == "chat" else _text_logprobs(said)


def _chat_logprobs(token_logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        {
            **_token_entry(each.token, each.logprob),
            "top_logprobs": [_token_entry(token, value) for token, value in each.top],
        }
        for each in token_logprobs
    ]
    return {"content": content, "refusal": None}


def _token_entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": _finite_logprob(logprob), "bytes": list(token.encode("utf-8", "replace"))}


def _finite_logprob(logprob: float) -> float:
    """JSON knows no infinity: what OpenAI says of a token that is as good as impossible."""
    return logprob if math.isfinite(logprob) else -9999.0


def _text_logprobs(token_logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The offsets are places in the choice's own text."""
    offsets, place = [], 0
    for each in token_logprobs:
        offsets.append(place)
        place += len(each.token)
    return {
        "tokens": [each.token for each in token_logprobs],
        "token_logprobs": [_finite_logprob(each.logprob) for each in token_logprobs],
        "top_logprobs": [{token: _finite_logprob(value) for token, value in each.top} for each in token_logprobs],
        "text_offset": offsets,
    }
