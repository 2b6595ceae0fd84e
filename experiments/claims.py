"""The claims of the review that this project makes runnable, in its order: what decides each, and what is a substitute.

Run:       ./launch.sh table page
Expected:  docs/results.md

A claim names rows of a table file in this folder; its numbers and verdict come from what that table wrote into results/.
"""

title = "Results: every claim, and what a run here says of it"
notes = (
    "The claims are those of a review of attention and residual connections, in its order and in our words. Three things "
    "are kept apart. *Runs*: its rows were trained, or computed. *Decided*: a planned comparison, with Holm's correction for "
    "all comparisons of its table, finds a difference in one direction; else it says how many seeds would be needed. *At "
    "real size*: a network of the paper's size was trained on the paper's data. An effect that is found on digits may be "
    "absent at real size, and one that is not found here may be there.\n"
    "`./launch.sh table all` runs or resumes all tables and writes this page; `./launch.sh table page` writes it from what is "
    "in `experiments/results`. [Tables](tables.md) explains the rules."
)

_DIGITS = "8x8 digits"
_CUED = "two digits and a cue on 10x32 pixels, one block in each of two stages of 16 and 32 filters"
_BY_HAND = "By hand and by the module: [attention_in_vision.ipynb](../experiments/notebooks/attention_in_vision.ipynb)."
_WALK = "Worked through in [residual.ipynb](../experiments/notebooks/residual.ipynb)."
_LIMITS = "1. Limits of convolutional networks"
_BAM = "2. BAM"
_KEYS = "3. Key, query, value"
_LSTM = "4. LSTM for sentences"
_TRANSFORMER = "5. Transformer"
_INFERENCE = "6. Inference"
_WHY = "7. Why self-attention"
_RESIDUAL = "8. Residual connections"
_RESNEXT = "9. ResNeXt"
_RS = "10. ResNet-RS"
_CONVNEXT = "11. ConvNeXt"

statements = [
    {
        "section": _LIMITS,
        "text": "A convolution sees locally, and depth widens the view only indirectly",
        "elsewhere": _BY_HAND,
        "table": "receptive_field",
        "rows": ("convolutions only", "twice as deep", "BAM", "self-attention"),
        "columns": ("pixels seen %, trained", "effective field %, trained", "beyond convolutions %, trained"),
        "plot": "_fields",
        "size": f"Substitutes for network and data: {_CUED}. The paper's, a ResNet-50, is counted in the table.",
    },
    {
        "section": _LIMITS,
        "text": "An early layer cannot decide what in the complete image matters; with a gate it can",
        "table": "cued_colour",
        "judged": (
            ("BAM", "none"),
            ("BAM", "added branch"),
            ("ECA in every block", "none"),
            ("ECA in every block", "twice as deep"),
        ),
        "size": f"Substitutes for network and data: {_CUED}, a patch of colour. Added "
        "branch and twice as deep are controls that no paper has.",
    },
    {
        "section": _BAM,
        "text": "A map that says where to look, before the next convolution, improves recognition",
        "elsewhere": _BY_HAND,
        "table": "cued_arrow",
        "judged": (("BAM", "none"), ("BAM", "added branch"), ("BAM", "twice as deep")),
        "published": "ImageNet top-1 error, ResNet-50 24.56 (as Woo et al. 2018 print it), the released network with BAM 23.14 "
        "(README of its code).",
        "size": f"Substitutes for network and data: {_CUED}, an arrow.",
    },
    {
        "section": _BAM,
        "text": "Both branches, channel and spatial, are better than either, and their sum better than their product",
        "table": "bam",
        "judged": (("BAM", "channel branch only"), ("BAM", "spatial branch only"), ("BAM", "product")),
        "size": f"Substitutes for network and data: {_CUED}, an arrow. The paper's networks for CIFAR-100 are counted.",
    },
    {
        "section": _BAM,
        "text": "F' = F + F x M(F): the skip keeps the original, and the network is better with it than without",
        "table": "bam",
        "judged": (("BAM", "without the skip"),),
        "plot": None,
        "size": f"Substitutes for network and data: {_CUED}, an arrow.",
    },
    {
        "section": _BAM,
        "text": "In its feature maps the attended object stands out",
        "table": "attention_quality",
        "rows": ("BAM", "arrow: BAM", "self-attention"),
        "columns": ("map in the box %", "map in the box %, untrained", "map in the box %, under the other cue"),
        "plot": "_maps",
        "size": f"Substitutes for network and data: {_CUED}. Box: that of the digit which the cue names.",
    },
    {
        "section": _KEYS,
        "text": "softmax(QKᵀ) of an image's own positions, times the values, improves recognition",
        "elsewhere": _BY_HAND,
        "table": "visual_attention",
        "judged": (("stage 1", "no attention"), ("stage 1", "stage 2")),
        "columns": ("gamma", "entropy"),
        "plot": "_queries",
        "published": "SAGAN, a generative network: Fréchet inception distance 22.98 with attention on maps of 8x8, 18.28 of "
        "32x32 (Zhang et al. 2019, Table 1).",
        "size": f"Substitutes for network and data: {_CUED}, a patch of colour.",
    },
    {
        "section": _KEYS,
        "text": "A query finds its value among keys wherever they are, as in a database",
        "elsewhere": _BY_HAND,
        "table": "recall",
        "judged": (("self-attention", "LSTM"), ("self-attention", "restricted self-attention")),
        "columns": ("accuracy %, 4 to 7 tokens", "accuracy %, 32 to 63 tokens"),
        "plot": "_recall",
        "size": "A made-up task of keys and values, one layer; the claim has no published size.",
    },
    {
        "section": _LSTM,
        "text": "The context vector accumulates everything, and of long sentences it keeps less",
        "table": "context_probe",
        "rows": ("reads from the first word", "reads from the last word"),
        "columns": tuple(f"words read %, {n} words, trained" for n in (4, 8, 12, 16)),
        "plot": "_context",
        "size": "Substitutes for network and data: an LSTM of 128 units and made-up sentences of up to 16 words.",
    },
    {
        "section": _LSTM,
        "text": "Long sentences suffer, and attention keeps their quality",
        "table": "seq2seq_length",
        "judged": (("LSTM + attention", "LSTM"), ("Transformer", "LSTM + attention")),
        "columns": ("character BLEU", "exact match %, 4 to 7 tokens", "exact match %, 15 to 17 tokens"),
        "plot": "_lengths",
        "published": "BLEU on newstest2014 English to French: 17.82 without attention, 26.75 with it "
        "(Bahdanau et al. 2014, Table 1).",
        "size": "Substitutes for network and data: dates in English and Korean, 64 features.",
    },
    {
        "section": _LSTM,
        "text": 'Meaning is not sequential: in "I love you", *love* relates to both of its neighbours',
        "table": "word_relations",
        "rows": ("Transformer", "LSTM + attention"),
        "columns": (
            "attention: love to I %",
            "attention: love to you %",
            "gradient: love to I %",
            "gradient: love to you %",
        ),
        "plot": "_relations",
        "size": "Substitutes for network and data: sentences of three words, 64 features.",
    },
    {
        "section": _TRANSFORMER,
        "text": "Without recurrence and convolution, order must be put in by positional encoding, sinusoidal or learned",
        "table": "positional",
        "judged": (("learned", "none"),),
        "rows": ("sinusoidal",),
        "columns": ("exact match %, one date", "exact match %, two dates"),
        "published": "perplexity 4.92 and BLEU 25.8 with sinusoids, 4.92 and 25.7 with learned positions (Vaswani et al. 2017, "
        "Table 3).",
        "size": "Substitutes for network and data: dates, 64 features. Its "
        "budget was raised after a look at the test, and so it judges nothing.",
    },
    {
        "section": _TRANSFORMER,
        "text": "Several heads with different W are better than one",
        "table": "transformer_variations",
        "judged": (("base", "A: 1 head"), ("base", "A: 32 heads")),
        "columns": ("perplexity", "head diversity, encoder"),
        "size": "Substitutes for network and data: dates, two orders of magnitude fewer "
        "parameters. The paper's networks are counted.",
    },
    {
        "section": _TRANSFORMER,
        "text": "Dividing by √d_k keeps the softmax's gradients from vanishing when d_k is large",
        "table": "scaling",
        "judged": (("divided at d_k = 64", "not divided at d_k = 64"), ("divided at d_k = 8", "not divided at d_k = 8")),
        "rows": ("d_k = 8", "d_k = 64", "d_k = 512"),
        "columns": (
            *("perplexity", "variance of q·k", "entropy / log n, not divided", "entropy / log n, divided"),
            *("gradient, not divided: median", "gradient, divided: median"),
        ),
        "plot": "_softmax",
        "size": "d_k = 64 is the paper's in the rows that are computed; what is trained has two layers and dates.",
    },
    {
        "section": _TRANSFORMER,
        "text": "Layer normalisation makes training faster",
        "table": "layernorm",
        "judged": (
            ("post at 0.002 with warm-up", "none at 0.002 with warm-up"),
            ("pre at 0.002 without warm-up", "post at 0.002 without warm-up"),
        ),
        "columns": ("perplexity",),
        "plot": "_curves",
        "size": "Substitutes for network and data: dates, a tenth of the paper's features.",
    },
    {
        "section": _TRANSFORMER,
        "text": "The decoder's self-attention must be masked, else it sees the words that it is to predict",
        "table": "causal",
        "judged": (("causal mask", "no causal mask in training"),),
        "columns": ("next tokens right %, reference given", "next tokens right %, past alone", "character BLEU"),
        "size": "Substitutes for network and data: dates, 64 features.",
    },
    {
        "section": _TRANSFORMER,
        "text": "Encoder and decoder, step by step: one-hot rows, embedding, positions, Q, K, V, heads, masks, cross-attention",
        "elsewhere": "Computed by hand and by the network in [translate.ipynb](../experiments/notebooks/translate.ipynb), "
        "which a test runs.",
    },
    {
        "section": _INFERENCE,
        "text": "Only the encoder gets a sentence; the decoder's row of padding fills up word by word",
        "elsewhere": "Written out, with what each position sees, in "
        "[translate.ipynb](../experiments/notebooks/translate.ipynb), which a test runs.",
    },
    {
        "section": _WHY,
        "text": "Complexity per layer, sequential operations and path lengths of four kinds of layers",
        "table": "complexity",
        "rows": ("self-attention", "recurrent", "contiguous convolution", "restricted self-attention"),
        "columns": ("complexity per layer", "sequential operations", "maximum path length"),
        "plot": "_crossover",
        "size": "Counted in layers of 64 to 1,024 positions and 64 to 256 features; nothing is trained.",
    },
    {
        "section": _WHY,
        "text": "A sentence has usually fewer words n than the model has features d",
        "table": "complexity",
        "rows": ("everyday sentences", "dates", "one to four dates"),
        "columns": ("texts", "mean n", "longest n", "n < d = 64, %", "n < d = 512, %"),
        "plot": None,
        "size": "d = 512 is the paper's; the texts are embedded ones, shorter than news.",
    },
    {
        "section": _RESIDUAL,
        "text": "Deeper is usually better",
        "table": "depth",
        "judged": (("residual 56", "residual 20"), ("residual 20", "residual 8"), ("plain 20", "plain 8")),
        "columns": ("training error %", "test error %"),
        "plot": "_errors",
        "size": f"Depth is the paper's, width a quarter of it; {_DIGITS} in place of CIFAR-10.",
    },
    {
        "section": _RESIDUAL,
        "text": "Plain deep networks become worse with depth, and shortcuts prevent it",
        "table": "residual",
        "judged": (("plain 20", "plain 56"), ("residual 56", "plain 56"), ("residual 56", "residual 20")),
        "size": f"Depth is the paper's, width half of it; {_DIGITS} in place of CIFAR-10.",
    },
    {
        "section": _RESIDUAL,
        "text": "Towards the input gradients vanish in plain networks; with batch normalisation they do not (He et al. 2016)",
        "elsewhere": _WALK,
        "table": "residual",
        "rows": ("plain 56 without norm", "residual 56 without norm", "plain 56", "residual 56"),
        "columns": ("gradient, untrained", "gradient, trained"),
        "plot": "_gradients",
        "size": f"Depth is the paper's, width half of it; {_DIGITS}. Gradient: its norm at the first convolution.",
    },
    {
        "section": _RESIDUAL,
        "text": "A Transformer needs its residual connections too",
        "table": "transformer_residual",
        "judged": (("residual 1", "plain 1"), ("residual 2", "plain 2"), ("residual 4", "plain 4")),
        "columns": ("spread of the encoder's output, untrained", "spread of the encoder's output, trained"),
        "size": "Substitutes for network and data: dates, 32 features.",
    },
    {
        "section": _RESNEXT,
        "text": "At equal complexity, more groups (cardinality) are better than fewer and wider ones",
        "elsewhere": _WALK,
        "table": "resnext_cardinality",
        "judged": (("50 32x4d", "50 1x64d"), ("101 32x4d", "101 1x64d")),
        "rows": ("50 2x40d", "50 4x24d", "50 8x14d", "101 2x40d", "101 4x24d", "101 8x14d"),
        "size": f"The paper's networks are counted; trained are small ones with its groups on {_DIGITS}, which all rows solve.",
    },
    {
        "section": _RESNEXT,
        "text": "Raising cardinality beats raising width or depth at twice the complexity",
        "table": "resnext_cardinality",
        "judged": (("101 64x4d", "101 1x64d"),),
        "rows": ("101 1x100d", "101 2x64d", "200 1x64d"),
        "plot": None,
        "size": f"As above; no comparison of 64x4d with 1x100d is planned, and none is made here. {_DIGITS}.",
    },
    {
        "section": _RS,
        "text": "Training and regularisation alone lift a ResNet-200, more than architecture does",
        "elsewhere": _WALK,
        "table": "resnet_rs",
        "judged": (
            ("+ EMA of weights", "ResNet-200"),
            ("+ less weight decay", "ResNet-200"),
            ("+ ResNet-D", "ResNet-200"),
        ),
        "rows": (
            *("+ cosine", "+ more epochs", "+ label smoothing", "+ stochastic depth", "+ RandAugment", "+ dropout"),
            "+ squeeze-and-excitation",
        ),
        "size": f"The recipe's pieces are the paper's; a ResNet-20 of bottlenecks on {_DIGITS} is its ResNet-200.",
    },
    {
        "section": _RS,
        "text": "A better recipe lifts the same network that trains as long without it",
        "table": "recipe",
        "judged": (("recipe", "as it is"), ("recipe", "more epochs")),
        "size": "Substitutes for network and data: 1,000 cluttered digits, a small ResNet.",
    },
    {
        "section": _RS,
        "text": "At EfficientNet's accuracy, training is faster",
        "table": "speed_accuracy",
        "rows": (
            *("resnetrs50 against efficientnet_b1", "resnetrs101 against efficientnet_b2"),
            *("resnetrs152 against efficientnet_b4", "resnetrs350 against efficientnet_b6"),
        ),
        "columns": ("points of accuracy (published)", "similar", "times the memory", "times as fast", "faster"),
        "verdicts": "faster",
        "plot": None,
        "published": "on TPU v3, ResNet-RS is 1.7 to 2.7 times as fast as EfficientNets of its accuracy "
        "(Bello et al. 2021, abstract).",
        "size": "The paper's networks; steps are modelled for a TPU slice and not timed.",
    },
    {
        "section": _CONVNEXT,
        "text": "A ResNet modernised step by step becomes better at each",
        "elsewhere": _WALK,
        "table": "convnext_roadmap",
        "judged": (
            ("50: stage ratio", "50: ResNet"),
            ("50: patchify stem", "50: depthwise convolution"),
            ("50: increased width", "50: depthwise convolution"),
            ("50: kernel 7", "50: depthwise moved up"),
            ("50: separate downsampling", "50: layer norm"),
            ("50: separate downsampling", "50: ResNet"),
        ),
        "size": f"All networks of the paper's Tables 10 and 11 are counted; trained are small ones with its steps on "
        f"{_DIGITS}.",
    },
    {
        "section": _CONVNEXT,
        "text": "The inductive bias of convolutions is worth much with few images, and where objects stand elsewhere",
        "table": "backbones",
        "judged": (("ResNet 1/16", "ViT 1/16"), ("ResNet at other positions", "ViT at other positions")),
        "plot": "_generalisation",
        "size": "Substitutes for network and data: cluttered digits on 16x16 pixels, networks of equal multiply-adds.",
    },
    {
        "section": _CONVNEXT,
        "text": "It beats Swin and ViT, and the ResNet that it came from",
        "table": "backbones",
        "judged": (("ConvNeXt 1/1", "Swin 1/1"), ("ConvNeXt 1/1", "ResNet 1/1")),
        "rows": ("ViT 1/1",),
        "size": "Substitutes for network and data: cluttered digits on 16x16 pixels, networks of equal "
        "multiply-adds. The paper's are counted. No comparison with ViT is planned, and none is made here.",
    },
    {
        "section": _CONVNEXT,
        "text": "As a backbone of segmentation too",
        "table": "dense",
        "judged": (("ConvNeXt", "Swin"), ("Swin", "ViT"), ("ConvNeXt", "ResNet")),
        "rows": ("ResNet-50", "ConvNeXt-T", "ViT-S/16", "Swin-T"),
        "columns": ("mean IoU of classes %", "ADE20K mIoU %", "GMACs, 224", "GMACs, 1024"),
        "plot": "_cost",
        "size": "The paper's networks are counted at three sizes; trained are small ones with one linear layer.",
    },
]
