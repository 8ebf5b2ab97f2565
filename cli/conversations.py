"""The load of the demo: conversations that share a few long system prompts. Pure but for its seed.

The words mean nothing; what matters is what they have in common. The same seed gives the same
conversations, so that every policy is asked the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

_TEXT = (
    "the a of to and in is that it for on with as was at by an be this from are not but have they "
    "which one you all were when there can said more about into them then so its time could new "
    "some these two may first any my now such like our over even most made after also did many "
    "must before through years where much your way well down should because each just those "
    "people how too little state good very make world still own see work long get here between "
    "both life being under never day same another know while last might us great old year off "
    "come since against go came right used take three"
)
_WORDS = tuple(_TEXT.split())
SENTENCE_WORDS = (8, 16)
QUESTION_WORDS = (25, 60)


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked.

    Attributes:
        users: conversations that go on at a time.
        system_words: length of each shared system prompt.
        answer_tokens: length of each answer.
        think_s: longest pause of a user between an answer and the next question.
    """

    conversations: int = 48
    turns: int = 4
    systems: int = 4
    users: int = 10
    system_words: int = 700
    answer_tokens: int = 24
    think_s: float = 0.5
    seed: int = 1

    @property
    def requests(self) -> int:
        """Count all requests."""
        return self.conversations * self.turns


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one user says.

    Attributes:
        pauses_s: how long the user thinks before each question.
    """

    system: str
    questions: tuple[str, ...]
    pauses_s: tuple[float, ...]


def conversations(load: Load) -> list[Conversation]:
    """Write all conversations of a load."""
    draw = Random(load.seed)  # noqa: S311 - the same words every time are what is wanted
    systems = [_text(draw, load.system_words) for _ in range(load.systems)]
    return [
        Conversation(
            systems[number % load.systems],
            tuple(_text(draw, draw.randint(*QUESTION_WORDS)) for _ in range(load.turns)),
            tuple(draw.uniform(0, load.think_s) for _ in range(load.turns)),
        )
        for number in range(load.conversations)
    ]


def _text(draw: Random, words: int) -> str:
    sentences = []
    while words > 0:
        count = min(words, draw.randint(*SENTENCE_WORDS))
        sentences.append(" ".join(draw.choices(_WORDS, k=count)).capitalize() + ".")
        words -= count
    return " ".join(sentences)
