"""Code of stored answers, read again from their texts where an earlier version of the extraction read it."""

from __future__ import annotations

from evaluate.results import Run
from tasks.extract import EXTRACTION_VERSION, extract_code
from tasks.prompt import STYLES


def read_code_again(run: Run) -> int:
    """Read the code of answers that an earlier extraction read; return how many candidates have other code now.

    The new code and the version of the extraction are stored in the run's file, so that scores of the old code no
    longer apply. Methods without a stored prompt style are left as they are. Raises PromptOrTuneError if the file
    cannot be written; a packed file is refused only where code changes.
    """
    changed = 0
    old = [name for name, values in run.methods.items() if values.get("extraction") != EXTRACTION_VERSION]
    for method in old:
        style = STYLES.get(run.methods[method].get("style", ""))
        if style is None:
            continue
        for result in run.results(method):
            candidates = [{**each, "code": extract_code(each["text"], style)} for each in result.candidates]
            count = sum(new["code"] != each["code"] for new, each in zip(candidates, result.candidates, strict=True))
            if count:
                run.replace_candidates(method, result.problem, candidates)
                changed += count
        run.update_method(method, {"extraction": EXTRACTION_VERSION})
    if changed:
        run.rewrite()
    return changed
