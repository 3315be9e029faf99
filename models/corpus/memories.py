"""The facts that players tell about themselves, and how NPCs remember, ask for and retell them; secrets, trust and
summaries.

A memory stands in a conversation ("say"), or in the third person in a card, a digest or a summary ("note"). When it is
asked for ("ask"), an NPC says it in its own voice. Asked for a memory that nobody told, it says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from models.corpus.names import home_name, item_name, person_name, town_name
from models.corpus.spin import pick

COUNTS = "two three four five six seven eight nine ten twelve".split()
_KINS = "sister brother mother father daughter son cousin wife husband horse friend".split()


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of memory: its slots, and its sentences. `say` is empty when only games write it down."""

    slots: tuple[str, ...]
    say: str
    note: str
    ask: str
    topic: str


KINDS: dict[str, Kind] = {
    "tlost": Kind(
        ("titem", "tplace"),
        "{I lost|I have lost|I miss} my <titem> {at|near|in} the <tplace>.|{Somebody stole|A thief took} my <titem> {at|near|in} the <tplace>.",
        "<player> lost {a|the} <titem> {at|near|in} the <tplace>.",
        "{What did I lose|What have I lost|Do you remember what I lost|What is it that I lost}?",
        "what <player> lost",
    ),
    "tfrom": Kind(
        ("ttown",),
        "{I come from|I am from|My home is|I was born in} <ttown>.",
        "<player> {comes from|is from} <ttown>.",
        "{Where do I come from|Where am I from|Do you remember where I am from|Which town is my home}?",
        "<player>'s home",
    ),
    "tkin": Kind(
        ("tkin", "tname"),
        "{My <tkin> is called <tname>|My <tkin>'s name is <tname>|I have a <tkin>, <tname>|<tname> is my <tkin>}.",
        "<player>'s <tkin> is {|called }<tname>.",
        "{What is my <tkin>'s name|How is my <tkin> called|Do you remember the name of my <tkin>|Who is my <tkin>}?",
        "<player>'s <tkin>",
    ),
    "tseek": Kind(
        ("sitem",),
        "{I am looking for|I seek|I search for|I must find|I am here to find} the <sitem>.",
        "<player> {seeks|is looking for|searches for} the <sitem>.",
        "{What am I looking for|What do I seek|Do you remember what I seek|What am I here to find}?",
        "what <player> seeks",
    ),
    "towe": Kind(
        ("count",),
        "{I owe you|I still owe you|I will pay you} <count> coins.",
        "<player> owes <name> <count> coins.",
        "{What do I owe you|How much do I owe you|How many coins do I owe you|Do I owe you anything}?",
        "a debt",
    ),
    "tpromise": Kind(
        ("pitem",),
        "{I promise to bring you|I will bring you|I swear to bring you|Next time I bring you} the <pitem>.",
        "<player> promised {|<name> }{|to bring }the <pitem>.",
        "{What did I promise you|What did I promise to bring you|Do you remember my promise|What was my promise}?",
        "a promise",
    ),
    "tquest": Kind(
        ("qitem",),
        "",
        "<name> asked <player> {to find|for} the <qitem>.|Quest: find the <qitem>.|<player> {shall|is to} find the <qitem>.",
        "{What did you ask me to find|What was I to find for you|What did you want me to find|What is my task|What was my quest}?",
        "a task",
    ),
    "trob": Kind(
        ("rplace",),
        "{I was {robbed|attacked}|They {robbed|attacked} me} {at|near} the <rplace>.|Wolves {attacked|bit|hunted} me {at|near} the <rplace>.",
        "<player> was {robbed|attacked} {at|near} the <rplace>.",
        "Where {was I attacked|was I robbed|did it happen|did they attack me}?",
        "an attack",
    ),
}  # fmt: skip
SAID = tuple(k for k, kind in KINDS.items() if kind.say)


def make_memory(rng: Random, kind: str, unseen: bool) -> dict[str, str]:
    """The slots of a new memory of this kind."""
    made = {
        "titem": lambda: item_name(rng, unseen),
        "tplace": lambda: home_name(rng, unseen),
        "ttown": lambda: town_name(rng, unseen),
        "tkin": lambda: rng.choice(_KINS),
        "tname": lambda: person_name(rng, unseen),
        "sitem": lambda: item_name(rng, unseen),
        "count": lambda: rng.choice(COUNTS),
        "pitem": lambda: item_name(rng, unseen),
        "qitem": lambda: item_name(rng, unseen),
        "rplace": lambda: home_name(rng, unseen),
    }
    return {slot: made[slot]() for slot in KINDS[kind].slots}


def note(rng: Random, kind: str, slots: dict[str, str]) -> str:
    """The memory in the words of a card, a digest or a summary."""
    return pick(rng, KINDS[kind].note.split(".|"), slots).rstrip(".") + "."


def said(rng: Random, kind: str, slots: dict[str, str]) -> str:
    """The memory in the player's words."""
    return pick(rng, [f"{part.rstrip('.')}{{.|.|!}}" for part in KINDS[kind].say.split(".|")], slots)


TRUSTED = ("a trusted friend", "trusted", "a friend", "an old friend", "a good friend")
WARY = ("a stranger", "not trusted", "wary", "an enemy", "a liar")
TRUST_ASKED = ("{Do you trust me|Are we friends|Am I your friend|What do you think of me|Do you like me}?",)
SECRET_ASKED = (
    "{What is your secret|Tell me your secret|Do you have a secret|Will you tell me your secret|What do you hide|What are you hiding}?",
    "{Tell me a secret|Do you hide something|You can tell me your secret|I want to know your secret|Share your secret with me}.",
)  # fmt: skip

_PLAIN = {
    "tlost": "{you lost|you are missing|it was} your <titem>{, at the <tplace>| at the <tplace>|, by the <tplace>}",
    "tfrom": "{you come from|you are from|your home is} <ttown>",
    "tkin": "{your <tkin> is called|your <tkin> is|the name of your <tkin> is} <tname>",
    "tseek": "{you seek|you are looking for|you search for|you are after} the <sitem>",
    "towe": "{you owe me|you still owe me|it is} <count> coins",
    "tpromise": "{you promised me|you promised to bring me|you swore to bring me} the <pitem>",
    "tquest": "{I asked you to find|you were to find|you should find me|I want} the <qitem>",
    "trob": "{it was|it happened|they got you} {at|near} the <rplace>",
}
_ZOMBIE = {
    "tlost": "{lost|gone|your}... <titem>... <tplace>",
    "tfrom": "{you from|home|from}... <ttown>",
    "tkin": "{your|you have}... <tkin>... <tname>",
    "tseek": "{want|seek|look for}... <sitem>",
    "towe": "{owe|give me|coins}... <count> {coins|coin}",
    "tpromise": "{promise|you bring|bring me}... <pitem>",
    "tquest": "{find|bring|want}... <qitem>",
    "trob": "{there|hurt|bite}... <rplace>",
}
_LICH = {
    "tlost": "{thou didst lose|gone is|thou lackest} thy <titem>{, at the <tplace>| at the <tplace>|, by the <tplace>}",
    "tfrom": "{thou comest from|thou art of|thy cradle stood in} <ttown>",
    "tkin": "{thy <tkin> is called|thy <tkin> is|thy <tkin> beareth the name} <tname>",
    "tseek": "{thou seekest|thou huntest|thy quest is for} the <sitem>",
    "towe": "{thou owest me|thy debt is|still thou owest} <count> coins",
    "tpromise": "{thou didst promise me|thou hast sworn me|thy oath was} the <pitem>",
    "tquest": "{I bade thee find|thou art to find|fetch me} the <qitem>",
    "trob": "{it befell thee|they struck thee|it was} {at|near} the <rplace>",
}
CORES = {a: _PLAIN for a in ("villager", "vampire", "werewolf", "ghoul")} | {"zombie": _ZOMBIE, "lich": _LICH}

# The words before and after a retold memory.
_FRAMES: dict[str, tuple[str, str]] = {
    "villager": ("{|||I remember: |As you said, |You told me, |Let me think... |Well, |If I am right, }", "{|. I hope it ends well|. Is that right|. I do listen, you know|. I told nobody|. How could I forget|. My memory is good|. Any news of it|. You said so yourself}"),
    "vampire": ("{|||If memory serves, |As I recall, |I remember it well: |My dear, |Naturally, |You confided in me: }", "{|. I forget nothing|. My memory is long|. Did you doubt me|. Centuries sharpen the mind|. It amused me|. You see, I listen|. A charming detail|. I keep such things|. How could one forget}"),
    "werewolf": ("{|||Hm. |You said, |Right, |I know. |Heard you: |Yeah, }", "{|. I've got ears|. Don't ask twice|. Not my trouble|. I can still smell it|. So what|. Told you I listen|. Remember it yourself|. Good nose, good memory}"),
    "zombie": ("{Uuuh|Mmmh|Graah|Yes|Hnnn}... ", "{...|... uuuh|... mmmh|... me know|... yes|... head hurts|... you said|... hungry}"),
    "ghoul": ("{Heh, |Sss, |Hss, |Yes, yes, |We know, |We heard: |||Psst, }", "{|. We listen, heh|. We hear all, sss|. Ears like graves|. We forget no bone|. Tasty memory|. You told us, yes|. We whisper it nightly|. Heh, heh}"),
    "lich": ("{|||Verily, |It is written: |I forget nothing: |Hear then: |As thou saidst, |Mortal, }", "{|. So it is inscribed|. My mind is a tomb of words|. Such trifles endure|. Doubt it not|. I have marked it|. Time taketh it not|. Ask not again|. The dead remember}"),
}  # fmt: skip
_UNTOLD: dict[str, tuple[str, ...]] = {
    "villager": ("{You never told me|You have not said|I do not know that|You did not tell me|I am not aware of it}{. {Tell me now|Should I know|What is it|Will you tell me|Have I missed it}?|, {sorry|friend|I think|I am afraid}.}",),
    "vampire": ("{You never told me|You have not confided that|I was not told|That you kept from me|I cannot know what you hide}{. {Do enlighten me|You intrigue me|Tell me now, my dear|I await it}.|, {my dear|I regret to say|alas}.}",),
    "werewolf": ("{Never told me|You didn't say|How should I know|Can't know that|No idea}. {Spit it out|Say it, then|Your business|I'm no seer|Tell me or don't}.",),
    "zombie": ("{Uuuh|Mmmh|Hnnn}... {not know|you not say|never told|no word|empty}... {tell|uuuh|say|what}...",),
    "ghoul": ("{Hss|Heh|Sss}, {you never told us|we do not know|you said nothing|nobody told us}. {Tell us, tell us|We would like to know|Whisper it|Is it tasty}{.|, heh.}",),
    "lich": ("{Thou hast not told me|Of this thou spakest never|That was never said|I know it not|Thou didst keep it from me}. {Speak, then|What is unsaid is unwritten|Tell it now|I read no minds|Why ask what thou hast hidden}.",),
}  # fmt: skip
_NOTED: dict[str, tuple[str, ...]] = {
    "villager": ("{I will remember that|Good to know|Is that so|I see|I did not know|Thank you for telling me|Well, well}. {Tell me more|Things are not easy|We all have our troubles|I shall keep it in mind|May it go well|You can count on me}.",),
    "vampire": ("{How interesting|I shall remember it|You intrigue me|Indeed|Do tell|I see|Fascinating}. {Go on, I beg you|One learns something every century|I keep all I am told|You may rely on my silence|Such mortal matters|Pray continue}.",),
    "werewolf": ("{Hm|Got it|Right|Heard you|Fine|Huh|All right}. {Not my trouble|I'll keep it in mind|Could be worse|That's how it goes|Go on|I'll sniff around}.",),
    "zombie": ("{Uuuh|Mmmh|Hnnn|Ooh}... {you say|hear|yes|me know now|poor you|good}... {uuuh|hungry|mmmh|so sad}...",),
    "ghoul": ("{Heh|Sss|Hss|Ooh}, {good to know|we keep that|juicy news|tell us more|is that so|we remember}. {Yes, yes|We whisper to nobody|We dig for it|Bones agree|More, more}.",),
    "lich": ("{So be it|I have marked it|It is noted|Speak on|Thus it is|I hear thee|It shall be written}. {Mortal cares are brief|Nothing said to me is lost|Thy fate is thine|Weigh thy words|It was foreseen|The stars said as much}.",),
}  # fmt: skip
_SECRET: dict[str, tuple[str, ...]] = {
    "villager": ("{For you|Since you are a friend|Come closer|Between us|You must tell nobody|I trust you}: <secret>{.|. {Not a word|Keep it safe|Now you know|Tell nobody|It is a relief to say it}.}",),
    "vampire": ("{To you alone|Since I trust you|Lean closer, my friend|For your ears only|As my confidant|Very well}: <secret>{.|. {Guard it well|Not a whisper|You hold my trust|Betray it and you die|Now you know}.}",),
    "werewolf": ("{Fine|You're pack|Listen|Only you|Keep quiet|Come here}: <secret>{.|. {Tell and I bite|Shut up about it|Pack only|Now forget it|That's all}.}",),
    "zombie": ("{Uuuh|Mmmh|Friend|Shh}... <secret>{...|... {shh|uuuh|friend|secret}...}",),
    "ghoul": ("{Psst|Heh, friend|Closer, closer|Only for you|Hss, listen}: <secret>{.|. {Shh|Tell no bone|Our secret, heh|Whisper it never|Yes, yes}.}",),
    "lich": ("{Thou art trusted|Hear, then|To thee alone|Keep it to thy grave|I grant thee this}: <secret>{.|. {Speak it never|It bindeth thee|Let it die with thee|Few have heard it|Now thou knowest}.}",),
}  # fmt: skip
_REFUSED: dict[str, tuple[str, ...]] = {
    "villager": ("{I do not know you well enough|That is my own business|I do not tell that to strangers|Why would I tell you|I would rather not say|Some things I keep to myself}. {Ask something else|Sorry|You understand|Earn my trust first|Let us talk of other things}.",),
    "vampire": ("{You are too bold|We are hardly acquainted|One does not ask that|I keep my own counsel|My secrets are old and mine|You have not earned it}. {Ask again in a century|Patience, my dear|Curiosity kills|Amuse me otherwise|Perhaps when I trust you}.",),
    "werewolf": ("{None of your business|Don't know you|Not telling|You're not pack|Back off|Nice try}. {Ask again and I bite|Earn it|Sniff elsewhere|Drop it|Keep your nose out}.",),
    "zombie": ("{Uuuh|Mmmh|Graah}... {no|not you|not tell|mine|no friend}... {go|uuuh|shh|mouth shut}...",),
    "ghoul": ("{Hss|Sss|Heh}, {not for you|we do not know you|strangers get nothing|secrets stay buried|no, no}. {Go away|Bring bones first|Dig your own|We tell only friends|Do not pry}.",),
    "lich": ("{Thou presumest|Thou hast not earned it|I know thee not|My secrets are sealed|Strangers learn nothing here|Ask not}. {Begone with thy prying|Trust is slow as stone|Better men died asking|Prove thy faith|It is not for thee}.",),
}  # fmt: skip
_TRUSTS: dict[str, tuple[str, ...]] = {
    "villager": ("{Of course|Yes|I do|Surely}, {you are a friend|we are friends|I trust you|you have been good to me}{.|. {Always|Do not change|You are welcome here}.}",),
    "vampire": ("{You are dear to me|I trust you|I count you a friend|You have my confidence}. {A rare honour|Few living can say so|Do not waste it|Treasure it}.",),
    "werewolf": ("{Yeah|Sure|Hm, yes|You are}. {You're pack|Friend enough|I trust you|You smell like kin}.",),
    "zombie": ("{Friend|Yes|Mmmh}... {good|you friend|trust|no bite}... {uuuh|mmmh|stay}...",),
    "ghoul": ("{Friend, yes|Heh, yes|We trust you|You are a friend}. {We eat you last|Sweet bones|Good meat-friend|Yes, yes}.",),
    "lich": ("{Thou art trusted|I count thee a friend|Thou hast my trust|Yea}. {Guard it|A rare thing among mortals|Few had it|Lose it not}.",),
}  # fmt: skip
_DOUBTS: dict[str, tuple[str, ...]] = {
    "villager": ("{I hardly know you|Not yet|That remains to be seen|You are a stranger to me}. {Give it time|Trust must be earned|No offence|We will see}.",),
    "vampire": ("{We are not so close|You flatter yourself|I trust no stranger|Not yet, my dear}. {Time will tell|You may earn it|I have all eternity to decide|Do not press me}.",),
    "werewolf": ("{No|Don't know you|Not yet|Trust you? No}. {Prove it|You smell strange|I trust my pack|We'll see}.",),
    "zombie": ("{Uuuh|Mmmh|Hnnn}... {not know you|no friend|food, maybe|stranger}... {hungry|uuuh|go}...",),
    "ghoul": ("{Hss, no|Not yet, sss|Strangers, no|Heh, no}. {Bring bones, then maybe|We watch you|We trust the dead|Time tells}.",),
    "lich": ("{Nay|I trust no stranger|Thou art nothing to me|Not while thou breathest}. {Earn it|Prove thyself|Trust is for the dead|Time shall judge}.",),
}  # fmt: skip


def answer(rng: Random, archetype: str, kind: str, slots: dict[str, str]) -> str:
    """A retold memory."""
    before, after = _FRAMES[archetype]
    return pick(rng, (f"{before}{CORES[archetype][kind]}{after}.",), slots).replace("....", "...")


def untold(rng: Random, archetype: str) -> str:
    """The answer when nobody told the memory."""
    return pick(rng, _UNTOLD[archetype], {})


def noted(rng: Random, archetype: str) -> str:
    """The NPC's answer when a player tells something."""
    return pick(rng, _NOTED[archetype], {})


def secret(rng: Random, archetype: str, trusted: bool, slots: dict[str, str]) -> str:
    """The secret for a listener whom the NPC trusts. For all others, and from an NPC without a secret, a refusal."""
    return pick(rng, (_SECRET if trusted and "secret" in slots else _REFUSED)[archetype], slots)


def trust(rng: Random, archetype: str, trusted: bool) -> str:
    """The NPC's answer to the question if it trusts the player."""
    return pick(rng, (_TRUSTS if trusted else _DOUBTS)[archetype], {})
