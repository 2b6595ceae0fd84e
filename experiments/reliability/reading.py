"""Prints the reading grade of pages: years of school by the formula of Flesch and Kincaid, from sentences and syllables.

    ./launch.sh python experiments/reliability/reading.py README.md docs/uses.md

Grade = 0.39 words per sentence + 11.8 syllables per word - 15.59 (Kincaid et al. 1975). Code, tables, pictures and headings
are left out; a link counts by its text, and `code` as one short word. Syllables are counted by groups of vowels, which for
English is right for nine words of ten; so take the grade as good to about one year.
"""

import re
import sys
from pathlib import Path

PAGES = ("README.md", "docs/uses.md", "docs/walk.md", "docs/troubleshooting.md", "docs/tables.md", "docs/compare.md")


def list_sentences(markdown: str) -> list[list[str]]:
    """Returns the words of each sentence of a page's running text."""
    text = re.sub(r"^```.*?^```|<!--.*?-->", "", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "code", text)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(#|\||>)", line)]
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines))
    sentences = [part for block in blocks for part in re.split(r"(?<=[.!?])\s+", block)]
    words = (re.findall(r"[A-Za-z][A-Za-z'’]*", sentence) for sentence in sentences)
    return [found for found in words if len(found) > 1]


def count_syllables(word: str) -> int:
    """Returns the number of groups of vowels, without a silent e at the end; at least 1."""
    groups = len(re.findall(r"[aeiouy]+", word.lower()))
    silent = re.search(r"[^aeiouyl]e$|[^aeiouy]es$|[^aeiouytd]ed$", word.lower())
    return max(1, groups - bool(silent))


def compute_grade(markdown: str) -> float:
    """Returns the grade of a page."""
    sentences = list_sentences(markdown)
    words = [word for sentence in sentences for word in sentence]
    return 0.39 * len(words) / len(sentences) + 11.8 * sum(map(count_syllables, words)) / len(words) - 15.59


if __name__ == "__main__":
    for name in sys.argv[1:] or PAGES:
        print(f"{name:<30} {compute_grade(Path(name).read_text(encoding='utf-8')):5.1f}")
