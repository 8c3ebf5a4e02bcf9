"""Whether a remote judge can be asked, and may be, from its settings alone: nothing is sent."""

import ipaddress
import re
import urllib.parse

from unigrpo_jax.config import require
from unigrpo_jax.config_judging import JudgeConfig


def check_judge(judge: JudgeConfig) -> None:
    """Raises ConfigError unless the remote judge can be asked, and may be."""
    url = judge.url
    require(bool(url), "judge.url is empty; give --judge.url https://HOST/v1, where an OpenAI-compatible server answers.")
    require(bool(judge.model), "judge.model is empty; give --judge.model the name that the server knows its model by.")
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    plain = host and url.isascii() and url.isprintable() and not set(' \\"<>') & set(url)
    require(bool(plain) and parts.scheme in ("https", "http"), f"judge.url = {url!r} is no web address; use https://HOST/v1.")
    require("@" not in parts.netloc and not parts.query and not parts.fragment,
            "judge.url holds a user, a query or a fragment, but it is saved with the run; keep the key in the environment "
            "variable judge.key_variable and the address to https://HOST/v1.")  # fmt: skip
    require(
        parts.scheme == "https" or judge.allow_http or _is_this_machine(host),
        f"judge.url = {url} would send images and key unencrypted; use https, or --judge.allow-http on a network you trust.",
    )
    require(
        not judge.hosts or host in [name.lower() for name in judge.hosts],
        f"judge.url asks {host}, but judge.hosts allows {', '.join(judge.hosts)} only; add it there or use another url.",
    )
    require(
        re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", judge.key_variable) is not None,
        "judge.key_variable is not the name of an environment variable; give the name of one, never the key itself.",
    )
    require(judge.low < judge.high, f"judge.low = {judge.low} is not below judge.high = {judge.high}; raise judge.high.")
    if not judge.question:
        return
    known = {"prompt", "thinking", "point", "low", "high", *(("dimensions",) if judge.dimensions else ())}
    asked = set(re.findall(r"\{([a-z_]+)\}", judge.question))
    require(asked <= known, f"judge.question names {', '.join(sorted(asked - known))}, but only {', '.join(sorted(known))} "
                            "are filled in; use one of them in the braces.")  # fmt: skip
    needed = {"point"} if judge.form == "exam" else {"prompt"}
    needed |= {"thinking"} if judge.show_thinking else set()
    missing, hidden = sorted(needed - asked), asked & ({"thinking", "point"} - needed)
    require(not missing, f"judge.question has no place for {{{'} and {'.join(missing)}}}; write it there.")
    require(not hidden, f"judge.question names {', '.join(sorted(hidden))}, which this judge is not shown; use "
                        "--judge.show-thinking for the thinking, --judge.form exam for a point.")  # fmt: skip


def _is_this_machine(host: str) -> bool:
    """Whether a host's name or address is loopback."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
