# ruff: noqa: E501  (one line an answer)
"""Answers in the forms of the model families, each with the code that was meant."""

from __future__ import annotations

from typing import NamedTuple


class Answer(NamedTuple):
    """One answer: a name, the text, the code that was meant, and the name of the prompt style."""

    name: str
    text: str
    code: str
    style: str = "chat"


F = "def f(x):\n    return x + 1"
G = "def g(x):\n    return f(x) * 2"
FENCED = f"```python\n{F}\n```"
LONG = "\n\n".join(f"def f{i}(x):\n    y = x + {i}\n    return y" for i in range(30))
OPEN = "chat-python-open"
DOCTEST = 'def f(x):\n    """Add one.\n\n    >>> f(1)\n    2\n    """\n    return x + 1'

FENCES = [
    Answer("named python", FENCED, F),
    Answer("not named", f"```\n{F}\n```", F),
    Answer("py", f"```py\n{F}\n```", F),
    Answer("Python in capitals", f"```Python\n{F}\n```", F),
    Answer("PYTHON3", f"```PYTHON3\n{F}\n```", F),
    Answer("title", 'Sure:\n```python title="a.py"\nx = 1\n```\nDone', "x = 1"),
    Answer("braces", "Sure:\n```{python}\nx = 1\n```\nDone", "x = 1"),
    Answer("braces with options", "```{python, echo=FALSE}\nx = 1\n```", "x = 1"),
    Answer("pandoc", "```{.python .numberLines startFrom=1}\nx = 1\n```", "x = 1"),
    Answer("MyST", "```{code-cell} ipython3\nx = 1\n```", "x = 1"),
    Answer("version", "```python3.11\nx = 1\n```", "x = 1"),
    Answer("highlighted lines", "```python {1,3-4}\nx = 1\n```", "x = 1"),
    Answer("file behind a colon", "```python:src/main.py\nx = 1\n```", "x = 1"),
    Answer("file name as language", "```main.py\nx = 1\n```", "x = 1"),
    Answer("unknown word", "```solution\nx = 1\n```", "x = 1"),
    Answer("tildes", "~~~python\nx = 1\n~~~\n", "x = 1"),
    Answer("tildes, not named", "~~~\nx = foo(1)\n~~~", "x = foo(1)"),
    Answer("four backticks", '````python\ns = """\n```\nhi\n```\n"""\n````', 's = """\n```\nhi\n```\n"""'),
    Answer("fence behind prose", "Answer: ```python\nx = 1\n```", "x = 1"),
    Answer("fence behind prose, function", f"Here's the code: ```python\n{F}\n```", F),
    Answer("one line", "```python x = 1```", "x = 1"),
    Answer("one line without blanks", "```python x=1```", "x=1"),
    Answer("one line, not named", "Use ```sorted(xs)``` here.", "sorted(xs)"),
    Answer("code behind the language", "```python x = 1\ny = 2\n```", "x = 1\ny = 2"),
    Answer("code at the fence", "```x = f(1)\ny = 2\n```", "x = f(1)\ny = 2"),
    Answer("function at the fence", "```def f(x):\n    return x\n```", "def f(x):\n    return x"),
    Answer("import at the fence", "```import os\nprint(os.getcwd())\n```", "import os\nprint(os.getcwd())"),
    Answer("language on a line of its own", "python\nx = 1\n", "x = 1"),
    Answer("language before a function", f"python\n{F}", F),
    Answer("language on the line behind the fence", f"```\npython\n{F}\n```", F),
    Answer("Windows newlines", f"Code:\n\n{FENCED}\n\nDone.\n".replace("\n", "\r\n"), F),
    Answer("long, Windows newlines", f"```python\n{LONG}\n```\n".replace("\n", "\r\n"), LONG),
    Answer("quoted", "> ```python\n> x = 1\n> ```", "x = 1"),
    Answer("quoted function", "> ```python\n> def f(x):\n>     return x\n> ```\n> Done.", "def f(x):\n    return x"),
    Answer("in a list", f"1. Write:\n\n   ```python\n   {F.replace(chr(10), chr(10) + '   ')}\n   ```\n2. Run it.", F),
    Answer("behind a bullet", "- ```python\n  x = 1\n  ```", "x = 1"),
    Answer("empty block first", "```python\n```\n```python\nx = 1\n```", "x = 1"),
    Answer("closed behind code", "```python\nprint(x)```\nThis prints x.", "print(x)"),
    Answer("prose behind the closing fence", f"```python\n{F}\n``` This adds one.", F),
    Answer("markdown around", f"```markdown\n# Solution\n```python\n{F}\n```\n```", F),
    Answer("quotes as a fence", f"'''python\n{F}\n'''", F),
    Answer("byte order mark", f"\ufeff{FENCED}", F),
    Answer("only a comment before", "```python\n# add\nx = 1\n```", "# add\nx = 1"),
    Answer("indented block", "    ```python\n    x = 1\n    ```", "x = 1"),
]

SEVERAL = [
    Answer(
        "bash before",
        "First install:\n```bash\npip install numpy\n```\nThen:\n```python\nimport numpy as np\nprint(np.pi)\n```\n",
        "import numpy as np\nprint(np.pi)",
    ),
    Answer("install in a python block", f"```python\npip install numpy\n```\n{FENCED}", F),
    Answer("shell command in a plain block", f"```\npip install numpy\n```\n```\n{F}\n```", F),
    Answer("output before", "It prints\n```\n[1, 2]\n```\nwith\n```python\nprint([1, 2])\n```", "print([1, 2])"),
    Answer("output behind", "```\nprint([1, 2])\n```\nprints\n```\n[1, 2]\n```", "print([1, 2])"),
    Answer("shape before", "```\na b c\n  d\ne f g\n```\n" + FENCED, F),
    Answer("formula before", "```\na0 + 1 / (a1 + ...)\n```\n" + FENCED, F),
    Answer("json before", f'Config:\n```json\n{{"a": 1}}\n```\nCode:\n{FENCED}', F),
    Answer("text before", f"```text\nadd(1)\n```\n{FENCED}", F),
    Answer(
        "usage behind", "```python\ndef f(x): return x\n```\nUse it:\n```python\nprint(f(1))\n```", "def f(x): return x"
    ),
    Answer("tests behind", f"{FENCED}\nTests:\n```python\ndef test_f():\n    assert f(1) == 2\n```", F),
    Answer("alternative behind", f"{FENCED}\nOr with a lambda:\n```python\nf = lambda x: x + 1\n```", F),
    Answer(
        "imports first",
        "```python\nimport math\n```\nand\n```python\ndef f(x):\n    return math.sqrt(x)\n```",
        "import math\n\ndef f(x):\n    return math.sqrt(x)",
    ),
    Answer("signature first, function behind", f"Signature:\n```python\ndef f(x):\n```\nFull:\n{FENCED}", F),
    Answer("signature first, body behind", "```python\ndef f(x):\n```\nBody:\n```python\n    return x + 1\n```", F),
    Answer("stub first", f"Given\n```python\ndef f(x):\n    pass\n```\nwe write\n{FENCED}", F),
    Answer("stub with a docstring first", f'```python\ndef f(x):\n    """Add one."""\n    ...\n```\n{FENCED}', F),
    Answer("helper first", f"{FENCED}\nand then\n```python\n{G}\n```", f"{F}\n\n{G}"),
    Answer("correction", f"```python\ndef f(x): return x\n```\nWait, that is wrong. Corrected:\n{FENCED}", F),
    Answer(
        "complete program last",
        f"{FENCED}\nNext:\n```python\n{G}\n```\nPutting it all together:\n```python\n{F}\n\n{G}\n```",
        f"{F}\n\n{G}",
    ),
    Answer("javascript before", f"In JavaScript:\n```js\nlet x = 1\n```\nIn Python:\n{FENCED}", F),
    Answer("fence that another opens", f"```python\nimport os\n{FENCED}", f"import os\n\n{F}"),
    Answer("only another language", "```js\nlet x\n```\n", "let x"),
    Answer("python named text", "```text\nprint(1)\n```", "print(1)"),
    Answer("program outside, output in a block", "print([1, 2])\n\nprints\n```\n[1, 2]\n```", "print([1, 2])"),
    Answer("plain and named", "Sure:\n```python\nx = 1\n```\n```\ny\n```\n", "x = 1"),
    Answer(
        "imports named, program plain",
        "```python\nimport re\n```\n```\nprint(re.escape('.'))\n```",
        "import re\n\nprint(re.escape('.'))",
    ),
]

THINKING = [
    Answer("tags", f"<think>\nMaybe\n```python\nwrong()\n```\nno.\n</think>\n{FENCED}", F),
    Answer(
        "opened by the template",
        f"Okay, maybe\n```python\ndef f(x): return x\n```\nWait, that is wrong.\n</think>\n\n{FENCED}\n",
        F,
    ),
    Answer("closed behind text", f"Fine.</think>{FENCED}", F),
    Answer("not fenced behind", "<think>\nhm\n</think>\n\nx.sort()", "x.sort()"),
    Answer("empty", f"<think>\n\n</think>\n\n{FENCED}", F),
    Answer("thinking", f"<thinking>So, `f`.</thinking>\n{FENCED}", F),
    Answer("reasoning", f"<reasoning>\n```python\nf = 1\n```\n</reasoning>\n<answer>\n{FENCED}\n</answer>", F),
    Answer("brackets", f"[THINK]maybe\n```python\nwrong()\n```[/THINK]{FENCED}", F),
    Answer(
        "long words",
        f"<|begin_of_thought|>\nx\n<|end_of_thought|>\n\n<|begin_of_solution|>\n{FENCED}\n<|end_of_solution|>",
        F,
    ),
    Answer("Cohere", f"<|START_THINKING|>maybe<|END_THINKING|><|START_RESPONSE|>{FENCED}<|END_RESPONSE|>", F),
    Answer("Kimi", f"◁think▷maybe\n```python\nwrong()\n```\n◁/think▷{FENCED}", F),
    Answer("Seed", f"<seed:think>maybe</seed:think>{FENCED}", F),
    Answer(
        "gpt-oss",
        f"<|channel|>analysis<|message|>We need\n```python\nwrong()\n```<|end|><|start|>assistant<|channel|>final<|message|>{FENCED}<|return|>",
        F,
    ),
    Answer("gpt-oss without special tokens", f"analysisWe need f.\n```python\nwrong()\n```\nassistantfinal{FENCED}", F),
    Answer("Gemma", f"<|channel>thought\nmaybe\n<channel|>{FENCED}", F),
    Answer("Ollama", f"Thinking...\nmaybe\n```python\nwrong()\n```\n...done thinking.\n\n{FENCED}", F),
    Answer("Granite", f"Here is my thought process:\nmaybe\n\nHere is my response:\n{FENCED}", F),
    Answer("twice", f"<think>a</think>\n```python\nwrong()\n```\n<think>b</think>\n{FENCED}", F),
    Answer("cut", "<think>\nMaybe\n```python\nwrong()\n```\nor", ""),
    Answer("closer in a string", "```python\ns = '</think>'\nprint(s)\n```", "s = '</think>'\nprint(s)"),
    Answer(
        "closer in a long string", '```python\ns = """\n<think>\n</think>\n"""\n```', 's = """\n<think>\n</think>\n"""'
    ),
    Answer("closer within a line of code", 'x = text.split("</think>")[1]', 'x = text.split("</think>")[1]'),
    Answer("nothing behind", f"{FENCED}\n</think>", F),
    Answer("in a block that the prompt opened", "<think>\nhm\n</think>\nx = 1\n```", "x = 1", OPEN),
    Answer("draft not closed", f"<think>\n```python\nwrong(\n</think>\n{FENCED}", F),
    Answer("apostrophes", f"<think>\nIt's \"hard\" and '''odd.\n</think>\n{FENCED}", F),
]

TURNS = [
    Answer("end mark behind a fence", "```python\nx = 1\n```<|eot_id|>", "x = 1"),
    Answer("end mark behind code", "x = 1<|im_end|>\n<|im_start|>user\nmore", "x = 1"),
    Answer("end mark on a line", "x = 1\n<|im_start|>user\nmore", "x = 1"),
    Answer("turn mark first", f"<|im_start|>assistant\n{FENCED}<|im_end|>", F),
    Answer("Llama's header first", f"<|start_header_id|>assistant<|end_header_id|>\n\n{FENCED}<|eot_id|>", F),
    Answer("Llama 2", f" [/INST] {FENCED}</s>", F),
    Answer("Gemma", f"<start_of_turn>model\n{FENCED}<end_of_turn>\n", F),
    Answer("DeepSeek", f"{FENCED}<｜end▁of▁sentence｜>", F),
    Answer("end of text", "x = 1<|endoftext|>y = 2", "x = 1"),
    Answer("further example", "x.sort()\n\n### Instruction:\nnext\n### Response:\ny", "x.sort()", "plain"),
    Answer("repeated prompt", "### Instruction:\nsort x\n### Response:\nx.sort()\n", "x.sort()", "plain"),
    Answer("human's turn", "x.sort()\n### Human: thanks", "x.sort()"),
    Answer(
        "marks in a string",
        "```python\nT = '''\n### Response:\n'''\nprint(T)\n```",
        "T = '''\n### Response:\n'''\nprint(T)",
    ),
    Answer(
        "template in a string",
        '```python\nT = """\n### Instruction:\n{x}\n### Response:\n"""\nprint(T)\n```',
        'T = """\n### Instruction:\n{x}\n### Response:\n"""\nprint(T)',
    ),
    Answer("mark in a string, no fence", 'END = """\n<|im_end|>\n"""', 'END = """\n<|im_end|>\n"""', "plain"),
    Answer(
        "template in a string, no fence",
        'p = f"""\n### Instruction:\n{x}\n### Response:\n"""',
        'p = f"""\n### Instruction:\n{x}\n### Response:\n"""',
        "plain",
    ),
    Answer("mark in a short string", "x = '<|im_end|>'\ny = x", "x = '<|im_end|>'\ny = x"),
    Answer(
        "fence in a string",
        '```python\ns = "use ```"\nt = """```\n"""\nprint(s)\n```',
        's = "use ```"\nt = """```\n"""\nprint(s)',
    ),
    Answer(
        "fences in a docstring",
        'Sure:\n```python\ndef f():\n    """\n    ```python\n    f()\n    ```\n    """\n```\nDone.',
        'def f():\n    """\n    ```python\n    f()\n    ```\n    """',
    ),
    Answer("apostrophe in a comment", "```python\nx = 1  # don't\ny = 2\n```\nThat's \"it\".", "x = 1  # don't\ny = 2"),
    Answer("end mark in a comment", "x = 1  # one<|im_end|>", "x = 1  # one"),
    Answer("end mark behind prose", "I don't know<|im_end|>\n<|im_start|>user", "I don't know"),
    Answer("quotes never closed", '```python\ns = """abc\n```\nDone.', 's = """abc'),
]

WRAPPERS = [
    Answer("answer", f"<answer>{F}</answer>", F),
    Answer("answer with a fence", f"<answer>\n{FENCED}\n</answer>", F),
    Answer("answer with prose", f"Let me see.\n<answer>\nHere:\n{FENCED}\n</answer>\nDone.", F),
    Answer("answer behind code", f"{FENCED}\n<answer>42</answer>", F),
    Answer("solution", f"<solution>\n{F}\n</solution>", F),
    Answer("code", f"<code>\n{F}\n</code>", F),
    Answer("python", f"<python>\n{F}\n</python>", F),
    Answer(
        "pre and code",
        '<pre><code class="language-python">\nif a &lt; b and c:\n    print(a)\n</code></pre>',
        "if a < b and c:\n    print(a)",
    ),
    Answer("Code Llama", f"[PYTHON]\n{F}\n[/PYTHON]\n[TESTS]\nassert f(1) == 2\n[/TESTS]", F),
    Answer("tests first", f"[TESTS]\nassert f(1) == 2\n[/TESTS]\n[PYTHON]\n{F}\n[/PYTHON]", F),
    Answer("MBPP", f"[BEGIN]\n{F}\n[DONE]", F),
    Answer("python tag", "<|python_tag|>print(1)<|eom_id|>", "print(1)"),
    Answer(
        "python tag and JSON", '<|python_tag|>{"name": "run", "parameters": {"code": "print(1)"}}<|eom_id|>', "print(1)"
    ),
    Answer("artifact", f'<antArtifact identifier="a" language="python" title="f">\n{F}\n</antArtifact>', F),
    Answer("file", f'Here:\n<file path="f.py">\n{F}\n</file>\nDone.', F),
    Answer("CDATA", f"<code><![CDATA[\n{F}\n]]></code>", F),
    Answer("execute", f"<execute>\n{F}\n</execute>", F),
    Answer("JSON", '{"name": "python", "arguments": {"code": "def f(x):\\n    return x + 1"}}', F),
    Answer("JSON in a fence", '```json\n{"code": "def f(x):\\n    return x + 1"}\n```', F),
    Answer(
        "JSON with text arguments",
        '{"function": {"name": "run", "arguments": "{\\"code\\": \\"print(1)\\"}"}}',
        "print(1)",
    ),
    Answer("JSON list", '[{"name": "run", "parameters": {"code": "print(1)"}}]', "print(1)"),
    Answer("tool call", '<tool_call>\n{"name": "run", "arguments": {"code": "print(1)"}}\n</tool_call>', "print(1)"),
    Answer(
        "tool call behind prose",
        'Let me run it.\n<tool_call>\n{"name": "run", "arguments": {"code": "print(1)"}}\n</tool_call>',
        "print(1)",
    ),
    Answer(
        "tool call of Qwen Coder",
        f"<tool_call>\n<function=run>\n<parameter=code>\n{F}\n</parameter>\n</function>\n</tool_call>",
        F,
    ),
    Answer("invoke", f'<invoke name="run">\n<parameter name="code">{F}</parameter>\n</invoke>', F),
    Answer("JSON with a fence", '{"answer": "```python\\nx = f(1)\\n```"}', "x = f(1)"),
    Answer("dictionary that is the answer", '{"a": 1}', '{"a": 1}'),
    Answer("listing", f"\\begin{{lstlisting}}[language=Python]\n{F}\n\\end{{lstlisting}}", F),
    Answer("BBCode", f"[code=python]\n{F}\n[/code]", F),
    Answer("Org", f"#+begin_src python\n{F}\n#+end_src", F),
]

BARE = [
    Answer("one expression", "x.sort()", "x.sort()"),
    Answer("words around", f"Sure\n{F}\nDone", F),
    Answer("sentences around", f"Here is the function you asked for:\n\n{F}\n\nIt adds one to x.", F),
    Answer("long, sentences around", f"Here is the module:\n\n{LONG}\n\nThat is all.", LONG),
    Answer(
        "indented",
        "Here is the code:\n\n    def f(x):\n        return x\n\nHope this helps!",
        "def f(x):\n    return x",
    ),
    Answer("heading behind", "x = 1\n\n### Explanation\nIt sets x.", "x = 1"),
    Answer("bullets behind", f"{F}\n\n- It takes x.\n- It adds one to it.", F),
    Answer("numbered steps before", f"1. Read x.\n2. Add one to it.\n\n{F}", F),
    Answer("session", ">>> x = [3, 1]\n>>> sorted(x)\n[1, 3]\n", "x = [3, 1]\nsorted(x)"),
    Answer(
        "session in a fence", "```python\n>>> def f(x):\n...     return x + 1\n...\n>>> f(1)\n2\n```", f"{F}\n\nf(1)"
    ),
    Answer(
        "session behind prose", "You can do this:\n\n>>> sorted([2, 1])\n[1, 2]\n\nThat sorts it.", "sorted([2, 1])"
    ),
    Answer("session in a docstring", f"```python\n{DOCTEST}\n```", DOCTEST),
    Answer("session in a docstring, no fence", DOCTEST, DOCTEST),
    Answer("IPython", "```\nIn [1]: x = 1\nIn [2]: x + f(2)\nOut[2]: 3\n```", "x = 1\nx + f(2)"),
    Answer("notebook magic", f"```python\n!pip install numpy\n%matplotlib inline\n{F}\n```", F),
    Answer("backticks", "Use `sorted(xs, reverse=True)`.", "sorted(xs, reverse=True)"),
    Answer("label and backticks", "**Answer:** `x = 1`", "x = 1"),
    Answer("two in backticks", "Use `sorted()` with a key, as in `sorted(xs, key=len)`.", "sorted(xs, key=len)"),
    Answer("a date in backticks", "It was on `2010/6/16`, I think.", "It was on `2010/6/16`, I think."),
    Answer("nothing but backticks", "`x`", "x"),
    Answer("contraction behind", "for i in x:\n    print(i)\nthat's it", "for i in x:\n    print(i)"),
    Answer("label", "Answer: x = f(1)", "x = f(1)"),
    Answer("byte order mark", "\ufeffx = 1", "x = 1"),
    Answer("no-break spaces in a fence", "```python\nif x:\n\u00a0\u00a0\u00a0\u00a0y()\n```", "if x:\n    y()"),
    Answer("no-break and invisible spaces", "```python\nx\u00a0=\u00a01\u200b\n```", "x = 1"),
    Answer("no-break space in a string", "```python\nx = '\u00a0'\n```", "x = '\u00a0'"),
    Answer("typographic quotes", "```python\nprint(“a”)\n```", 'print("a")'),
    Answer("line numbers", "```python\n1 def f(x):\n2     return x + 1\n```", F),
    Answer("diff", "```python\n-def f(x):\n-    return x\n+def f(x):\n+    return x + 1\n```", F),
    Answer("escaped newlines", "```python\ndef f(x):\\n    return x + 1\n```", F),
    Answer("HTML entities", "```python\nif a &lt; b:\n    print(a)\n```", "if a < b:\n    print(a)"),
    Answer("entities in a string", '```python\ns = t.replace("&lt;", "<")\n```', 's = t.replace("&lt;", "<")'),
    Answer("Chinese prose", f"以下是代码：\n{F}\n这个函数返回加一的结果。", F),
    Answer("Chinese prose and a fence", f"以下是代码：\n\n{FENCED}\n\n说明：函数加一。", F),
    Answer("Russian prose", f"Вот функция, которая прибавляет один:\n\n{F}", F),
    Answer("refusal", "I cannot do that.", "I cannot do that."),
    Answer("one word", "Sure", "Sure"),
    Answer("nothing", "\n\n", ""),
    Answer("prose that is Python", f"Python is fun\n{F}\nOutput: 5", F),
    Answer("comments", "# add one\nx += 1", "# add one\nx += 1"),
    Answer(
        "imports and prose",
        "import os\nimport re\n\nThen use:\n\nprint(os.getcwd())",
        "import os\nimport re\n\nprint(os.getcwd())",
    ),
    Answer(
        "last expression",
        "import pandas as pd\ndf = pd.read_csv('a')\ndf",
        "import pandas as pd\ndf = pd.read_csv('a')\ndf",
    ),
    Answer("reStructuredText", "Use this:\n\n.. code-block:: python\n\n    x = f(1)\n\nDone.", "x = f(1)"),
]

CUT = [
    Answer("fence not closed", f"```python\n{F}", F),
    Answer("prose behind a fence that is not closed", f"```python\n{F}\n\nThis code adds one to x.", F),
    Answer("within a function", "```python\ndef f(x):\n    if x >", "def f(x):\n    if x >"),
    Answer(
        "within a second function", f"```python\n{F}\n\ndef g(y):\n    return y +", f"{F}\n\ndef g(y):\n    return y +"
    ),
    Answer(
        "within a second function, no fence",
        f"Here it is:\n{F}\n\ndef g(y):\n    return y +",
        f"{F}\n\ndef g(y):\n    return y +",
    ),
    Answer(
        "within a docstring",
        'def f(x):\n    """Return the sum of all\n    numbers',
        'def f(x):\n    """Return the sum of all\n    numbers',
    ),
    Answer("within brackets", f"{F}\n\nprint(f(\n    1,", f"{F}\n\nprint(f(\n    1,"),
    Answer("within a closing fence", f"```python\n{F}\n``", F),
    Answer("a statement with an error", "x = 1\ny = = 2\nprint(x)", "x = 1\ny = = 2\nprint(x)"),
    Answer("a header with an error", "def f(x)\n    return x", "def f(x)\n    return x"),
    Answer("Python 2", "x = 1\nprint 'hello world'", "x = 1\nprint 'hello world'"),
    Answer(
        "a block with an error, then usage",
        "```python\ndef f(x:\n    return x\n```\nUse:\n```python\nprint(f(1))\n```",
        "def f(x:\n    return x",
    ),
    Answer("a block with an error, then the function", f"```python\ndef f(x:\n    return x\n```\nAgain:\n{FENCED}", F),
    Answer("only a header", "def f(x):", "def f(x):"),
    Answer("the open block of the prompt", "x = 1\ny = (2 +", "x = 1\ny = (2 +", OPEN),
]

PREFILLED = [
    Answer("closed", f"{F}\n```\nThis adds one.", F, OPEN),
    Answer("opened again", f"{FENCED}", F, OPEN),
    Answer("not closed", F, F, OPEN),
    Answer("closed behind code", "print(x)```", "print(x)", OPEN),
    Answer("fence in a string", 's = "```"\nprint(s)\n```', 's = "```"\nprint(s)', OPEN),
    Answer("prose and a fence", "Sure, here it is:\n\n```python\nx = 1\n```", "x = 1", OPEN),
    Answer("prose and a plain fence", "Sure, here it is:\n\n```\nx = 1\n```", "x = 1", OPEN),
    Answer(
        "imports, then the program",
        "import os\n```\nand\n```python\nprint(os.getcwd())\n```",
        "import os\n\nprint(os.getcwd())",
        OPEN,
    ),
    Answer("prose behind code that is not closed", "x = 1\n\nThis sets x to one.", "x = 1", OPEN),
]

ANSWERS = {
    f"{kind}: {answer.name}": answer
    for kind, answers in (
        ("fences", FENCES),
        ("several blocks", SEVERAL),
        ("thinking", THINKING),
        ("turns", TURNS),
        ("wrappers", WRAPPERS),
        ("no fence", BARE),
        ("cut", CUT),
        ("opened by the prompt", PREFILLED),
    )
    for answer in answers
}
