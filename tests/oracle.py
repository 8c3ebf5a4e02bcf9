"""The network, the step formula and the losses once more: plain numpy, float64, one episode at a time, no cache.

An episode is one flat sequence (prompt, thinking, image) with an explicit matrix of who sees whom.  Written from the
papers' formulas; nothing here is imported from the package but the sizes.
"""

import dataclasses

import jax
import numpy as np

from tests.tiny import CONFIG, GRID, ROLLOUT


def to64(params):
    """Parameters as float64 numpy."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def _norm(x, scale):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + CONFIG.rms_norm_eps) * scale


def _silu(x):
    return x / (1 + np.exp(-x))


def _softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(x):
    return x - x.max(axis=-1, keepdims=True) - np.log(np.exp(x - x.max(axis=-1, keepdims=True)).sum(-1, keepdims=True))


def _rotate(x, positions):  # [L, H, K]
    k = x.shape[-1]
    out = np.empty_like(x)
    for i in range(k // 2):
        angle = positions[:, None] * CONFIG.rope_theta ** (-2 * i / k)
        a, b = x[..., i], x[..., i + k // 2]
        out[..., i] = a * np.cos(angle) - b * np.sin(angle)
        out[..., i + k // 2] = b * np.cos(angle) + a * np.sin(angle)
    return out


def _pick(tree, layer):
    return jax.tree.map(lambda x: x[layer], tree)


def forward(p, text, x=None, t=None, keep_kv=False):
    """Logits [L, V] after every text token and, with a latent x [N, C] at time t, the velocity [N, C].

    Args:
      p: float64 parameters.
      text: what was read: ids of one text, or a list of texts (ids) and images (arrays of clean latent tokens) in order.
      x: noisy latent tokens, or None.
      t: their time.
      keep_kv: also return keys and values of every layer, [layers, L, kv_heads, K] each.

    Without images, texts are one text; logits are those of all text tokens in order.
    """
    blocks = [text] if not text or np.ndim(text[0]) == 0 else list(text)
    stream, expert, position, block_of, is_text = [], [], [], [], []
    half = CONFIG.frequency_size // 2
    f = np.exp(-np.log(10000.0) * np.arange(half) / half)
    te, place = p["time_embedder"], 0
    if x is not None:
        blocks.append((x, t))
    for number, block in enumerate(blocks):
        if isinstance(block, list):
            stream += [p["embed"]["embedding"][i] for i in block]
            expert += ["und"] * len(block)
            position += range(place, place + len(block))
            place += len(block)
            is_text += [True] * len(block)
        else:
            latent, time = block if isinstance(block, tuple) else (block, 0.0)
            wave = np.concatenate([np.cos(time * f), np.sin(time * f)])
            wave = _silu(wave @ te["fc1"]["kernel"] + te["fc1"]["bias"]) @ te["fc2"]["kernel"] + te["fc2"]["bias"]
            tokens = latent @ p["vae2llm"]["kernel"] + p["vae2llm"]["bias"] + wave
            stream.append(p["embed"]["embedding"][CONFIG.image_start_token])
            for n in range(len(latent)):
                row, column = divmod(n, GRID[1])
                stream.append(tokens[n] + p["latent_pos_embed"][row * CONFIG.max_latent_size + column])
            stream.append(p["embed"]["embedding"][CONFIG.image_end_token])
            expert += ["und"] + ["gen"] * len(latent) + ["und"]
            position += [place] * (len(latent) + 2)
            place += 1
            is_text += [False] * (len(latent) + 2)
        block_of += [number] * (len(stream) - len(block_of))
    h, position, length = np.stack(stream), np.array(position, np.float64), len(stream)
    is_text, block_of = np.array(is_text), np.array(block_of)
    sees = np.zeros((length, length), bool)
    for i in range(length):  # a text token sees what stands before it; an image token its whole image, too
        sees[i] = (np.arange(length) <= i) if is_text[i] else (block_of <= block_of[i])
    noisy = np.zeros(length, bool)
    if x is not None:
        noisy = (block_of == len(blocks) - 1) & (np.array(expert) == "gen")
    gen = np.array([e == "gen" for e in expert])

    def each(layer, function):
        """Every row by its own expert."""
        und = function(layer["und"])
        return np.where(gen.reshape(-1, *(1,) * (und.ndim - 1)), function(layer["gen"]), und) if gen.any() else und

    group, all_k, all_v = CONFIG.heads // CONFIG.kv_heads, [], []
    for number in range(CONFIG.layers):
        layer = _pick(p["layers"], number)
        normed = lambda e, h=h: _norm(h, e["input_norm"]["scale"])
        project = lambda name, layer=layer, normed=normed: each(
            layer, lambda e: np.einsum("ld,dhk->lhk", normed(e), e[name]["kernel"]) + e[name]["bias"]
        )
        headnorm = lambda a, name, layer=layer: each(layer, lambda e: _norm(a, e[name]["scale"]))
        q = _rotate(headnorm(project("q_proj"), "q_norm"), position)
        k = _rotate(headnorm(project("k_proj"), "k_norm"), position)
        v = project("v_proj")
        all_k.append(k)
        all_v.append(v)
        mixed = np.zeros_like(q)
        for head in range(CONFIG.heads):
            scores = q[:, head] @ k[:, head // group].T / np.sqrt(CONFIG.head_dim)
            mixed[:, head] = _softmax(np.where(sees, scores, -np.inf)) @ v[:, head // group]
        h = h + each(layer, lambda e, m=mixed: np.einsum("lhk,hkd->ld", m, e["o_proj"]["kernel"]))

        def mlp(e, h=h):
            y = _norm(h, e["post_norm"]["scale"])
            return (_silu(y @ e["gate_proj"]["kernel"]) * (y @ e["up_proj"]["kernel"])) @ e["down_proj"]["kernel"]

        h = h + each(layer, mlp)
    logits = _norm(h[is_text], p["norm_und"]["scale"]) @ p["lm_head"]["kernel"]
    velocity = None
    if x is not None:
        velocity = _norm(h[noisy], p["norm_gen"]["scale"]) @ p["llm2vae"]["kernel"] + p["llm2vae"]["bias"]
    if keep_kv:
        return logits, velocity, np.stack(all_k)[:, is_text], np.stack(all_v)[:, is_text]
    return logits, velocity


def schedule(steps, shift):
    u = 1 - np.arange(steps + 1) / steps
    return shift * u / (1 + (shift - 1) * u)


def flow_sde(x, v, t, t_next, t_second, a):
    """Mean and std of Flow-GRPO's transition, straight from its equation 9."""
    sigma = a * np.sqrt(t / (1 - (t if t < 1 else t_second)))
    dt = t_next - t
    return x + (v + sigma**2 / (2 * t) * (x + (1 - t) * v)) * dt, sigma * np.sqrt(-dt)


def cps(x, v, t, t_next, t_second, a):
    """Mean and std of Flow-CPS."""
    std = t_next * np.sin(a * np.pi / 2)
    return (1 - t_next) * (x - t * v) + np.sqrt(t_next**2 - std**2) * (x + (1 - t) * v), std


@dataclasses.dataclass
class Episode:
    """One row of a batch in numpy: ids of the prompt block, of the actions, and the window's arrays."""

    prompt: list
    actions: list
    steps: np.ndarray
    x: np.ndarray
    noise: np.ndarray
    mean: np.ndarray
    log_probs: np.ndarray

    def thought(self):
        """The thinking block: BOS, actions, EOS; a chain that was cut gets its EOS."""
        end = [] if self.actions and self.actions[-1] == CONFIG.eos_token else [CONFIG.eos_token]
        return [CONFIG.bos_token, *self.actions, *end]


def episode(episodes, row) -> Episode:
    e = jax.tree.map(lambda a: np.asarray(a)[row], episodes)
    d, th = e.drawing, e.thinking
    real = lambda a: np.asarray(a, np.float64)
    return Episode(
        prompt=e.prompt.tokens[e.prompt.valid].tolist(),
        actions=th.tokens[th.mask].tolist(),
        steps=d.steps,
        x=real(d.x),
        noise=real(d.noise),
        mean=real(d.mean),
        log_probs=real(th.log_probs[th.mask]),
    )


@dataclasses.dataclass
class View:
    """What parameters say of one episode."""

    log_probs: np.ndarray
    entropy: np.ndarray
    output: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def view(p, e: Episode, rule=flow_sde) -> View:
    """What float64 parameters say of an episode, at the rollout's temperature, schedule and noise level."""
    times, temperature = schedule(ROLLOUT.flow_steps, ROLLOUT.timestep_shift), ROLLOUT.temperature
    noise_level = ROLLOUT.noise_level
    text, first, n = e.prompt + e.thought(), len(e.prompt), len(e.actions)
    out = []
    for step, x in zip(e.steps, e.x, strict=True):
        logits, v = forward(p, text, x, times[step])
        out.append((v, *rule(x, v, times[step], times[step + 1], times[1], noise_level)))
    table = log_softmax(logits[first : first + n] / temperature)
    velocity, mean, std = (np.stack(a) for a in zip(*out, strict=True))
    return View(table[np.arange(n), e.actions], -(np.exp(table) * table).sum(-1), velocity, mean, std)


def surrogate(ratio, advantage, clip):
    return np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 1 - clip, 1 + clip))


def losses(new, old, ref, e: Episode, advantage, c, is_cps=False) -> dict[str, float]:
    """One episode's losses and regularisers; `c` is the LearningConfig, `new`, `old` and `ref` are views."""
    token_ratio = np.exp(new.log_probs - old.log_probs)
    w = new.std[:, None, None]
    x_next = old.mean + w * e.noise
    square = lambda mean: np.mean((x_next - mean) ** 2, axis=(1, 2))
    if c.ratio_norm:
        log_r = (square(old.mean) - square(new.mean)) / (2 * new.std**2)
        log_ratio = new.std * (log_r + np.mean((old.mean - new.mean) ** 2, axis=(1, 2)) / (2 * new.std**2))
    elif is_cps:
        log_ratio = square(old.mean) - square(new.mean)
    else:
        log_ratio = (square(old.mean) - square(new.mean)) / (2 * new.std**2)
    d = ref.log_probs - new.log_probs
    return {
        "text/loss": np.mean(surrogate(token_ratio, advantage, c.text_clip)),
        "flow/loss": np.mean(surrogate(np.exp(log_ratio), advantage, c.flow_clip)),
        "flow/velocity_mse": np.mean((new.output - ref.output) ** 2),
        "flow/latent_kl": np.mean(np.mean((new.mean - ref.mean) ** 2, axis=(1, 2)) / (2 * new.std**2)),
        "text/reference_kl": np.mean(np.exp(d) - d - 1),
        "text/entropy": np.mean(new.entropy),
        "token_ratio": token_ratio,
        "flow_ratio": np.exp(log_ratio),
    }


def total(parts: dict, c) -> float:
    """UniGRPO's loss of one episode."""
    return (
        c.text_weight * parts["text/loss"]
        + c.flow_weight * parts["flow/loss"]
        + c.mse_weight * parts["flow/velocity_mse"]
        + c.text_kl_weight * parts["text/reference_kl"]
        + c.latent_kl_weight * parts["flow/latent_kl"]
    )
