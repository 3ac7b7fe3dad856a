"""OpenAI request bodies as pydantic models: chat completions, completions, and vLLM's further endpoints.

A field with the value null counts as absent. Fields that would change the answer and are not supported are refused
with their own message, except for values that change nothing (an empty list of tools); unknown fields are refused.
Error types of a PydanticCustomError are OpenAI's error codes: serve.api.errors turns them into its error object.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from errors import PromptOrTuneError
from serve.api.errors import CONTENT_TAGS, invalid_request, missing_field, validation_error
from serve.types import MAX_CANDIDATES, MAX_STOPS, MAX_TOP_LOGPROBS, SamplingParams

MAX_NAME_LENGTH = 200
MAX_PATH_LENGTH = 4096
MAX_MESSAGES = 200
MAX_PROMPTS = 10
MAX_TOKENS = 1 << 20
DEFAULT_CHAT_TOKENS = 256
DEFAULT_COMPLETION_TOKENS = 16
DEFAULT_SAMPLING_TEMPERATURE = 0.6

RequestT = TypeVar("RequestT", bound="_RequestModel")


def parse_request(model: type[RequestT], body: Mapping[str, Any]) -> RequestT:
    """Validate `body`; raises ApiError 400 that names the first wrong parameter."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise validation_error(model, error) from error


def _integral_float_to_int(value: Any) -> Any:
    """JSON has one number type: some clients send 5.0 for 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _to_list(value: Any) -> Any:
    """Wrap a single text for fields that take a text or a list of texts."""
    return value if isinstance(value, list) else [value]


def _check_no_empty_entry(values: list[str], info: ValidationInfo) -> list[str]:
    if not all(values):
        raise PydanticCustomError(
            "invalid_value", "'{name}' has an empty entry: leave it out.", {"name": info.field_name}
        )
    return values


def _check_unicode(text: str) -> str:
    """JSON can hold lone surrogates, which pydantic accepts and no tokenizer can encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PydanticKnownError("string_unicode") from error
    return text


WholeNumber = Annotated[int, BeforeValidator(_integral_float_to_int), Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True), AfterValidator(_check_unicode)]
Name = Annotated[Text, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
# fail_fast: a body of 1 MB has room for hundreds of thousands of wrong entries, and only the first error is reported.
StopStrings = Annotated[
    list[Text],
    Field(max_length=MAX_STOPS, fail_fast=True),
    BeforeValidator(_to_list),
    AfterValidator(_check_no_empty_entry),
]
Prompts = Annotated[
    list[Text],
    Field(max_length=MAX_PROMPTS, fail_fast=True),
    BeforeValidator(_to_list),
    AfterValidator(_check_no_empty_entry),
]


class _RequestModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        """Drop null values, and unknown fields after the first one, which is the one that the error names."""
        if not isinstance(body, dict):
            return body
        fields = cls.model_fields
        values = {name: value for name, value in body.items() if value is not None}
        unknown = next((name for name in values if name not in fields), None)
        return {name: value for name, value in values.items() if name in fields or name == unknown}


class TextPart(BaseModel):
    """One part of a message's content."""

    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _check_is_text(cls, part: Any) -> Any:
        if not isinstance(part, dict) or part.get("type") != "text":
            message = "Messages are made of text parts: images, audio and files are not supported."
            raise PydanticCustomError("unsupported_parameter", message)
        return part


Content = Annotated[
    Annotated[Text, Tag(CONTENT_TAGS[0])] | Annotated[list[TextPart], Field(fail_fast=True), Tag(CONTENT_TAGS[1])],
    Discriminator(lambda content: CONTENT_TAGS[isinstance(content, list)]),
]


class ChatMessage(BaseModel):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    @model_validator(mode="before")
    @classmethod
    def _refuse_tools(cls, message: Any) -> Any:
        if not isinstance(message, dict):
            return message
        if message.get("role") in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
            raise PydanticCustomError(
                "unsupported_parameter", "Tools are not supported: leave their messages and calls out."
            )
        return {name: value for name, value in message.items() if value is not None}

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


@dataclass(frozen=True)
class Conversation:
    """A chat as the engine needs it: the intent, and earlier (question, answer) turns.

    The intent is the last user message, below the system messages.
    """

    intent: str
    turns: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_messages(cls, messages: Sequence[ChatMessage]) -> Conversation:
        """Convert messages that have passed `_check_turns`."""
        system, turns = _split_system(messages)
        instructions = [message.text for message in system if message.text.strip()]
        pairs = zip(turns[:-1:2], turns[1::2], strict=True)
        return cls(
            "\n\n".join([*instructions, turns[-1].text]), tuple((asked.text, answer.text) for asked, answer in pairs)
        )


def _split_system(messages: Sequence[ChatMessage]) -> tuple[list[ChatMessage], list[ChatMessage]]:
    system = [message for message in messages if message.role in ("system", "developer")]
    return system, [message for message in messages if message.role in ("user", "assistant")]


def _check_turns(messages: list[ChatMessage]) -> list[ChatMessage]:
    """User and assistant alternate, and the last message is a user's."""
    _, turns = _split_system(messages)
    if not turns or turns[-1].role != "user":
        raise PydanticCustomError(
            "invalid_value", "The last of 'messages' must be the user's: it describes what the Python should do."
        )
    if not turns[-1].text.strip():
        message = "'{param}' is missing or empty: the request needs it."
        raise PydanticCustomError(
            "missing_required_parameter", message, {"param": f"messages[{len(messages) - 1}].content"}
        )
    if any(message.role != ("assistant" if index % 2 else "user") for index, message in enumerate(turns)):
        raise PydanticCustomError(
            "invalid_value", "In 'messages' user and assistant must take turns, the user first and last."
        )
    return messages


Messages = Annotated[
    list[ChatMessage],
    Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
    AfterValidator(_check_turns),
]


class StreamOptions(_RequestModel):
    """`include_usage` adds a last chunk with the usage, `continuous_usage_stats` (vLLM's) the usage so far to each."""

    include_usage: Flag = False
    continuous_usage_stats: Flag = False
    include_obfuscation: Any = None


# Values with which an unsupported field changes nothing.
_NEUTRAL: tuple[Any, ...] = (False, 0, "none", "auto", [], {})
_UNSUPPORTED = {
    "presence_penalty": "Penalties are not supported: leave 'presence_penalty' out, or set it to 0.",
    "frequency_penalty": "Penalties are not supported: leave 'frequency_penalty' out, or set it to 0.",
    "logit_bias": "A bias on tokens is not supported: leave 'logit_bias' out.",
    "tools": "Tools are not supported: leave 'tools' out, the answer is Python code.",
    "tool_choice": "Tools are not supported: leave 'tool_choice' out.",
    "functions": "Functions are not supported: leave 'functions' out, the answer is Python code.",
    "function_call": "Functions are not supported: leave 'function_call' out.",
    "audio": "Audio is not supported: leave 'audio' out.",
    "web_search_options": "Searching the web is not supported: leave 'web_search_options' out.",
    "reasoning_effort": "No model here reasons in steps that can be set: leave 'reasoning_effort' out.",
    "verbosity": "The length of answers cannot be set in words: leave 'verbosity' out.",
    "response_format": "Answers in JSON or by a schema are not supported: leave 'response_format' out.",
    "modalities": "Answers are text alone: leave 'modalities' out.",
    "echo": "The prompt is not repeated in the answer: leave 'echo' out, or set it to false.",
    "suffix": "Filling in between a prompt and a suffix is not supported: leave 'suffix' out.",
}
_NEUTRAL_FORMATS = {"response_format": {"type": "text"}, "modalities": ["text"]}


class OpenAIRequest(_RequestModel):
    """Fields of both completion endpoints. Each prompt gets `n` answers."""

    kind: ClassVar[Literal["chat", "text"]]
    default_max_tokens: ClassVar[int]

    model: Name
    n: WholeNumber = Field(1, ge=1, le=MAX_CANDIDATES)
    max_tokens: WholeNumber | None = Field(None, ge=1, le=MAX_TOKENS)
    temperature: Number | None = Field(None, ge=0.0, le=2.0)
    top_p: Number | None = Field(None, ge=0.0, le=1.0)
    seed: WholeNumber | None = Field(None, ge=-(2**63), le=2**64 - 1)
    stop: StopStrings = []
    stream: Flag = False
    stream_options: StreamOptions | None = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None
    # Accepted and ignored: they do not change the answer.
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    request_id: Any = None
    priority: Any = None

    _sampling_params: SamplingParams = PrivateAttr()

    @field_validator(*_UNSUPPORTED, mode="before", check_fields=False)
    @classmethod
    def _refuse_unsupported(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        neutral = (_NEUTRAL_FORMATS[name],) if name in _NEUTRAL_FORMATS else _NEUTRAL
        if value not in neutral:
            raise PydanticCustomError("unsupported_parameter", "{reason}", {"reason": _UNSUPPORTED[name]})
        return value

    @field_validator("stream_options", mode="before")
    @classmethod
    def _check_stream(cls, value: Any, info: ValidationInfo) -> Any:
        if not info.data.get("stream"):
            raise PydanticCustomError(
                "invalid_value", "'stream_options' needs 'stream': set 'stream' to true, or leave both out."
            )
        return value

    @model_validator(mode="after")
    def _set_sampling_params(self) -> Self:
        """Compute the sampling parameters once, because a seed is drawn if the request has none."""
        try:
            self._sampling_params = self._make_sampling_params()
        except PromptOrTuneError as error:  # combinations that the checks of single fields cannot find
            raise invalid_request(str(error)) from error
        return self

    def _make_sampling_params(self) -> SamplingParams:
        """Greedy at temperature 0, which is the default unless `n` or `top_p` asks for samples."""
        temperature, max_tokens = self.temperature, self.token_limit or self.default_max_tokens
        if temperature is None:
            temperature = DEFAULT_SAMPLING_TEMPERATURE if self.n > 1 or self.top_p not in (None, 1) else 0
        if not temperature or self.top_p == 0:
            return SamplingParams("greedy", max_tokens, stop=tuple(self.stop), top_logprobs=self.num_logprobs)
        return SamplingParams(
            "sample",
            max_tokens,
            candidates=self.n,
            temperature=temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=secrets.randbits(31) if self.seed is None else self.seed % 2**31,
            stop=tuple(self.stop),
            top_logprobs=self.num_logprobs,
        )

    @property
    def sampling_params(self) -> SamplingParams:
        """Sampling parameters for the engine."""
        return self._sampling_params

    @property
    def token_limit(self) -> int | None:
        """The requested limit on the tokens of an answer."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Number of alternatives whose log-probabilities are returned; None if none are requested."""
        raise NotImplementedError

    @property
    def prompts(self) -> tuple[str, ...]:
        """Prompts that are used as they are; () for a chat."""
        return ()

    @property
    def conversation(self) -> Conversation | None:
        """The messages of a chat; None for a completion."""
        return None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage_stats(self) -> bool:
        """Whether every chunk of a stream has the usage so far."""
        return self.include_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def num_seqs(self) -> int:
        """Number of sequences in the batch; copies of one greedy answer are computed once."""
        return max(1, len(self.prompts)) * self.sampling_params.candidates


class ChatCompletionRequest(OpenAIRequest):
    """Body of POST /v1/chat/completions."""

    kind = "chat"
    default_max_tokens = DEFAULT_CHAT_TOKENS

    messages: Messages
    max_completion_tokens: WholeNumber | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: Flag = False
    top_logprobs: WholeNumber | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    web_search_options: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    response_format: Any = None
    modalities: Any = None

    @field_validator("top_logprobs")
    @classmethod
    def _check_logprobs(cls, value: int, info: ValidationInfo) -> int:
        if not info.data.get("logprobs"):
            raise PydanticCustomError(
                "invalid_value", "'top_logprobs' needs 'logprobs': set 'logprobs' to true, or leave both out."
            )
        return value

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def conversation(self) -> Conversation:
        return Conversation.from_messages(self.messages)


class CompletionRequest(OpenAIRequest):
    """Body of POST /v1/completions."""

    kind = "text"
    default_max_tokens = DEFAULT_COMPLETION_TOKENS

    prompt: Prompts
    logprobs: WholeNumber | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: WholeNumber | None = Field(None, ge=1, le=MAX_CANDIDATES)
    echo: Any = None
    suffix: Any = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _refuse_token_ids(cls, value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], int | list):
            raise PydanticCustomError(
                "unsupported_parameter", "Prompts of token numbers are not supported: send 'prompt' as a text."
            )
        return value

    @field_validator("prompt")
    @classmethod
    def _check_not_blank(cls, value: list[str]) -> list[str]:
        if not value or not all(prompt.strip() for prompt in value):
            raise PydanticCustomError(
                "missing_required_parameter", "'prompt' is missing or empty: the request needs it."
            )
        return value

    @field_validator("best_of")
    @classmethod
    def _check_best_of(cls, value: int, info: ValidationInfo) -> int:
        if value != info.data.get("n"):
            message = "Choosing the best of more answers is not supported: leave 'best_of' out."
            raise PydanticCustomError("unsupported_parameter", message)
        return value

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(self.prompt)


class TokenizeRequest(_RequestModel):
    """Body of POST /tokenize (vLLM's): a prompt or messages."""

    model: Annotated[Text, Field(max_length=MAX_NAME_LENGTH)] = "zero-shot"
    messages: Messages | None = None
    prompt: Annotated[Text, Field(min_length=1)] | None = None
    add_special_tokens: Any = None
    add_generation_prompt: Any = None
    return_token_strs: Any = None

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        if self.messages is None and self.prompt is None:
            raise missing_field("prompt")
        if self.messages is not None and self.prompt is not None:
            raise invalid_request("Give either 'prompt' or 'messages', not both.", "prompt")
        return self


class LoadLoRAAdapterRequest(_RequestModel):
    """Body of POST /v1/load_lora_adapter (vLLM's)."""

    lora_name: Name
    lora_path: Annotated[Text, Field(min_length=1, max_length=MAX_PATH_LENGTH)]
    load_inplace: Any = None
    lora_int_id: Any = None


class UnloadLoRAAdapterRequest(_RequestModel):
    """Body of POST /v1/unload_lora_adapter (vLLM's)."""

    lora_name: Name
    lora_int_id: Any = None
