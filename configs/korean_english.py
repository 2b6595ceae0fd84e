"""A small Transformer from Korean to English, on conversation (Tatoeba) and descriptions of commands (tldr-pages).

Launch:    ./launch.sh train --config=configs/korean_english.py --workdir=runs/korean
           korean/ holds {train,dev,test}.tsv of both sets, English and Korean in the first two columns:
           ./launch.sh prepare tatoeba_ko_en --data_dir=korean/tatoeba, and tldr_ko_en --data_dir=korean/tldr.
Then:      ./launch.sh evaluate --workdir=runs/korean --average=5 --config.data.eval_split=test --config.search.beam=4
Hardware:  one accelerator, or a CPU core for hours.
Expected:  nothing is published on these splits. Status: 23.5 BLEU (13a), chrF 47.1 here after 2,000 updates, 21 minutes on
           one CPU core, with --config.total_steps=2000 --config.schedule.warmup_steps=1000.
"""

from ml_collections import ConfigDict

from attention_jax.config import defaults


def get_config() -> ConfigDict:
    """4 + 4 layers of 128 features, Adam with the inverse square root of the step, peak 0.0035 at step 2,000."""
    config = defaults.translation()
    config.batch_size = 4096
    config.total_steps = 8000
    config.model.update(name="transformer_base", layers=4, features=128, hidden=256, heads=4, dropout=0.3, norm="pre")
    config.data.update(source="tsv", eval_split="dev", vocab_size=8000, max_length=96)
    # NFKC, no bytes: docs/translation.md says what that does to references.
    config.data.tokenizer_options.update(normalization_rule_name="nmt_nfkc", byte_fallback=False)
    config.data.args.path = ("korean/tatoeba/{split}.tsv", "korean/tldr/{split}.tsv")
    config.data.args.columns = (1, 0)  # of source and target, from 0
    config.schedule.update(learning_rate=1.77, warmup_steps=2000)  # 0.0035 · sqrt(128 · 2000)
    config.evaluation.update(every_steps=400, batch_size=8192)
    config.checkpoint.update(every_steps=200, keep_last=5)
    return config
