"""The Transformer base model on WMT'14, English to German (Vaswani et al. 2017, arXiv 1706.03762, Sections 5 and 6).

Launch:    ./launch.sh train --config=configs/wmt14_transformer.py --workdir=runs/wmt14 --config.data.args.data_dir=DIR
           DIR holds wmt14_translate/de-en as ./launch.sh prepare makes it.
Then:      ./launch.sh evaluate --workdir=runs/wmt14 --average=5 --config.data.eval_split=test
           --config.evaluation.split_compounds=True
           This is newstest2014 with the mean of the last 5 checkpoints (20 for big), beam 4 and alpha 0.6 as below.
           `bleu_compounds_split` compares with the paper's figure, which is of Moses' tokens with compounds split at
           hyphens; here they are 13a's tokens, split so. `bleu` is sacrebleu's (13a, nothing split), and usually lower.
Variants:  configs/wmt14_transformer.py:transformer_big, with the rate and dropout of the paper's big model.
Hardware:  eight accelerators; the paper: 100,000 steps in 12 hours on 8 P100, big 300,000 in 3.5 days.
Expected:  27.3 BLEU on newstest2014, big 28.4, tokenised and with compounds split (Table 2, published), with the last 5
           checkpoints averaged (big: 20), beam 4, alpha 0.6. Status: not run.
Numbers:   float32; --config.precision=bfloat16 takes activations and products to bfloat16, and the weights stay float32.
           Neither was run. The paper has 65 million parameters, with 37,000 tokens this network has 63.0 million: a
           vocabulary of about 41,000 would give 65.
"""

from ml_collections import ConfigDict

from attention_jax.config import defaults


def get_config(model: str = "transformer_base") -> ConfigDict:
    """Batches of 25,000 tokens a side, Adam with the inverse square root of the step after 4,000 steps of warm-up."""
    big = model == "transformer_big"
    config = defaults.translation()
    config.batch_size = 25_000
    config.total_steps = 300_000 if big else 100_000
    config.model.name = model
    config.data.update(source="tfds", eval_split="validation", vocab_size=37_000, bucket_lengths=12)  # newstest2013
    config.data.args.update(name="wmt14_translate/de-en", source="en", target="de", data_dir=None)
    config.data.tokenizer_options.update(model_type="bpe", input_sentence_size=2_000_000, shuffle_input_sentence=False)
    # References keep their form, and translations are in NFKC: one that has "½" or an unseen character cannot be equalled.
    config.data.tokenizer_options.update(normalization_rule_name="nmt_nfkc", byte_fallback=False)
    config.optimizer.eps = 1e-9
    config.schedule.learning_rate = 1.0
    config.search.beam = 4
    config.evaluation.update(every_steps=5000, batch_size=25_000)
    config.checkpoint.update(every_steps=1500, keep_last=20 if big else 5)
    config.logging.every_steps = 100
    return config
