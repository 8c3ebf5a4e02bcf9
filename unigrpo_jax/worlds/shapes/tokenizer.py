"""The word-level tokenizer of the shapes world: one token per word of its prompts and plans.

    python -m unigrpo_jax.worlds.shapes.tokenizer      writes it to unigrpo_jax/worlds/shapes/base/

The worlds of several rounds (`reflect`, `edit`, `story`) have one tokenizer: the same ids, and their own words behind them.
Its 128 tokens fill the padded vocabulary of the base model, so that a model of several rounds can begin from its weights.

It is no BPE and has no vocab.json and merges.txt: a BPE of Qwen2's cuts `top-left` in two before it merges, and what no word
is into bytes, so its ids could not be these.

The special tokens carry Qwen2.5's names, so that the code which frames prompts for BAGEL frames these too.
"""

import json
import pathlib

from unigrpo_jax.worlds.shapes import change_wording, reflect
from unigrpo_jax.worlds.shapes.prompts import prompts
from unigrpo_jax.worlds.shapes.requirement import NUMBERS, OPPOSITE
from unigrpo_jax.worlds.shapes.scene import CELLS, COLOURS, MAX_OBJECTS, SHAPES

FOLDER = pathlib.Path(__file__).parent / "base"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<unk>")


def words() -> tuple[str, ...]:
    """All words of prompts and plans, sorted."""
    text = [prompt.text for split in ("train", "held_out") for prompt in prompts(split)]
    text += [*SHAPES, *COLOURS, *CELLS, *OPPOSITE, *NUMBERS[1 : MAX_OBJECTS + 1], "and", ":", ","]
    return tuple(sorted(set(" ".join(text).split())))


def rounds_words() -> tuple[str, ...]:
    """The words that the worlds of several rounds add, sorted."""
    return tuple(sorted({*change_wording.words(), *reflect.WORDS} - set(words())))


def save(folder: pathlib.Path = FOLDER, rounds: bool = False) -> int:
    """Writes tokenizer.json and tokenizer_config.json, which `AutoTokenizer` reads; returns the vocabulary size.

    With `rounds`, the tokenizer of the worlds of several rounds.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    known = (*SPECIAL_TOKENS, *words(), *(rounds_words() if rounds else ()))
    vocabulary = {token: i for i, token in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "additional_special_tokens": list(SPECIAL_TOKENS[1:5]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return len(vocabulary)


if __name__ == "__main__":
    save()
