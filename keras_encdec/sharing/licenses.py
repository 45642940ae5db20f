"""Licences: what the hubs call them, whose terms travel, and what known sources came under.

Knows names and where each is written. Tells what to look at; it is no lawyer.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from keras_encdec import check


@dataclasses.dataclass(frozen=True)
class Terms:
    """A licence whose terms come with whatever is made of a model.

    Args:
        name: in full.
        link: to its text.
        kaggle: what Kaggle calls it; `OTHER_ON_KAGGLE` where it has no name for it.
        notice: the sentence that has to stand beside the model, in a file of its own.
    """

    name: str
    link: str
    kaggle: str
    notice: str


OTHER_ON_KAGGLE = "Other (specified in description)"


def _llama(model: str, link: str, kaggle: str = OTHER_ON_KAGGLE, called: str = "") -> Terms:
    name = f"{called or model} Community License"
    rights = "Copyright © Meta Platforms, Inc. All Rights Reserved."
    return Terms(name, link, kaggle, f"{model} is licensed under the {name}, {rights}")


TERMS: Mapping[str, Terms] = {
    # https://ai.google.dev/gemma/terms, section 3.1
    "gemma": Terms(
        "Gemma Terms of Use",
        "https://ai.google.dev/gemma/terms",
        "Gemma",
        "Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms",
    ),
    # Each agreement's own sentence, in its section 1.b
    "llama2": _llama(
        "Llama 2", "https://ai.meta.com/llama/license/", "Llama 2 Community License", "LLAMA 2"
    ),
    "llama3": _llama(
        "Meta Llama 3", "https://www.llama.com/llama3/license/", "Llama 3 Community License"
    ),
    "llama3.1": _llama("Llama 3.1", "https://www.llama.com/llama3_1/license/"),
    "llama3.2": _llama("Llama 3.2", "https://www.llama.com/llama3_2/license/"),
    "llama3.3": _llama("Llama 3.3", "https://www.llama.com/llama3_3/license/"),
}

# https://huggingface.co/docs/hub/repositories-licenses
_PERMISSIVE = """apache-2.0 mit afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
bsd-3-clause-clear cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 etalab-2.0 isc odc-by postgresql ncsa unlicense zlib
pddl"""
_TRAVELLING = """openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m c-uda cc cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cdla-sharing-1.0 epl-1.0 epl-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0
lppl-1.3c ms-pl mpl-2.0 odbl openrail++ osl-3.0 ofl-1.1 lgpl-lr deepfloyd-if-license"""
KNOWN = (*TERMS, *_PERMISSIVE.split(), *_TRAVELLING.split(), "unknown", "other")

# https://github.com/Kaggle/kaggle-api, models of model instances
_ON_KAGGLE = {
    "apache-2.0": "Apache 2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "cc0-1.0": "CC0 1.0",
    "cc-by-4.0": "Attribution 4.0 International (CC BY 4.0)",
    "cc-by-3.0": "Attribution 3.0 Unported (CC BY 3.0)",
    "cc-by-sa-4.0": "CC BY-SA 4.0",
    "cc-by-sa-3.0": "CC BY-SA 3.0",
    "cc-by-nc-4.0": "Attribution-NonCommercial 4.0 International (CC BY-NC 4.0)",
    "cc-by-nc-sa-4.0": "CC BY-NC-SA 4.0",
    "gpl-2.0": "GPL 2",
    "gpl-3.0": "GPL 3",
    "agpl-3.0": "GNU Affero General Public License 3.0",
    "lgpl-3.0": "GNU Lesser General Public License 3.0",
    "bigscience-openrail-m": "BigScience OpenRAIL-M",
}

# Presets of KerasHub: the licence, and the model's name on Hugging Face where that is certain.
# `{n}` is the pattern's n-th group, and `{n:it}` is `-it` where that group was there.
_OF_KERAS_HUB = (
    (r"gemma_(?:(instruct)_)?(2b|7b)_en", "gemma", "google/gemma-{2}{1:it}"),
    (r"gemma_1\.1_instruct_(2b|7b)_en", "gemma", "google/gemma-1.1-{1}-it"),
    (r"code_gemma_(1\.1_)?(instruct_)?(2b|7b)_en", "gemma", None),
    (r"gemma2_(?:(instruct)_)?(2b|9b|27b)_en", "gemma", "google/gemma-2-{2}{1:it}"),
    (r"shieldgemma_(2b|9b|27b)_en", "gemma", "google/shieldgemma-{1}"),
    (r"gemma3_(1b|4b|12b|27b)(_text)?", "gemma", "google/gemma-3-{1}-pt"),
    (r"gemma3_instruct_(1b|4b|12b|27b)(_text)?", "gemma", "google/gemma-3-{1}-it"),
    (r"gemma3_(?:(instruct)_)?270m", "gemma", "google/gemma-3-270m{1:it}"),
    (r"llama2_7b_en(_int8)?", "llama2", "meta-llama/Llama-2-7b-hf"),
    (r"llama2_instruct_7b_en(_int8)?", "llama2", "meta-llama/Llama-2-7b-chat-hf"),
    (r"vicuna_1\.5_7b_en", "llama2", "lmsys/vicuna-7b-v1.5"),
    (r"llama3_(?:(instruct)_)?8b_en(_int8)?", "llama3", "meta-llama/Meta-Llama-3-8B{1:Instruct}"),
    (r"llama3\.1_(?:(instruct)_)?8b", "llama3.1", "meta-llama/Llama-3.1-8B{1:Instruct}"),
    (r"llama3\.2_(?:(instruct)_)?(1|3)b", "llama3.2", "meta-llama/Llama-3.2-{2}B{1:Instruct}"),
    (r"mistral_7b_en", "apache-2.0", "mistralai/Mistral-7B-v0.1"),
    (r"mistral_instruct_7b_en", "apache-2.0", "mistralai/Mistral-7B-Instruct-v0.1"),
    (r"mistral_0\.([23])_instruct_7b_en", "apache-2.0", "mistralai/Mistral-7B-Instruct-v0.{1}"),
    (r"mistral_0\.3_7b_en", "apache-2.0", "mistralai/Mistral-7B-v0.3"),
    (r"mixtral_8_7b_en", "apache-2.0", "mistralai/Mixtral-8x7B-v0.1"),
    (r"mixtral_8_instruct_7b_en", "apache-2.0", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    (r"magistral_small_25\d\d_en", "apache-2.0", None),
    # 3B and 72B came under licences of Qwen's own.
    (r"qwen2\.5_(?:(instruct)_)?(0\.5|7|32)b_en", "apache-2.0", "Qwen/Qwen2.5-{2}B{1:Instruct}"),
    (r"qwen2\.5_(coder|math)_(instruct_)?(0\.5|1\.5|7|14|32)b(_en)?", "apache-2.0", None),
    (r"qwen3_[\d.]+b_en", "apache-2.0", None),
    (r"qwen3_(moe|coder_instruct)_\d+b_a\d+b_en", "apache-2.0", None),
    (r"gpt_oss_(20b|120b)_en", "apache-2.0", "openai/gpt-oss-{1}"),
    (r"gpt_oss_safeguard_(20b|120b)_en", "apache-2.0", "openai/gpt-oss-safeguard-{1}"),
    (r"smollm3_3b_en", "apache-2.0", None),
    (r"phi3_mini_(4k|128k)_instruct_en", "mit", "microsoft/Phi-3-mini-{1}-instruct"),
)


def normalised(license: Any) -> str:
    """A licence as Hugging Face calls it.

    Args:
        license: its identifier there, such as `"apache-2.0"`, or a name that Kaggle or people
            use, such as `"Apache 2.0"` or `"Gemma Terms of Use"`.

    Raises:
        ValueError: if there is none of that name, with the nearest one.
    """
    names = {_plain(known): known for known in KNOWN}
    names |= {_plain(name): known for known, name in _ON_KAGGLE.items()}
    names |= {_plain(name): known for known, t in TERMS.items() for name in (t.name, t.kaggle)}
    found = names.get(_plain(license)) if isinstance(license, str) else None
    if found is None or license == OTHER_ON_KAGGLE:
        raise ValueError(
            "Expected a licence as in https://huggingface.co/docs/hub/repositories-licenses, such "
            f"as 'apache-2.0', 'gemma' or 'other'. Received: {license!r}."
            f"{check.nearest(license, KNOWN)}"
        )
    return found


def on_kaggle(license: str) -> str:
    """A licence as Kaggle calls it."""
    own = TERMS[license].kaggle if license in TERMS else None
    return own or _ON_KAGGLE.get(license, OTHER_ON_KAGGLE)


def terms_that_travel(license: str | None) -> bool:
    """Whether what is made of a model under it may not come under any other licence."""
    return license is not None and license not in (*_PERMISSIVE.split(), "unknown")


def conflicts(license: str, sources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the terms of sources have against a licence, a sentence each.

    Args:
        license: of what was made of them.
        sources: by side, with `name` and `license`.
    """
    found = []
    for source in sources.values():
        theirs = source.get("license")
        if not terms_that_travel(theirs) or theirs == license:
            continue
        terms = TERMS.get(str(theirs))
        text = f"{terms.name} ({terms.link})" if terms else f"licence {theirs!r}"
        found.append(
            f"The {text} of {source.get('name')} travels with whatever is made of it: the model "
            f"cannot be shared under {license!r} alone. Use license={theirs!r}, or 'other' with "
            "a LICENSE file that holds all terms."
        )
    return list(dict.fromkeys(found))


def common(sources: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The one licence that all sources came under, or the one whose terms travel; else None."""
    every = {source.get("license") for source in sources.values()}
    travelling = {license for license in every if terms_that_travel(license)}
    every = travelling if len(travelling) == 1 and None not in every else every
    return next(iter(every)) if len(every) == 1 else None


def notices(sources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences that the terms of sources want beside the model."""
    every = [TERMS.get(str(source.get("license"))) for source in sources.values()]
    return list(dict.fromkeys(terms.notice for terms in every if terms is not None))


def of_keras_hub(preset: str) -> dict[str, Any]:
    """What is known of a preset by name: `license`, and `hugging_face`, its name there."""
    for pattern, license, name in _OF_KERAS_HUB:
        if match := re.fullmatch(pattern, preset):
            named = {} if name is None else {"hugging_face": _filled(name, match)}
            return {"license": license, **named}
    return {}


def _filled(template: str, match: re.Match) -> str:
    def part(hole: re.Match) -> str:
        group, suffix = match[int(hole[1])], hole[2]
        return group if suffix is None else (f"-{suffix}" if group else "")

    return re.sub(r"\{(\d)(?::(\w+))?\}", part, template)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+|licen[cs]e", "", name.lower())
