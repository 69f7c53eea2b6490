"""CLIP's byte-pair tokenizer, as open_clip carries it, in the files that Hugging Face's `tokenizers` and `transformers` read."""

from __future__ import annotations

import json
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer

from softclip_cli.model import Model

START, END = "<|startoftext|>", "<|endoftext|>"  # transformers' names of open_clip's <start_of_text> and <end_of_text>


def is_clip_tokenizer(model: Model) -> bool:
    """Whether the model reads its texts with CLIP's tokenizer in its usual form (lower case, 49,408 tokens)."""
    return type(model.tokenizer) is SimpleTokenizer and not model.config["text_cfg"].get("tokenizer_kwargs")


def write_clip_tokenizer(tokenizer: SimpleTokenizer, folder: Path, context_length: int) -> list[str]:
    """Write `tokenizer.json` and what transformers puts beside it; returns the names of the files.

    The same texts give the same ids as far as both clean them alike: open_clip also repairs broken Unicode (ftfy) and HTML entities.
    """
    from transformers import CLIPTokenizer

    names = {"<start_of_text>": START, "<end_of_text>": END}
    vocabulary = {names.get(token, token): number for token, number in tokenizer.encoder.items()}
    merges = [" ".join(pair) for pair in sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)]
    sources = folder / "vocab.json", folder / "merges.txt"
    sources[0].write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    sources[1].write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    before = set(folder.iterdir())
    made = CLIPTokenizer.from_pretrained(
        folder, bos_token=START, eos_token=END, pad_token=END, unk_token=END, model_max_length=context_length
    )
    made.save_pretrained(folder)
    return sorted(path.name for path in (set(folder.iterdir()) - before) | set(sources))
