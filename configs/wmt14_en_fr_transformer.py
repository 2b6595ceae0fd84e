"""The Transformer base model on WMT'14, English to French (Vaswani et al. 2017, arXiv 1706.03762, Sections 5 and 6).

Launch:    ./launch.sh train --config=configs/wmt14_en_fr_transformer.py --workdir=runs/wmt14_fr
           --config.data.args.data_dir=DIR
           DIR holds wmt14_translate/fr-en as ./launch.sh prepare makes it.
Then:      ./launch.sh evaluate --workdir=runs/wmt14_fr --average=5 --config.data.eval_split=test
Variants:  configs/wmt14_en_fr_transformer.py:transformer_big, with the dropout of 0.1 that the paper's big model has here.
Hardware:  eight accelerators; the paper: 100,000 steps in 12 hours on 8 P100, big 300,000 in 3.5 days.
Expected:  38.1 BLEU on newstest2014, big 41.8 (Table 2, published; the text of the same version has 41.0), tokenised, with the
           last 5 checkpoints averaged (big: 20), beam 4, alpha 0.6. Status: not run.
"""

from ml_collections import ConfigDict

from attention_jax.config import defaults


def get_config(model: str = "transformer_base") -> ConfigDict:
    """36 million pairs, 32,000 word pieces; the batches, optimizer and steps of English to German."""
    big = model == "transformer_big"
    config = defaults.translation()
    config.batch_size = 25_000
    config.total_steps = 300_000 if big else 100_000
    config.model.update(name=model, dropout=0.1)
    config.data.update(source="tfds", eval_split="validation", vocab_size=32_000, bucket_lengths=12)  # newstest2013
    config.data.args.update(name="wmt14_translate/fr-en", source="en", target="fr", data_dir=None)
    config.data.tokenizer_options.update(model_type="bpe", input_sentence_size=2_000_000, shuffle_input_sentence=False)
    config.data.tokenizer_options.update(normalization_rule_name="nmt_nfkc", byte_fallback=False)  # see wmt14_transformer.py
    config.optimizer.eps = 1e-9
    config.schedule.learning_rate = 1.0
    config.search.beam = 4
    config.evaluation.update(every_steps=5000, batch_size=25_000)
    config.checkpoint.update(every_steps=1500, keep_last=20 if big else 5)
    config.logging.every_steps = 100
    return config
