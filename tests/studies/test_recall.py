"""The dictionaries ask for what they hold, and the networks that look it up are comparable and see what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax.errors import UserError
from attention_jax.models.summary import summary
from experiments.studies.recall import FILLER, QUESTION, Dictionaries, RecallAttention, RecallConvolution, RecallLSTM
from tests.helpers.blocks import quick

NETWORKS = {
    "LSTM": RecallLSTM(34),
    "convolutions": RecallConvolution(34),
    "restricted": RecallAttention(34, window=33),
    "full": RecallAttention(34),
}


def test_the_answer_is_the_value_of_the_key_at_its_distance():
    source = Dictionaries("train")
    for index in range(50):
        example = source[index]
        tokens, n = example["tokens"].tolist(), source.length
        key, question = tokens[-2:]
        assert question == QUESTION and tokens.count(QUESTION) == 1 and tokens.count(key) == 2
        place = tokens.index(key)
        assert tokens[place + 1] == example["answer"] and n - 2 - (place + 2) == example["distance"]
        pairs = [(tokens[i], tokens[i + 1]) for i in range(0, n - 2, 2) if tokens[i] != FILLER]
        assert len(pairs) == len({key for key, _ in pairs}) == 8 and tokens.count(FILLER) == n - 2 - 16
        assert all(2 <= key < 18 <= value < 34 for key, value in pairs)


def test_each_range_is_asked_for_equally_often():
    """The places of the pairs do not betray the pair that is asked for: every range always has two."""
    source = Dictionaries("test")
    examples = [source[index] for index in range(400)]
    asked = np.histogram([example["distance"] for example in examples], source.edges)[0]
    assert asked.sum() == 400 and (np.abs(asked - 100) < 40).all()
    keys = np.stack([example["tokens"][:-2:2] != FILLER for example in examples])
    distances = source.length - 4 - np.arange(0, source.length - 2, 2)
    for low, high in zip(source.edges[:-1], source.edges[1:]):
        assert (keys[:, (low <= distances) & (distances < high)].sum(1) == 2).all()


def test_a_sequence_is_a_function_of_split_index_and_arguments():
    sources = {split: Dictionaries(split) for split in ("train", "validation", "test")}
    read = {split: {source[index]["tokens"].tobytes() for index in range(30)} for split, source in sources.items()}
    assert read["train"].isdisjoint(read["test"] | read["validation"]) and read["test"].isdisjoint(read["validation"])
    assert (sources["test"][7]["tokens"] == Dictionaries("test", size=8)[7]["tokens"]).all()
    assert sources["test"].fingerprint() != Dictionaries("test", pairs=1).fingerprint()
    with pytest.raises(IndexError):
        Dictionaries("test", size=8)[8]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"edges": (4, 9, 16)}, "even"), ({"edges": (4, 6)}, "at least 4"), ({"keys": 7}, "8 keys"), ({"split": "dev"}, "'dev'")],
)
def test_wrong_arguments_are_refused(arguments, said):
    with pytest.raises(UserError, match=said):
        Dictionaries(**{"split": "train", **arguments})


def test_networks_have_about_equal_parameters():
    shape = (jax.ShapeDtypeStruct((1, 66), jnp.int32),)
    counts = {name: summary(network, shape).params for name, network in NETWORKS.items()}
    assert max(counts.values()) / min(counts.values()) < 1.15, counts
    assert counts["restricted"] == counts["full"]


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_question_sees(name):
    """Another token changes the answer wherever the network reaches: 32 tokens back, and one more by the embedding, or all."""
    network, tokens = NETWORKS[name], jnp.asarray(Dictionaries("test")[0]["tokens"])
    n = len(tokens)

    def answers() -> jax.Array:
        variables = network.init(jax.random.key(0), tokens[None])
        changed = jnp.where(jnp.eye(n + 1, n, dtype=bool), (tokens + 5) % 34, tokens)  # the last one is as it was
        logits = jnp.asarray(network.apply(variables, changed))
        return jnp.abs(logits[:-1] - logits[-1]).max(-1)

    seen = np.asarray(quick(answers)()) > 1e-6  # roundings differ by the place in a batch
    reach = 33 if name == "restricted" else n
    assert (seen == (np.arange(n) >= n - 1 - reach)).all()
