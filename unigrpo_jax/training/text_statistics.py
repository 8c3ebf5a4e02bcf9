"""Numbers per thinking that rise when a policy's words collapse to saying the same again and again."""

import numpy as np

GRAM = 4  # tokens in a row


def repeated_share(tokens_BM, mask_BM, gram: int = GRAM) -> np.ndarray:
    """Share of a thinking's n-grams that it has said before, float64 [B]; seq-rep-n of arXiv 1908.04319.

        1 - |distinct n-grams| / |n-grams|

    0 where none returns; NaN of a thinking that is shorter than an n-gram.

    Args:
      tokens_BM: the thinkings.
      mask_BM: which positions are tokens, from the first one on.
      gram: n.
    """
    shares = []
    for tokens, mask in zip(np.asarray(tokens_BM), np.asarray(mask_BM, bool), strict=True):
        own = tokens[mask].tolist()
        grams = [tuple(own[start : start + gram]) for start in range(len(own) - gram + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else np.nan)
    return np.asarray(shares, np.float64)
