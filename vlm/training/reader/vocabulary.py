"""The vocabulary of the shipped model: single bytes, and the words that questions are made of.

What is printed on a chart is spelt byte by byte, digits never merged, so that any label and any number can be copied.
A question's own words ("What", " is", " the", …) are one token each, which halves the length of a prompt. Tokens of
two bytes are left out, for they would merge inside other words.
"""

from vlm.tokenizer import Tokenizer
from vlm.tokenizer_files.llama3 import meta_special_ids

# Said at the beginning of a text (chat headers, first words of a question) or after a space.
FIRST_WORDS = """user assistant system What How Which When Where Who Why Does Was Are Did The For Read Describe Count
List Name Give Compare Yes Answer Between Than Caption Write Convert"""
WORDS = """of in to by on at or as it is are was were the and for has had have does did what how which when where who
that this than from between with without about over under per not there their each other both more most less least
many much greater higher larger bigger smaller lower fewer highest lowest largest smallest biggest value values number
numbers amount share rate percent percentage percentages proportion total sum average mean median difference ratio
times increase decrease change changed increased decreased rise rose fall fell growth trend year years month months
quarter day week first second third last previous earlier later before after next bar bars line lines slice slices
point points segment segments chart graph figure image picture title titled label labels legend colour color axis
category categories group groups series item items table row column country countries company companies product
products person people place places region sector brand city state age men women adults children respondents
population shown show shows describe read world answer question brief single word short said say think only also same
equal equals maximum minimum top bottom left right above below all any one two three four five six seven eight nine
ten million billion thousand dollars euros countries count compare does represent represented represents indicate much
spent made sold produced reached"""


def reader_tokenizer() -> Tokenizer:
    """Build the tokenizer: ids 0 to 255 are the bytes, then come the words, then Llama's special tokens."""
    words = ["\n\n", *FIRST_WORDS.split(), *(f" {word}" for word in WORDS.split())]
    tokens = [bytes([value]) for value in range(256)] + [word.encode() for word in dict.fromkeys(words)]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return Tokenizer(ranks, meta_special_ids(len(ranks)))
