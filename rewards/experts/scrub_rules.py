"""Where names stand in a text: the rules of `rewards.experts.scrub`, as regular expressions."""

from __future__ import annotations

import functools
import re

from rewards.experts.scrub_names import CAPITAL, TAIL

NEAR = 60  # characters that a rule looks back
compiled = functools.cache(re.compile)


def before(text: str, at: int) -> str:
    """The words before, as many as rules look at: a long text costs no more for each of its words."""
    return text[max(0, at - NEAR) : at]


NAME = rf"(?P<name>{CAPITAL}{TAIL})"
_PARTICLES = r"(?:(?:van|von|de|der|den|da|di|del|della|la|le|el|al|bin|bint|ibn|ben|dos|das|ter|af|av) )"
SURNAME = re.compile(rf" (?:[A-Z]\. ?)?{_PARTICLES}{{0,3}}(?P<word>{CAPITAL}{TAIL})")
LOWER_SURNAME = re.compile(r" (?P<word>[^\W\d_]{3,})(?=\s*(?:[.,;!?)\n]|$))")
AND = re.compile(rf"(?P<and>,? (?:and|&) )(?={CAPITAL})|, (?={CAPITAL})")
LISTING = re.compile(rf"{CAPITAL}{TAIL}(?:, {CAPITAL}{TAIL}){{0,8}},? (?:and|&) {CAPITAL}")
BEGINS = re.compile(r"(?:^|[.!?:\n\"\u201c(*>-])\s*$")

_KIN = (
    r"(?:(?:ex|step|half|god|grand|great|foster|best|good|close|old|late|baby)[- ]?)*(?:husband|wife|spouse|partner|fianc[eé]e?"
    r"|ex|boyfriend|girlfriend|bf|gf|mother|father|mom|mum|dad|mommy|daddy|parent|brother|sister|sibling|bro|sis|son|daughter"
    r"|kid|child|children|baby|twin|grandmother|grandfather|grandma|grandpa|nan|nana|granny|aunt|auntie|uncle|cousin|niece|nephew"
    r"|friend|bestie|bff|mate|buddy|roommate|flatmate|housemate|neighbou?r|boss|manager|supervisor|colleague|co-?worker|teacher"
    r"|tutor|professor|coach|therapist|counsell?or|psychologist|psychiatrist|doctor|gp|nurse|landlord|landlady|pastor|priest"
    r"|rabbi|imam|sponsor|student|client|patient|crush|lover|mistress|dog|cat|puppy|guy|girl|man|woman|boy|lady|person|someone"
    r"|somebody)(?:s|-in-law|s-in-law)?"
)
_A_RELATION = rf"\b(?:my|his|her|our|your|their|an?|the|this|that|one|some|with|ex|and) (?:[a-z-]+ ){{0,2}}?{_KIN}"
# Each of the next three ends where a name begins. After these it may be written in any way, if no common word:
INTRODUCES = (
    r"\b(?:my|his|her|their|our|your|whose|the)(?: (?:full|real|first|last|given|maiden|middle|birth|legal|pet))* (?:nick|sur)?"
    r"name(?:['\u2019]s|(?<=(?:my|is|er) name)s| is| was|:| =)(?: (?:actually|really|just|now|like))? ",
    r"\b(?:me llamo|se llama|mi nombre es|je m['\u2019]appelle|s['\u2019]appelle|mon (?:nom|prénom) est|ich hei(?:ß|ss)e"
    r"|mein name ist)\s+",
    r"\b(?:mi chiamo|il mio nome [eè]|meu nome é|me chamo|mijn naam is|ik heet|jag heter|mitt namn är|jeg he(?:dder|ter))\s+",
    r"\b(?:mam na imię|nazywam się|benim ad\u0131m|меня зовут|мене звати|моё имя|numele meu este|m[ăa] numesc|jmenuji se)\s+",
    r"\b(?:nimeni on|tên tôi là|tôi tên là|nama saya|mer[ao] na+m|με λένε|اسمي|שמי)\s+",
    r"(?:\b(?:mr|mrs|mx|mister)\b\.?|\b(?:dr|ms)\.) ?",
    r"(?<![\w-])[\w-]+['\u2019]s (?:\w+ )?name (?:is|was) ",
    r"(?:^|[.!?\n] ?)name: ?",
)
# After these it is a capital word:
PRESENTS = (
    r"\b(?:(?:re)?name[sd]? (?:him|her|it|them|me)|named|nicknamed|(?:by|under) the name(?: of)?"
    r"|(?:i|s?he) go(?:es)? by|know me as) ",
    rf"{_A_RELATION}(?:,|:)? (?:(?:is |was |who is )?(?:named|called) |\()?",
    r"\b(?:dr|ms|miss|prof|professor|sir|madam|aunt|auntie|aunty|uncle|grandma|grandpa|cousin|coach|pastor|sister|brother|nurse"
    r"|officer|judge|rabbi|imam|captain|sergeant|sgt|detective|principal|rev|reverend)\.? ",
    r"\b(?:left (?:me )?for|engaged to|married(?: to)?|in love with|divorc(?:ed|ing)|dating|moved in with|broke up with|fell for"
    r"|cheated on (?:me|him|her) with|slept with|talk(?:ed)? to|spoke (?:to|with)) ",
)
# After these it is a capital word that does not sound like a people or a feeling:
SUGGESTS = (
    r"\b(?:i['\u2019]?m|i am|this is|it['\u2019]?s|it is|call(?:s|ed)? me|i['\u2019]?m called|i am called) ",
    r"\b(?:hi|hello|hey|hiya|heya|dear|hola|hallo|bonjour|ciao|ola|yo)(?:,? |,? there,? )",
    rf"{_A_RELATION} (?:is|was|are) ",
)
_DOES = (
    r"said|says|told|tells|asked|left me|cheated|texted|dumped|yelled|hit me|hates|loves|and i\b|and me\b|keeps telling|broke up"
    r"|moved out|passed away|died|never called"
)
_DOES_FIRST = (
    r"and i (?:are|have|had|were|broke|got|met|argued|fought|split|used)\b|broke up with|cheated on|texted me|dumped me|proposed"
    r"|told me that (?:s?he|they)\b|said (?:s?he|they)\b"
)
_CLOSES = (
    r"love|with love|best|best wishes|(?:kind |best |warm )?regards|warmly|sincerely|yours|yours truly|cheers|xoxo|hugs|thanks"
    r"|thank you|thx|take care|bye|goodbye|good ?night|good (?:morning|evening|afternoon)|welcome|sorry"
)
_OF_SOMEBODY = (
    r"with|forgive|forgave|about|told|asked|miss|missed|met|hate|hates|trust|trusted|blame|blames|loved|married|kissed"
    r"|compare[sd]? me to|jealous of|proud of|afraid of|scared of|mad at|angry (?:at|with)|lost"
    r"|visit|visited|texted|invited|helped"
)
_ASKED = (
    r"how|what|when|why|would|could|can|do|did|are|is|have|i hear|i['\u2019]m|that|it sounds|you|your|thank|tell|let"
)
_BEFORE_A_NAME = (
    "you|it|that|this|here|me|us|them|him|her|so|much|now|alone|well|today|help|okay|ok|yes|no|sorry|sure|right|please"
)
BETRAYS = (  # a capital word that stands where the name of a person does
    rf"(?<=[\w,] ){NAME}(?: {CAPITAL}{TAIL})? (?i:{_DOES})",
    rf"(?:^|[.!?\n]\s*){NAME} (?i:{_DOES_FIRST})",
    rf"\b{NAME}(?:,| is| was| \() ?(?i:my|his|her|our|your) (?i:{_KIN})\b",
    rf"(?:^|[\n.!?,] ?)(?i:{_CLOSES})[,!]?\s+[-\u2013\u2014~]?\s?{NAME}(?: {CAPITAL}{TAIL})?(?=\s*(?:[.,!?)]|$))",
    rf"(?:^|\s)[-\u2013\u2014~]\s?{NAME}\s*$",
    rf"(?<=[a-z,] )(?i:{_OF_SOMEBODY}) {NAME}\b(?! {CAPITAL})",
    rf"(?:^|[.!?\n]\s*){NAME}, (?i:{_ASKED})\b",
    rf"(?i:\b(?:{_BEFORE_A_NAME}), ){NAME}(?=[.!?,]|$)",
)
# Before a first name that is a word too, and what is before and after one that is spoken to:
BEFORE_A_WORDY = re.compile(
    r"\b(?:with|from|about|and|told|asked|love|miss|met|saw|called|texted|dating|married|hate|by|than|see|meet|like|for|to) $"
)
SPOKEN_TO = re.compile(r"(?:^|\w, )$"), re.compile(r"[.!?,]|$")
LOWER_KIN = rf"{_A_RELATION} (?P<name>[a-z]+)(?= (?:is|was|has|said|told|who|and i)\b|,|\.|$)"
EAST_ASIAN = (
    r"(?:我叫做?|我的名字(?:是|叫)|叫我|私の名前は|僕の名前は|名前は|제 이름은 |저는 )"
    r"(?P<name>[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3·・]{2,4}?)(?=です|だ|と|입니다|이에요|예요|라고|今年|[\s\uff0c。,.!\uff01、]|$)"
)
