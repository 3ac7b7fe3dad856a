"""What a body asks for: the fields of OpenAI's chat completions and completions, checked one by one."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from errors import PromptOrTuneError
from serve.api.errors import invalid_request, unsupported_parameter
from serve.api.fields import MAX_NAME_LENGTH, Fields, missing_field
from serve.api.messages import Conversation, parse_messages
from serve.rows import MAX_CANDIDATES, MAX_STOPS, MAX_TOP_LOGPROBS, SamplingParams

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
    except PromptOrTuneError as fault:  # what the checks above let through and the engine does not
        raise invalid_request(str(fault)) from fault


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
