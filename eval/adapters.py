"""A PEFT adapter put on its base, so that engines can serve it."""

from __future__ import annotations

import shutil
from pathlib import Path


def merged_model(base: str, revision: str, adapter: Path, folder: Path) -> Path:
    """The folder of `base` with `adapter` merged into its weights, made in `folder` unless it is there.

    Raises ValueError for a folder without an adapter, an adapter that does not fit, and one that has no weights to merge (prefix
    and prompt tuning).
    """
    if (folder / "config.json").is_file():
        return folder
    check_adapter("adapter", adapter)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, revision=revision or None)
    try:
        tuned = PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"adapter {adapter} must fit the model {base}, does not ({str(error)[:200]}): name its own base"
        ) from error
    if not hasattr(tuned, "merge_and_unload"):
        kind = tuned.active_peft_config.peft_type
        raise ValueError(
            f"adapter {adapter} must have weights to merge, {kind} has none: take one made by lora, ia3 or ln"
        )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    tuned.merge_and_unload().save_pretrained(partial)
    source = adapter if (adapter / "tokenizer_config.json").is_file() else Path(base)
    AutoTokenizer.from_pretrained(str(source), revision=revision or None).save_pretrained(partial)
    partial.rename(folder)
    return folder


def check_adapter(knob: str, adapter: Path) -> None:
    """Raise ValueError unless the folder holds a PEFT adapter."""
    if not (adapter / "adapter_config.json").is_file():
        raise ValueError(
            f"{knob} must be a folder with adapter_config.json, {adapter} is none: give the adapter's own folder"
        )
