"""Why attention divides by √d_k: the softmax of random queries and keys; nothing is trained.

Run:       ./launch.sh table experiments/scaling.py
Hardware:  two CPU cores, less than 1 minute.
"""

import functools

from attention_jax.analysis import scaling

title = "Dividing by √d_k: entropy and gradient of the softmax"
source = (
    "Section 3.2.1 of Vaswani et al. 2017 (arXiv 1706.03762): products of large keys have variance d_k and push the softmax "
    "where its gradients are extremely small."
)
notes = (
    "All components of queries and keys are drawn from N(0, 1); n keys for each query. Entropy: mean over queries, as a share "
    "of log n, which is that of equal weights; 0 is a single key. Gradient: Frobenius norm of the softmax's Jacobian "
    "diag(p) - p pᵀ, with respect to what enters the softmax; the factor 1/√d_k before it is not in it. Undivided, the mean "
    "falls slowly, because a few queries that waver between two keys keep a large gradient: the median shows the others."
)
computed = [
    {
        "label": f"d_k = {size}",
        "function": functools.partial(scaling.measure, size),
        "published": {"variance of q·k": size},
    }
    for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
]
pictures = {"softmax": scaling.picture}
scales = {"quick": {"arguments": {"words": 64, "examples": 32}}, "smoke": {"arguments": {"words": 8, "examples": 2}}}
