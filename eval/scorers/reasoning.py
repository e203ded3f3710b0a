"""Taking out what a model thought aloud between tags, as lmms-eval's command line does before it scores."""

TAGS = (("<think>", "</think>"), ("<analysis>", "</analysis>"))


def without_reasoning(text: str) -> str:
    """Return `text` without its tagged blocks of reasoning and without outer blanks.

    A closing tag alone (the prompt held the opening one) takes everything before it along; an opening tag alone
    changes nothing. Source: EvolvingLMMs-Lab/lmms-eval, api/reasoning.py, with the default tags of its command line.
    """
    for opening, closing in TAGS:
        while closing in text:
            start = text.find(opening)
            if start < 0:
                text = text[text.rfind(closing) + len(closing) :]
                break
            end = text.find(closing, start)
            if end < 0:
                break
            text = text[:start] + text[end + len(closing) :]
    return text.strip()


def without_tagged_reasoning(text: str) -> str:
    """Return `without_reasoning(text)` where there is something to take out, else `text` with its blanks."""
    return without_reasoning(text) if any(closing in text for _, closing in TAGS) else text
