"""Sentences without sense made of the words of a split: the notes of a chart and the text of a page around it."""

from random import Random

from vlm.training.synthetic.words import WORD_KINDS, Split, pseudo_word, words

LISTS = tuple(kind for kind in WORD_KINDS if kind not in ("person", "company"))
LINKS = ("of", "in", "by", "to", "the", "a", "of the", "in the")


def phrase(random: Random, split: Split, num_words: int) -> str:
    """Return about `num_words` words, listed and made up, the first of them capitalised."""
    parts: list[str] = []
    while sum(part.count(" ") + 1 for part in parts) < num_words:
        if parts and random.random() < 0.6:
            parts.append(random.choice(LINKS))
        listed = random.random() < 0.7
        word = random.choice(words(random.choice(LISTS), split)) if listed else pseudo_word(random, split)
        parts.append(word.lower() if random.random() < 0.8 else word)
    text = " ".join(parts)
    return text[0].upper() + text[1:]


def paragraph(random: Random, split: Split, num_sentences: int) -> str:
    """Return sentences of five to twelve words."""
    return " ".join(f"{phrase(random, split, random.randint(5, 12))}." for _ in range(num_sentences))
