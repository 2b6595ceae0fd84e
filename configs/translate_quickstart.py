"""A small Transformer on the embedded English-Korean pairs: dates, times, units, currencies, number words, everyday sentences.

Launch:    ./launch.sh train --config=configs/translate_quickstart.py --workdir=runs/translate
Then:      echo "I am a student" | ./launch.sh translate --workdir=runs/translate
Hardware:  two CPU cores: 79 seconds with everything on fast ones, 113 to 171 on slower ones
           that other machines share.
Expected:  99.7 % of the 1,018 test texts exactly right by greedy search (reproduced here; 99.8 % on one core, whose
           roundings differ); in 100 % of the test's dates year, month and day aligned by the last layer's cross-attention,
           mean over heads (reproduced here on one core, see experiments/studies/date_alignment.py).
           "I am a student" becomes "나는 학생입니다".
"""

from ml_collections import ConfigDict

from attention_jax.config import defaults


def get_config() -> ConfigDict:
    """2 + 2 layers of 128 features."""
    config = defaults.translation()
    config.batch_size = 1024
    config.total_steps = 2000
    config.model.update(name="transformer_base", layers=2, features=128, hidden=256, heads=4, dropout=0.0)
    config.data.update(source="cldr", vocab_size=1000, max_length=64, bucket_lengths=2)
    config.data.tokenizer_options.update(model_type="bpe", split_digits=True)
    config.schedule.update(name="cosine", learning_rate=2e-3, warmup_steps=200)
    config.loss.label_smoothing = 0.0
    config.search.max_extra = 20
    config.evaluation.update(every_steps=1000, translate=True, bleu="char", headline="exact_match")
    config.checkpoint.every_steps = 500
    config.logging.tensorboard = False
    return config
