"""Does a reply acknowledge what the client feels? A graded lexicon."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.types import Score
from rewards.words import normalise, phrases, sentences, words
from rollout.types import Rollout

_LOW = r"(feel|feels|feeling|felt|so|very|really)( (so|very|really|pretty|quite|this|that))* (down|low|blue)"

# The eleven labels of ESConv, and three that its clients feel without a label. A word may belong to several.
_EMOTIONS = {
    "anxiety": phrases(r"""
        anxi\w+|worr(y|ied|ying|ies|isome)|overwhelm\w*|stress\w*|panic|panick\w*|on edge|tense|uneasy|nervous\w*
        unsettl\w+|restless|apprehensive
    """),
    "depression": phrases(rf"""
        depress\w*|numb|empty|emptiness|drained|exhaust\w+|hopeless\w*|worthless\w*|miserable|discourag\w+
        sad|sadness|unhappy|{_LOW}
    """),
    "sadness": phrases(rf"""
        sad|sadness|saddened|unhappy|heartbr\w+|devastat\w+|upset|upsetting|sorrow\w*|tearful|disappoint\w+|hurt
        depress\w*|{_LOW}
    """),
    "anger": phrases(r"""
        anger|angry|mad|furious|infuriat\w+|rage|frustrat\w+|irritat\w+|annoy\w+|resent\w*|outrag\w+|upset|upsetting
        betray\w+|unfair
    """),
    "fear": phrases(r"fear|fears|fearful|afraid|scared|scary|frighten\w*|terrif\w+|dread\w*|panic|panick\w*|worried"),
    "shame": phrases(r"shame|asham\w+|shameful|embarrass\w+|humiliat\w+|self conscious|inadequa\w+|worthless\w*"),
    "disgust": phrases(r"disgust\w*|revolt\w+|repuls\w+|sickened|sickening|gross|sick of|fed up|appall\w+"),
    "nervousness": phrases(r"nervous\w*|jitter\w*|on edge|anxi\w+|tense|worr(ied|ying|y)|uneasy|restless"),
    "pain": phrases(r"pain|painful|pained|hurt|hurts|hurting|hurtful|agony|ach(e|es|ing)|suffering|wounded"),
    "jealousy": phrases(r"jealous\w*|env(y|ious)|insecur\w+|possessive|left out"),
    "guilt": phrases(r"guilt\w*|regret\w*|remorse\w*|asham\w+|blam(e|ing) yourself|self blame|responsible for"),
    "grief": phrases(r"grief|griev\w+|mourn\w*|bereave\w+|heartbr\w+|loss|sorrow\w*|devastat\w+"),
    "hopelessness": phrases(r"hopeless\w*|despair\w*|helpless\w*|defeated|trapped|stuck|no way out|pointless"),
    "loneliness": phrases(r"lonel\w+|lonesome|alone|isolat\w+|abandon\w+|left out|unloved|disconnected"),
}
_ANY = re.compile("|".join(pattern.pattern for pattern in _EMOTIONS.values()))
_IDIOMS = phrases(r"""
    im afraid (that |of )?(i|we|you|there|not|so)|im (so |very |really )*(sad|upset|heartbroken) (to|that|for)
    not (the only one|alone)|let alone|at a loss|(dont|no) worr(y|ies)
""")

# In the frames, @ stands for a word that names what the client feels.
_FRAMES = re.compile(r"|".join((
    # "you're feeling so ...", "you must be ...", but not "do you feel ...?", which asks, or "when you feel ..."
    r"(?<!do )(?<!did )(?<!when )(?<!why )(?<!if )(?<!whenever )\byou"
    r"(re|ve been| (are|were|seem|sound|look|have been|(must|may|might) (be|feel)|feel|felt|(still|really) feel))"
    r"( (?!less\b)\w+){0,4} @",
    r"\b(sounds?|seems?|looks?|feels?|felt)( like| as if| as though)?( (?!less\b)\w+){0,6} @",
    r"\b(that|this|it|how)( (must|can|could|may|might|is|was|has))+( (?!less\b)\w+){0,4} @",
    r"\bi (can |could )?(really )?(hear|see|sense|imagine|understand|notice|get)\b.*@",
    r"\bhow @|@ you(re| are| feel| must|ve)\b",
    r"@.* (makes (\w+ )?sense|(is|are) (\w+ )?(understandable|natural|normal|valid|okay|ok))\b",
    r"\bmakes (\w+ )?sense\b.*@",
    r"\b(understandable|natural|normal|valid|okay|ok)( \w+){0,2} (to|that)( \w+){0,3} @",
)))  # fmt: skip
_DENIED = re.compile(
    r"\b(dont|do not|stop|quit|never|shouldnt|should not|arent|isnt|no need to|nothing to|not)( \w+){0,3} @"
)
_OF_THE_THERAPIST = re.compile(r"\b(i|im|ive)( \w+){0,3} @")
_GENERIC = phrases(r"""
    (sounds?|must be|must feel|seems?|is|thats|its|been)( \w+){0,3} (hard|tough|difficult|rough|awful|terrible|a lot)
    (sounds?|must be|must feel|seems?|is|thats|its|been)( \w+){0,3} (challenging|heavy|unbearable|stressful|painful)
    sorry (to hear|for your|about|that (you|things|this|it)|you|youre|this|things)
    i (can )?(understand|hear you|imagine|feel for you|see how)|(that|it) makes (\w+ )?sense
    thank you for (sharing|telling|trusting|opening)|im here for you|your feelings are
""")
_FRAMED, _NAMED, _KIND, _NONE = 1.0, 0.6, 0.3, 0.0
_LONGEST_LIST, _MOST_GUESSES = 4, 2


def emotions_in(text: str) -> frozenset[str]:
    """The emotions that `text` names: a label ("anxiety", "anxious") or a client's words."""
    told = [_IDIOMS.sub(" ", sentence) for sentence in sentences(text)]
    return frozenset(name for name, pattern in _EMOTIONS.items() if any(map(pattern.search, told)))


def client_emotions(rollout: Rollout) -> frozenset[str]:
    """What the client feels: the corpus's label, and what the turn that the reply answers says."""
    return emotions_in(rollout.prompt.emotion) | emotions_in(rollout.prompt.last_client_turn)


class EmotionAcknowledgement:
    """Does the reply name or paraphrase what the client feels? The best sentence counts:

        1.0  acknowledges it in an empathic frame: "it sounds like you are so anxious", "that must be frightening"
        0.6  names it without one: "anxiety can be treated"
        0.3  is kind without naming it ("that sounds hard"), or names it of the therapist ("I was sad too")
        0.0  none of these; or tells the client not to feel it ("don't be sad")

    Abstains where neither label nor last turn says what the client feels. Lists do not count: a sentence made mostly of
    words of feeling, or of more than four of them, scores 0, and a reply that names over two feelings which are not the
    client's is guessing and earns 0.3 at most.
    """

    def applies(self, rollout: Rollout) -> bool:
        """Whether it is known what the client feels."""
        return bool(client_emotions(rollout))

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, in each of which the client's emotion is known."""
        return [Score(_grade(r.text, client_emotions(r))) for r in rollouts]


class EmotionLabel:
    """1.0 when the policy, before its reply, wrote the emotion that the corpus gives the client, else 0.0.

    For models that predict the emotion first (`fields.emotion = "predicted"`). Abstains without an annotated emotion.
    """

    def applies(self, rollout: Rollout) -> bool:
        """Whether the emotion is annotated."""
        return bool(rollout.prompt.emotion)

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, in each of which the client's emotion is annotated."""
        return [Score(float(spelled(r.labels.get("emotion", "")) == spelled(r.prompt.emotion))) for r in rollouts]


def spelled(label: str) -> str:
    """A label as labels are compared: whatever its case; a token has underscores for spaces."""
    return normalise(label.replace("_", " "))


def _grade(reply: str, emotions: frozenset[str]) -> float:
    told = [_IDIOMS.sub(" ", sentence) for sentence in sentences(reply)]
    best = max((_grade_sentence(sentence, emotions) for sentence in told), default=_NONE)
    named = {match.group() for sentence in told for match in _ANY.finditer(sentence)}
    guesses = sum(not any(_EMOTIONS[emotion].search(word) for emotion in emotions) for word in named)
    return min(best, _KIND) if guesses > _MOST_GUESSES else best


def _grade_sentence(sentence: str, emotions: frozenset[str]) -> float:
    named = [match.group() for match in _ANY.finditer(sentence)]
    if len(set(named)) > _LONGEST_LIST or 2 * len(words(" ".join(named))) > len(words(sentence)):
        return _NONE
    kind = _KIND if _GENERIC.search(sentence) else _NONE
    sentence = sentence.replace("@", " ")  # nobody earns by writing the mark
    for emotion in sorted(emotions):
        sentence = _EMOTIONS[emotion].sub("@", sentence)
    if "@" not in sentence:
        return kind
    if _DENIED.search(sentence):
        return _NONE
    if _FRAMES.search(sentence):
        return _FRAMED
    return _KIND if _OF_THE_THERAPIST.search(sentence) else _NAMED
