"""The tokenizer files of a folder, read by transformers, which is imported when they are."""

import math
import os
import pathlib
from typing import Any

from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.foreign_text import quoted

LARGEST_FILE = 2**28  # bytes; BAGEL's tokenizer.json has 7 MB
SHORTEST = 3  # tokens that a text may have: the two around it and one


def load_tokenizer(folder: pathlib.Path, as_stored: bool = False) -> Any:
    """The tokenizer of a model folder; ConfigError where it holds none that can be read.

    Args:
      folder: of the tokenizer files.
      as_stored: tokenizer.json decides all.  Otherwise the class that tokenizer_config.json names may split texts in a way
        of its own, and builds a tokenizer from vocab.json where there is no tokenizer.json.
    """
    if not (folder / "tokenizer.json").exists() and (as_stored or not (folder / "vocab.json").exists()):
        raise ConfigError(f"{folder} holds no tokenizer (tokenizer.json); copy the tokenizer files of the model there.")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        path = folder / name
        require(not path.exists() or path.stat().st_size <= LARGEST_FILE,
                f"{path} is larger than {LARGEST_FILE >> 20} MiB, so it is no tokenizer's; copy it again.")  # fmt: skip
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would warn that there is no PyTorch, which is meant
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind = PreTrainedTokenizerFast if as_stored else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust library under it raises plain Exception
        first = next(iter(str(error).splitlines()), type(error).__name__).rstrip(" .:")
        raise ConfigError(
            f"the tokenizer in {folder} cannot be read ({first}); copy the tokenizer files of the model there again."
        ) from None
    longest = tokenizer.model_max_length  # 10^30 where the file does not say
    require(isinstance(longest, int | float) and SHORTEST <= longest < math.inf and longest == int(longest),
            f"the tokenizer in {folder} has model_max_length = {quoted(longest)}, but it must be a whole number of at least "
            f"{SHORTEST}; copy tokenizer_config.json of the model there again.")  # fmt: skip
    return tokenizer
