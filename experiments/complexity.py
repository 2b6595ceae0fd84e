"""Why self-attention: the paper's Table 1, measured on layers of this repository; nothing is trained.

Run:       ./launch.sh table experiments/complexity.py
Hardware:  a CPU core, a minute. Only the columns ms and MB depend on it.
"""

import functools

from experiments.studies import layer_complexity, sentence_lengths

title = "Complexity, sequential operations and path lengths of layers over sequences"
source = "Table 1 of Vaswani et al. 2017 (arXiv 1706.03762); n/k layers of contiguous convolutions are in its Section 4."
notes = (
    "n positions, d features, kernels of k, neighbourhoods of r. Powers are fitted by least squares of logarithms over the "
    "sizes in the table file; exponents miss integers because of the sequences' ends and of complete blocks.\n"
    "Complexity per layer: multiply-adds of what joins positions, counted in the traced layer; the projections, which take "
    "every position by itself, stand beside. A complete layer of self-attention is 4nd² + 2n²d. The recurrent layer is an "
    "LSTM, whose four gates make 4nd² of the paper's nd²: it costs as much as self-attention at n = 2d, where the paper, which "
    "leaves out constants, has n = d. Restricted attention multiplies blocks of r queries with the 2r - 1 keys that they see.\n"
    "Sequential operations: the longest chain of arithmetic operations in the traced layer that each need the one before; "
    "a product of matrices, a convolution and a softmax's sum count one each.\n"
    "Maximum path length: layers in a stack until every output position has a gradient with respect to every input position. "
    "For the recurrent layer, whose positions see only what came before, the steps within one layer. Neighbourhoods reach half "
    "their size to each side, so that from one end to the other it is 2n/k and 2n/r layers. Dilations are 1, k, k², … below n, "
    "again and again: a stack that needs only log_k n layers in the middle of a sequence has paths near its ends that "
    "would leave it, and takes a second round.\n"
    "n < d: share of the texts, English and Korean, of the embedded corpora's training splits that have fewer tokens than a "
    "model has features, end symbols included, by the tokenizer of configs/translate_quickstart.py; 512 is the paper's base, "
    "64 and 128 are this repository's. There the paper's self-attention costs less than its recurrent layer; ours costs less "
    "than the LSTM up to twice as many tokens.\n"
    "ms: median over runs of one layer, forward, one sequence, compiled; MB: XLA's plan for its temporaries."
)


def _row(layer: str, complexity_per_layer: str, sequential: str, path: str) -> dict:
    return {
        "label": layer,
        "function": functools.partial(layer_complexity.measure_layer_type, layer),
        "published": {
            "complexity per layer": complexity_per_layer,
            "sequential operations": sequential,
            "maximum path length": path,
        },
    }


computed = [
    _row("self-attention", "O(n²·d)", "O(1)", "O(1)"),
    _row("recurrent", "O(n·d²)", "O(n)", "O(n)"),
    _row("contiguous convolution", "O(k·n·d²)", "O(1)", "O(n/k)"),
    _row("dilated convolution", "O(k·n·d²)", "O(1)", "O(log_k(n))"),
    _row("restricted self-attention", "O(r·n·d)", "O(1)", "O(n/r)"),
]
_DATES = ("date_full", "date_long", "date_medium", "date_numeric", "date_short", "date_weekday")
_CORPORA: dict[str, tuple[tuple[str, ...], int | tuple[int, int]]] = {  # kinds of pairs, and how many make up a text
    "everyday sentences": (("everyday",), 1),
    "dates": ((*_DATES, "month_day", "month_day_weekday", "year_month", "quarter"), 1),
    "times": (("time", "relative"), 1),
    "units and currencies": (("unit", "currency"), 1),
    "number words": (("number_words", "ordinal_words"), 1),
    "one to four dates": (("date_full", "date_long", "date_weekday"), (1, 4)),
}
computed += [
    {"label": label, "function": functools.partial(sentence_lengths.measure_sentence_lengths, kinds, join=join)}
    for label, (kinds, join) in _CORPORA.items()
]
pictures = {"crossover": layer_complexity.plot_layer_complexity}
scales = {
    "quick": {
        "arguments": {
            "lengths": (64, 128, 256, 512, 1024),
            "features": (64, 128, 256),
            "path_lengths": (32, 64, 128, 256),
            "width": 9,
            "timed": ((64, 512), (1024, 64)),
            "repeats": 30,
            "widths": (32, 64, 128, 512),
        }
    },
    "smoke": {
        "arguments": {
            "lengths": (8, 64),
            "features": (16, 32),
            "path_lengths": (8, 16),
            "width": 3,
            "timed": ((8, 16),),
            "repeats": 1,
            "widths": (8, 512),
        }
    },
}
