"""Hostile texts in place of code, from a model or a user."""

from __future__ import annotations

HOSTILE: dict[str, str] = {
    "empty": "",
    "blank": " \n\t ",
    "comment": "# only a comment",
    "NUL": "x = 1\0",
    "lone surrogate": "x = '\ud800'",
    "open brackets": "(" * 1_000_000,
    "balanced brackets": "(" * 10_000 + "1" + ")" * 10_000,
    "minus signs": "-" * 300_000 + "1",
    "attribute chain": "a" + ".b" * 100_000,
    "operator chain": "a" + " + a" * 100_000,
    "assignment chain": "x = " * 50_000 + "1",
    "line continuations": "\\\n" * 500_000,
    "quotes": "'" * 100_001,
    "triple quotes": '"""' * 50_001,
    "deep indentation": "".join(" " * depth + "if a:\n" for depth in range(300)),
    "nested loops": "\n".join(" " * i + f"for a{i} in b{i}:" for i in range(40)) + "\n" + " " * 40 + "x = 1",
    "wide assignment": ", ".join(f"a{index}" for index in range(2_000)) + " = f(" + ", ".join(["b"] * 2_000) + ")",
    "many branches": "if a:\n x=1\n" + "elif a:\n x=1\n" * 800 + "x\n" * 2_000,
    "bare strings": "''\n" * 50_000,
    "comments": "''\n" + "#\n" * 200_000,
    "f-string nest": "f'{" * 20_000,
    "unterminated": 'def f(:\n  """abc',
    "markup": "```python\nx = 1\n```",
    "not Latin": "变量 = 'ü' + \"🙂\"; print(变量)",
    "line separators": "x\u2028=\x0c1\x85\ry",
}
