"""The corpus: reads facts.txt, errors.txt and elsewhere.txt, and makes conversations of them.

Owns the wordings: frames, polite words, typing mistakes, follow-ups, and which wordings are held out of
training for evaluate.py. It knows neither tokens nor the network. All randomness is passed in.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent


def parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(" | ") if part.strip()]


def _read_lists(file: str) -> dict[str, list[str]]:
    """Lists under a [name] each, separated by " | " or by lines."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in (HERE / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            name = line[1:-1]
            found[name] = []
        elif line.strip() and not line.startswith("#"):
            found[name] += parts(line)
    return found


WORDINGS = _read_lists("wordings.txt")
SYNONYMS = {word: others.split(", ") for word, others in (pair.split(" = ") for pair in WORDINGS["synonyms"])}
SMALL_WORDS = frozenset(WORDINGS["small words"])
SYSTEM = WORDINGS["system messages"]


@dataclass
class Fact:
    """One answer, and everything that asks for it."""

    key: str
    kind: str
    answer: str
    topics: list[str] = field(default_factory=list)
    verbs: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    more: str | None = None
    follow_ups: dict[str, list[str]] = field(default_factory=dict)
    weight: float = 1.0


def read_facts() -> dict[str, Fact]:
    """All facts by key: facts.txt, three for each error, one for each HTTP status, and `elsewhere`."""
    facts: dict[str, Fact] = {}
    for block in (HERE / "facts.txt").read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if not lines:
            continue
        key, _, kind = lines[0].strip("[]").partition(" ")
        fact = Fact(key, kind or "topic", "")
        for line in lines[1:]:
            tag, text = line[:2], line[2:].strip()
            if tag == "t:":
                fact.topics += parts(text)
            elif tag == "h:":
                fact.verbs += parts(text)
            elif tag == "q:":
                fact.questions += parts(text)
            elif tag == "x:":
                fact.held_out += parts(text)
            elif tag == "a:":
                fact.answer = text.replace("\\n", "\n")
            elif tag == "n:":
                fact.more = text
            elif tag == "f:":
                target, wordings = text.split(": ", 1)
                fact.follow_ups.setdefault(target, []).extend(parts(wordings))
            else:
                raise ValueError(f"{key}: {line}")
        assert key not in facts and fact.answer, key
        facts[key] = fact
    by_status: dict[str, list[str]] = {}
    for block in (HERE / "errors.txt").read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if not lines:
            continue
        code, status, type_, meaning, remedy = [part.strip() for part in lines[0].split(" | ")]
        by_status.setdefault(status, []).append(code)
        names = [code] * 3 + [code.replace("_", " ")] * ("_" in code)
        what = Fact(f"err-{code}", "error", f"The error {code} {meaning}", topics=names)
        fix = Fact(f"fix-{code}", "fix", remedy, topics=names)
        number = Fact(
            f"status-{code}",
            "status",
            f"The error {code} has the HTTP status {status} and the type {type_}.",
            topics=names,
            weight=0.6,
        )
        for line in lines[1:]:
            tag, text = line[:2], parts(line[2:].strip())
            {"q:": what.questions, "r:": fix.questions, "x:": what.held_out, "y:": fix.held_out}[tag].extend(
                text
            )
        what.follow_ups[fix.key] = parts(
            "what can i do about it | how do i fix it | how do i fix that | what should i do |"
            " how can i avoid it | what can i do | what now | how do i solve it"
        )
        what.follow_ups[number.key] = parts(
            "which http status is it | what status does it have | which status code is that |"
            " what is its type"
        )
        fix.follow_ups[what.key] = parts("what does it mean | why does it happen | what does that error mean")
        for fact in (what, fix, number):
            facts[fact.key] = fact
    for status, codes in by_status.items():
        named = codes[0] if len(codes) == 1 else ", ".join(codes[:-1]) + " and " + codes[-1]
        answer = f"HTTP status {status} comes with the error{'s' * (len(codes) > 1)} {named}."
        facts[f"http-{status}"] = Fact(f"http-{status}", "number", answer, topics=[status], weight=0.8)
    for key in (
        "hello",
        "who",
        "capabilities",
        "about",
        "engine",
        "add-engine",
        "vram-limit-how",
        "thanks",
        "nothing-more",
    ):
        facts[key].weight = 2.0
    for fact in facts.values():
        for target in [*fact.follow_ups, *([fact.more] if fact.more else [])]:
            assert target in facts, (fact.key, target)
    facts["elsewhere"] = Fact("elsewhere", "elsewhere", ELSEWHERE["answers"][0], weight=0)
    return facts


def _read_elsewhere() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = ""
    for line in (HERE / "elsewhere.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line.endswith(":"):
            name = line[:-1]
            found[name] = []
        elif "frames" in name:  # one list of frames a line: each line is as likely as the others
            found[name].append(line)
        else:
            found[name] += parts(line)
    return found


ELSEWHERE = _read_elsewhere()


def elsewhere(rng: random.Random, held_out: bool = False) -> str:
    """A question that has nothing to do with llm-node."""
    prefix = "held-out " if held_out else ""
    frame = rng.choice(parts(rng.choice(ELSEWHERE[prefix + "frames"])))
    words = {name: rng.choice(ELSEWHERE[prefix + name]) for name in ("thing", "place", "person")}
    if not held_out and rng.random() < 0.4:  # what is not a word of this project is a word of another
        words = {name: invented(rng) for name in words}
    return frame.format(**words, a=rng.randrange(2, 1000), b=rng.randrange(2, 100))


def invented(rng: random.Random) -> str:
    """A word or two that nobody knows."""
    starts = "b c d f g h j k l m n p r s t v w z br ch cl cr dr fl gr pl pr sh sl st th tr".split()
    vowels = "a e i o u ai ea ee ia io oo ou".split()
    ends = ["", "", "", "n", "r", "s", "l", "t", "m", "ck", "nd", "ng", "rt", "st", "th", "x"]

    def word() -> str:
        syllables = rng.choice((1, 2, 2, 3))
        return "".join(rng.choice(starts) + rng.choice(vowels) for _ in range(syllables)) + rng.choice(ends)

    return " ".join(word() for _ in range(rng.choice((1, 1, 1, 2))))


def base_wordings(fact: Fact) -> tuple[list[str], list[str], list[str]]:
    """Questions without decoration: (written by hand, made of frames, made of frames that are held out)."""
    framed, held = [], []
    for items, kind in ((fact.topics, fact.kind), (fact.verbs, "how")):
        if not items:
            continue
        train, out = WORDINGS[f"frames {kind}"], WORDINGS[f"held out {kind}"]
        if kind == "topic":
            train = [*train, *(["what are {}"] if any(plural(item) for item in items) else [])]
        framed += [frame.format(item) for item in items for frame in train if "{}s" not in frame]
        held += [frame.format(item) for item in items for frame in out]
    return list(fact.questions), framed, held


def plural(topic: str) -> bool:
    return topic.endswith("s") and not topic.startswith(("a ", "an "))


def is_held_out(wording: str) -> bool:
    """One framed wording in twelve, chosen by its own text, is never trained on."""
    return hashlib.sha256(wording.lower().encode()).digest()[0] % 12 == 0


class Corpus:
    """Draws conversations. `draw` is the only thing that training needs."""

    def __init__(self) -> None:
        self.facts = read_facts()
        self.pools: dict[str, tuple[list[str], list[str]]] = {}
        self.combinations: dict[str, list[str]] = {}  # framed wordings that are held out
        self.frames_held: dict[str, list[str]] = {}
        meaning: dict[str, str] = {}
        for key, fact in self.facts.items():
            written, framed, held = base_wordings(fact)
            unique = sorted(set(framed))
            out = [w for w in unique if is_held_out(w) and len(unique) > 10 and w not in fact.topics]
            self.combinations[key] = out
            self.frames_held[key] = sorted(set(held))
            self.pools[key] = (written, [w for w in framed if w not in set(out)])
            for wording in {*written, *framed, *held, *fact.held_out}:
                normal = re.sub(r"[^a-z0-9_/\-. ]", "", wording.lower())
                if meaning.setdefault(normal, key) != key:
                    raise ValueError(f"{wording!r} asks both for {meaning[normal]} and for {key}")
        self.meaning = meaning
        for key, fact in self.facts.items():
            for target, wordings in fact.follow_ups.items():
                for wording in wordings:
                    # "why" alone is one thing, after an answer another; both are trained.
                    assert wording, (key, target)
        self.keys = [key for key, fact in self.facts.items() if fact.weight > 0]
        self.key_of = {fact.answer: key for key, fact in self.facts.items()}
        assert len(self.key_of) == len(self.facts), "two facts have one answer"
        self.weights = [self.facts[key].weight for key in self.keys]
        self.more = self.facts["nothing-more"].questions

    def question(self, rng: random.Random, key: str) -> str:
        """One decorated wording for a fact, from those that are trained on."""
        if key == "elsewhere":
            return decorate(elsewhere(rng), rng, short=True)
        written, framed = self.pools[key]
        pool = framed if framed and (not written or rng.random() < 0.5) else written
        return decorate(rng.choice(pool), rng, short=self.facts[key].kind == "topic" and not framed)

    def draw(self, rng: random.Random, turns: int) -> list[tuple[str, str]]:
        """A conversation of (question, answer)."""
        conversation: list[tuple[str, str]] = []
        last: str | None = None
        for _ in range(turns):
            chance = rng.random()
            fact = self.facts[last] if last else None
            if fact and chance < 0.5 and (fact.follow_ups or fact.more):
                targets = [*fact.follow_ups, *([fact.more] if fact.more else [])]
                key = rng.choice(targets)
                wordings = list(fact.follow_ups.get(key, []))
                if key == fact.more and (not wordings or rng.random() < 0.5):
                    wordings = self.more
                asked = decorate(rng.choice(wordings), rng, short=True)
            elif fact and chance < 0.55:
                key = fact.more or "nothing-more"
                asked = decorate(rng.choice(self.more), rng, short=True)
            else:
                key = "elsewhere" if rng.random() < 0.12 else rng.choices(self.keys, self.weights)[0]
                asked = self.question(rng, key)
                if self.clashes(fact, asked, key):
                    key = "elsewhere"
                    asked = self.question(rng, key)
            conversation.append((asked, self.facts[key].answer))
            last = key
        return conversation

    def clashes(self, before: Fact | None, asked: str, key: str) -> bool:
        """Would the question mean something else as a follow-up to the fact before it?"""
        if before is None:
            return False
        plain = re.sub(r"[^a-z0-9_/\-. ]", "", asked.lower())
        return any(plain in wordings and target != key for target, wordings in before.follow_ups.items()) or (
            key == "nothing-more" and before.more is not None
        )


IDENTIFIER = re.compile(r"[_/\-.`*+0-9\[\]()]")


def decorate(text: str, rng: random.Random, short: bool = False) -> str:
    """What people make of a question: case, politeness, marks, synonyms, typing mistakes."""
    if not short:
        if rng.random() < 0.35:
            text = replace_words(text, rng)
        if rng.random() < 0.22:
            text = rng.choice(WORDINGS["before"]) + " " + text
        if rng.random() < 0.10:
            text = re.sub(r" ,", ",", text + " " + rng.choice(WORDINGS["after"]))
        if rng.random() < 0.06:
            kept = [word for word in text.split() if word.lower() not in SMALL_WORDS]
            text = " ".join(kept) if len(kept) > 1 else text
    return dress(mistype(text, rng), rng)


def dress(text: str, rng: random.Random) -> str:
    """Capitals and the mark at the end."""
    quoted = rng.random()
    if quoted < 0.12:  # identifiers are often set in backticks or quotes
        mark = rng.choice("``'\"")
        text = " ".join(
            f"{mark}{w}{mark}"
            if re.search(r"\w[_/\-.]\w|^--?\w|^/\w", w) and w[-1] not in ".,:;" and "'" not in w
            else w
            for w in text.split(" ")
        )
    case = rng.random()
    if case < 0.55:
        text = re.sub(r"\bi\b(?=[ ']|$)", "I", text)
        text = text[0].upper() + text[1:] if not IDENTIFIER.search(text.split(" ")[0]) else text
        for plain, proper in PROPER.items():
            text = re.sub(rf"(?<![\w/\-.]){plain}(?![\w/\-.]\w)", proper, text)
    elif case < 0.615:
        text = text.upper()
    elif case < 0.69:
        text = text.lower()
    if text[-1] not in "?!.":
        mark = rng.random()
        # Most people end with a question mark, many with nothing.
        text += next(
            (end for limit, end in ((0.62, "?"), (0.66, "."), (0.68, "!"), (0.69, "??")) if mark < limit), ""
        )
    return text


PROPER = {
    name.lower(): name
    for name in "GPU VRAM CPU ABI HTTP API JSON OpenAI Python Rust Windows Linux URL KV".split()
}


def replace_words(text: str, rng: random.Random) -> str:
    def swap(match: re.Match[str]) -> str:
        return rng.choice(SYNONYMS[match[0]]) if rng.random() < 0.5 else match[0]

    pattern = "|".join(sorted(map(re.escape, SYNONYMS), key=len, reverse=True))
    return re.sub(rf"(?<![\w/\-.]){'(?:' + pattern + ')'}(?![\w/\-.]\w|\w)", swap, text)


def mistype(text: str, rng: random.Random) -> str:
    """One slip in a plain word, in one question of twelve."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if not places or rng.random() > 0.08:
        return text
    i = rng.choice(places)
    word = words[i]
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    elif kind == 1:
        word = word[:at] + word[at + 1 :]
    else:
        word = word[:at] + word[at] + word[at:]
    words[i] = word
    return " ".join(words)


def held_out(rng: random.Random) -> dict[str, list[tuple[str, str]]]:
    """For evaluate.py: (question, fact key) that training never sees, by how they were held out.

    combination: a frame and a topic, both known, but never together. frame: a frame that is never used.
    politeness: words around a known question that are never used. sentence: whole sentences written by hand.
    elsewhere: questions about other things, in frames and with words that are never used.
    """
    corpus = Corpus()

    def plain(text: str) -> str:
        text = re.sub(r"\bi\b(?=[ ']|$)", "I", text)
        text = text[0].upper() + text[1:] if not IDENTIFIER.search(text.split(" ")[0]) else text
        return text if text[-1] in "?!." else text + "?"

    sets: dict[str, list[tuple[str, str]]] = {
        "combination": [],
        "frame": [],
        "politeness": [],
        "sentence": [],
        "elsewhere": [],
    }
    for key in corpus.keys:
        fact = corpus.facts[key]
        for name, pool in (("combination", corpus.combinations[key]), ("frame", corpus.frames_held[key])):
            sets[name] += [(dress(w, rng), key) for w in rng.sample(pool, min(3, len(pool)))]
        written, framed = corpus.pools[key]
        if fact.topics or fact.verbs:
            asked = rng.choice(written or framed)
            if rng.random() < 0.6:
                asked = rng.choice(WORDINGS["held out before"]) + " " + asked
            else:
                asked += rng.choice(WORDINGS["held out after"])
            sets["politeness"].append((plain(asked), key))
        sets["sentence"] += [(plain(w), key) for w in fact.held_out]
    sets["elsewhere"] = [(plain(elsewhere(rng, held_out=True)), "elsewhere") for _ in range(60)]
    return sets


def sample_text(rng: random.Random, count: int) -> Iterator[str]:
    """Lines for the tokenizer: each answer often, and many questions."""
    corpus = Corpus()
    for _ in range(count):
        for question, answer in corpus.draw(rng, 3):
            yield question
            yield from answer.split("\n")


if __name__ == "__main__":
    corpus = Corpus()
    rng = random.Random(1)
    print(
        len(corpus.facts),
        "facts,",
        sum(len(set(a)) + len(set(b)) for a, b in corpus.pools.values()),
        "plain wordings trained on",
    )
    print({name: len(items) for name, items in held_out(rng).items()})
    for _ in range(12):
        for question, answer in corpus.draw(rng, rng.randrange(1, 4)):
            print("Q", question, "\nA", answer)
        print()
