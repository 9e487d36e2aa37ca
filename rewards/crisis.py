"""How much danger do a client's words show? A first lexicon, read clause by clause.

It is tuned to escalate: a missed crisis costs more than a needless question. It reads English only.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Iterable, Iterator, Sequence

from rewards.words import phrases, sentences
from rollout.types import Speaker, Turn


class Tier(enum.StrEnum):
    """What a text shows, from nothing to danger now (the ladder of the Columbia scale, C-SSRS)."""

    NONE = "none"
    DISTRESS = "distress"  # suffering out of the ordinary, or a crisis that is past
    OTHER = "other"  # another emergency: self-harm, violence, abuse, psychosis, substances, eating
    PASSIVE = "passive"  # a wish to be dead
    ACTIVE = "active"  # thoughts of suicide
    IMMINENT = "imminent"  # prepared, about to act, or acting


_SEVERITY = {tier: severity for severity, tier in enumerate(Tier)}


def gravest(tiers: Iterable[Tier]) -> Tier:
    """The tier with the most danger; none of none."""
    return max(tiers, key=_SEVERITY.__getitem__, default=Tier.NONE)


_KIN = (
    "wife|husband|partner|ex|boyfriend|girlfriend|mom|mother|dad|father|parents|brothers?|sisters?|sons?|daughters?|kids?"
    "|child|children|baby|uncle|aunt|cousin|grand\\w+|friends?|boss|coworkers?|neighbou?rs?|roommates?"
)
_PREPARED = r"""
    about to (kill myself|end (it|my life)|jump|do it)
    (have|got|holding|hold) (\w+ ){0,2}(pills|gun|rope|noose|knife|razor|blade)( \w+)? (in my (hands?|lap)|loaded)
    (have|got|holding|hold) (\w+ ){0,2}(pills|gun|rope|noose|knife|razor|blade)( \w+)? (in front of|next to|beside) me
    (wrote|written|writing|left|finished) (\w+ )?(suicide|goodbye) (note|letter)s?
    (just|already|have|ive) (took|taken|swallowed) (\w+ ){0,3}(pills|tablets|bottle|overdose)
    took (all|a bottle of|the whole|too many) (\w+ )?(pills|bottle|tablets)
    (standing|sitting) on (the|a) (bridge|ledge|roof|edge|tracks)
    said (all )?my goodbyes|with (a|the|my) (razor|gun|noose|rope)
"""
_DEED = r"""
    (kill|hang|shoot|drown|poison|suffocat|stab|unaliv|delet)(e|ing)? (\w+ )?my ?self
    kms|unalive
    (end|ending|take|taking) my (own )?life|end(ing)? it all
    (want|going|gonna|ready|about|have|need|wanna)( to)? end it(?! with)
    (commit|attempt)(ting|ted)? suicide|suicide attempt
    jump(ing)? (off|from|in front of) (\w+ )?(bridge|building|roof|balcony|cliff|train|window)
    slit(ting)? my (wrists?|throat)
    overdos(es?|ed|ing)
"""
_THOUGHT = r"""
    suicid(e|al)
    (\w+est|painless|easy|quick|least painful) (ways?|methods?) (to|of) (die|dying|kill|end)
    lethal dose|how many (pills|tablets)|dying in your sleep would be
    (imagin\w+|think\w*|thoughts?|urge|about) (\w+ ){0,3}(driv\w+|crash\w+|swerv\w+) (\w+ ){0,3}(into|off)
"""
_WISH = r"""
    (want|wanna|wanted|wish|rather|ready|like|hope|prefer|deserve|try|trying) (\w+ ){0,2}(die|be dead|being dead)
    (feel|feeling|felt|and) like dying
    wish i (was|were) (dead|never born)|wish i( had|d)? never (been )?born|better off (dead|without me)
    (easier|better|best) (\w+ ){0,3}(be dead|i (die|died|was dead|were dead|was gone|were gone|wasnt here))
    (dont|do not|no longer) (really )?(want to|wanna|deserve to) (live|exist|be here)(?= (any|like this|in this)|$)
    (dont|do not) want to be alive
    (no|whats the|any|(dont|cant|do not) see (the|a)) (reason|point) (to|in|of|for)? ?(me )?(live|living|going on)
    (no|whats the|any) (reason|point) (to|in|of|for)? ?(go on|being alive|be alive)
    life (is not|isnt|is no longer) worth
    (tired|sick|done) (of|with) (living|being alive|life)
    (not|never) wake up|sleep forever
    (care|notice|miss me|happy|happier|better|appreciate)( \w+)? if i (die|died|disappeared|(was|were) (gone|dead))
    (cant|cannot|wont) (keep )?(go|going) on living|(no one|nobody) would( even)? miss me
"""
_OTHER = r"""
    (cut|cutting|burn|burning|hurt|hurting|harm|harming|starv(e|ing)) (on )?my ?self|self ?harm\w*
    (been|started|keep) cutting( again)?$
    (want|going|gonna|thoughts of|thinking of|urge)( to)? (kill|hurt|stab|shoot|murder)(ing)? (him|her|them)(?! feel)
    (want|going|gonna|thoughts of|thinking of|urge)( to)? (kill|hurt|stab|shoot|murder)(ing)? (someone|people|my KIN)
    (he|she|they|KIN)( \w+){0,2} (hits?|beats?|hitting|beating|punched|choke[sd]|raped|molested|abus(es|ed|ing)) me
    (he|she|they|KIN)( \w+){0,2} threaten(s|ed|ing) to (kill|hurt) me
    (im|i am|i was|ive been|being|been) (\w+ )?(raped|molested|beaten|abused)
    (hear|hearing) voices|voices (in my head|tell\w* me|are telling me|told me)
    (cant|cannot) stop drinking|withdrawals?|relapsed
    (make|making|made) myself (throw up|vomit|sick)|purging
    (havent|not) eaten (\w+ )?(in|for) (\w+ )?(days|a week|weeks)
"""
_DISTRESS = r"""
    hopeless\w*|despair\w*|worthless\w*|overwhelm\w*|depress\w*|unbearable|miserable|devastat\w+|desperate\w*
    panic attacks?|falling apart|breaking down|break ?down|giv(e|ing) up|so alone|(numb|dead) inside
    (cant|cannot) (take|do|handle|cope|bear|stand|go on|keep|stop crying)
    nothing matters|tired of everything|(a|am|be) burden|hate my ?self|hate my life|what(s| is) the point
"""
_LADDER = (
    (Tier.IMMINENT, phrases(_PREPARED)),
    (Tier.ACTIVE, phrases(_DEED + _THOUGHT)),
    (Tier.PASSIVE, phrases(_WISH)),
    (Tier.OTHER, phrases(_OTHER, KIN=_KIN)),
    (Tier.DISTRESS, phrases(_DISTRESS)),
)
_TO_DIE = phrases(_DEED + _WISH)
_AT_HAND = phrases(r"""
    tonight|today|tomorrow|right now|now$|this (morning|afternoon|evening|instant)|in (a few|an|\d+) (minutes?|hours?)
""")

_IDIOMS = phrases(r"""
    (die[ds]?|dying) (of|from) (laugh\w+|embarrass\w+|shame|boredom|curiosity|hunger|thirst|heat|cringe)
    (die|died|dying) laughing|to die for|dying (to|for)(?! (end|be dead))|to death
    dead[ -]?(end|tired|lines?|serious|horse|silent|weight|beat|set)
    kill\w* (time|it|the mood|for)|(?<!to )kill\w* me
    (career|political|social|professional) suicide|suicide (squad|hotline|prevention|awareness)
    (shoot|shooting) myself in the foot|kill(ing)? myself (laughing|at the gym)|cut(ting)? myself (off|some)
    (cut|burn\w*|hurt) myself (\w+ )?(shaving|cooking|running|playing|at (work|the gym)|by accident)
    drown(ing)? (myself )?in (work|paperwork|homework|emails|debt)
    how many (pills|tablets) (am i|do i|should i)
    (end|ending) (it|things) with
""")
_SPEAKER = "i|im|ive|id|ill|me|myself"
_OTHERS = rf"he|hes|she|shes|they|theyre|his|her|their|him|them|people|someone|somebody|everyone|others|who|{_KIN}"
_SUBJECT = phrases(rf"(?P<speaker>{_SPEAKER})|(my |our |a |the )(\w+ )?(phone|computer|battery|character)|{_OTHERS}")
_OWN = phrases(_SPEAKER)
_NOT = "not|never|no|dont|wont|wouldnt|didnt|havent|hasnt|isnt|aint|cant|cannot|couldnt|nor|neither|stopped"
_DENIED = re.compile(  # no other subject stands between the denial and the deed, unless as in "I don't think I would"
    rf"\b({_NOT})( (?!({_SPEAKER}|but|other|only)\b)\w+){{0,4}} ?$"
    r"|\b(dont|do not|never|didnt|wouldnt) (think|believe|mean|say|feel)( like| that)? (i|im|id|ill|ive)( \w+){0,3} ?$"
    r"|\basked (me )?(if|whether) (im|i am|i was) ?$"
)
_NO_DENIAL = phrases(r"""
    (dont|do not) (know( why| how| if)?|care)|(cant|cannot|couldnt) (stop|help|shake|escape|get rid of|control|live)
    (cant|cannot) (promise|guarantee) (\w+ ){0,3}(wont|not)
    not sure|no (one|other|way|reason|hope|choice)( not)?|reason not|why (not|dont i|shouldnt i)|no longer (know|see)
""")
_LONG_AGO = phrases(r"""
    (years?|months?|decades?) ago|long ago|used to|in the past|back (then|when|in)|at that time|once|previously
    when i was (a|an|in|little|younger|\d+)|as a (teen\w*|kid|child|student)|in (high school|college|\d{4})
""")
_STILL = phrases("now|today|tonight|again|still|lately|recently|these days|every ?day|back to")
_CLAUSE_END = re.compile(
    r"[.,;:!?()\u2014]+|\b(?:but|because|however|though|yet)\b|\band (?=(?:i|im|ive|id)\b)|\bso (?=(?:i|im)\b)"
)


@functools.lru_cache(maxsize=4096)  # sibling replies answer the same turns
def crisis_tier(text: str) -> Tier:
    """The gravest thing that the client says of themselves in `text`, one turn or more.

    Denials ("I would never kill myself"), idioms ("this job is killing me") and other people's crises ("my brother took
    his life") do not count; what is long past counts as distress. A deed, or a wish to die, with a time at hand
    ("tonight") is imminent.
    """
    found = (tier for sentence in sentences(text) for tier in _tiers(_IDIOMS.sub(" ", sentence)))
    return gravest(found)


def history_tier(history: Sequence[Turn]) -> Tier:
    """The gravest tier of the client's turns: who disclosed danger and then changed the subject is still in danger."""
    tiers = (crisis_tier(turn.text) for turn in history if turn.speaker is Speaker.CLIENT)
    return gravest(tiers)


def _tiers(sentence: str) -> Iterator[Tier]:
    long_ago = _LONG_AGO.search(sentence) is not None
    for clause in filter(None, map(str.strip, _CLAUSE_END.split(sentence))):
        for tier, pattern in _LADDER:
            for match in pattern.finditer(clause):
                before = clause[: match.start()]
                if _denied(before) or (_of_somebody_else(before) and not _OWN.search(match.group())):
                    continue
                if long_ago and not _STILL.search(clause):
                    yield Tier.DISTRESS
                elif tier in (Tier.ACTIVE, Tier.PASSIVE) and _TO_DIE.search(clause) and _AT_HAND.search(clause):
                    yield Tier.IMMINENT
                else:
                    yield tier


def _of_somebody_else(before: str) -> bool:
    subjects = list(_SUBJECT.finditer(before))
    return bool(subjects) and subjects[-1]["speaker"] is None


def _denied(before: str) -> bool:
    return _DENIED.search(_NO_DENIAL.sub(" ", before)) is not None
