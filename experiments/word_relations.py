"""Is *love* in "I love you" related to both of its neighbours? An encoder's attention and input gradients.

Run:       ./launch.sh table experiments/word_relations.py
Hardware:  a CPU core; the results took 5 minutes on one that others shared.
Expected:  experiments/results/word_relations.md

There is no test split: the sentences are those that the networks are trained on and know by heart. Rows, measures and budget
were fixed after one run of each row with seed 100.
"""

from ml_collections import ConfigDict

from experiments.studies import word_relations

title = '"I love you": relations of the middle word'
source = (
    "The Transformer's encoder relates *love* to *I* and to *you*, but no more than the middle words of other sentences to "
    "both of their neighbours; the LSTM's, which reads in one direction, to one of them only.\n"
    "Our own question: meaning is not always in the order of words, and *love* belongs to both. Encoder of a Transformer "
    "(Vaswani et al. 2017, arXiv 1706.03762), and of an LSTM with attention (Luong et al. 2015, arXiv 1508.04025)."
)
notes = (
    "A small corpus: 212 everyday sentences, English to Korean, each word a token. 69 of them have three different words and "
    'are not about love, but for "I love you": position-matched others are the other 68. Nothing here says what networks learn '
    "from much text.\n"
    "Attention: what the middle word's query gives a token, mean over the encoder's two layers and four heads. Gradient: norm "
    "of the Jacobian of the encoder's output at the middle word with respect to each token's embedding, as a share of the sum "
    "over the sentence's four tokens, itself and the end symbol included.\n"
    "Others as much to both: the share of the other sentences whose middle word has at least as large a relation to both of "
    "its neighbours, by the smaller of the two; *love* would be unusual at 5 % or less. Untrained: before the first update.\n"
    "The LSTM's encoder reads from the last word, in one direction: its output at the middle word cannot depend on the first.\n"
    "Exact match: of the training sentences, by greedy search; it says that they are learnt. MACs: of the longest pair."
)
base = "../configs/translate_quickstart.py"


def _lstm(config):
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        config.model = ConfigDict(
            {
                "name": "lstm_seq2seq_attention",
                "layers": 1,
                "features": config.model.features,
                "forget_bias": 1.0,
                "dropout": 0.0,
            }
        )
        config.optimizer.clip_norm = 1.0
    return config


rows = [
    {"label": "Transformer", "overrides": {"model.embeddings": "target"}},
    {"label": "LSTM + attention", "pieces": (_lstm,)},
]
compare_to = None
measures = {"relations": word_relations.measure_relations}
pictures = {"relations": word_relations.plot_relations}
_DATA = {
    "data.args.kind": "everyday",
    "data.eval_split": "train",
    "data.args.everyday": 1,
    "data.tokenizer": "words",
    "data.tokenizer_options": ConfigDict(),
    "data.vocab_size": None,
    "data.bucket_lengths": 1,
    "model.features": 64,
    "model.hidden": 128,
}
scales = {
    "quick": {
        "seeds": 5,
        "overrides": {
            **_DATA,
            "total_steps": 500,
            "schedule.warmup_steps": 50,
            "evaluation.every_steps": 450,
            "checkpoint.every_steps": 500,
        },
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            **_DATA,
            "model.features": 16,
            "model.layers": 1,
            "total_steps": 4,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 2,
            "evaluation.translate": False,
            "evaluation.headline": "token_accuracy",
            "checkpoint.every_steps": 4,
            "logging.every_steps": 2,
        },
    },
}
