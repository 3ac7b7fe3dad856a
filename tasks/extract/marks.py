"""Marks that models write around their code: ends of turns, thinking, wrappers of an answer, fences' languages, JSON.

The marks are those of the chat templates and answer formats of the Llama, Qwen, DeepSeek, Mistral, Gemma, Phi, Granite,
Cohere, gpt-oss, GLM, Kimi, Magistral, StarCoder and CodeLlama families.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

from tasks.prompt import INSTRUCTION, RESPONSE

# A line that begins with one of these is a further example.
_EXAMPLE_MARKS = (INSTRUCTION, RESPONSE, "### Human:", "### Assistant:", "### User:")
# These end a turn wherever they stand outside of a string.
_TURN_MARKS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|EOT|>"),
    *("<|start_header_id|>", "<|start_of_role|>", "<|end_of_role|>", "<|end|>", "<|return|>", "<|call|>"),
    *("<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<|start|>", "<|endofprompt|>", "<|eos|>"),
    *("<start_of_turn>", "<end_of_turn>", "<turn|>", "<|turn>", "</s>", "<eos>", "<end_of_utterance>"),
    *("[INST]", "[/INST]", "<|END_OF_TURN_TOKEN|>", "<|END_RESPONSE|>", "<|START_OF_TURN_TOKEN|>", "[|endofturn|]"),
    *("<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<|file_separator|>", "<file_sep>", "<|fim_pad|>"),
    *("<jupyter_output>", "<jupyter_text>", "<empty_output>", "<|end_of_solution|>", "[/ASSISTANT]"),
)
_CODE_KEYS = (
    "code",
    "python",
    "python_code",
    "script",
    "source",
    "source_code",
    "program",
    "solution",
    "answer",
    "input",
)
_NESTED_KEYS = ("arguments", "parameters", "args", "input", "function", "tool_input", "action_input")
_MAX_DEPTH = 4


def _any_of(marks: tuple[str, ...]) -> str:
    return "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))


TURN = rf"^[ \t]*(?:{_any_of(_EXAMPLE_MARKS)})|{_any_of(_TURN_MARKS)}"

# The beginning of an answer may repeat the end of the prompt: what opens the turn of the model, or the final message.
LEADING_MARKS = re.compile(
    r"\s*(?:<\|im_start\|>\s*assistant\b|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>|<start_of_turn>\s*model\b"
    r"|<\|turn>\s*model\b|<\|start_of_role\|>\s*assistant\s*<\|end_of_role\|>|<\|start\|>\s*assistant\b|<\|assistant\|>"
    r"|<\|channel\|>\s*final\s*(?:<\|constrain\|>\s*\w+\s*)?<\|message\|>|<｜Assistant｜>|<\|START_OF_TURN_TOKEN\|>"
    r"|<\|CHATBOT_TOKEN\|>|<\|START_RESPONSE\|>|<\|begin_of_solution\|>|<\|begin_of_text\|>|<bos>|<s>|\[/INST\]"
    r"|\[\|assistant\|\]|### Assistant:|assistantfinal(?=\s|```))"
)

# The names of tags around thinking.
_THINKING_TAG = (
    r"(?:ant_?|seed:|longcat_|deep_?|inner_)?(?:think|thinking|thought|thoughts)|reasoning|reflection|scratchpad"
    r"|analysis|monologue|inner_monologue"
)
# What opens thinking, and what closes it.
THINKING_OPENERS = (
    rf"^[ \t]*<(?:{_THINKING_TAG})>|^[ \t]*\[THINK\]|<\|begin_of_thought\|>|<\|START_THINKING\|>|◁think▷"
    r"|<\|channel\|>\s*(?:analysis|commentary)\b[^<\n]{0,80}<\|message\|>|<\|channel>thought\b|<unused94>(?:thought\b)?"
    r"|\A\s*analysis(?=[A-Z](?s:.*?)assistantfinal)|\A\s*Thinking\.\.\.[ \t]*$|\A\s*Here is my thought process:"
)
THINKING_CLOSERS = (
    rf"</(?:{_THINKING_TAG})>|\[/THINK\]|<\|end_of_thought\|>|<\|END_THINKING\|>|◁/think▷"
    r"|<\|channel\|>\s*final\b[^<\n]{0,80}<\|message\|>|<channel\|>|<unused95>|assistantfinal(?=\s|```|[A-Z])"
    r"|^\.\.\.done thinking\.[ \t]*$|^Here is my response:"
)
# A template with one of these at its end has opened the thinking of the answer.
OPENS_THINKING = re.compile(
    rf"(?:<(?:{_THINKING_TAG})>|\[THINK\]|<\|begin_of_thought\|>|<\|START_THINKING\|>|◁think▷)\s*\Z"
)

# Tags around a whole answer, prose included.
_ANSWER_TAG = "answer|final_answer|final|solution|response"
ANSWER_TAGS = rf"<(?:{_ANSWER_TAG})>"
ANSWER_CLOSING_TAGS = rf"</(?:{_ANSWER_TAG})>"
# Everything that can end an answer at its own beginning.
END_MARKS = (*_EXAMPLE_MARKS, *_TURN_MARKS, *(f"</{name}>" for name in _ANSWER_TAG.split("|")))
# Tags around something that is no code: tests, explanations, results.
OTHER_TAGS = {
    "[TESTS]": "[/TESTS]",
    "[TEST]": "[/TEST]",
    "<tests>": "</tests>",
    "<test>": "</test>",
    "<explanation>": "</explanation>",
    "<tool_response>": "</tool_response>",
}
TOOL_CALL_TAGS = {
    "<tool_call>": "</tool_call>",
    "<function_call>": "</function_call>",
    "[TOOL_CALLS]": "[/TOOL_CALLS]",
    "<|tool_call>": "<tool_call|>",
    "<|tool_call|>": "<|/tool_call|>",
    "<|tool_call_start|>": "<|tool_call_end|>",
}
# Openings of code, as patterns, and what closes each; "" is closed by the end of the turn only.
CODE_TAGS: tuple[tuple[str, str], ...] = (
    (r"\[PYTHON\]", "[/PYTHON]"),
    (r"\[CODE\]", "[/CODE]"),
    (r"\[code(?:=python)?\]", "[/code]"),
    (r"\[BEGIN\]", "[DONE]"),
    (r"\[SOLUTION\]", "[/SOLUTION]"),
    (r"<python>", "</python>"),
    (r"<py>", "</py>"),
    (r"<execute>", "</execute>"),
    (r"<execute_python>", "</execute_python>"),
    (r"<execute_ipython>", "</execute_ipython>"),
    (r"<code_interpreter>", "</code_interpreter>"),
    (r"<pre(?:\s[^>\n]{0,200})?>", "</pre>"),
    (r"<code(?:\s[^>\n]{0,200})?>", "</code>"),
    (r"<parameter=(?:code|python|script|source)>", "</parameter>"),
    (r'<parameter name="(?:code|python|script|source)">', "</parameter>"),
    (r"<arg_key>(?:code|python|script|source)</arg_key>\s*<arg_value>", "</arg_value>"),
    (r"<antArtifact(?:\s[^>\n]{0,400})?>", "</antArtifact>"),
    (r"<file(?:\s[^>\n]{0,200})?>", "</file>"),
    (r"<\|python_tag\|>", ""),
    (r"<jupyter_code>", ""),
    (r"\\begin\{lstlisting\}(?:\[[^\]\n]{0,200}\])?", r"\end{lstlisting}"),
    (r"\\begin\{minted\}(?:\[[^\]\n]{0,200}\])?\{python3?\}", r"\end{minted}"),
    (r"\\begin\{verbatim\}", r"\end{verbatim}"),
    (r"#\+(?i:begin_src)[ \t]+python[^\n]{0,200}", "#+end_src"),
)

PYTHON_LANGUAGES = re.compile(
    r"(?:py|python|python-?[23](?:\.\d+)*|py[23]|i?pycon|pyi|ipython[23]?|python-repl|python-console|sage|gpython|doctest"
    r"|jupyter|jupyter-python|py-?code|[\w./\\-]+\.py[iw]?)\Z",
    re.IGNORECASE,
)
OTHER_LANGUAGES = frozenset(
    [
        "bash",
        "sh",
        "shell",
        "shell-session",
        "zsh",
        "fish",
        "console",
        "terminal",
        "cmd",
        "bat",
        "batch",
        "powershell",
        "ps1",
        "json",
        "jsonc",
        "json5",
        "jsonl",
        "yaml",
        "yml",
        "toml",
        "ini",
        "cfg",
        "conf",
        "xml",
        "html",
        "css",
        "scss",
        "javascript",
        "js",
        "jsx",
        "typescript",
        "ts",
        "tsx",
        "java",
        "c",
        "h",
        "cpp",
        "c++",
        "cc",
        "csharp",
        "c#",
        "cs",
        "go",
        "golang",
        "rust",
        "rs",
        "ruby",
        "rb",
        "php",
        "sql",
        "mysql",
        "sqlite",
        "r",
        "julia",
        "jl",
        "kotlin",
        "kt",
        "swift",
        "scala",
        "perl",
        "pl",
        "lua",
        "matlab",
        "haskell",
        "hs",
        "text",
        "txt",
        "plain",
        "plaintext",
        "output",
        "out",
        "stdout",
        "stderr",
        "log",
        "logs",
        "csv",
        "tsv",
        "diff",
        "patch",
        "makefile",
        "make",
        "cmake",
        "dockerfile",
        "docker",
        "http",
        "latex",
        "tex",
        "math",
        "mermaid",
        "dot",
        "graphql",
        "pytb",
        "py3tb",
        "traceback",
        "error",
        "result",
        "results",
        "input",
        "stdin",
        "pseudo",
        "pseudocode",
        "pip",
        "requirements",
        "regex",
        "ebnf",
        "bnf",
        "asm",
        "wasm",
        "elixir",
        "erlang",
        "clojure",
        "lisp",
        "scheme",
        "fsharp",
        "ocaml",
        "dart",
        "groovy",
        "vb",
        "nix",
        "zig",
        "solidity",
        "proto",
        "example",
        "ascii",
        "tree",
        "none",
    ]
)
# A fence of one of these holds text with further fences.
MARKDOWN_LANGUAGES = frozenset(("markdown", "md", "mdx"))


def code_in_json(text: str) -> str | None:
    """Return the code of a JSON object, or list of objects, that holds code under a known key; else None."""
    text = text.strip()
    if not (text.startswith(("{", "[{")) and text.endswith(("}", "}]"))):
        return None
    return next(_find_code(_parse(text), _MAX_DEPTH), None)


def _parse(text: str) -> object:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text) if len(text) < 100_000 else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _find_code(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, list):
        for item in value[:8]:
            yield from _find_code(item, depth)
    if not isinstance(value, dict) or not depth:
        return
    yield from (value[key] for key in _CODE_KEYS if isinstance(value.get(key), str) and value[key].strip())
    for key in _NESTED_KEYS:
        nested = value.get(key)
        if isinstance(nested, str) and nested.lstrip().startswith("{"):
            nested = _parse(nested)
        yield from _find_code(nested, depth - 1)
