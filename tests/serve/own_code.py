"""A tiny base with remote code, like CodeGen2, which writes a file when it runs."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import torch
from transformers import CodeGenConfig, CodeGenForCausalLM
from transformers.models.codegen import modeling_codegen

from tests.serve.tiny import tokenizer

# The first lines of the code, which run when it is imported.
_MARK = "from pathlib import Path\nPath({mark!r}).open('a').write('{name}\\n')\n"
_CONFIG = """
from transformers import CodeGenConfig as _CodeGenConfig

class OwnConfig(_CodeGenConfig):
    model_type = {kind!r}
"""


def make_own_code_base(folder: Path, mark: Path, kind: str = "codegen") -> Path:
    """Save the base to `folder`; every import of its code writes a line to `mark`.

    The code is transformers' own CodeGen with CodeGen2's arrangement of queries, keys and values: eight groups
    instead of four, so that the same weights give other answers. `kind` is the model_type that its config states.
    """
    torch.manual_seed(0)
    config = CodeGenConfig(
        vocab_size=len(tokenizer()),
        n_embd=64,
        n_layer=2,
        n_head=8,
        n_positions=512,
        rotary_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = CodeGenForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "configuration_own.py").write_text(
        _MARK.format(mark=str(mark), name="configuration") + _CONFIG.format(kind=kind)
    )
    (folder / "modeling_own.py").write_text(_MARK.format(mark=str(mark), name="model") + _modeling())
    values = json.loads((folder / "config.json").read_text())
    values |= {
        "model_type": kind,
        "architectures": ["CodeGenForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.CodeGenForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def _modeling() -> str:
    code = inspect.getsource(modeling_codegen)
    assert code.count("mp_num = 4") == 1
    code = code.replace("mp_num = 4", "mp_num = 8")
    code = code.replace("from .configuration_codegen import CodeGenConfig", "from .configuration_own import OwnConfig")
    code = code.replace("CodeGenConfig", "OwnConfig")
    code = code.replace("from ... import", "from transformers import").replace("from ...", "from transformers.")
    # auto_docstring uses the path of the file in transformers.
    plain = "def auto_docstring(given=None, **_):\n    return given or (lambda documented: documented)\n"
    return code.replace("    auto_docstring,\n", "").replace("logger = logging", plain + "\nlogger = logging", 1)
