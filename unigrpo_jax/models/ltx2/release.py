"""The released LTX-2 (19 billion parameters, beside a Gemma 3 of 12 billion): its sizes, for what is computed from sizes
alone, and what diffusers writes of it beside the weights.  A run reads its folder.

LTX-2.3 is not here: its sound is made by another vocoder, which is not built.
"""

from unigrpo_jax.models.autoencoders.ltx_video import Half, Level, LTXVideoAutoencoder
from unigrpo_jax.models.autoencoders.mel_audio import MelAutoencoder
from unigrpo_jax.models.autoencoders.vocoder import Stage, Vocoder
from unigrpo_jax.models.ltx2.branch import Branch
from unigrpo_jax.models.ltx2.connectors import Connector, LTX2Connectors
from unigrpo_jax.models.ltx2.media import LTX2Media
from unigrpo_jax.models.ltx2.transformer import LTX2Transformer

HUB_NAME = "Lightricks/LTX-2"
# config.json of each part; a name that is left out has the default of its class.
CONFIGS = {
    "transformer": {"_class_name": "LTX2VideoTransformer3DModel", "rope_type": "split", "timestep_scale_multiplier": 1000,
                    "cross_attn_timestep_scale_multiplier": 1000},
    "connectors": {"_class_name": "LTX2TextConnectors", "rope_type": "split"},
    "vae": {"_class_name": "AutoencoderKLLTX2Video", "decoder_causal": False},
    "audio_vae": {"_class_name": "AutoencoderKLLTX2Audio"},
    "vocoder": {"_class_name": "LTX2Vocoder"},
}  # fmt: skip
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0,
             "use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024,
             "max_image_seq_len": 4096, "shift_terminal": 0.1}  # fmt: skip
INDEX = {"_class_name": "LTX2Pipeline", "transformer": ["diffusers", "LTX2VideoTransformer3DModel"],
         "connectors": ["ltx2", "LTX2TextConnectors"], "vae": ["diffusers", "AutoencoderKLLTX2Video"],
         "audio_vae": ["diffusers", "AutoencoderKLLTX2Audio"], "vocoder": ["ltx2", "LTX2Vocoder"],
         "text_encoder": ["transformers", "Gemma3ForConditionalGeneration"],
         "tokenizer": ["transformers", "GemmaTokenizerFast"],
         "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}  # fmt: skip
TRANSFORMER = LTX2Transformer(
    video=Branch(modality="video", channels=128, heads=32, head_dim=128),
    audio=Branch(modality="audio", channels=128, heads=32, head_dim=64),
    layers=48,
    text_width=3840,
    layout="split",
    gate_factor=1.0,
)
_CONNECTOR = Connector(layers=2, heads=30, head_dim=128, registers=128)
CONNECTORS = LTX2Connectors(text_width=3840, states=49, video=_CONNECTOR, audio=_CONNECTOR, layout="split")
MEDIA = LTX2Media(
    video=LTXVideoAutoencoder(
        channels=128,
        patch=4,
        encoder=Half(
            width=128,
            levels=(
                Level(blocks=4, width=256, step=(1, 2, 2)),
                Level(blocks=6, width=512, step=(2, 1, 1)),
                Level(blocks=6, width=1024, step=(2, 2, 2)),
                Level(blocks=2, width=2048, step=(2, 2, 2)),
            ),
            middle=2,
            causal=True,
            edges="constant",
        ),
        decoder=Half(
            width=1024,
            levels=tuple(Level(blocks=5, width=width, step=(2, 2, 2)) for width in (512, 256, 128)),
            middle=5,
            causal=False,
            edges="reflect",
        ),
    ),
    audio=MelAutoencoder(width=128, multipliers=(1, 2, 4), blocks=2, channels=8),
    vocoder=Vocoder(
        inputs=128,
        width=1024,
        stages=tuple(Stage(factor=f, kernel=k) for f, k in ((6, 16), (5, 15), (2, 8), (2, 4), (2, 4))),
        blocks=tuple((kernel, (1, 3, 5)) for kernel in (3, 7, 11)),
    ),
)
