"""How many characters two texts differ by."""


def edit_distance(first: str, second: str) -> int:
    """Return the Levenshtein distance: insertions, deletions and substitutions that turn one text into the other.

    Source: Hyyrö, "A bit-vector algorithm for computing Levenshtein and Damerau edit distances" (2003), figure 4.
    A column of the dynamic programming table is two big integers, so that a long reply costs one step a character.
    """
    if len(first) > len(second):
        first, second = second, first
    if len(first) < 2:
        return len(second) - (first != "" and first in second)
    places: dict[str, int] = {}
    for place, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << place
    last, every = 1 << (len(first) - 1), (1 << len(first)) - 1
    # Bit i tells whether the distance grows (or falls) by one from row i to row i + 1 of the current column.
    grows, falls, distance = every, 0, len(first)
    for character in second:
        same = places.get(character, 0)
        diagonal = (((same & grows) + grows) ^ grows) | same | falls
        row_grows = falls | (~(diagonal | grows) & every)
        row_falls = grows & diagonal
        distance += bool(row_grows & last) - bool(row_falls & last)
        row_grows = (row_grows << 1 | 1) & every
        row_falls = row_falls << 1 & every
        grows = row_falls | (~(diagonal | row_grows) & every)
        falls = row_grows & diagonal
    return distance
