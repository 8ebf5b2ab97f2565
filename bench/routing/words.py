"""Words that prompts are made of: each one token to the demo model's tokenizer."""

from __future__ import annotations

from kvatlas.cli.fleet import MODEL
from kvatlas.common.prompt import PromptBuilder, demo_model_path
from kvatlas.common.settings import ModelSettings
from kvatlas.simulator.generation import find_vocabulary


def demo_words() -> list[str]:
    """Find words that the demo model's tokenizer reads as one token each."""
    prompts = PromptBuilder.load(ModelSettings(name=MODEL, tokenizer=str(demo_model_path())))
    vocabulary = find_vocabulary(
        prompts.vocab_size,
        prompts.decode,
        lambda text: prompts.encode_text(text, add_special_tokens=False),
    )
    return [piece.text for piece in vocabulary.inner]
