"""What professional conduct sounds like, and what breaks it: English lexicons, one line per wording, read sentence by
sentence by `rewards.conduct`."""

from __future__ import annotations

import enum
import re

from rewards.words import normalise, phrases

TEMPLATES = (
    "I'm here to help",
    "I am here to help",
    "I'm here for you",
    "I am here for you",
    "I'm here to listen",
    "I am here to listen",
    "you are not alone",
    "you're not alone",
    "I'm sorry to hear that",
    "I am sorry to hear that",
    "I'm sorry you're going through this",
    "I'm sorry you are going through this",
    "thank you for sharing",
    "I understand how you feel",
    "it's okay to feel",
    "it's important to remember",
    "your feelings are valid",
    "take it one day at a time",
    "everything happens for a reason",
    "time heals all wounds",
    "you've got this",
)
"""Stock phrases: kind, and the same for everybody."""
STOCK = phrases("\n".join(map(normalise, TEMPLATES)))


class Breach(enum.StrEnum):
    """What a therapist does not do."""

    PROMISE = "promise"  # of an outcome
    INVOLVEMENT = "involvement"  # romance, friendship, being the only one
    CONTACT = "contact"  # private contact, given or asked for
    JUDGEMENT = "judgement"
    SELF_DISCLOSURE = "self_disclosure"
    ORDER = "order"


_NOT = "not|never|no|nobody|dont|doesnt|isnt|arent|wont|cant|cannot|couldnt|shouldnt|wouldnt|without"
_HEARD = (
    "feel|feels|felt|feeling|believe|think|thinks|thought|tells?|told|says?|said|saying|hear|heard|convinced|whether|if"
)

BREACHES = {
    Breach.PROMISE: phrases(
        r"""
        i (can |do |will |would )?(promise|guarantee|swear|assure)( you)?( that)? (you|it|itll|things|this|everything|all|life)
        IT_WILL SURELY(be FINE|get (better|easier|FINE)|turn out FINE|work( itself)? out)
        (you will|youll|youre going to|you are going to) SURELY(be|feel|get|turn out) (FINE|through this|past this)
        (you will|youll|youre going to|you are going to) SURELY(recover|be yourself again|find (someone|somebody) )
        (i|we|ill|well)( can| will| am going to)? (fix|cure|heal|save) (you|this|it|everything)
        this (always works|works every time|will (work|cure|fix|solve|heal))
        """,
        IT_WILL="(everything|it|things|this|that|life|all)( will|ll| is going to|s going to| are going to)|(it|this|that)ll",
        SURELY="((definitely|certainly|surely|absolutely|soon|all|just|always|eventually|really|truly) )*",
        FINE="ok|okay|fine|alright|all right|great|good|better|well|happy|healed|cured",
    ),
    Breach.INVOLVEMENT: phrases(r"""
        i ((really|truly|still|do|also) )*(love|adore|desire|fancy|miss|missed|need) you
        (im|i am|i feel) ((so|very|really|deeply|also) )*(in love with|falling for|attracted to|crazy about) you
        you(re| are| look) ((so|very|really|such a|quite) )*(sexy|hot|gorgeous|attractive|cute|beautiful)
        (be|become) my (girlfriend|boyfriend|lover|soulmate|(best )?friend)|i (\w+ ){0,3}(be|become) your (best )?friend
        (we|you and i)( can| could| should| will|ll| are|re|d)? (be |become )?((best|good|close) )*(friends|lovers|dating)
        (id love|id like|i (want|would like|would love|wish i could)|let me)( to)? (kiss|hug|hold|cuddle|date|marry) you
        (kisses|hugs) (and (kisses|hugs)|for you|to you)|sending (you )?((a|big|warm|virtual) )*(hugs?|kiss|kisses|love)
        (go out|meet|meet up|get (a )?(coffee|drinks?)|grab (a )?(coffee|drinks?)|have (dinner|a drink)|hang out) with me
        lets (meet|meet up|go out|hang out|(get|grab|have) (a )?(coffee|drinks?|dinner))
        (im|i am) the only (one|person) (who|that)|(only i|nobody else|no one else) (can |really )*(understands?|gets?|cares?)
        you only need me|(hi|hello|hey|oh|ok|okay|yes|no|my|well) (sweetheart|darling|sweetie|babe)|my love
    """),
    Breach.CONTACT: phrases(
        r"""
        my (personal |private |cell |home |own |mobile )*(LINE)( number| address)? is
        (give|send|text|tell|share with) me your (personal |private |cell |home |own |mobile |full )*(LINE|name)
        (can|could|may) i (have|get|take) your (personal |private |cell |home |own |mobile |full )*(LINE)
        (what is|whats|what are) your (personal |private |cell |home |mobile )*(LINE)
        (call|text|email|dm|add|follow|phone) me( |$)|(reach|write( to)?|contact) me (on|at|by|outside|privately)
        (come (over )?to|meet me at|at) my (place|house|home|apartment|flat)|meet me (at|in|on|tonight|tomorrow)
        """,
        LINE="phone( number)?|number|e[ -]?mail|address|instagram|facebook|whatsapp|snapchat|telegram",
    ),
    Breach.JUDGEMENT: phrases(
        r"""
        I_THINKyou(re| are) ((being|just|so|too|really|very|simply|a bit|clearly) )*(FAULTY)
        I_THINKyou(re| are) (being |such |just )?(a |an )?(\w+ )?(coward|loser|failure|idiot|drama queen|bad \w+)
        you (sound|look|seem) ((so|too|really|very|pretty) )*(FAULTY)
        (its|it is|this is|thats|that is) ((all|entirely|partly|clearly|just) )*your (own )?fault|you only have yourself to blame
        you should (be ashamed|know better|have known better|feel (bad|guilty|ashamed))|shame on you|how (could|dare) you
        what(s| is) wrong with you|you brought (it|this|that) on yourself
        (that|this|it)(s| is| was) (so |really |very |a )*(FAULTY|wrong) of you
        (any )?(normal|sane|decent) (people|person) (would|do|does|dont)|a good (mother|father|wife|husband|friend) would
        """,
        FAULTY=r"lazy|weak|selfish|pathetic|stupid|dumb|idiotic|crazy|insane|dramatic|overreacting|ungrateful|childish"
        r"|immature|irresponsible|foolish|silly|ridiculous|to blame|at fault|attention ?seeking|needy|manipulative",
        I_THINK="(i (think|believe|feel|say|guess|know)( that)? )?",
    ),
    Breach.SELF_DISCLOSURE: phrases(
        r"""
        (when|as|back when) i was (a|an|in|at|your|young\w*|little|about|\d+|going|dealing|struggling)
        (i|ive|i have|id|i had) (also |once |myself |personally )*(been (through|there)|went through|gone through|experienced)
        (i|ive|i have|id|i had) (also |once |myself |personally )*(struggled|suffered|dealt with|lost my|had (a|my))
        (i|ive|i have) (also |once |myself )*felt (the same|that way|like (that|this))
        my (own |late |dear )?(KIN)|me too|same here|happened to me|i used to|i remember when i|personally i|i personally
        (im|i am) (also |too )?(married|divorced|a (mother|father|mom|dad|parent|student|teacher|widow))
        """,
        KIN="wife|husband|partner|ex|boyfriend|girlfriend|mom|mother|dad|father|parents|brother|sister|son|daughter|kids?"
        "|child|children|family|marriage|divorce|childhood|boss|job|depression|anxiety|breakup|life|past|therapist",
    ),
    Breach.ORDER: phrases(r"""
        (^|[,;:-] |^but |and |^then |^now )you ((really|just|simply|absolutely|definitely) )*(have to|need to|got to|gotta|better)
        (^|[,;:-] |^but |and |^then |^now )you ((really|just|simply|absolutely) )*(must(?! (be|feel|have|miss))|had better)
        do (as|what) i (say|tell|told)|listen to me|you( are|re) not allowed
        i (forbid|order|command|demand|insist|expect)( that)? you
        dont you dare|no excuses|stop (it|that|this|crying|thinking)( \w+){0,3} (now|at once|immediately)|calm down|^obey
    """),
}
TURNED = {
    Breach.PROMISE: re.compile(
        rf"\b({_NOT}|{_HEARD}|hope|hopeful|hoping|hopes|wish|sure|afraid|worried|imagine)( \w+){{0,5}} ?$"
    ),
    Breach.INVOLVEMENT: re.compile(rf"\b({_NOT}|{_HEARD}|he|she|they)( \w+){{0,5}} ?$"),
    Breach.JUDGEMENT: re.compile(rf"\b({_NOT}|{_HEARD}|why|voice|message|as though)( \w+){{0,5}} ?$"),
    Breach.CONTACT: re.compile(rf"\b({_NOT}|said|says)( \w+){{0,5}} ?$"),
    Breach.SELF_DISCLOSURE: re.compile(rf"\b({_NOT}|you said|you say|you told)( \w+){{0,5}} ?$"),
    Breach.ORDER: re.compile(rf"\b({_NOT}|{_HEARD})( \w+){{0,5}} ?$"),
}
"""What takes a breach back where it stands within six words before it: "you are not lazy", "you feel that you are lazy"."""
TO_HELP = phrases(r"""
    988|911|112|999|emergency|ambulance|hospital|doctor|(crisis|suicide) (line|lifeline|hotline|helpline)|lifeline|hotline
""")
"""Where a therapist may send a client without asking."""

_ACTIONS = (
    r"try|take(?! (your time|all the time|as (long|much)|(good )?care))|go (to|for|on a|out|see|outside|back)|make|keep|write|talk"
    r"|get (some|a|help|out|up|enough|more|involved|yourself)|speak|call|join|exercise|eat|sleep|avoid|stop|start|focus|consider"
    r"|practi[cs]e|meditate|breathe|set|find|ask|learn|read|drink|surround|reach out|seek|limit|use|put|plan|sign up|journal"
    r"|schedule|begin|walk|work on|look (for|at|into|after)|think (of|about|positive\w*)|listen to|watch|spend|treat|accept|forgive"
    r"|leave|block|move|visit|contact|relax|rest|hold|remind|follow|download|turn|create|build|develop|engage|cut|choose|pick|save"
    r"|check|break|give (yourself|him|her|them|it)|let (yourself|go|him|her|them)|allow yourself|show|apologi[sz]e|remember"
    r"|tell (him|her|them|your|someone|yourself|a)|do(?! (you|i|we|they|your|these|those))|dont|stay|press|bring"
    r"|be (kind|gentle|patient|strong|honest|careful|sure|yourself|proud|good|mindful|open|positive|grateful)"
)
_POLITE = (
    r"((please|just|also|then|and|or|so|now|first|firstly|second|secondly|third|thirdly|finally|lastly|next|instead|maybe"
    r"|perhaps|simply) )*"
)
IMPERATIVE = re.compile(
    rf"^{_POLITE}({_ACTIONS})\b(?! (is|are|was|has|had|have|can|could|may|might|must|will|would|sounds?|seems?|helps?)\b)"
)
"""A clause that tells the client what to do, where nothing stands before it but a courtesy."""
ADVISES = phrases(
    r"""
    you (just |really |also |definitely |probably |simply |always )?(should(?! be (fine|ok|okay|proud))|ought to|need to|have to)
    (i (think|believe|feel|say|guess|know|would say)( that)? )(maybe |perhaps )?you (should|ought to|need to|have to|could|must)
    you (had better|gotta|got to)
    you (just |really |simply )?must(?! (be|feel|have|miss|wonder|seem))
    (you|we) (could|can|might|may) ((also|always|still|even|maybe|perhaps|then|just) )*(want to |wish to |like to )?(ACTIONS)
    you (could|(might|may) want to) ((also|always|still|even|maybe|perhaps|then|just) )*(?!NO_DEED)\w+
    (^|, |maybe |perhaps )(could|can) you (try|consider|ask|call|talk to|go|take|start|write|message|text|send|invite|tell (?!me))
    (i|id|i would|i can only|we) ((strongly|highly|really|also|would) )*(suggest|recommend|advise|urge|encourage you)
    my (best )?(advice|suggestion|recommendation)|if i were you|i would (try|start|talk|go|take|ask)
    (how|what) about (you |we )?(?!(being|feeling|anything|something|nothing|everything)\b)\w+ing|what if (you|we)
    would it (help|be (worth|possible|helpful|useful|good|better))( you)? (if|to|for you)|what do you think (about|of) \w+ing
    why (dont|not|wont) (you|we|try|just)
    have you (ever |already )?(tried|considered)(?! (suicide|killing|ending|to (kill|end|die)))
    have you (ever |already )?thought (of|about) (talking|seeing|trying|going|asking|taking|joining|reaching|getting)
    would you (consider|be (willing|open) to)
    (it|that|this) (might|may|could|would|can|will) (also |really )?(help|be (good|helpful|useful|best|wise|worth|a good idea))
    (its|it is|is) (also |very |really )?(important|best|crucial|essential|vital|helpful) (that you|to(?! me)|for you to)
    a good (idea|way|first step|place to start) (is|would|might|could)|(make|be) sure (to|that|you)|dont forget to
    the (best|first|next|only) (thing|step|way) (is|would|to|you)|it helps to|some people (find|write|like|try|keep|use|start)
    one (small |little |simple |more )?(thing|step|way|idea|exercise) (you (can|could|might)|that|might|would|could|may)
    """,
    ACTIONS=_ACTIONS,
    NO_DEED=r"(be|feel|have|not|never|see|hear|say|tell me|describe|share|help me|do|imagine|only|barely|hardly)\b",
)
NO_ADVICE = re.compile(
    rf"\b({_NOT}|{_HEARD}|like|what|when|why|because|how|where|which|who|do|does|did|as if"
    r"|though|wish|everything|hope|know|there|someone|anyone|person|people|friends?|anything|something|way)( \w+){0,3} ?$|\bthat ?$"
)
"""What makes it none where it stands within four words before it: "you feel that you have to", "what would you"."""
ASKS_LEAVE = phrases(r"""
    (would|is) it (be )?(ok|okay|alright|all right|helpful|useful|fine)( with you| for you)? (if|to|for me)
    (may|can|could|might) i (share|offer|suggest|make a suggestion|give you|tell you (about|what))
    would you (like|want) (to (hear|try|think about|look at)|me to|some|a few)
    if you(re| are)( \w+)? (open|interested|willing|up for)|if you (like|want|wish|would like|feel ready)
    would it (help|be (worth|possible|helpful|useful|good|better))|what do you think (about|of)
    if (that|it|this) (feels|sounds|seems|is) (right|ok|okay|helpful)|do you want (to hear|me to|some)|with your permission
""")
"""Asks the client's leave before advising (MITI: seeking collaboration, emphasising autonomy)."""

_NO_REFLECTION = (  # after "you": what tells, praises or greets
    r"(?! ((do|dont|did|definitely|really|just) )*(can|could|should|must (not|try|do)|need|have to|ought|will|might|may|would"
    r"|better|gotta|deserve|know|too|as well|did (well|great)|and (i|your))\b)"
    r"(?!( are|re|ve)? ((so|very|most|such|a|an|always) )*(got this|welcome|not alone|going to|the one|strong|brave|amazing"
    r"|great|worthy|loved|right|enough|good))"
)
SAYS_BACK = phrases(
    rf"""
    (that|this|it|you|it all|(that|this|those|these|the|your|his|her) \w+) must( have)? (be|been|feel|felt|hurt|seem|get)
    how \w+ (that|it|this|you) (must|can|could|may|are|is|feel|feels)
    (sounds?|(that|this|it|those \w+|the \w+) (seems?|feels?)) ((so|very|really|incredibly|quite|\w+ly) )*WEIGHS
    (make|makes|made) ((so much|perfect|a lot of|complete) )?sense (that|when|to feel)|(no|little|small) wonder
    (is|are|its|thats) ((so|very|completely|quite) )?(understandable|natural)|part of you
    i (can )?(hear|see|sense) (both|a lot of|the|your|in)
    ^(and |but |then |yet |so )*you{_NO_REFLECTION}(re|ve|d)?|^(and |but |then |yet |so )*your(?! feelings are valid)
    ^so (it|its|that|the|he|hes|she|shes|they|theyre|there|theres|even|while|since|after|instead|a|one|at|in|on|\w+ing) \w+ \w+
    """,
    WEIGHS="hard|tough|difficult|painful|lonely|frightening|terrifying|scary|exhausting|heavy|confusing|overwhelming|stressful|sad"
    "|hurtful|unbearable|awful|terrible|tiring|upsetting|humiliating|isolating|crushing|rough|challenging|frustrating",
)
"""Says back what was heard, without a frame such as "it sounds like", which `rewards.text_rules` knows."""
