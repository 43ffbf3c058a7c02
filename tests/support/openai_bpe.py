"""An independent implementation of the tokenizer of OpenAI's CLIP, without its `ftfy` step.

1. HTML entities are resolved twice, whitespace is collapsed, and letters are lower-cased.
2. The text is split into contractions, runs of letters, single numerals, and runs of other characters.
3. Each piece is encoded as UTF-8. Each byte becomes one printable letter, and the last is marked as the end
   of a word.
4. In each piece the pair of symbols that was learned first is merged, until no learned pair is left.

Of ftfy's repairs only the composition of accents (NFC) is applied, before step 1.
"""

import gzip
import html
import re
import unicodedata
from itertools import pairwise

CONTRACTIONS = ("'re", "'ve", "'ll", "'s", "'t", "'m", "'d")
START, END = "<|startoftext|>", "<|endoftext|>"


class OpenAIBPE:
    def __init__(self, merges_file):
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        self.letter = {byte: chr(byte) for byte in printable}
        self.letter |= {byte: chr(256 + i) for i, byte in enumerate(others)}
        letters = [self.letter[byte] for byte in (*printable, *others)]

        lines = gzip.decompress(merges_file.read_bytes()).decode().split("\n")
        merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
        self.rank = {pair: rank for rank, pair in enumerate(merges)}
        vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
        vocabulary += [*map("".join, merges), START, END]
        self.ids = {symbol: index for index, symbol in enumerate(vocabulary)}

    def encode(self, text: str) -> list[int]:
        text = unicodedata.normalize("NFC", text)
        text = html.unescape(html.unescape(text)).strip()
        text = re.sub(r"\s+", " ", text).strip().lower()
        symbols = [symbol for piece in pieces(text) for symbol in self.merged(piece)]
        return [self.ids[symbol] for symbol in (START, *symbols, END)]

    def merged(self, piece: str) -> list[str]:
        if piece in (START, END):
            return [piece]
        symbols = [self.letter[byte] for byte in piece.encode()]
        symbols[-1] += "</w>"
        while True:
            pairs = list(pairwise(symbols))
            first = min(pairs, key=lambda pair: self.rank.get(pair, len(self.rank)), default=None)
            if first not in self.rank:
                return symbols
            symbols = join(symbols, first)


def join(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """Replaces each occurrence of the pair, from the left, by one symbol."""
    joined, i = [], 0
    while i < len(symbols):
        here = tuple(symbols[i : i + 2]) == pair
        joined.append("".join(pair) if here else symbols[i])
        i += 2 if here else 1
    return joined


def kind(letter: str) -> str:
    category = unicodedata.category(letter)
    if letter.isspace():
        return "blank"
    return {"L": "letter", "N": "numeral"}.get(category[0], "other")


def pieces(text: str) -> list[str]:
    found, i = [], 0
    while i < len(text):
        special = next((s for s in (START, END, *CONTRACTIONS) if text.startswith(s, i)), None)
        if special:
            end = i + len(special)
        else:
            end = i + 1
            while kind(text[i]) in ("letter", "other") and end < len(text):
                if kind(text[end]) != kind(text[i]):
                    break
                end += 1
        if special or kind(text[i]) != "blank":
            found.append(text[i:end])
        i = end
    return found
