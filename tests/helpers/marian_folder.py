"""The folder tests/fixtures/marian, which `tests/peers/torch_marian.py` writes, and the sentences of its tokenizers."""

from tests.helpers.small import ROOT

FOLDER = ROOT / "tests" / "fixtures" / "marian"
SENTENCES = [
    ">>de<< the ﬁrst dog sees ½ of the small house",
    "the cat … sleeps\u3000in the garden",
    "a small dog and a large cat see the house",
    "the houses of the first garden are large",
    "dogs and cats sleep",
    "we see 12 dogs in 3 gardens.",
    "it was a large, small, first and last house!",
    "the last cat sees the last dog",
    "Ω is no letter of the vocabulary",
    "1/2 of it fi...",
    "a",
    "the garden of the cat of the dog of the house",
]
TARGETS = [
    "der erste Hund sieht ½ des kleinen Hauses",
    "die Katze … schläft im Garten",
    "ein kleiner Hund und eine große Katze sehen das Haus",
    "die Häuser des ersten Gartens sind groß",
    "Hunde und Katzen schlafen",
    "wir sehen 12 Hunde in 3 Gärten.",
    "es war ein großes, kleines, erstes und letztes Haus!",
    "die letzte Katze sieht den letzten Hund",
]
# Options of `generate` beyond the folder's own; the search's names for them.
WAYS = {
    "own": dict(num_return_sequences=4),
    "greedy": dict(num_beams=1),
    "full": dict(num_beams=6, num_return_sequences=3, length_penalty=0.6, early_stopping=True),
}
OURS = {"own": dict(n_best=4), "greedy": dict(beam=1), "full": dict(beam=6, n_best=3, alpha=0.6, stop="full")}
